"""Summaries of blocks of slots, cut from scored windows where their rows are at hand. Pure: no store, no broker.

Block b of a family holds slots `b * length .. (b + 1) * length - 1`, one window's length. It is told by the first
window that reaches its end; hops divide the length, so without gaps that window is the block. Windows are of final
slots, so neither batches nor the order of rows within the lateness change a block.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.levels import NO_SCORES, merge
from detector.manifest import Moments
from detector.rounding import nullable
from stream.contracts import BlockSummary, ModelRef, ScoreBlock, WindowNotice

_DIGITS = 9


class ScoreTally(msgspec.Struct, frozen=True):
    """The scores of an entity that became final since its last summary; alarmed: how many were anomalous."""

    moments: Moments = NO_SCORES
    alarmed: int = 0


NO_TALLY = ScoreTally()


def tally(before: ScoreTally, blocks: Sequence[ScoreBlock]) -> ScoreTally:
    """Count a window's final scores in."""
    for block in blocks:
        scores = np.array([score for score in block.scores if score is not None], dtype=np.float64)
        if block.stage == "final" and len(scores):
            moments = merge(before.moments, before.moments.count, scores)
            before = ScoreTally(moments, before.alarmed + sum(block.preds))
    return before


def summarise(
    notice: WindowNotice, numeric: Sequence[str], values: NDArray[np.float32], scores: ScoreTally, model: ModelRef
) -> BlockSummary | None:
    """Return the summary of the block that this window is the first to reach the end of, None if it is of none.

    values: (C, L) of the numeric channels, NaN = missing. Of a block whose end fell into a gap, what the window still
    holds of it counts.
    """
    length = notice.length
    block = (notice.end_slot + 1) // length - 1
    if (block + 1) * length - 1 <= notice.end_slot - notice.new_slots:
        return None
    behind = notice.end_slot - ((block + 1) * length - 1)
    rows = values[:, : length - behind].astype(np.float64)  # (C, n)
    count = (~np.isnan(rows)).sum(1)
    known = count > 0
    mean, variance, low, high = np.full((4, len(rows)), np.nan)
    if known.any():
        part = rows[known]
        mean[known], variance[known] = np.nanmean(part, 1), np.nanvar(part, 1)
        low[known], high[known] = np.nanmin(part, 1), np.nanmax(part, 1)
    moments = scores.moments
    return BlockSummary(
        entity=notice.entity,
        family=notice.family,
        interval_ms=notice.interval_ms,
        block=block,
        length=length,
        channels=list(numeric),
        counts=count.tolist(),
        means=nullable(mean, _DIGITS),
        variances=nullable(variance, _DIGITS),
        minimums=nullable(low, _DIGITS),
        maximums=nullable(high, _DIGITS),
        scores=int(moments.count),
        score_mean=moments.mean if moments.count else None,
        score_variance=moments.variance if moments.count else None,
        alarmed=scores.alarmed,
        model=model,
    )
