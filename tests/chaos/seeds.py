"""One seed from its first record to the verdict."""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploy.local_stack import LocalStack
from stream.settings import Settings
from tests.chaos import plan
from tests.chaos.lingering import prepare
from tests.chaos.oracle import Difference, Oracle
from tests.chaos.plan import Fault
from tests.chaos.rig import GEOMETRY, Load, attacked, declare, publish_model, read_found, servers, wait_for_scores
from tests.chaos.workload import Workload, count_rows

# Without a single new score for so long, nothing more will come.
PATIENCE_S = 90.0
_FAULTS = 1000
_LONGEST_FAILURE = 2000


class Size(NamedTuple):
    """How much one seed sends, and how fast."""

    rows: int = 300_000
    entities: int = 300
    rows_per_s: float = 2500.0


class SeedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one seed did and found. samples: rows of telemetry sent. scores: provisional and final ones expected.

    kills: services killed by SIGKILL. zombies: services stopped beyond their session that went on. flushes: times that
    Redis lost everything. missing, repeated, wrong: scores, verdicts, alerts and dead letters together. failure: why a
    service ended by itself, or not when it was asked to.
    """

    seed: int
    samples: int
    kills: int
    zombies: int
    flushes: int
    joins: int
    restarts: int
    broker_restarts: int
    scores: int
    missing: int
    repeated: int
    wrong: int
    alerts: int
    dead_letters: int
    seconds: float
    drain_s: float
    faults: list[Fault]
    examples: list[str]
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.missing + self.repeated + self.wrong and not self.failure


def run_seed(
    seed: int, size: Size, *, faults: Iterable[Fault] | None = None, breaking: str | None = None
) -> SeedReport:
    """Run one seed on servers of its own.

    faults: instead of those that the seed draws, while the load lasts. breaking: which promise to break on purpose.
    """
    with servers("chaos") as (stack, folder):
        return _run(seed, size, folder, stack, faults, breaking)


def _run(
    seed: int,
    size: Size,
    folder: Path,
    stack: LocalStack,
    faults: Iterable[Fault] | None,
    breaking: str | None,
) -> SeedReport:
    began = time.monotonic()
    records = Workload(GEOMETRY, seed=seed, entities=size.entities, rows=size.rows).records
    model = publish_model(folder / "registry")
    oracle = Oracle(model, records)
    addresses = stack.start()
    settings = declare(model, folder / "registry", addresses.bootstrap, addresses.redis_url, f"chaos{seed}.")
    suffered: list[Fault] = []
    failure, drained = "", time.monotonic()
    try:
        with attacked(stack, settings, folder, partial(prepare, breaking)) as rig:
            with Load(settings, records, size.rows_per_s) as load:
                if breaking:  # a fault before there is anything to lose would show nothing
                    wait_for_scores(settings, 1, PATIENCE_S, rig.services.check)
                for fault in _while_loaded(load, faults if faults is not None else plan.draw(seed, _FAULTS)):
                    suffered.append(fault)
                    rig.suffer(fault)
            drained = time.monotonic()
            wait_for_scores(settings, oracle.scored_rows, PATIENCE_S, rig.services.check)
            drain_s = time.monotonic() - drained
    except AssertionError as error:  # a service ended by itself, or did not end when asked to
        what, _, log = str(error).partition("\n")
        failure, drain_s = f"{what}\n{log[-_LONGEST_FAILURE:]}", time.monotonic() - drained
    report = _report(seed, count_rows(records), suffered, oracle, settings)
    return msgspec.structs.replace(
        report, seconds=round(time.monotonic() - began, 1), drain_s=round(drain_s, 1), failure=failure
    )


def _while_loaded(load: Load, faults: Iterable[Fault]) -> Iterator[Fault]:
    """Yield each fault when its time has come, with that time, until everything is sent."""
    began = time.monotonic()
    for fault in faults:
        time.sleep(fault.pause_s)
        if not load.running:
            return
        yield msgspec.structs.replace(fault, began_s=round(time.monotonic() - began, 2))


def _report(seed: int, samples: int, suffered: list[Fault], oracle: Oracle, settings: Settings) -> SeedReport:
    found = read_found(settings)
    difference: Difference = oracle.compare(found)

    def count(*kinds: str) -> int:
        return sum(fault.kind in kinds for fault in suffered)

    return SeedReport(
        seed=seed,
        samples=samples,
        kills=count("kill")
        + 2 * count("crash")
        + sum(fault.hard for fault in suffered if fault.kind in ("zombie", "join")),
        zombies=count("zombie"),
        flushes=count("flush", "redis restart") + sum(f.meanwhile for f in suffered if f.kind in _HELD),
        joins=count("join"),
        restarts=count("restart"),
        broker_restarts=count("broker restart"),
        scores=oracle.scored_rows,
        missing=difference.counts["missing"],
        repeated=difference.counts["repeated"],
        wrong=difference.counts["wrong"],
        alerts=len(found.alerts),
        dead_letters=len(found.dead_letters),
        seconds=0.0,
        drain_s=0.0,
        faults=suffered,
        examples=difference.examples,
    )


_HELD = ("kill", "zombie", "join", "restart")
