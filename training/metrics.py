"""Detection metrics of one labelled series, and their mean over entities. Reads no file, chooses no threshold to ship.

Labels and predictions are boolean, one a row in time order; a higher score is more anomalous. Whatever takes the best
threshold has seen the labels: it is an upper bound, not a figure that a user gets. Point adjustment is kept apart
because it lets a random score look excellent (Kim et al. 2022): report it only beside one.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]
Value = TypeVar("Value", np.bool_, np.float64)


class Detection(NamedTuple):
    """Precision, recall and their harmonic mean; 0 where nothing was flagged or found."""

    precision: float
    recall: float
    f1: float


class BestDetection(NamedTuple):
    """The detection with the highest F1 over all thresholds; rows with `score >= threshold` are flagged."""

    precision: float
    recall: float
    f1: float
    threshold: float


class EventCounts(NamedTuple):
    """Events of one or more series: labelled ones found and missed, predicted ones that hit none."""

    found: int
    missed: int
    false_alarms: int


class EntityMean(NamedTuple):
    """A mean over entities, None where none of them has the figure. left_out: entities without it."""

    mean: float | None
    entities: int
    left_out: int


def has_both_classes(labels: Flags) -> bool:
    """Return whether ranking metrics exist: some rows are anomalous and some are not."""
    return bool(labels.any() and not labels.all())


def roc_auc(labels: Flags, score: Scores) -> float:
    """Return the probability that an anomalous row scores above a nominal one; ties count half."""
    check_ranking(labels, score)
    return float(roc_auc_score(labels, score))


def average_precision(labels: Flags, score: Scores) -> float:
    """Return the area under precision over recall, as a sum without interpolation."""
    check_ranking(labels, score)
    return float(average_precision_score(labels, score))


def detection(labels: Flags, pred: Flags) -> Detection:
    """Return precision, recall and F1 of given predictions, row by row."""
    check_shapes(labels, pred)
    return _detection(int((labels & pred).sum()), int(pred.sum()), int(labels.sum()))


def best_f1(labels: Flags, score: Scores) -> BestDetection:
    """Return the highest F1 that any threshold gives, row by row."""
    check_ranking(labels, score)
    order = np.argsort(-score, kind="stable")
    descending = score[order]
    last = np.append(np.flatnonzero(np.diff(descending)), len(score) - 1)  # last row of each tie
    hits = np.cumsum(labels[order])[last]
    flagged = last + 1
    best = int(np.argmax(2 * hits / (flagged + labels.sum())))
    found = _detection(int(hits[best]), int(flagged[best]), int(hits[-1]))
    return BestDetection(*found, threshold=float(descending[last[best]]))


def point_adjust_pred(labels: Flags, pred: Flags) -> Flags:
    """Flag every row of a labelled event of which one row is flagged (Xu et al. 2018, Section 4.2)."""
    return _raise_to_event_maximum(labels, pred)


def point_adjust_score(labels: Flags, score: Scores) -> Scores:
    """Give every row of a labelled event the event's highest score.

    Thresholding it is the same as thresholding the score and adjusting the predictions, for all thresholds at once.
    """
    return _raise_to_event_maximum(labels, score)


def runs(flags: Flags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first rows and ends (exclusive) of the stretches of flagged rows."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return edges[::2], edges[1::2]


def event_counts(labels: Flags, pred: Flags, merge_gap: int = 0) -> EventCounts:
    """Count events by overlap, as Orion and Hundman et al. (2018) do: one common row is enough.

    Predicted stretches with at most merge_gap rows between them are one alarm; the gap itself finds nothing.
    """
    check_shapes(labels, pred)
    found = _overlaps(labels, pred)
    starts, ends = runs(pred)
    right = _overlaps(pred, labels)
    first = np.append(True, starts[1:] - ends[:-1] > merge_gap)[: len(starts)]
    alarms_right = np.logical_or.reduceat(right, np.flatnonzero(first)) if len(starts) else right
    return EventCounts(int(found.sum()), int((~found).sum()), int((~alarms_right).sum()))


def event_detection(counts: EventCounts) -> Detection:
    """Return event-wise precision, recall and F1; a found event is one true positive however many alarms hit it."""
    return _detection(counts.found, counts.found + counts.false_alarms, counts.found + counts.missed)


def corrected_event_f05(counts: EventCounts, nominal_in_alarm: float) -> float:
    """Return event-wise F0.5 whose precision is multiplied by the true negative rate (Sehili & Zhang 2023; ESA-ADB).

    So an alarm that never ends, which finds every event at once, is worth nothing.
    """
    found = event_detection(counts)
    precision = found.precision * (1 - nominal_in_alarm)
    divisor = 0.25 * precision + found.recall
    return 1.25 * precision * found.recall / divisor if divisor else 0.0


def nominal_in_alarm(labels: Flags, pred: Flags) -> float:
    """Return the share of nominal rows that are flagged; raise ValueError if there are none."""
    check_shapes(labels, pred)
    if labels.all():
        raise ValueError("nominal_in_alarm wants a nominal row, got none")
    return float(pred[~labels].mean())


def entity_mean(figures: Iterable[float | None]) -> EntityMean:
    """Average a figure over the entities that have it; None marks those that don't."""
    figures = list(figures)
    present = [figure for figure in figures if figure is not None]
    mean = float(np.mean(present)) if present else None
    return EntityMean(mean, len(present), len(figures) - len(present))


def _detection(hits: int, flagged: int, anomalous: int) -> Detection:
    precision = float(hits / flagged) if flagged else 0.0
    recall = float(hits / anomalous) if anomalous else 0.0
    return Detection(precision, recall, float(2 * hits / (flagged + anomalous)) if hits else 0.0)


def _raise_to_event_maximum(labels: Flags, series: NDArray[Value]) -> NDArray[Value]:
    check_shapes(labels, series)
    starts, ends = runs(labels)
    adjusted = series.copy()
    if len(starts):
        # Even boundaries open an event, odd ones close it; one that ends with the series has no closing boundary.
        boundaries = np.stack([starts, ends], 1).ravel()
        maxima = np.maximum.reduceat(series, boundaries[boundaries < len(series)])[::2]
        adjusted[labels] = np.repeat(maxima, ends - starts)
    return adjusted


def _overlaps(events: Flags, other: Flags) -> Flags:
    """Return for each stretch of the first series whether the second one flags a row in it."""
    starts, ends = runs(events)
    flagged = np.append(0, np.cumsum(other))
    return flagged[ends] > flagged[starts]


def check_shapes(labels: Flags, series: NDArray[np.generic]) -> None:
    """Raise ValueError unless the labels are boolean and the series has a value for each of them."""
    if labels.dtype != np.bool_ or labels.ndim != 1 or labels.shape != series.shape:
        raise ValueError(
            f"labels want a boolean and series a value a row, got {labels.dtype} {labels.shape} and {series.shape}"
        )


def check_ranking(labels: Flags, score: Scores) -> None:
    """Raise ValueError unless the rows are of both classes and every score is finite."""
    check_shapes(labels, score)
    if not np.isfinite(score).all():
        raise ValueError("score wants finite numbers")
    if not has_both_classes(labels):
        raise ValueError("ranking metrics want both nominal and anomalous rows")
