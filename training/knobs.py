"""Compares scoring configurations on injected anomalies, so that none is chosen by labels. Trains nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from detector.engine import Detector
from detector.manifest import Manifest, ScoringConfig
from detector.models import Model
from detector.offline import SeriesScores, score_series
from training.calibration import calibrate
from training.datasets import Series
from training.injection import KINDS, inject
from training.trainer import TrainedModel


class Figures(NamedTuple):
    """Means over injected series; of the final score, then the average precision of the provisional one."""

    roc_auc: float
    average_precision: float
    provisional_average_precision: float


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


def injected(manifest: Manifest, trained: TrainedModel, index: int, seed: int) -> list[tuple[Series, int]]:
    """Return one series' second half with each kind of anomaly, a window of rows before it, and its first row."""
    series, entry = trained.dataset.series[index], manifest.entities[index]
    half_range = (np.array(entry.maximum) - np.array(entry.minimum)) / 2
    middle = len(series.slots) // 2
    first = max(0, middle - trained.geometry.length)
    cut = Series(series.entity, series.slots[first:], series.values[first:], None)
    return [
        (
            inject(
                cut,
                trained.dataset.numeric,
                half_range,
                kind,
                np.random.default_rng([seed, index, number]),
                first_row=middle - first,
                longest=trained.geometry.length,
            ),
            middle - first,
        )
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
