"""How many deviations keep a budget of false alarms. Pure: scores of normal rows in, a number out; knows no model."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_WEEK_MS = 7 * 24 * 3600 * 1000
# So many alarms in the data say by themselves how high their threshold is, within a third or so.
_ENOUGH_ALARMS = 10
# The tail is fitted to at most so many peaks, and to no more than this share of all: further down it is no tail.
_MOST_PEAKS = 200
_TAIL_SHARE = 0.25
# Fewer peaks tell no shape.
_FEWEST_PEAKS = 10
# A tail that ends more sharply is fitted as this one, which errs on the safe side.
_LIGHTEST_SHAPE = -0.5


def budget_sigmas(z: Sequence[NDArray[np.float64]], interval_ms: int, alarms_per_week: float, merge_gap: int) -> float:
    """Return the smallest number of deviations at which normal scores raise at most so many alarms per entity-week.

    z: (n,) per entity, in time order, standardised by the entity's own moments; NaN is a slot without a score and no
    time that was watched. Anomalous slots with at most merge_gap slots between them are one alarm. Where the data hold
    few alarms of the budget, the answer is that of a generalised Pareto tail fitted to the peaks (Pickands 1975), its
    shape taken a standard error heavier, and never below what the data themselves ask for.

    What it promises holds only while live scores come from what these came from (exchangeability); scores that a model
    was fitted to are lower than those of new data, and no threshold keeps its budget once the normal level has moved.
    Raises ValueError if there is no score, or for a budget or interval that isn't positive.
    """
    scored = sum(int(np.count_nonzero(~np.isnan(one))) for one in z)
    if not scored:
        raise ValueError("a budget of alarms wants at least one score that isn't NaN")
    if not (alarms_per_week > 0 and interval_ms > 0 and merge_gap >= 0):
        raise ValueError(
            f"a budget of alarms wants alarms_per_week and interval_ms above 0 and merge_gap of at least 0, "
            f"got {alarms_per_week}, {interval_ms} and {merge_gap}"
        )
    alarms = alarms_per_week * scored * interval_ms / _WEEK_MS
    levels, counts = _alarm_counts(z, merge_gap)
    empirical = _lowest_level(levels, counts, alarms)
    if alarms >= _ENOUGH_ALARMS:
        return empirical
    peaks = min(_MOST_PEAKS, max(_FEWEST_PEAKS, int(_TAIL_SHARE * counts.max())))
    tail_starts = _lowest_level(levels, counts, peaks)
    excesses = np.concatenate([_peaks(one, tail_starts, merge_gap) for one in z]) - tail_starts
    return max(empirical, tail_starts + _excess(excesses, alarms))


def _alarm_counts(z: Sequence[NDArray[np.float64]], merge_gap: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return levels, descending, and how many alarms a threshold just below each of them raises.

    A slot begins an alarm if it lies above the threshold and the merge_gap + 1 slots before it don't: as long as the
    threshold is at or above the highest of those and below its own score.
    """
    begins, ends = [], []
    for one in z:
        scores = np.where(np.isnan(one), -np.inf, one)
        before = _highest_before(scores, merge_gap + 1)
        alone = before < scores
        begins.append(scores[alone])
        ends.append(before[alone])
    levels = np.concatenate(begins + ends)
    signs = np.repeat([1, -1], len(levels) // 2)
    unique, which = np.unique(-levels, return_inverse=True)
    counts = np.cumsum(np.bincount(which, signs).astype(np.int64))
    return -unique, counts


def _highest_before(scores: NDArray[np.float64], slots: int) -> NDArray[np.float64]:
    """Return the highest of so many scores before each one, -inf before the first."""
    padded = np.concatenate([np.full(slots, -np.inf), scores[:-1]])
    highest: NDArray[np.float64] = sliding_window_view(padded, slots).max(axis=1)
    return highest


def _lowest_level(levels: NDArray[np.float64], counts: NDArray[np.int64], alarms: float) -> float:
    """Return the lowest threshold from which on upwards the data raise at most so many alarms.

    Where they never raise so many, a lower threshold only joins alarms; then it is where they raise the most.
    """
    return float(levels[np.argmax(counts > min(alarms, counts.max() - 1))])


def _peaks(scores: NDArray[np.float64], threshold: float, merge_gap: int) -> NDArray[np.float64]:
    """Return the highest score of each alarm."""
    above = np.flatnonzero(scores > threshold)
    if not len(above):
        return np.empty(0)
    begins = np.flatnonzero(np.diff(above, prepend=-merge_gap - 2) > merge_gap + 1)
    highest: NDArray[np.float64] = np.maximum.reduceat(scores[above], begins)
    return highest


def _excess(excesses: NDArray[np.float64], alarms: float) -> float:
    """Return how far above the tail's start a threshold lies that so many of the peaks pass."""
    peaks = len(excesses)
    if peaks <= alarms:
        return 0.0
    shape = _pareto_shape(excesses) if peaks >= _FEWEST_PEAKS else 0.0
    scale = float(excesses.mean()) * (1 - shape)
    return _pareto_quantile(alarms / peaks, shape + (1 + shape) / math.sqrt(peaks), scale)


def _pareto_shape(excesses: NDArray[np.float64]) -> float:
    """Fit a generalised Pareto distribution's shape by probability-weighted moments (Hosking and Wallis 1987, Eq. 6).

    Their k is minus the shape. The scale follows from the mean: scale = mean * (1 - shape).
    """
    n = len(excesses)
    mean = float(excesses.mean())
    weighted = float((np.sort(excesses) * np.arange(n - 1, -1, -1)).sum()) / (n * (n - 1))
    return 2 - mean / max(mean - 2 * weighted, mean / (2 - _LIGHTEST_SHAPE))


def _pareto_quantile(exceeded: float, shape: float, scale: float) -> float:
    """Return the value that a generalised Pareto variable exceeds with this probability."""
    logs = -math.log(exceeded)
    return scale * (logs if abs(shape) < 1e-9 else math.expm1(shape * logs) / shape)
