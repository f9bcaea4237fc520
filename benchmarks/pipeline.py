"""What the whole pipeline does on one machine: memory at rest, rows a second, and how late an alert is.

Every figure is of windower and worker as services on real Kafka and Redis. At full speed the topic is filled before
they start; for latency, rows with spikes are produced at half of the speed found, all entities side by side, so that
their windows end together.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

import msgspec
import numpy as np
from rich.console import Console

from benchmarks.latency import Latencies, measure_latency
from benchmarks.measure import Machine, Spread, describe_machine, spread
from benchmarks.overload import Overload, measure_overload
from benchmarks.rig import Rig, RunningService, make_rig, unwinding_on_sigterm
from benchmarks.workload import FEW_NUMERIC, Shape, make_family, make_values, publish_model, to_samples
from deploy.demo_report import ServerReport
from deploy.demo_view import DemoView
from deploy.local_stack import status
from deploy.replay import send
from deploy.servers import Servers, running_servers
from detector.registry import Registry
from stream.errors import TransientError
from stream.logs import configure_logging
from stream.topics import TELEMETRY
from training.presets import PRESETS

_SETTLE_S = 2.0
_LIMIT_S = 150.0
_POLL_S = 0.1
_SCORED = "telltale_rows_scored_total"
_GEOMETRY = PRESETS["small"].geometry


class Load(NamedTuple):
    """How much is measured. worker_rows, rows: of each entity, at most; what is not done in `seconds` is left.

    parts: stretches that the rate is taken over, one by one.
    """

    shape: Shape = FEW_NUMERIC
    entities: int = 64
    worker_rows: int = 3072
    rows: int = 4096
    seconds: float = 12.0
    latency_seconds: float = 15.0
    overload_seconds: float = 10.0
    parts: int = 5
    spike_every: int = 384
    batch_windows: int = 64
    threads: int = 0
    seed: int = 0


class PipelineReport(msgspec.Struct, frozen=True, kw_only=True):
    """The pipeline's figures.

    rows_per_s: rows that get their first score, windower and worker at work together; a median over stretches of the
    run. worker_rows_per_s: the same of the worker with all windows ready. Per core: by a service's CPU seconds.
    latency_ms: from the produce call of the row that ends a window to its alert at a reader of committed records,
    rows coming at `latency_rows_per_s`. memory_mib: peaks of the services at full speed, and what servers of the
    local stack hold. idle_memory_mib: with everything loaded and nothing to do. overload: at twice `rows_per_s`.
    """

    rows_per_s: float
    worker_rows_per_s: float
    worker_rows_per_s_per_core: float
    rows_per_s_per_core: dict[str, float]
    latency_ms_p50: float
    latency_ms_p99: float
    latency_ms_max: float
    latency_rows_per_s: float
    latency_alerts: int
    overload: Overload
    memory_mib: dict[str, float]
    idle_memory_mib: dict[str, float]
    spreads: dict[str, Spread]
    entities: int
    channels: int
    numeric: int
    preset: str
    starts: int
    worker_threads: int
    seed: int
    broker: ServerReport
    redis: ServerReport
    machine: Machine


class _Speed(NamedTuple):
    """Rows a second by stretch, and per service its peak memory and the rows per CPU second of its own."""

    rows_per_s: list[float]
    memory_mib: dict[str, float]
    rows_per_core: dict[str, float]


def run(console: Console, load: Load | None = None) -> PipelineReport:
    """Measure, print and return the pipeline's figures."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine = describe_machine()
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_sigterm())
        servers = stack.enter_context(running_servers(view))
        registry = stack.enter_context(_model(load, view))

        def rig(slack: int = _GEOMETRY.slack) -> AbstractContextManager[Rig]:
            family = make_family(load.shape, max(slack, _GEOMETRY.slack))
            worker = {"threads": load.threads, "batch_windows": load.batch_windows}
            return make_rig(servers, family, registry=registry, worker=worker)

        with view.step("memory at rest") as step, rig() as resting:
            idle = _idle_memory(resting)
            step.done(", ".join(f"{name} {mib:,.0f} MiB" for name, mib in idle.items()))
        with view.step("worker alone") as step, rig(load.worker_rows) as filled:
            alone = _worker_speed(filled, load)
            step.done(f"{spread(alone.rows_per_s).median:,.0f} rows/s, {alone.rows_per_core['worker']:,.0f} a core")
        with view.step("windower and worker") as step, rig() as filled:
            both = _pipeline_speed(filled, load, servers)
            step.done(f"{spread(both.rows_per_s).median:,.0f} rows/s")
        with view.step("latency") as step, rig() as live:
            late = _latency(live, load, spread(both.rows_per_s).median / 2)
            step.done(f"{late.p50_ms:,.0f} ms, {late.p99_ms:,.0f} ms at worst in a hundred, {late.alerts} alerts")
        with view.step("twice as much as it keeps up with") as step, rig() as flooded:
            much = _overload(flooded, load, spread(both.rows_per_s).median)
            step.done(
                f"{much.unscored} rows unscored, {much.latency_ms_max:,.0f} ms at most, "
                f"recovered in {much.recovered_s} s after {much.seconds:.0f} s"
            )
    return _report(load, idle, alone, both, late, much, servers, machine)


def _report(
    load: Load,
    idle: dict[str, float],
    alone: _Speed,
    both: _Speed,
    late: Latencies,
    much: Overload,
    servers: Servers,
    machine: Machine,
) -> PipelineReport:
    spreads = {"rows_per_s": spread(both.rows_per_s), "worker_rows_per_s": spread(alone.rows_per_s)}
    return PipelineReport(
        rows_per_s=spreads["rows_per_s"].median,
        worker_rows_per_s=spreads["worker_rows_per_s"].median,
        worker_rows_per_s_per_core=alone.rows_per_core["worker"],
        rows_per_s_per_core=both.rows_per_core,
        latency_ms_p50=late.p50_ms,
        latency_ms_p99=late.p99_ms,
        latency_ms_max=late.max_ms,
        latency_rows_per_s=late.rows_per_s,
        latency_alerts=late.alerts,
        overload=much,
        memory_mib=both.memory_mib,
        idle_memory_mib=idle,
        spreads=spreads,
        entities=load.entities,
        channels=load.shape.channels,
        numeric=load.shape.numeric,
        preset="small",
        starts=len(PRESETS["small"].scoring.starts),
        worker_threads=load.threads,
        seed=load.seed,
        broker=servers.broker,
        redis=servers.redis,
        machine=machine,
    )


def _server_memory(servers: Servers) -> dict[str, float]:
    if servers.broker.kind == "given":
        return {}
    stack = status()
    return {"kafka": float(stack.kafka.resident_mib), "redis": float(stack.redis.resident_mib)}


@contextmanager
def _model(load: Load, view: DemoView) -> Iterator[str]:
    """Give a registry with a promoted model of the small preset."""
    with tempfile.TemporaryDirectory(prefix="telltale-bench-") as folder:
        with view.step("model") as step:
            manifest = publish_model(Registry(folder), load.shape, PRESETS["small"].scoring.starts, load.seed)
            step.done(f"{manifest.version}, one train step, calibrated")
        yield folder


def _idle_memory(rig: Rig) -> dict[str, float]:
    with _serving(rig) as services:
        for service in services:
            service.wait_ready()
        time.sleep(_SETTLE_S)
        return {service.name: service.watch.resident_mib() for service in services}


def _worker_speed(rig: Rig, load: Load) -> _Speed:
    """Let the windower put everything into windows first; the ring has room for that."""
    rows = _fill(rig, load, load.worker_rows)
    with rig.follow("windower", TELEMETRY) as done, rig.serve("windower") as windower:
        windower.wait_until(lambda: done() >= rows, _LIMIT_S, "to take all rows")
    with rig.serve("worker") as worker:
        return _speed([worker], load, rows)


def _pipeline_speed(rig: Rig, load: Load, servers: Servers) -> _Speed:
    rows = _fill(rig, load, load.rows)
    with _serving(rig) as services:
        speed = _speed(services, load, rows)
        return speed._replace(memory_mib=speed.memory_mib | _server_memory(servers))


def _latency(rig: Rig, load: Load, rows_per_s: float) -> Latencies:
    with _serving(rig) as services:
        for service in services:
            service.wait_ready()
        wanted = int(rows_per_s * load.latency_seconds / load.entities)
        # An entity is learned for one window before anything of it can alarm, and then there must be spikes.
        rows = max(rig.settings.families[0].length + 4 * load.spike_every, wanted)
        return measure_latency(rig.settings, load.shape, load.entities, rows, rows_per_s, load.spike_every, load.seed)


def _overload(rig: Rig, load: Load, rows_per_s: float) -> Overload:
    with _serving(rig) as services:
        for service in services:
            service.wait_ready()
        # As much as it takes for alerts to be possible, see _latency.
        least = load.entities * (rig.settings.families[0].length + 4 * load.spike_every) / (2 * rows_per_s)
        return measure_overload(
            rig.settings,
            services[-1],
            load.shape,
            load.entities,
            rows_per_s=rows_per_s,
            seconds=max(load.overload_seconds, least),
            spike_every=load.spike_every,
            seed=load.seed,
        )


@contextmanager
def _serving(rig: Rig) -> Iterator[list[RunningService]]:
    with ExitStack() as stack:
        yield [stack.enter_context(rig.serve(name)) for name in ("windower", "worker")]


def _fill(rig: Rig, load: Load, rows: int) -> int:
    """Put so many rows an entity onto the topic, up to a whole hop, and return how many that are."""
    whole = rows // _GEOMETRY.hop * _GEOMETRY.hop
    values = make_values(load.shape, load.entities, whole, load.seed)
    sent = send(rig.settings, to_samples(rig.settings.families[0], values), rows_per_s=None, stop=threading.Event())
    return sent.rows


def _speed(services: list[RunningService], load: Load, rows: int) -> _Speed:
    """Measure from a twentieth of the rows on, until all are scored or the time is up."""
    worker = services[-1]
    worker.wait_until(lambda: worker.metric(_SCORED) >= rows / 20, _LIMIT_S, "to score its first rows")
    begin, cpu = time.perf_counter(), [service.watch.cpu_s() for service in services]
    points = [(begin, worker.metric(_SCORED))]
    while points[-1][1] < rows and points[-1][0] < begin + load.seconds:
        time.sleep(0.2)
        points.append((time.perf_counter(), worker.metric(_SCORED)))
    rates, rows_done = _by_stretch(points, load.parts), points[-1][1] - points[0][1]
    per_core = {
        service.name: round(rows_done / (service.watch.cpu_s() - before), 1)
        for service, before in zip(services, cpu, strict=True)
    }
    return _Speed(rates, {service.name: service.watch.peak_mib for service in services}, per_core)


def _by_stretch(points: list[tuple[float, float]], parts: int) -> list[float]:
    """Return the rate of each of so many stretches of equal length."""
    at, rows = np.array(points).T
    if len(at) < 2:
        raise TransientError("everything was scored before it could be measured: put more rows into the load")
    edges = np.linspace(at[0], at[-1], parts + 1)
    rates: list[float] = (np.diff(np.interp(edges, at, rows)) / np.diff(edges)).tolist()
    return rates
