"""Compares scores and budgets of alarms on injected anomalies, so that none is chosen by labels. Trains nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from detector.engine import Detector
from detector.floor import WEEK_MS
from detector.manifest import EntityCalibration, Manifest, ScoringConfig
from detector.models import Model
from detector.offline import SeriesScores, score_series
from training import metrics
from training.alarms import alarm_count
from training.calibration import calibrate
from training.comparison import MERGE_GAP
from training.datasets import Series
from training.injection import KINDS, inject
from training.metrics import Flags
from training.trainer import TrainedModel


class Figures(NamedTuple):
    """Means over injected series; of the final score, then the average precision of the provisional one."""

    roc_auc: float
    average_precision: float
    provisional_average_precision: float


class AlarmFigures(NamedTuple):
    """What final scores' alarms are worth: the first two of events pooled over injected series, the others without."""

    event_f1: float
    corrected_event_f05: float
    nominal_in_alarm: float
    false_alarms_per_week: float


def compare(
    trained: TrainedModel,
    candidates: Mapping[str, ScoringConfig],
    *,
    seed: int = 0,
    on_figures: Callable[[str, Figures], None] = lambda name, figures: None,
) -> dict[str, Figures]:
    """Score every series' second half once with each kind of anomaly, the same ones for every candidate."""
    found = {}
    for name, scoring in candidates.items():
        candidate = replace(trained, scoring=scoring)
        manifest = calibrate(candidate)
        model = Model(Detector(manifest, trained.weights), np.arange(len(manifest.channels)))
        figures = [
            _figures(score_series(model, series), series, first_row)
            for index in range(len(trained.dataset.series))
            for series, first_row in injected(manifest, trained, index, seed)
        ]
        found[name] = Figures(*np.mean(figures, 0).tolist())
        on_figures(name, found[name])
    return found


def compare_budgets(
    trained: TrainedModel,
    rest: Sequence[Series],
    budgets: Mapping[str, float | None],
    *,
    seed: int = 0,
    on_figures: Callable[[str, AlarmFigures], None] = lambda name, figures: None,
) -> dict[str, AlarmFigures]:
    """Judge rows that training did not see, as they are and with each kind of anomaly, under each budget.

    rest: normal rows behind those trained on, of the same entities in the same order; a window of the latter goes
    before them and is not judged. budgets: false alarms an entity and week, None for the default number of sigmas.
    """
    found = {}
    for name, alarms_per_week in budgets.items():
        manifest = calibrate(trained, alarms_per_week=alarms_per_week)
        model = Model(Detector(manifest, trained.weights), np.arange(len(manifest.channels)))
        length = trained.geometry.length
        behind = [Behind(*pair, length) for pair in zip(trained.dataset.series, rest, strict=False)]
        found[name] = alarm_figures(model, behind, [half_range(one) for one in manifest.entities], seed)
        on_figures(name, found[name])
    return found


def injected(manifest: Manifest, trained: TrainedModel, index: int, seed: int) -> list[tuple[Series, int]]:
    """Return one series' second half with each kind of anomaly, a window of rows before it, and its first row."""
    series = trained.dataset.series[index]
    middle = len(series.slots) // 2
    first = max(0, middle - trained.geometry.length)
    cut = Series(series.entity, series.slots[first:], series.values[first:], None)
    sizes, longest = half_range(manifest.entities[index]), trained.geometry.length
    anomalies = _with_anomalies(cut, trained.dataset.numeric, sizes, middle - first, longest, [seed, index])
    return [(one, middle - first) for one in anomalies]


class Behind(NamedTuple):
    """Rows to judge, the rows of the same entity before them, and how many of those are shown too, unjudged."""

    before: Series
    rows: Series
    context: int

    def joined(self) -> tuple[Series, int]:
        """Return context and rows as one series, and the first row that is judged."""
        context = slice(max(0, len(self.before.slots) - self.context), None)
        slots = np.concatenate([self.before.slots[context], self.rows.slots])
        values = np.concatenate([self.before.values[context], self.rows.values])
        return Series(self.before.entity, slots, values, None), len(slots) - len(self.rows.slots)


def half_range(entity: EntityCalibration) -> NDArray[np.float64]:
    """Return half the range of an entity's training values, (C,): what sizes of anomalies are measured in."""
    half: NDArray[np.float64] = (np.array(entity.maximum) - np.array(entity.minimum)) / 2
    return half


def alarm_figures(
    model: Model, every: Sequence[Behind], half_ranges: Sequence[NDArray[np.float64]], seed: int
) -> AlarmFigures:
    """Judge rows as they are and with each kind of anomaly, the same ones whatever the model.

    half_ranges: (C,) of each entity.
    """
    labels, preds, clean = list[Flags](), list[Flags](), list[Flags]()
    for index, (behind, sizes) in enumerate(zip(every, half_ranges, strict=False)):
        cut, first = behind.joined()
        clean.append(score_series(model, cut).pred[first:])
        longest = model.manifest.geometry.length
        for series in _with_anomalies(cut, model.numeric, sizes, first, longest, [seed, index]):
            assert series.labels is not None
            labels.append(series.labels[first:].astype(bool))
            preds.append(score_series(model, series).pred[first:])
    counts = [metrics.event_counts(*pair, MERGE_GAP) for pair in zip(labels, preds, strict=True)]
    pooled = metrics.EventCounts(*np.sum(counts, 0).tolist())
    in_alarm = metrics.nominal_in_alarm(np.concatenate(labels), np.concatenate(preds))
    rows = sum(len(one) for one in clean)
    return AlarmFigures(
        metrics.event_detection(pooled).f1,
        metrics.corrected_event_f05(pooled, in_alarm),
        sum(int(one.sum()) for one in clean) / rows,
        sum(alarm_count(one, MERGE_GAP) for one in clean) * WEEK_MS / (rows * model.manifest.interval_ms),
    )


def _with_anomalies(
    cut: Series, numeric: list[int], sizes: NDArray[np.float64], first_row: int, longest: int, seed: list[int]
) -> list[Series]:
    return [
        inject(cut, numeric, sizes, kind, np.random.default_rng([*seed, number]), first_row=first_row, longest=longest)
        for number, kind in enumerate(KINDS)
    ]


def _figures(scores: SeriesScores, series: Series, first_row: int) -> Figures:
    known = ~np.isnan(scores.score)
    known[:first_row] = False
    assert series.labels is not None
    labels, final, provisional = series.labels[known], scores.score[known], scores.provisional[known]
    return Figures(
        roc_auc_score(labels, final),
        average_precision_score(labels, final),
        average_precision_score(labels, provisional),
    )
