"""How throughput and memory grow with entities at a constant number of rows, and with partitions and windowers.

What is measured here is what `docs/scaling.md` computes with.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import msgspec
import redis
from rich.console import Console

from benchmarks.measure import Machine, describe_machine
from benchmarks.rig import Rig, make_rig, measure_taking, unwinding_on_sigterm
from benchmarks.workload import MANY_NUMERIC, make_family, make_values, to_samples
from deploy.demo_report import ServerReport
from deploy.demo_view import DemoView
from deploy.replay import send
from deploy.servers import Servers, running_servers
from stream.logs import configure_logging
from stream.topics import TELEMETRY


class Load(NamedTuple):
    """How much is measured. rows: of all entities together, in each run, a third of them before it is looked at.

    What it costs to take a new entity is not in the throughput: an installation does that once.
    """

    entities: tuple[int, ...] = (10, 100, 1000, 10_000)
    partitions: tuple[int, ...] = (1, 2, 4)
    workers: tuple[int, ...] = (1, 2)
    rows: int = 240_000
    seed: int = 0


class _Filled(NamedTuple):
    """What a topic holds, and the room of its family's rings."""

    entities: int
    partitions: int
    rows: int
    slack: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """One run. slack: rows of a ring beyond the window. memory_mib: peak of all windowers. redis_mib: of the rings."""

    entities: int
    partitions: int
    windowers: int
    rows: int
    slack: int
    samples_per_s: float
    samples_per_s_per_core: float
    memory_mib: float
    redis_mib: float


class GrowthReport(msgspec.Struct, frozen=True, kw_only=True):
    """by_entities: one windower, four partitions. by_partitions: a hundred entities."""

    by_entities: list[Growth]
    by_partitions: list[Growth]
    channels: int
    seed: int
    broker: ServerReport
    redis: ServerReport
    machine: Machine


def run(console: Console, load: Load | None = None) -> GrowthReport:
    """Measure, print and return how throughput and memory grow."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine = describe_machine()
    with unwinding_on_sigterm(), running_servers(view) as servers:
        by_entities = [_step(view, servers, load, entities, 4, 1) for entities in load.entities]
        pairs = [(p, w) for p in load.partitions for w in load.workers if w <= p]
        by_partitions = [_step(view, servers, load, 100, partitions, windowers) for partitions, windowers in pairs]
    return GrowthReport(
        by_entities=by_entities,
        by_partitions=by_partitions,
        channels=MANY_NUMERIC.channels,
        seed=load.seed,
        broker=servers.broker,
        redis=servers.redis,
        machine=machine,
    )


def _step(view: DemoView, servers: Servers, load: Load, entities: int, partitions: int, windowers: int) -> Growth:
    name = f"{entities:,} entities, {partitions} partitions, {windowers} windowers"
    with view.step(name) as step, _filled(servers, load, entities, partitions) as (rig, filled):
        found = _measure(rig, servers, filled, windowers)
        step.done(f"{found.samples_per_s_per_core:,.0f} samples/s a core, {found.memory_mib:,.0f} MiB")
    return found


@contextmanager
def _filled(servers: Servers, load: Load, entities: int, partitions: int) -> Iterator[tuple[Rig, _Filled]]:
    rows = -(-load.rows // entities)
    slack = max(1024, rows)
    family = make_family(MANY_NUMERIC, slack)
    with make_rig(servers, family, partitions=partitions) as rig:
        values = make_values(MANY_NUMERIC, entities, rows, load.seed)
        sent = send(rig.settings, to_samples(family, values), rows_per_s=None, stop=threading.Event())
        yield rig, _Filled(entities, partitions, sent.rows, slack)


def _measure(rig: Rig, servers: Servers, filled: _Filled, windowers: int) -> Growth:
    """Start as many windowers as wanted, and measure from the first commit seen to the last."""
    with rig.follow("windower", TELEMETRY) as done, ExitStack() as stack:
        before = _redis_mib(servers)
        running = [
            stack.enter_context(rig.serve("windower", TELLTALE_INSTANCE=str(number))) for number in range(windowers)
        ]
        taken = measure_taking(running, done, filled.rows, after=filled.rows // 3)
        return Growth(
            **filled._asdict(),
            windowers=windowers,
            samples_per_s=round(taken.records / taken.wall_s, 1),
            samples_per_s_per_core=round(taken.records / taken.cpu_s, 1),
            memory_mib=round(sum(one.watch.peak_mib for one in running), 1),
            redis_mib=round(_redis_mib(servers) - before, 1),
        )


def _redis_mib(servers: Servers) -> float:
    client = redis.Redis.from_url(servers.redis_url)
    try:
        return float(client.info("memory")["used_memory"]) / 2**20
    finally:
        client.close()
