"""A training sketch against rows whose moments and memory are known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from stream.sketch import block_correlation, mean_deviation
from training.sketch import sketch_of

LENGTH = 128
FIRST = 1_767_225_600


def ar_rows(rows, phi, seed=0):
    noise = np.random.default_rng(seed).standard_normal(rows) * np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise)


def sketch(values, slots=None, length=LENGTH):
    slots = FIRST + np.arange(len(values)) if slots is None else slots
    return sketch_of(slots, values[:, None].astype(np.float32), slots, values, length)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.98])
def test_moments_memory_and_block_deviation_are_those_of_the_rows(phi):
    rows = ar_rows(LENGTH * 400, phi)
    one = sketch(3 + 2 * rows)
    memory = -1 / np.log(phi) if phi else 0.0
    blocks = 2 * rows.reshape(-1, LENGTH).mean(1)
    assert one.blocks == 400
    # The score, the second series here, is the same rows.
    assert one.mean == pytest.approx([3 + blocks.mean()] * 2, rel=1e-4)
    assert one.deviation == pytest.approx([2.0] * 2, rel=0.05)
    assert one.memory == pytest.approx([memory] * 2, rel=0.2, abs=0.3)
    assert one.block_deviation == pytest.approx([blocks.std()] * 2, rel=0.1)
    assert one.block_deviation == pytest.approx([2 * mean_deviation(memory, LENGTH)] * 2, rel=0.15)


def test_neighbouring_block_means_are_as_alike_as_the_memory_says():
    means = ar_rows(LENGTH * 4000, 0.98).reshape(-1, LENGTH).mean(1)
    measured = np.corrcoef(means[:-1], means[1:])[0, 1]
    assert block_correlation(-1 / np.log(0.98), LENGTH) == pytest.approx(measured, abs=0.05)


def test_few_rows_are_not_taken_to_be_steadier_than_their_memory_allows():
    """Of two blocks, chance decides how near to each other their means are."""
    for seed in range(20):
        rows = ar_rows(3 * LENGTH, 0.95, seed)
        one = sketch(rows)
        assert one.block_deviation[0] >= 0.99 * one.deviation[0] * mean_deviation(one.memory[0], LENGTH)


def test_gaps_and_missing_values_change_little():
    rows = ar_rows(LENGTH * 200, 0.9)
    whole = sketch(rows)
    keep = np.random.default_rng(1).random(len(rows)) > 0.3
    slots = FIRST + np.arange(len(rows))
    slots[len(rows) // 2 :] += 50_000
    holed = np.where(keep, rows, np.nan)
    for other in (sketch(rows[keep], slots[keep]), sketch(holed, slots)):
        for field in ("mean", "deviation", "block_deviation"):
            assert getattr(other, field) == pytest.approx(getattr(whole, field), rel=0.15, abs=0.03)
        assert other.memory == pytest.approx(whole.memory, rel=0.3)


def test_a_still_series_and_one_without_values_are_all_zero_about_their_mean():
    still = sketch(np.full(500, 7.0))
    assert (still.mean, still.deviation, still.block_deviation) == ([7.0] * 2, [0.0] * 2, [0.0] * 2)
    assert still.memory == [0.0] * 2
    empty = sketch(np.full(500, np.nan))
    assert (empty.blocks, empty.mean, empty.deviation) == (0.0, [0.0] * 2, [0.0] * 2)


def test_repeated_and_unordered_scores_are_placed_by_their_slot():
    rows = ar_rows(LENGTH * 50, 0.9)
    slots = FIRST + np.arange(len(rows))
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(rows)), 2))
    one = sketch_of(slots, rows[:, None].astype(np.float32), slots[order], rows[order], LENGTH)
    assert one == sketch(rows)
