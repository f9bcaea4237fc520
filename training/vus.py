"""Volumes under the range-aware ROC and PR surfaces (Paparrizos et al. 2022). Owns the buffered labels; reads no file.

The volumes forgive an alarm that comes a little early or late, and need no buffer length: they average over all of
them. Details on which the paper leaves a choice follow TSB-AD's evaluation, so that figures compare with its tables.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.metrics import Flags, Scores, check_ranking, runs

# TSB-AD's choices: buffers of up to 50 rows on each side, and at most so many thresholds.
WINDOW = 100
THRESHOLDS = 250


class Volumes(NamedTuple):
    """Volumes under the surfaces, in [0, 1]: of true over false positive rate, of precision over recall."""

    roc: float
    pr: float


class Ranking(NamedTuple):
    """Rows by the thresholds that flag them.

    first: (n,) the highest threshold that flags a row. flagged, in_events: (K,) rows that it flags, and labelled ones.
    """

    first: NDArray[np.int64]
    flagged: NDArray[np.int64]
    in_events: NDArray[np.int64]


def volumes(labels: Flags, score: Scores, window: int = WINDOW, thresholds: int = THRESHOLDS) -> Volumes:
    """Return the areas under the range-aware curves, averaged over the window lengths 0..window.

    Raises ValueError if the rows are of one class or a score is not finite.
    """
    check_ranking(labels, score)
    ranking = _rank(labels, score, thresholds)
    areas = np.array([_areas(labels, ranking, length) for length in range(window + 1)])  # (W, 2)
    return Volumes(*areas.mean(0).tolist())


def buffered_labels(labels: Flags, window: int) -> Scores:
    """Return label weights that fall off beside each event, window // 2 rows far, as sqrt(1 - distance / window).

    Weights of two events add up where their buffers overlap, to 1 at most.
    """
    weights = labels.astype(np.float64)
    slope = np.sqrt(1 - np.arange(1, window // 2 + 1) / max(window, 1))
    for start, end in zip(*runs(labels), strict=True):
        after = weights[end : end + len(slope)]
        after += slope[: len(after)]
        before = weights[max(start - len(slope), 0) : start]
        before += slope[: len(before)][::-1]
    return np.minimum(weights, 1)


def _rank(labels: Flags, score: Scores, thresholds: int) -> Ranking:
    descending = -np.sort(-score)
    levels = descending[np.linspace(0, len(score) - 1, thresholds).astype(np.int64)]  # (K,)
    first = np.searchsorted(-levels, -score)  # equal thresholds: the first of them
    in_events = np.cumsum(np.bincount(first[labels], minlength=thresholds))
    return Ranking(first, np.searchsorted(-descending, -levels, side="right"), in_events)


def _areas(labels: Flags, ranking: Ranking, window: int) -> tuple[float, float]:
    """Return the areas under the ROC and the PR curve for one window length.

    The positives are the mean of the labelled rows and of those plus the flagged part of the buffers; the true
    positive rate is multiplied by the share of events, buffers included, that were hit at all.
    """
    weights = buffered_labels(labels, window)
    buffers = np.flatnonzero((weights > 0) & ~labels)
    in_buffers = np.cumsum(np.bincount(ranking.first[buffers], weights[buffers], len(ranking.flagged)))  # (K,)
    hits = ranking.in_events + in_buffers
    positives = labels.sum() + in_buffers / 2
    existence = _share_of_events_hit(labels, ranking, window)
    tpr = np.minimum(hits / positives, 1) * existence  # (K,)
    fpr = (ranking.flagged - hits) / (len(labels) - positives)
    roc = np.trapezoid([0, *tpr, 1], [0, *fpr, 1])
    pr = np.diff(tpr, prepend=0) @ (hits / ranking.flagged)
    return float(roc), float(pr)


def _share_of_events_hit(labels: Flags, ranking: Ranking, window: int) -> Scores:
    """Return for each threshold the share of buffered events with a flagged row; buffers that touch make one event."""
    starts, ends = runs(labels)
    reach = window // 2
    first = np.append(True, starts[1:] - reach > ends[:-1] - 1 + reach)
    last = np.append(first[1:], True)
    begins, closes = np.maximum(starts[first] - reach, 0), np.minimum(ends[last] + reach, len(labels))
    hit_from = [ranking.first[begin:close].min() for begin, close in zip(begins, closes, strict=True)]
    return np.cumsum(np.bincount(hit_from, minlength=len(ranking.flagged))) / len(begins)
