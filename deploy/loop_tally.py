"""What the loop demo reads from `scores`, counted: coverage, alarm rates, when each partition took a model. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.demo_sources import KnownFault
from stream.contracts import ScoreBlock, Stage
from stream.grid import Geometry


class Judged(NamedTuple):
    """The verdicts on consecutive slots of one entity, final ones."""

    entity: str
    start_slot: int
    preds: NDArray[np.bool_]
    version: str


class LoopTally:
    """Counts committed score blocks while a run goes on."""

    def __init__(self, first_slot: int) -> None:
        """Start at nothing. first_slot: the first one sent, of every entity."""
        self._first = first_slot
        self._scored: dict[tuple[str, Stage], NDArray[np.bool_]] = {}
        self._took: dict[str, dict[int, int]] = defaultdict(dict)
        self._judged: list[Judged] = []
        self._newest: dict[str, int] = {}
        self.repeated = 0

    @property
    def newest_slot(self) -> int:
        """The newest slot that every entity seen so far has a final score of; the one before the first if none has."""
        return min(self._newest.values(), default=self._first - 1)

    def add(self, block: ScoreBlock, partition: int, timestamp_ms: int) -> None:
        """Count a block. timestamp_ms: Kafka's."""
        slots = np.arange(block.start_slot, block.start_slot + len(block.scores))
        known = [score is not None for score in block.scores]
        self._cover((block.entity, block.stage), slots[known] - self._first)
        self._took[block.model.version].setdefault(partition, timestamp_ms)
        if block.stage == "final":
            newest = self._newest.get(block.entity, self._first - 1)
            self._newest[block.entity] = max(newest, int(slots[-1]) if len(slots) else newest)
            if not block.learning:
                self._judged.append(Judged(block.entity, block.start_slot, np.array(block.preds), block.model.version))

    def _cover(self, place: tuple[str, Stage], positions: NDArray[np.int64]) -> None:
        scored = self._scored.get(place, np.zeros(0, np.bool_))
        if len(positions) and positions[-1] >= len(scored):
            scored = np.concatenate([scored, np.zeros(int(positions[-1]) + 1, np.bool_)])
        self.repeated += int(scored[positions].sum())
        scored[positions] = True
        self._scored[place] = scored

    def unscored(self, last_slots: Mapping[str, int], geometry: Geometry) -> int:
        """Count the slots without a score that should have one: of either kind, up to the last window that is full.

        last_slots: the last one sent of each entity, each from the first on.
        """
        missing = 0
        for entity, last in last_slots.items():
            boundary = geometry.last_boundary(last - geometry.lateness) - self._first + 1
            for stage, wanted in (("provisional", boundary), ("final", boundary - geometry.final_delay)):
                scored = self._scored.get((entity, stage), np.zeros(0, np.bool_))  # type: ignore[arg-type]
                missing += max(wanted, 0) - int(scored[: max(wanted, 0)].sum())
        return missing

    def versions(self) -> list[str]:
        """Return the versions seen, in the order of their first scores."""
        return list(self._took)

    def swap_s(self, version: str, at_ms: int, partitions: int) -> float | None:
        """Return how long after a time each of the partitions had scores of a version, in seconds; None if not all."""
        took = self._took.get(version, {})
        return round((max(took.values()) - at_ms) / 1000, 3) if len(took) == partitions else None

    def first_slot_of(self, version: str) -> int | None:
        """Return the slot from which on every entity is judged by a version; None before its first verdict."""
        first: dict[str, int] = {}
        for one in self._judged:
            if one.version == version:
                first.setdefault(one.entity, one.start_slot)
        return max(first.values(), default=None)

    def alarm_rate(self, first_slot: int, last_slot: int, faults: Iterable[KnownFault], aftermath: int) -> float | None:
        """Return the share in alarm of final verdicts on slots of a range, both inclusive; None if there are none.

        Slots of known faults, and `aftermath` slots behind each, don't count.
        """
        known = defaultdict(list)
        for fault in faults:
            known[fault.entity].append((fault.first_ms // 1000, fault.last_ms // 1000 + aftermath))
        alarms = slots = 0
        for one in self._judged:
            number = np.arange(one.start_slot, one.start_slot + len(one.preds))
            counts = (number >= first_slot) & (number <= last_slot)
            for first, last in known[one.entity]:
                counts &= (number < first) | (number > last)
            slots += int(counts.sum())
            alarms += int(one.preds[counts].sum())
        return alarms / slots if slots else None
