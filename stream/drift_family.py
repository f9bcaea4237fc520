"""From the summaries of a family to its drift events: one sick entity is an anomaly, a moved fleet is drift. Pure.

Summaries count in the order they come in; the same order gives the same events.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stream.contracts import BlockSummary, DriftEvent, ModelRef, MovedChannel, MovedEntity, drift_id
from stream.drift_series import EntityWatch
from stream.settings import DriftSettings
from stream.sketch import TrainingSketch

# Entities named for a channel in an event.
_WORST = 5
# By version: the training sketch, None where a version has none.
SketchReader = Callable[[str], TrainingSketch | None]


class FamilyWatch:
    """Follows the entities of one family under the model in use."""

    def __init__(self, deployment: str, rule: DriftSettings, read_sketch: SketchReader) -> None:
        """Know no entity yet."""
        self._deployment, self._rule, self._read_sketch = deployment, rule, read_sketch
        self._version: str | None = None
        self._sketch: TrainingSketch | None = None
        self._last_event_ms: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._index: dict[str, int] = {}
        self._watches: list[EntityWatch] = []
        self._closings = 0  # blocks of all entities
        self._closed_at: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._newest_ms: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._moved: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    @property
    def watched(self) -> int:
        """How many entities have blocks about now and a training sketch."""
        return int(self._present().sum())

    @property
    def moved(self) -> int:
        """How many of them have moved."""
        return int((self._moved & self._present()).sum())

    def remember(self, event: DriftEvent) -> None:
        """Take notice of an event that was published, so that none follows in its cool-down."""
        self._last_event_ms = max(event.detected_at_ms, self._last_event_ms or 0)

    def add(self, summary: BlockSummary) -> DriftEvent | None:
        """Fold a summary; return the event that it decides."""
        if summary.model.version != self._version:
            self._version = summary.model.version
            self._sketch = self._read_sketch(summary.model.version)
            self._forget()
        sketch = self._sketch
        if sketch is None or not self._fits(summary, sketch):
            return None
        index = self._index_of(summary.entity, sketch)
        if index is None or not self._watches[index].add(summary):
            return None
        self._closings += 1
        self._closed_at[index], self._newest_ms[index] = self._closings, summary.end_ms
        self._moved[index] = self._watches[index].verdict.moved.any()
        if not self._moved[index]:
            return None
        event = self._judge(summary)
        if event is not None:
            self.remember(event)
        return event

    @staticmethod
    def _fits(summary: BlockSummary, sketch: TrainingSketch) -> bool:
        return summary.channels == sketch.channels and summary.length == sketch.length

    def _index_of(self, entity: str, sketch: TrainingSketch) -> int | None:
        """Return an entity's place, None for one that training never saw."""
        known = self._index.get(entity)
        if known is not None:
            return known
        reference = sketch.entities.get(entity)
        if reference is None:
            return None
        self._index[entity] = len(self._watches)
        self._watches.append(EntityWatch(reference, sketch.merged, self._rule))
        self._closed_at = np.append(self._closed_at, self._closings)
        self._newest_ms = np.append(self._newest_ms, 0)
        self._moved = np.append(self._moved, False)
        return self._index[entity]

    def _present(self) -> NDArray[np.bool_]:
        """Say which entities had a block while each of the others had a window full of them: not by their clocks."""
        silence = self._closings - self._closed_at
        present: NDArray[np.bool_] = silence <= self._rule.window_blocks * max(len(silence), 1)
        return present

    def _judge(self, summary: BlockSummary) -> DriftEvent | None:
        present = self._present()
        # The time of the fleet, whatever the clock of the entity that decides.
        now_ms = int(np.sort(self._newest_ms[present])[(present.sum() - 1) // 2])
        last = self._last_event_ms
        if last is not None and now_ms < last + self._rule.cooldown_s * 1000:
            return None
        moved = np.flatnonzero(self._moved & present)
        enough = len(moved) >= max(self._rule.min_entities, self._rule.share * present.sum())
        return self._event(summary, moved.tolist(), int(present.sum()), now_ms) if enough else None

    def _event(self, summary: BlockSummary, moved: list[int], watched: int, now_ms: int) -> DriftEvent:
        names = list(self._index)
        verdicts = [self._watches[i].verdict for i in moved]
        slots = summary.length * (self._sketch.merged if self._sketch else 1)
        # Since when the first of them deviates, of those series that moved.
        blocks = max(int(verdict.blocks[verdict.moved].max()) for verdict in verdicts)
        agreed = [verdict.adwin & verdict.sketch for verdict in verdicts]
        return DriftEvent(
            id=drift_id(self._deployment, summary.family, summary.model.version, now_ms),
            family=summary.family,
            model=ModelRef(summary.model.name, summary.model.version),
            detected_at_ms=now_ms,
            first_block_ms=now_ms - blocks * slots * summary.interval_ms,
            blocks=blocks,
            block_slots=slots,
            watched=watched,
            moved=len(moved),
            share=round(len(moved) / watched, 4),
            adwin=sum(bool((v.adwin & v.moved).any()) for v in verdicts),
            sketch=sum(bool((v.sketch & v.moved).any()) for v in verdicts),
            score=sum(bool(v.moved[-1]) for v in verdicts),
            persistence=sum(not both.any() for both in agreed),
            channels=self._channels(names, moved, [*summary.channels, ""]),
        )

    def _channels(self, names: list[str], moved: list[int], channels: list[str]) -> list[MovedChannel]:
        """Return the channels that moved, those of most entities first."""
        found = []
        for c, channel in enumerate(channels):
            those = [i for i in moved if self._watches[i].verdict.moved[c]]
            entities = sorted((self._entity(names[i], i, c) for i in those), key=lambda one: -abs(one.deviations))
            if entities:
                found.append(MovedChannel(channel, len(entities), entities[:_WORST]))
        return sorted(found, key=lambda one: -one.moved)

    def _entity(self, name: str, index: int, channel: int) -> MovedEntity:
        watch = self._watches[index]
        mean, deviation = watch.live()
        reference, verdict = watch.reference, watch.verdict
        return MovedEntity(
            entity=name,
            sketch_mean=float(reference.mean[channel]),
            sketch_deviation=float(reference.deviation[channel]),
            live_mean=float(mean[channel]),
            live_deviation=float(deviation[channel]),
            deviations=round(float((mean[channel] - reference.mean[channel]) / reference.deviation[channel]), 4),
            blocks=int(verdict.blocks[channel]),
            adwin=bool(verdict.adwin[channel]),
            sketch=bool(verdict.sketch[channel]),
        )
