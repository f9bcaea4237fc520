"""Compares scores and budgets of alarms on injected anomalies, so that none is chosen by labels. Trains nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from detector.engine import Detector
from detector.floor import WEEK_MS
from detector.manifest import Manifest, ScoringConfig
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
        found[name] = _alarm_figures(
            Model(Detector(manifest, trained.weights), np.arange(len(manifest.channels))), trained, rest, seed
        )
        on_figures(name, found[name])
    return found


def injected(manifest: Manifest, trained: TrainedModel, index: int, seed: int) -> list[tuple[Series, int]]:
    """Return one series' second half with each kind of anomaly, a window of rows before it, and its first row."""
    series = trained.dataset.series[index]
    middle = len(series.slots) // 2
    first = max(0, middle - trained.geometry.length)
    cut = Series(series.entity, series.slots[first:], series.values[first:], None)
    return [(one, middle - first) for one in _with_anomalies(manifest, trained, index, cut, middle - first, seed)]


def _with_anomalies(
    manifest: Manifest, trained: TrainedModel, index: int, cut: Series, first_row: int, seed: int
) -> list[Series]:
    entry = manifest.entities[index]
    half_range = (np.array(entry.maximum) - np.array(entry.minimum)) / 2
    return [
        inject(
            cut,
            trained.dataset.numeric,
            half_range,
            kind,
            np.random.default_rng([seed, index, number]),
            first_row=first_row,
            longest=trained.geometry.length,
        )
        for number, kind in enumerate(KINDS)
    ]


def _alarm_figures(model: Model, trained: TrainedModel, rest: Sequence[Series], seed: int) -> AlarmFigures:
    labels, preds, clean = list[Flags](), list[Flags](), list[Flags]()
    for index, behind in enumerate(rest):
        before = trained.dataset.series[index]
        context = slice(max(0, len(before.slots) - trained.geometry.length), None)
        slots = np.concatenate([before.slots[context], behind.slots])
        values = np.concatenate([before.values[context], behind.values])
        cut, first = Series(before.entity, slots, values, None), len(slots) - len(behind.slots)
        clean.append(score_series(model, cut).pred[first:])
        for series in _with_anomalies(model.manifest, trained, index, cut, first, seed):
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
