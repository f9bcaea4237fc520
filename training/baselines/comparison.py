"""Measures baselines on labelled series at several smoothing sizes. Chooses none: labels are for the report alone."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from training import metrics
from training.baselines.protocol import Baseline
from training.baselines.smoothing import smooth
from training.datasets import Dataset
from training.metrics import Scores


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One baseline at one smoothing size: means over entities with both classes; seconds to fit and to score."""

    name: str
    smoothing_size: int
    roc_auc: float | None
    average_precision: float | None
    best_f1: float | None
    fit_s: float
    score_s: float


def compare(
    baselines: Mapping[str, Baseline],
    train: Dataset,
    test: Dataset,
    sizes: Sequence[int],
    on_figures: Callable[[Figures], None] = lambda figures: None,
) -> list[Figures]:
    """Fit every baseline to `train` and measure it on the labelled `test` at each smoothing size (centred Hanning)."""
    found = []
    for name, baseline in baselines.items():
        begin = time.perf_counter()
        scorer = baseline.fit(train)
        fitted = time.perf_counter()
        raw = [scorer(series) for series in test.series]
        times = fitted - begin, time.perf_counter() - fitted
        for size in sizes:
            found.append(_figures(name, size, test, [smooth(scores, size) for scores in raw], times))
            on_figures(found[-1])
    return found


def _figures(name: str, size: int, test: Dataset, scores: list[Scores], times: tuple[float, float]) -> Figures:
    ranked = list(_ranked(test, scores))
    return Figures(
        name=name,
        smoothing_size=size,
        roc_auc=metrics.entity_mean(metrics.roc_auc(*pair) for pair in ranked).mean,
        average_precision=metrics.entity_mean(metrics.average_precision(*pair) for pair in ranked).mean,
        best_f1=metrics.entity_mean(metrics.best_f1(*pair).f1 for pair in ranked).mean,
        fit_s=round(times[0], 2),
        score_s=round(times[1], 2),
    )


def _ranked(test: Dataset, scores: list[Scores]) -> Iterable[tuple[metrics.Flags, Scores]]:
    """Yield labels and scores of entities that can be ranked; a row without a score counts as the least anomalous."""
    for series, own in zip(test.series, scores, strict=True):
        if series.labels is None:
            raise ValueError(f"{series.entity} wants labels, got none")
        labels = series.labels.astype(np.bool_)
        if metrics.has_both_classes(labels):
            yield labels, np.where(np.isnan(own), np.nanmin(own, initial=np.inf), own)
