"""ROC and precision-recall curves on fixed grids, so that those of several entities can be averaged."""

from collections.abc import Sequence

import msgspec
import numpy as np

from training.metrics import Flags, Scores, check_ranking


class Curve(msgspec.Struct, frozen=True):
    """Points of a curve, x ascending. Of a ROC curve x is the false positive rate, of the other one recall."""

    x: list[float]
    y: list[float]


def roc_curve(labels: Flags, score: Scores) -> Curve:
    """Return the true positive rate at false positive rates from 0 to 1, dense near 0, where alarms are rare enough.

    Between two thresholds the curve is a line, so the area below it is that of `roc_auc`, up to the grid.
    """
    hits, flagged = (np.append(0, counts) for counts in _counts(labels, score))
    tpr, fpr = hits / hits[-1], (flagged - hits) / (flagged[-1] - hits[-1])
    x = np.union1d(np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 101))
    below = np.searchsorted(fpr, x, side="right") - 1  # of several thresholds with one rate, the one that finds most
    above = np.minimum(below + 1, len(fpr) - 1)
    share = np.divide(x - fpr[below], fpr[above] - fpr[below], out=np.zeros_like(x), where=above > below)
    return Curve(x.tolist(), (tpr[below] + share * (tpr[above] - tpr[below])).tolist())


def pr_curve(labels: Flags, score: Scores) -> Curve:
    """Return the precision at the highest threshold that reaches a recall, for recalls from 0 to 1.

    It is a curve of steps, as `average_precision` sums them.
    """
    hits, flagged = _counts(labels, score)
    recall, precision = hits / hits[-1], hits / flagged
    x = np.linspace(0, 1, 201)
    return Curve(x.tolist(), precision[np.searchsorted(recall, x)].tolist())


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average curves on one grid at equal x; the area below is then the mean of their areas."""
    return Curve(curves[0].x, np.mean([curve.y for curve in curves], axis=0).tolist())


def _counts(labels: Flags, score: Scores) -> tuple[Scores, Scores]:
    """Return hits and flagged rows of every threshold, highest first, (K,) each."""
    check_ranking(labels, score)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    return np.cumsum(labels[order])[last].astype(np.float64), (last + 1).astype(np.float64)
