"""Soak: hours of load at 70 % of what the pipeline can take, with faults at random; memory and descriptors must stay.

`make soak MINUTES=n [JSON=out.json]`. Windower and worker of instance 0 live through all of it, so that a leak shows:
they are frozen, replaced for a while and come back, their servers come and go, but they are not killed. Exits with 1 if
the oracle finds a difference or a service grows.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import psutil

from benchmarks.rig import unwinding_on_sigterm
from deploy.local_stack import LocalStack
from detector.models import Model
from stream.settings import Settings
from tests.chaos import plan
from tests.chaos.lingering import prepare
from tests.chaos.oracle import Oracle
from tests.chaos.plan import Fault
from tests.chaos.rig import GEOMETRY, Load, Rig, attacked, declare, publish_model, read_found, servers, wait_for_scores
from tests.chaos.seeds import PATIENCE_S
from tests.chaos.workload import Sending, Workload, count_rows

SERVICES = ("windower", "worker")
LOAD = 0.7
_ENTITIES = 100
# What is sent at once to see how fast it is scored.
_BURST_ROWS = 30_000
# More than these would not fit into this process; the load is less than 70 % then, and the report says so.
_MOST_ROWS = 2_000_000
_SAMPLE_S = 5.0
# Of the run's last two thirds. An allocator's noise in a few minutes is more than a leak's in an hour.
MOST_MIB_PER_HOUR, LEAST_GROWTH_MIB = 20.0, 20.0
MOST_DESCRIPTORS = 8


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one service took of the machine, after a third of the run. slope: of a straight line through the samples."""

    service: str
    memory_mib: float
    growth_mib: float
    slope_mib_per_hour: float
    descriptors_before: int
    descriptors_after: int

    @property
    def flat(self) -> bool:
        """Whether it has not grown."""
        grown = self.slope_mib_per_hour > MOST_MIB_PER_HOUR and self.growth_mib > LEAST_GROWTH_MIB
        return not grown and self.descriptors_after - self.descriptors_before <= MOST_DESCRIPTORS


class SoakReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole soak. load: share of the capacity that was measured before. faults: how often each kind came."""

    minutes: float
    samples: int
    capacity_rows_per_s: float
    rows_per_s: float
    load: float
    missing: int
    repeated: int
    wrong: int
    examples: list[str]
    faults: dict[str, int]
    usage: list[Usage]

    @property
    def passed(self) -> bool:
        """Whether nothing differed and nothing grew."""
        return not self.missing + self.repeated + self.wrong and all(usage.flat for usage in self.usage)


class Sampler:
    """Memory and open descriptors of the services over time."""

    def __init__(self, rig: Rig) -> None:
        """Remember the processes."""
        self._processes = {name: psutil.Process(rig.services.pid(name)) for name in SERVICES}
        self._samples: list[tuple[float, dict[str, tuple[float, int]]]] = []

    def look(self) -> None:
        """Take a sample if it is time."""
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_S:
            seen = {n: (p.memory_info().rss / 2**20, p.num_fds()) for n, p in self._processes.items()}
            self._samples.append((now, seen))

    def usage(self, service: str) -> Usage:
        """Summarise the last two thirds."""
        kept = self._samples[len(self._samples) // 3 :]
        hours = np.array([(at - kept[0][0]) / 3600 for at, _ in kept])
        memory = np.array([seen[service][0] for _, seen in kept])
        descriptors = [seen[service][1] for _, seen in kept]
        half = len(kept) // 2
        return Usage(
            service=service,
            memory_mib=round(float(memory[-1]), 1),
            growth_mib=round(float(memory[half:].mean() - memory[:half].mean()), 1),
            slope_mib_per_hour=round(float(np.polyfit(hours, memory, 1)[0]), 1),
            descriptors_before=max(descriptors[:half]),
            descriptors_after=max(descriptors[half:]),
        )


def soak(minutes: float, seed: int) -> SoakReport:
    """Run the pipeline for so long on servers of its own."""
    with servers("soak") as (stack, folder):
        model = publish_model(folder / "registry")
        addresses = stack.start()
        declared = partial(declare, model, folder / "registry", addresses.bootstrap, addresses.redis_url)
        capacity = _capacity(stack, declared("burst."), folder, model)
        rows_per_s = min(LOAD * capacity, _MOST_ROWS / (60 * minutes))
        records = Workload(GEOMETRY, seed=seed, entities=_ENTITIES, rows=int(rows_per_s * 60 * minutes)).records
        report = _soak(stack, declared("soak."), folder, model, records, rows_per_s, seed)
    share = rows_per_s / capacity
    return msgspec.structs.replace(report, capacity_rows_per_s=round(capacity), load=round(share, 2))


def _capacity(stack: LocalStack, settings: Settings, folder: Path, model: Model) -> float:
    """Return how many rows a second are scored when more wait."""
    records = Workload(GEOMETRY, seed=0, entities=_ENTITIES, rows=_BURST_ROWS).records
    wanted = Oracle(model, records).scored_rows
    with attacked(stack, settings, folder, partial(prepare, None)) as rig:
        wait_for_scores(settings, 1, 5.0, rig.services.check)
        began = time.monotonic()
        with Load(settings, records, 1e6):
            pass
        found = wait_for_scores(settings, wanted, PATIENCE_S, rig.services.check)
        assert found == wanted, f"the burst has {found} scores, wanted {wanted}"
        return len(records) / (time.monotonic() - began)


def _soak(
    stack: LocalStack,
    settings: Settings,
    folder: Path,
    model: Model,
    records: Sequence[Sending],
    rows_per_s: float,
    seed: int,
) -> SoakReport:
    began = time.monotonic()
    suffered: list[str] = []
    with attacked(stack, settings, folder, partial(prepare, None)) as rig:
        sampler = Sampler(rig)
        with Load(settings, records, rows_per_s) as load:
            for fault in plan.draw(seed, 100_000):
                _wait(10.0 + 5 * fault.pause_s, load, rig, sampler)
                if not load.running:
                    break
                rig.suffer(_survivable(fault))
                suffered.append(_survivable(fault).kind)
        oracle = Oracle(model, records)
        wait_for_scores(settings, oracle.scored_rows, PATIENCE_S, rig.services.check)
        usage = [sampler.usage(service) for service in SERVICES]
    difference = oracle.compare(read_found(settings))
    return SoakReport(
        minutes=round((time.monotonic() - began) / 60, 1),
        samples=count_rows(records),
        capacity_rows_per_s=0.0,
        rows_per_s=round(rows_per_s),
        load=0.0,
        missing=difference.counts["missing"],
        repeated=difference.counts["repeated"],
        wrong=difference.counts["wrong"],
        examples=difference.examples,
        faults={kind: suffered.count(kind) for kind in sorted(set(suffered))},
        usage=usage,
    )


def _survivable(fault: Fault) -> Fault:
    """Let another instance come and be killed instead of the one that is watched."""
    kind = "join" if fault.kind in ("kill", "crash", "restart") else fault.kind
    return msgspec.structs.replace(fault, kind=kind, hold_s=max(fault.hold_s, 3.0))


def _wait(seconds: float, load: Load, rig: Rig, sampler: Sampler) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and load.running:
        rig.services.check()
        sampler.look()
        time.sleep(0.5)


def main() -> int:
    """Soak, and print the report."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the load lasts")
    parser.add_argument("--seed", type=int, default=1, help="of telemetry and faults")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args()
    report = soak(options.minutes, options.seed)
    encoded = msgspec.json.format(msgspec.json.encode(report))
    print(encoded.decode())
    if options.json:
        options.json.write_bytes(encoded)
    return 0 if report.passed else 1


if __name__ == "__main__":
    with unwinding_on_sigterm():
        sys.exit(main())
