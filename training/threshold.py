"""The rule by which scores become alerts, with what a budget of false alarms starts from. Pure; knows no model."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from detector.levels import NO_SCORES, merge
from detector.manifest import AlarmBudget, DecisionConfig, Peaks

# An alarm that goes on for this share of a window is a new level, no event.
ADAPT_SHARE = 0.4
# Above the level where peaks are this share of the most there can be, they are the tail; further down they are not.
_TAIL_SHARE = 0.25
# Fewer peaks tell no shape.
_FEWEST_PEAKS = 10


def decision_rule(
    length: int,
    alarms_per_week: float | None,
    provisional: Sequence[NDArray[np.float64]],
    final: Sequence[NDArray[np.float64]],
) -> DecisionConfig:
    """Let an entity learn for a window of this length and adapt after a part of one; keep a budget, if there is one.

    provisional, final: (n,) per entity, in time order, in deviations. A budget is kept while live scores come from what
    these came from, or once they have been followed (`detector.floor`). Raises ValueError if it isn't positive.
    """
    rule = DecisionConfig(learning=length, adapt_after=int(ADAPT_SHARE * length))
    if alarms_per_week is None:
        return rule
    if not alarms_per_week > 0:
        raise ValueError(f"a budget of alarms wants alarms_per_week above 0, got {alarms_per_week}")
    peaks = [measure_peaks(z, rule.resolve_after) for z in (provisional, final)]
    budget = AlarmBudget(alarms_per_week=alarms_per_week, provisional=peaks[0], final=peaks[1])
    return msgspec.structs.replace(rule, budget=budget)


def measure_peaks(z: Sequence[NDArray[np.float64]], gap: int) -> Peaks:
    """Return the peaks of normal scores above the level where they are a quarter of the most there can be.

    gap: slots between two stretches above the level that still make them one.
    """
    levels, counts = _alarm_counts(z, gap)
    if not len(levels):
        return Peaks(0.0, 0.0, NO_SCORES)
    level = _lowest_level(levels, counts, max(_FEWEST_PEAKS, _TAIL_SHARE * counts.max()))
    excesses = np.concatenate([_peaks(one, level, gap) for one in z]) - level
    scored = float(sum(np.count_nonzero(~np.isnan(one)) for one in z))
    return Peaks(level, scored, merge(NO_SCORES, 0.0, excesses) if len(excesses) else NO_SCORES)


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
