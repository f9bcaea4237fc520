"""Whether the series of one entity have moved from their training level: two tests and how long they last. Pure.

The comparison with training takes the newest blocks' mean against the training mean, in standard errors. ADWIN (Bifet
and Gavaldà 2007) watches the same block means for a change of level. Both want a shift that matters in deviations of
rows. A series has moved when both say so and it has been away for some blocks, or when one alone has said so for many.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

from stream.contracts import BlockSummary
from stream.settings import DriftSettings
from stream.sketch import Reference

# A block with fewer values than this share of its slots says too little of its mean.
_LEAST_FILLED = 0.125
# To ADWIN one wild block counts as at most so many block deviations.
_LIMIT = 20.0
_MOST_BLOCK_DEVIATIONS = 3.0
_MOST_SHIFTS = 4.0

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Verdict(NamedTuple):
    """What the tests say of each series (S,), the score last. blocks: for how many one of them has said so."""

    adwin: Flags
    sketch: Flags
    blocks: NDArray[np.int64]
    moved: Flags


class _Block:
    """Moments of the window means and variances of one block that is not complete yet, weighted by their counts."""

    def __init__(self, number: int, series: int) -> None:
        self.number = number
        self.count = np.zeros(series)
        self._total = np.zeros(series)
        self._squares = np.zeros(series)

    def add(self, count: Floats, mean: Floats, variance: Floats) -> None:
        self.count += count
        self._total += count * mean
        self._squares += count * (variance + mean**2)

    def moments(self, least: float) -> tuple[Floats, Floats]:
        """Return mean and variance, NaN where there are fewer values than `least`."""
        count = np.where(self.count >= max(least, 1.0), self.count, np.nan)
        mean = self._total / count
        return mean, np.maximum(self._squares / count - mean**2, 0.0)


class EntityWatch:
    """Follows the block means of one entity's channels and score."""

    def __init__(self, reference: Reference, merged: int, rule: DriftSettings) -> None:
        """Know what training said of the entity. merged: windows in a block."""
        series = len(reference.mean)
        self.reference = reference
        self._rule, self._merged = rule, merged
        self._open: _Block | None = None
        # What one block's mean may add to the comparison, so that a few wild ones do not decide it.
        self._limit = np.maximum(
            _MOST_BLOCK_DEVIATIONS * reference.block_deviation, _MOST_SHIFTS * rule.min_shift * reference.deviation
        )
        self._adwin = [ADWIN(delta=rule.delta, clock=1) for _ in range(series)]  # type: ignore[no-untyped-call]
        self._changed = np.zeros(series, dtype=np.bool_)
        self._unchanged = np.zeros(series, dtype=np.int64)  # blocks since ADWIN last saw a change
        self._means = np.full((rule.window_blocks, series), np.nan)
        self._variances = np.full((rule.window_blocks, series), np.nan)
        self._closed = 0
        nothing = np.zeros(series, dtype=np.bool_)
        self.verdict = Verdict(nothing, nothing, np.zeros(series, dtype=np.int64), nothing)

    def add(self, summary: BlockSummary) -> bool:
        """Fold a window's summary; say whether it completed a block, after which `verdict` is another."""
        number = summary.block // self._merged
        closes = self._open is not None and self._open.number != number
        if self._open is not None and closes:  # its last windows never came
            self._close(self._open, summary.length)
        if self._open is None or closes:
            self._open = _Block(number, len(self.reference.mean))
        self._open.add(*_columns(summary))
        if (summary.block + 1) % self._merged == 0:
            self._close(self._open, summary.length)
            self._open, closes = None, True
        return closes

    def live(self) -> tuple[Floats, Floats]:
        """Return mean and deviation of the rows of the newest blocks, by series; NaN where there are none."""
        known = ~np.isnan(self._means)
        count = np.where(known.any(0), known.sum(0), np.nan)
        mean = np.where(known, self._means, 0.0).sum(0) / count
        between = (np.where(known, self._means - mean, 0.0) ** 2).sum(0) / count
        return mean, np.sqrt(between + np.where(known, self._variances, 0.0).sum(0) / count)

    def _close(self, block: _Block, length: int) -> None:
        mean, variance = block.moments(_LEAST_FILLED * self._merged * length)
        at = self._closed % len(self._means)
        self._means[at], self._variances[at] = mean, variance
        self._closed += 1
        known = ~np.isnan(self._means)
        blocks = known.sum(0)
        away = np.clip(self._means - self.reference.mean, -self._limit, self._limit)
        shift = np.where(known, away, 0.0).sum(0) / np.maximum(blocks, 1)
        # By the median too: a fault of a few of these blocks is no drift, however large.
        matters = self._matters(shift) & self._matters(_medians(self._means, blocks) - self.reference.mean)
        adwin = self._follow(mean, matters)
        sketch = self._differs(shift, blocks) & matters
        suspected = adwin | sketch
        lasting = np.where(suspected, self.verdict.blocks + 1, 0)
        moved = (adwin & sketch & (lasting >= self._rule.min_blocks)) | (lasting >= self._rule.persist_blocks)
        self.verdict = Verdict(adwin, sketch, lasting, moved)

    def _differs(self, shift: Floats, blocks: NDArray[np.int64]) -> Flags:
        """Compare the mean of the newest blocks with that of training, in standard errors of their difference."""
        ref = self.reference
        error = ref.block_deviation * np.sqrt(ref.inflation / np.maximum(blocks, 1) + ref.error**2)
        different: Flags = (blocks >= self._rule.min_blocks) & (np.abs(shift) > self._rule.sigmas * error)
        return different

    def _follow(self, mean: Floats, matters: Flags) -> Flags:
        """Give ADWIN the new block; return which series changed and are away from their training level now.

        The newest blocks tell where they are: ADWIN's own window still holds blocks of before when it sees a change. A
        change is forgotten when they are back, but not before they are all of after it.
        """
        ref = self.reference
        z = np.clip((mean - ref.mean) / ref.block_deviation, -_LIMIT, _LIMIT)
        self._unchanged += 1
        for i in np.flatnonzero(~np.isnan(z)):
            detector: Any = self._adwin[i]
            detector.update(float(z[i]))
            if detector.drift_detected:
                self._changed[i], self._unchanged[i] = True, 0
        self._changed &= matters | (self._unchanged <= self._rule.window_blocks)
        return self._changed & matters

    def _matters(self, shift: Floats) -> Flags:
        away = np.abs(shift)
        away[-1] = shift[-1]  # a lower score is no trouble
        large: Flags = away >= self._rule.min_shift * self.reference.deviation
        return large


def _medians(rows: Floats, counts: NDArray[np.int64]) -> Floats:
    """Return the median of each column (n, S) of so many numbers, the others NaN; NaN where there is none."""
    ordered = np.sort(rows, axis=0)  # NaN last
    middle = np.maximum([(counts - 1) // 2, counts // 2], 0)
    medians: Floats = np.take_along_axis(ordered, middle.clip(max=len(rows) - 1), axis=0).mean(0)
    return medians


def _columns(summary: BlockSummary) -> tuple[Floats, Floats, Floats]:
    """Return counts, means and variances of the channels and the score, means and variances 0 where there are none."""
    counts = np.array([*summary.counts, summary.scores], dtype=np.float64)
    return counts, _numbers(summary.means, summary.score_mean), _numbers(summary.variances, summary.score_variance)


def _numbers(values: Sequence[float | None], last: float | None) -> Floats:
    return np.array([0.0 if value is None else value for value in (*values, last)])
