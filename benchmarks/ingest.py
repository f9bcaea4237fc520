"""How fast the windower puts telemetry into windows: decoding, grid, Redis, notices and transactions, as a service.

The topic is filled before the service starts. No worker runs; the ring has room for every row, so back-pressure never
sets in and the windower alone is measured.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from rich.console import Console

from benchmarks.measure import Machine, Spread, bucket_quantile, describe_machine, spread
from benchmarks.opponents import MISSING, Opponent, measure_opponents
from benchmarks.rig import Rig, RunningService, make_rig, measure_taking, unwinding_on_sigterm
from benchmarks.stack_profile import StackProfile
from benchmarks.workload import MANY_NUMERIC, make_family, make_values, to_blocks, to_samples
from deploy.demo_report import ServerReport
from deploy.demo_view import DemoView
from deploy.replay import send
from deploy.servers import Servers, running_servers
from stream.logs import configure_logging
from stream.topics import TELEMETRY
from stream.windower import run_windower

_AT_LEAST_ONCE = "benchmarks.at_least_once"
_LIMIT_S = 120.0
_POLL_S = 0.02
# As columns the same rows would be gone before they could be measured.
_COLUMNS_MORE = 4
_PARTS = {
    "TransactionalLoop._consume": "Kafka: consume",
    "TransactionalLoop._commit": "Kafka: produce and commit",
    "RedisWindowStore.write_rows": "Redis",
    "RedisWindowStore.save_heads": "Redis",
    "decode_records": "decode",
    "Windower._apply": "fold",
    "Windower._notice": "notices",
    "Windower._write": "encode",
    "Windower._save": "encode",
}


class Load(NamedTuple):
    """How much is measured. rows: of each entity and run, in whole hops. peer_seconds: for each opponent at most."""

    entities: int = 64
    rows: int = 4096
    runs: int = 5
    columns_runs: int = 3
    peer_seconds: float = 10.0
    seed: int = 0


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """The windower's figures; medians over runs, whose spread is in `spreads`.

    samples_per_s: rows by wall time, from the first commit seen to the last. samples_per_s_per_core: the same rows by
    CPU seconds of all the windower's threads, as JSON or as columns (a hop's rows in one record). commit_ms: of a whole
    transaction. memory_mib: peak. time_shares: of the main thread, from one more run in process. exactly_once_cost: how
    many times as fast, by wall time, the same job runs without transactions (`benchmarks/at_least_once.py`); every run
    has its counterpart right after it. peers: samples a second and core of opponents that decode the same JSON topic
    and keep a window of each entity in memory, nothing more; none, with a note why, where their environment is missing.
    peers_samples_per_s: by wall time.
    """

    samples_per_s: float
    samples_per_s_per_core: float
    columns_samples_per_s_per_core: float
    commit_ms_p50: float
    commit_ms_p99: float
    memory_mib: float
    exactly_once_cost: float
    exactly_once_cost_per_core: float
    at_least_once_samples_per_s: float
    entities: int
    channels: int
    rows: int
    slack: int
    record_bytes: int
    seed: int
    time_shares: dict[str, float]
    peers: dict[str, float]
    peers_samples_per_s: dict[str, float]
    peers_note: str
    spreads: dict[str, Spread]
    broker: ServerReport
    redis: ServerReport
    machine: Machine


class _Run(NamedTuple):
    samples_per_s: float
    samples_per_s_per_core: float
    commit_ms_p50: float
    commit_ms_p99: float
    memory_mib: float


class _Costs(NamedTuple):
    exactly_once_cost: float
    exactly_once_cost_per_core: float
    at_least_once_samples_per_s: float


def run(console: Console, load: Load | None = None) -> IngestReport:
    """Measure, print and return the windower's figures."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine = describe_machine()
    runs: list[_Run] = []
    costs: list[_Costs] = []
    columns: list[_Run] = []
    more = load._replace(rows=_COLUMNS_MORE * load.rows)
    with unwinding_on_sigterm(), running_servers(view) as servers:
        for number in range(load.runs):
            with view.step(f"run {number + 1} of {load.runs}") as step, _filled(servers, load) as rig:
                runs.append(_measure(rig, load))
                step.done(_told(runs[-1]))
            with view.step("the same at least once") as step, _filled(servers, load) as rig:
                costs.append(_costs(runs[-1], _measure(rig, load, module=_AT_LEAST_ONCE)))
                step.done(f"{costs[-1].exactly_once_cost:.2f} times as fast")
        for number in range(load.columns_runs):
            name = f"columns, run {number + 1} of {load.columns_runs}"
            with view.step(name) as step, _filled(servers, more, columns=True) as rig:
                columns.append(_measure(rig, more, records=_blocks(more)))
                step.done(_told(columns[-1]))
        with _filled(servers, load) as rig:
            with view.step("where the time goes") as step:
                shares = _profile(rig, load)
                step.done(", ".join(f"{part} {share:.0%}" for part, share in shares.items()))
            with view.step("opponents") as step:
                peers = measure_opponents(rig.settings, load.entities * load.rows, load.peer_seconds)
                told = [f"{name} {one.samples_per_s_per_core:,.0f} samples/s a core" for name, one in peers.items()]
                step.done(", ".join(told) or MISSING)
    per_core = {"columns_samples_per_s_per_core": spread([run.samples_per_s_per_core for run in columns], 2)}
    return _report(load, _spreads(runs) | _spreads(costs) | per_core, shares, peers, servers, machine)


def _told(run: _Run) -> str:
    return f"{run.samples_per_s:,.0f} samples/s, {run.samples_per_s_per_core:,.0f} a core"


def _spreads(runs: Sequence[_Run] | Sequence[_Costs]) -> dict[str, Spread]:
    return {name: spread([getattr(run, name) for run in runs], 2) for name in runs[0]._fields}


def _costs(once: _Run, at_least_once: _Run) -> _Costs:
    return _Costs(
        at_least_once.samples_per_s / once.samples_per_s,
        at_least_once.samples_per_s_per_core / once.samples_per_s_per_core,
        at_least_once.samples_per_s,
    )


def _report(
    load: Load,
    spreads: dict[str, Spread],
    shares: dict[str, float],
    peers: dict[str, Opponent],
    servers: Servers,
    machine: Machine,
) -> IngestReport:
    return IngestReport(
        **{name: one.median for name, one in spreads.items()},
        entities=load.entities,
        channels=MANY_NUMERIC.channels,
        rows=load.entities * load.rows,
        slack=_slack(load),
        record_bytes=_record_bytes(load),
        seed=load.seed,
        time_shares=shares,
        peers={name: round(one.samples_per_s_per_core, 1) for name, one in peers.items()},
        peers_samples_per_s={name: round(one.samples_per_s, 1) for name, one in peers.items()},
        peers_note="" if peers else MISSING,
        spreads=spreads,
        broker=servers.broker,
        redis=servers.redis,
        machine=machine,
    )


def _blocks(load: Load) -> int:
    """Return how many records the load is as columns."""
    return load.entities * -(-load.rows // make_family(MANY_NUMERIC, _slack(load)).hop)


def _slack(load: Load) -> int:
    return max(load.rows, make_family(MANY_NUMERIC, 1024).geometry.slack)


def _record_bytes(load: Load) -> int:
    sample = next(to_samples(make_family(MANY_NUMERIC, _slack(load)), make_values(MANY_NUMERIC, 1, 1, load.seed)))
    return len(msgspec.json.encode(sample))


@contextmanager
def _filled(servers: Servers, load: Load, *, columns: bool = False) -> Iterator[Rig]:
    """Give a rig whose telemetry topic holds the load."""
    family = make_family(MANY_NUMERIC, _slack(load))
    with make_rig(servers, family) as rig:
        values = make_values(MANY_NUMERIC, load.entities, load.rows, load.seed)
        if columns:
            send(rig.settings, to_blocks(family, values), rows_per_s=None, stop=threading.Event())
        else:
            send(rig.settings, to_samples(family, values), rows_per_s=None, stop=threading.Event())
        yield rig


def _measure(rig: Rig, load: Load, *, records: int | None = None, module: str = "telltale") -> _Run:
    """Let a windower take all records, which are as many as rows if not said otherwise."""
    total = records or load.entities * load.rows
    with rig.follow("windower", TELEMETRY) as done, rig.serve("windower", module=module) as windower:
        taken = measure_taking([windower], done, total)
        rows = load.entities * load.rows * taken.records / total
        return _figures(windower, rows, taken.wall_s, taken.cpu_s)


def _figures(windower: RunningService, rows: float, wall_s: float, cpu_s: float) -> _Run:
    commits = windower.buckets("telltale_txn_commit_seconds")
    p50, p99 = (1000 * bucket_quantile(commits, share) for share in (0.5, 0.99))
    return _Run(rows / wall_s, rows / cpu_s, p50, p99, windower.watch.peak_mib)


def _profile(rig: Rig, load: Load) -> dict[str, float]:
    """Run the same service in this process and look where its main thread is from the first commit to the last."""
    total, stop, profile = load.entities * load.rows, threading.Event(), StackProfile(_PARTS)
    main_thread, end = threading.get_ident(), time.monotonic() + _LIMIT_S

    def watch() -> None:
        with rig.follow("windower", TELEMETRY) as done:
            _wait(lambda: done() > 0, end)
            with profile.watching(main_thread):
                _wait(lambda: done() >= total, end)
        stop.set()

    watcher = threading.Thread(target=watch, name="watch")
    watcher.start()
    run_windower(rig.settings, stop)
    watcher.join()
    return profile.shares()


def _wait(condition: Callable[[], bool], end: float) -> None:
    while not condition() and time.monotonic() < end:
        time.sleep(_POLL_S)
