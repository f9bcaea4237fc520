"""What training rows and their scores were like, for `stream.sketch`: moments of rows and of block means, and memory.

Blocks are those of the live path: as long as a window, on the event-time grid.
"""

import numpy as np
from numpy.typing import NDArray

from stream.sketch import Sketch, mean_deviation

Floats = NDArray[np.float64]

# Block means are taken so many times a block, overlapping; that makes more of few rows.
_STRIDES = 8
# Of fewer blocks than these, the deviation of block means is no less than that of rows which forget exponentially.
_ENOUGH_BLOCKS = 20
# A block mean of fewer values than this share of its slots is left out.
_LEAST_FILLED = 0.125
# Slots looked at: a series with long gaps spans more than it holds.
_MAX_SLOTS = 2**20
_FORGOTTEN = 1 / np.e


def sketch_of(
    slots: NDArray[np.int64],
    values: NDArray[np.float32],
    score_slots: NDArray[np.int64],
    scores: Floats,
    length: int,
) -> Sketch:
    """Sketch an entity's training rows and final scores.

    slots: (n,) ascending. values: (n, C) numeric, NaN = missing. score_slots, scores: (m,) in any order, a slot may
    come twice. length: L, slots of a block.
    """
    channels = [_Series.of(slots, column, length) for column in values.T]
    series = [*channels, _Series.of(score_slots, scores, length)]
    blocks = max((one.blocks for one in channels), default=0.0)
    columns = [[one.mean for one in series], [one.deviation for one in series]]
    columns += [[one.block_deviation for one in series], [one.memory for one in series]]
    return Sketch(round(blocks, 2), *([float(f"{value:.6g}") for value in column] for column in columns))


class _Series:
    """One series' entry in a sketch; one without values has none to be compared with, so everything of it is 0."""

    def __init__(self, blocks: float, mean: float, deviation: float, block_deviation: float, memory: float) -> None:
        self.blocks, self.mean, self.deviation = blocks, mean, deviation
        self.block_deviation, self.memory = block_deviation, memory

    @classmethod
    def of(cls, slots: NDArray[np.int64], values: NDArray[np.floating], length: int) -> "_Series":
        grid = _on_grid(slots, np.asarray(values, dtype=np.float64))
        known = ~np.isnan(grid)
        if not known.any():
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        mean = float(grid[known].mean())
        centred = np.where(known, grid - mean, 0.0)
        deviation = float(np.sqrt((centred**2).sum() / known.sum()))
        memory = _memory(centred, known) if deviation > 0 else 0.0
        blocks = float(known.sum()) / length
        by_memory = deviation * mean_deviation(memory, length)
        measured = _block_deviation(centred, known, length)
        enough = measured is not None and blocks >= _ENOUGH_BLOCKS
        return cls(
            blocks, mean, deviation, measured if enough and measured else max(measured or 0.0, by_memory), memory
        )


def _on_grid(slots: NDArray[np.int64], values: Floats) -> Floats:
    """Return values by slot, NaN where there is none; of what spans too much, the newest part."""
    kept = ~np.isnan(values)
    slots, values = slots[kept], values[kept]
    if not len(slots):
        return np.full(1, np.nan)
    newest = int(slots.max())
    first = max(int(slots.min()), newest - _MAX_SLOTS + 1)
    grid = np.full(newest - first + 1, np.nan)
    inside = slots >= first
    grid[slots[inside] - first] = values[inside]
    return grid


def _memory(centred: Floats, known: NDArray[np.bool_]) -> float:
    """Return after how many slots the autocorrelation has fallen to 1/e, over the pairs of slots with values."""
    most = max(len(centred) // 4, 1)
    products, pairs = _lagged(centred, most), _lagged(known.astype(np.float64), most)
    correlation = products / np.maximum(pairs, 1.0) / (products[0] / pairs[0])
    # A lag of which no two slots have values says nothing.
    below = np.flatnonzero((correlation < _FORGOTTEN) & (pairs > 0.5))
    if not len(below):
        return float(most)
    lag = int(below[0])
    high, low = float(correlation[lag - 1]), float(correlation[lag])
    return lag - 1 + (high - _FORGOTTEN) / (high - low) if lag > 1 else -1 / float(np.log(max(low, 1e-9)))


def _lagged(values: Floats, most: int) -> Floats:
    """Return sums of products of values so many slots apart, (most + 1,)."""
    size = 1 << (2 * len(values) - 1).bit_length()
    spectrum = np.fft.rfft(values, size)
    sums: Floats = np.fft.irfft(spectrum * spectrum.conj(), size)[: most + 1]
    return sums


def _block_deviation(centred: Floats, known: NDArray[np.bool_], length: int) -> float | None:
    """Return the deviation of block means, None where there are fewer than two blocks."""
    starts = np.arange(0, len(centred) - length + 1, max(1, length // _STRIDES))
    totals = np.concatenate([[0.0], centred.cumsum()])
    counts = np.concatenate([[0], known.cumsum()])
    count = counts[starts + length] - counts[starts]
    filled = count >= max(_LEAST_FILLED * length, 1)
    independent = filled.sum() / _STRIDES
    if independent < 2:
        return None
    means = (totals[starts + length] - totals[starts])[filled] / count[filled]
    # The mean they deviate from is their own.
    return float(means.std() * np.sqrt(independent / (independent - 1)))
