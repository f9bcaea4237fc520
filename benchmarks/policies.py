"""A family's telemetry under one policy of retraining, offline: scores, drift, training and promotion go on by turns.

Knows no clock but that of the rows; what is known of labels serves the figures alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.levels import NO_SCORES, merge
from detector.models import Model, prove
from detector.offline import score_all
from detector.registry import Registry
from detector.summary import ScoreTally, summarise
from stream.contracts import BlockSummary, ModelRef, SourceRange, WindowNotice
from stream.drift_family import FamilyWatch
from stream.errors import TelltaleError
from stream.frames import frame
from stream.retraining_settings import RetrainingSettings
from stream.settings import DriftSettings, FamilySettings
from stream.sketch import TrainingSketch, read_sketch
from training.datasets import Dataset, Series
from training.gates import failed
from training.metrics import runs
from training.new_model import make_model
from training.retrain_job import Job
from training.retraining import Drift, Standing, View, next_move

Policy = Literal["never", "timer", "drift"]
_WINDOWS_A_PIECE = 8


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts on a stretch of the run. alarm_rate: share of normal rows in alarm. found: events with an alarm."""

    rows: int
    alarm_rate: float
    events: int
    found: int


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one policy. delays_slots: from the change to each call of drift behind it.

    false_calls: drift that was called before the change, or of a model trained after it; None where no change is known.
    """

    policy: Policy
    retrainings: int
    refused: int
    failures: list[str]
    drift_calls: int
    false_calls: int | None
    delays_slots: list[int]
    before: Part
    after: Part


class Telemetry(msgspec.Struct, frozen=True):
    """What is streamed, labels with it, and what the first model was trained on."""

    name: str
    family: FamilySettings
    training: Dataset
    live: Dataset
    change_slot: int | None


class Run:
    """One policy on one telemetry."""

    def __init__(self, telemetry: Telemetry, registry: Path, policy: Policy, settings: RetrainingSettings) -> None:
        """Begin with the registry's champion."""
        self.telemetry, self.registry, self.policy = telemetry, Registry(registry), policy
        self.settings = settings
        rule = DriftSettings(window_blocks=8, min_blocks=4, max_merged=2, cooldown_s=0.0)
        self.watch = FamilyWatch("bench", rule, lambda version: self._sketch(version, rule.max_merged))
        self._registry = registry
        self.standing = Standing()
        self.drift: Drift | None = None
        self.calls: list[tuple[int, str]] = []
        self.adopted: dict[str, int] = {}
        self.refused = 0
        self.failures: list[str] = []
        self.preds = {series.entity: np.zeros(len(series.slots), np.bool_) for series in telemetry.live.series}
        self._adopt(self.registry.alias(telemetry.family.name, "champion") or "", 0)

    def _sketch(self, version: str, most: int) -> TrainingSketch | None:
        return read_sketch(str(self._registry), self.telemetry.family.name, version, most)

    def _adopt(self, version: str, slot: int) -> None:
        self.version, self.adopted[version] = version, slot
        bundle = self.registry.read(self.telemetry.family.name, version)
        self.model = Model(prove(bundle), np.arange(len(bundle.manifest.channels)))

    def run(self, folder: Path) -> None:
        """Go through the telemetry piece by piece; after each one decide."""
        live, length = self.telemetry.live, self.telemetry.family.length
        first = min(int(series.slots[0]) for series in live.series) // length * length
        last = max(int(series.slots[-1]) for series in live.series)
        for begin in range(first, last + 1, _WINDOWS_A_PIECE * length):
            end = begin + _WINDOWS_A_PIECE * length
            for summary in sorted(self._piece(begin, end), key=lambda one: (one.block, one.entity)):
                event = self.watch.add(summary)
                if event is not None:
                    self.calls.append((event.detected_at_ms // live.interval_ms, self.version))
                    self.drift = Drift(self.version, event.detected_at_ms, event.first_block_ms)
            self._decide(end, folder)

    def _piece(self, begin: int, end: int) -> Iterator[BlockSummary]:
        """Score slots begin .. end - 1 of every entity, with rows before them to know the entity by."""
        context = max(self.telemetry.family.length, self.model.manifest.decision.learning) * 2
        pieces = []
        for series in self.telemetry.live.series:
            low, high = np.searchsorted(series.slots, [begin - context, end])
            if high > low and series.slots[high - 1] >= begin:
                pieces.append(Series(series.entity, series.slots[low:high], series.values[low:high], None))
        for piece, scores in zip(pieces, score_all(self.model, pieces), strict=True):
            own = piece.slots >= begin
            every = next(series for series in self.telemetry.live.series if series.entity == piece.entity)
            self.preds[piece.entity][np.searchsorted(every.slots, piece.slots[own])] = scores.pred[own]
            yield from self._summaries(piece, scores.score, scores.pred, begin)

    def _summaries(
        self, series: Series, score: NDArray[np.float64], pred: NDArray[np.bool_], begin: int
    ) -> Iterator[BlockSummary]:
        family, length = self.telemetry.family, self.telemetry.family.length
        channels = self.telemetry.live.channels
        numeric = [i for i, channel in enumerate(channels) if channel.kind == "numeric"]
        ends = np.arange(begin + length - 1, int(series.slots[-1]) + 1, length)
        windows = frame(series.slots, series.values, ends, length)  # (B, C, L)
        for end, values in zip(ends.tolist(), windows, strict=True):
            inside = (series.slots > end - length) & (series.slots <= end)
            known = score[inside & ~np.isnan(score)]
            tally = ScoreTally(merge(NO_SCORES, 0.0, known) if len(known) else NO_SCORES, int(pred[inside].sum()))
            notice = WindowNotice(
                entity=series.entity,
                family=family.name,
                interval_ms=family.interval_ms,
                end_slot=end,
                length=length,
                new_slots=length,
                final_delay=family.final_delay,
                rows=int(inside.sum()),
                ring=0,
                first_slot=int(series.slots[0]),
                source=SourceRange("", 0, 0, 0),
                trigger_ms=0,
            )
            names = [channels[i].name for i in numeric]
            summary = summarise(notice, names, values[numeric], tally, ModelRef(family.name, self.version))
            if summary is not None:
                yield summary

    def _decide(self, slot: int, folder: Path) -> None:
        """Retrain where the rules say so; take the model over if it passes its gates."""
        family = self.telemetry.family
        now_ms = slot * family.interval_ms
        champion_ms = self.adopted[self.version] * family.interval_ms or self._first_ms()
        view = View(now_ms, family.interval_ms, self.version, champion_ms, drift=self.drift, newest_ms=now_ms)
        move = next_move(self.standing, view, self.settings)
        if move is None or move.kind != "training":
            return
        job = Job(
            registry=str(self._registry),
            family=family.model_dump(),
            retraining=self.settings.model_dump(),
            at_ms=now_ms,
            start_ms=move.start_ms,
            exclude={},
            champion=self.version,
            device="cpu",
        )
        failures = self.standing.failures + 1
        try:
            outcome = make_model(job, folder / f"{self.policy}-{slot}", self._rows)
        except (TelltaleError, ArithmeticError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            self.standing = Standing(ended_ms=now_ms, failures=failures)
            return
        if failed(outcome.gates) or outcome.version is None:
            self.refused += 1
            self.standing = Standing(ended_ms=now_ms, failures=failures)
        else:
            self._adopt(outcome.version, slot)
            self.standing = Standing(ended_ms=now_ms)

    def _first_ms(self) -> int:
        return min(int(series.slots[0]) for series in self.telemetry.live.series) * self.telemetry.family.interval_ms

    def _rows(self, job: Job) -> Dataset:
        """Return live rows of the job's time; those of alarms are not left out."""
        live = self.telemetry.live
        low, high = (ms // live.interval_ms for ms in (job.start_ms, job.at_ms))
        cut = []
        for series in live.series:
            i, j = np.searchsorted(series.slots, [low, high])
            if j > i:
                cut.append(Series(series.entity, series.slots[i:j], series.values[i:j], None))
        return replace(live, series=cut)

    def course(self) -> Course:
        """Put the figures together; of labels nothing was known to the run."""
        change = self.telemetry.change_slot
        calls = [slot for slot, _ in self.calls]
        old = [version for version, slot in self.adopted.items() if change is None or slot < change]
        false = None
        if change is not None:
            false = sum(slot < change or version not in old for slot, version in self.calls)
        return Course(
            policy=self.policy,
            retrainings=len(self.adopted) - 1 + self.refused + len(self.failures),
            refused=self.refused,
            failures=self.failures,
            drift_calls=len(calls),
            false_calls=false,
            delays_slots=[slot - change for slot in calls if change is not None and slot >= change],
            before=self._part(-1, change if change is not None else -1),
            after=self._part(change if change is not None else -1, 2**62),
        )

    def _part(self, first: int, after: int) -> Part:
        rows = alarms = events = found = 0
        for series in self.telemetry.live.series:
            labelled = np.zeros(len(series.slots), bool) if series.labels is None else series.labels != 0
            inside = (series.slots >= first) & (series.slots < after)
            pred = self.preds[series.entity]
            normal = inside & ~labelled
            rows, alarms = rows + int(normal.sum()), alarms + int(pred[normal].sum())
            for low, high in zip(*runs(labelled & inside), strict=True):
                events += 1
                found += bool(pred[low:high].any())
        return Part(rows=rows, alarm_rate=round(alarms / max(rows, 1), 5), events=events, found=found)
