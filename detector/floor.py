"""The false-alarm floor: how many deviations keep an entity's budget, by the peaks of its scores so far. Knows no slot.

Peaks over threshold, followed live (SPOT, Siffer et al. 2017): stretches of scores above a level are made one where
they would be one alarm, and a generalised Pareto distribution is fitted to their peaks by the method of moments
(Hosking and Wallis 1987). Other than in SPOT, the peak of an alarm is learned, but counts as no more than the threshold
it passed: left out, as there, it makes the tail seem shorter and the next threshold lower, which ends in many times the
budget; counted whole, one fault would blind the detector.
"""

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.levels import merge
from detector.manifest import AlarmBudget, Manifest, Moments, Peaks
from stream.contracts import Stage

WEEK_MS = 7 * 24 * 3600 * 1000
# Each stage may raise half of the budget, so that both together keep it whether or not their alarms coincide.
_STAGES = 2
# Remembered are so many times the slots that hold one alarm, and no fewer peaks than tell a tail.
_MEMORY_ALARMS = 2
_FEWEST_PEAKS = 50
# Shapes that few peaks suggest beyond these are chance: a sharp end, a tail without a variance.
_SHAPES = (-0.25, 0.4)


class Floor(msgspec.Struct, frozen=True):
    """What is remembered of the peaks of a stage's scores. slots, excesses: see `Peaks`; old ones weigh less.

    open: how far the newest peak is above the level, None if it is counted already. quiet: slots since its stretch.
    """

    slots: float
    excesses: Moments
    open: float | None = None
    quiet: int = 0


class FloorRule(NamedTuple):
    """One stage's share of a budget. level: deviations above which a peak counts. alarm_slots: those that may hold one.

    gap: slots between two stretches above the level that still make them one.
    """

    level: float
    alarm_slots: float
    gap: int


def floor_rule(manifest: Manifest, stage: Stage) -> FloorRule | None:
    """Return what a stage's floor has to keep, None without a budget."""
    budget = manifest.decision.budget
    if budget is None:
        return None
    alarm_slots = _STAGES * WEEK_MS / (budget.alarms_per_week * manifest.interval_ms)
    return FloorRule(_peaks(budget, stage).level, alarm_slots, manifest.decision.resolve_after)


def start_floor(manifest: Manifest, stage: Stage) -> Floor | None:
    """Return the floor that training scores suggest, which weigh no more than what is remembered of live ones."""
    budget, rule = manifest.decision.budget, floor_rule(manifest, stage)
    if budget is None or rule is None:
        return None
    peaks = _peaks(budget, stage)
    return _forget(Floor(peaks.slots, peaks.excesses), rule)


def floor_deviations(floor: Floor, rule: FloorRule) -> float:
    """Return the deviations that peaks pass once in so many slots; the level if they pass that less often.

    The tail's shape is taken a standard error heavier than fitted: the fewer peaks, the higher the floor.
    """
    count, mean, variance = floor.excesses.count, floor.excesses.mean, floor.excesses.variance
    wanted = count * rule.alarm_slots
    if wanted <= floor.slots:
        return rule.level
    lightest, heaviest = _SHAPES
    fitted = max((1 - mean**2 / max(variance, 1e-12)) / 2, lightest)
    shape = min(fitted + (1 + fitted) / math.sqrt(count), heaviest)
    return rule.level + pareto_quantile(floor.slots / wanted, shape, mean * (1 - shape))


def follow_floor(floor: Floor, z: NDArray[np.float64], most: float, rule: FloorRule) -> Floor:
    """Follow a hop's scores z (n,), in deviations, NaN where there is none.

    most: the threshold they were judged by, the highest that a peak counts as.
    """
    scored, above, passed = ~np.isnan(z), np.flatnonzero(z > rule.level), 0
    stretches = np.split(above, np.flatnonzero(np.diff(above) > rule.gap + 1) + 1) if len(above) else []
    for stretch in stretches:
        first, end = int(stretch[0]), int(stretch[-1]) + 1
        floor = _pass(floor, scored[passed:first], rule)
        floor = Floor(
            slots=floor.slots + int(scored[first:end].sum()),
            excesses=floor.excesses,
            open=max(floor.open or 0.0, min(float(z[stretch].max()), most) - rule.level),
        )
        passed = end
    return _pass(floor, scored[passed:], rule)


def pareto_quantile(exceeded: float, shape: float, scale: float) -> float:
    """Return the value that a generalised Pareto variable exceeds with this probability."""
    logs = -math.log(exceeded)
    return scale * (logs if abs(shape) < 1e-9 else math.expm1(shape * logs) / shape)


def _peaks(budget: AlarmBudget, stage: Stage) -> Peaks:
    return budget.provisional if stage == "provisional" else budget.final


def _pass(floor: Floor, scored: NDArray[np.bool_], rule: FloorRule) -> Floor:
    """Let slots at or below the level pass; count the open peak at the slot behind which none can belong to it."""
    if floor.open is None:
        return msgspec.structs.replace(floor, slots=floor.slots + int(scored.sum()))
    wait = rule.gap + 1 - floor.quiet
    seen = msgspec.structs.replace(
        floor, slots=floor.slots + int(scored[:wait].sum()), quiet=floor.quiet + len(scored[:wait])
    )
    if len(scored) < wait:
        return seen
    counted = _forget(Floor(seen.slots, merge(floor.excesses, floor.excesses.count, np.array([floor.open]))), rule)
    return _pass(counted, scored[wait:], rule)


def _forget(floor: Floor, rule: FloorRule) -> Floor:
    """Let slots and peaks weigh as no more than are remembered."""
    count = floor.excesses.count
    keep = max(_MEMORY_ALARMS * rule.alarm_slots / max(floor.slots, 1.0), _FEWEST_PEAKS / max(count, 1.0))
    if keep >= 1:
        return floor
    return Floor(floor.slots * keep, msgspec.structs.replace(floor.excesses, count=count * keep))
