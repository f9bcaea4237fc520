"""The level of an entity's scores: running mean and variance, and what a lasting alarm makes of them. Knows no slot.

A score counts as at most `limit_sigmas` deviations above the mean, so that one wild value does not blind the detector
for `memory` slots. An alarm that lasts longer than `adapt_after` scores is the new level.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.manifest import DecisionConfig, Moments

NO_SCORES = Moments(0.0, 0.0, 0.0)
# Makes the median absolute deviation of normal values their standard deviation.
_MAD_TO_SIGMA = 1.4826


class Level(NamedTuple):
    """Moments of one stage: of the scores so far, and of those of the alarm it is in.

    adapted: the moments became those of the alarm just now.
    """

    moments: Moments
    stretch: Moments
    adapted: bool = False


def follow(moments: Moments, scores: NDArray[np.float64], limit: float, rule: DecisionConfig) -> Moments:
    """Update moments by scores (n,), NaN ignored, those above the limit counted as the limit.

    The older moments weigh as at most `rule.memory` scores.
    """
    new = np.minimum(scores[~np.isnan(scores)], limit)
    if not len(new):
        return moments
    return merge(moments, max(min(moments.count, rule.memory - len(new)), 0.0), new)


def follow_level(level: Level, scores: NDArray[np.float64], rule: DecisionConfig, *, alarmed: bool) -> Level:
    """Follow a hop's scores (n,); take the alarm for the normal level if it has lasted too long.

    alarmed: whether one of the scores is anomalous. A hop of gaps alone neither goes on with an alarm nor ends it.
    """
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return level
    limit = level.moments.mean + rule.limit_sigmas * level.moments.deviation
    moments = follow(level.moments, scores, limit, rule)
    if not (rule.adapt_after and alarmed):
        return Level(moments, NO_SCORES)
    limit = max(limit, _robust_limit(scores, rule.limit_sigmas))
    stretch = merge(level.stretch, level.stretch.count, np.minimum(scores, limit))
    if stretch.count > rule.adapt_after:
        return Level(stretch, NO_SCORES, adapted=True)
    return Level(moments, stretch)


def _robust_limit(scores: NDArray[np.float64], sigmas: float) -> float:
    """Return what a single wild score of an alarm is counted as, however far the alarm is from what was normal."""
    median = float(np.median(scores))
    return median + sigmas * _MAD_TO_SIGMA * float(np.median(np.abs(scores - median)))


def merge(moments: Moments, weight: float, scores: NDArray[np.float64]) -> Moments:
    """Return the moments of scores and of older ones that weigh as so many (pairwise update of Chan et al. 1979)."""
    count = len(scores)
    total, own_mean = (
        weight + count,
        float(scores.sum()) / count,
    )  # sums by hand: mean() and var() take three times as long
    off = scores - own_mean
    shift = own_mean - moments.mean
    mean = moments.mean + shift * count / total
    within = weight * moments.variance + float((off * off).sum())
    return Moments(total, mean, (within + shift**2 * weight * count / total) / total)
