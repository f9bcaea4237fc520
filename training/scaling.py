"""Min-max scaling of numeric channels, per entity, from training rows alone. Knows no network."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.datasets import Dataset

# A channel that moves less than this share of what is usual for it counts as constant.
_CONSTANT_SHARE = 1e-3


@dataclass(frozen=True, eq=False)
class Scaling:
    """Training ranges, minimum < maximum, (E, C) in order of the data set's series; pooled (C,) for unseen entities."""

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    pooled_minimum: NDArray[np.float64]
    pooled_maximum: NDArray[np.float64]


def measure_scaling(dataset: Dataset) -> Scaling:
    """Measure the ranges that are mapped to [-1, 1].

    A constant channel gets the range that is usual among the other entities, around its value. A channel that an
    entity never sent gets the pooled range.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        ranges = [_finite_range(series.values[:, dataset.numeric]) for series in dataset.series]
        low, high = (np.array(side, dtype=np.float64) for side in zip(*ranges, strict=True))  # (E, C)
        pooled_low, pooled_high = np.nanmin(low, 0), np.nanmax(high, 0)  # (C,)
    never = np.isnan(pooled_low)
    pooled_low, pooled_high = np.where(never, -1, pooled_low), np.where(never, 1, pooled_high)
    half, center = (high - low) / 2, (high + low) / 2
    usual = _usual_half(half, center)
    half = np.where(half < _CONSTANT_SHARE * usual, usual, half)
    low, high = center - half, center + half
    pooled = np.where(pooled_high > pooled_low, 0, usual)
    return Scaling(
        np.where(np.isnan(low), pooled_low - pooled, low),
        np.where(np.isnan(high), pooled_high + pooled, high),
        pooled_low - pooled,
        pooled_high + pooled,
    )


def scale(
    values: NDArray[np.float32], minimum: NDArray[np.float64], maximum: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Map raw values (n, C) so that the training range becomes [-1, 1]."""
    scaled: NDArray[np.float32] = ((values - minimum) / ((maximum - minimum) / 2) - 1).astype(np.float32)
    return scaled


def _finite_range(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.nanmin(finite, 0), np.nanmax(finite, 0)


def _usual_half(half: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a channel's usual half range: the median over entities where it moves, else the size of its values."""
    moving = np.where(half > 0, half, np.nan)
    size = np.maximum(np.nanmax(np.abs(np.where(np.isnan(center), 0, center)), 0), 1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        usual = np.nanmedian(moving, 0)
    return np.where(np.isnan(usual), size, usual)
