"""Noisy telemetry, made up; the tests put anomalies where they want them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detector.manifest import Channel
from training.datasets import Dataset, Series

A, ON, B = range(3)
CHANNELS = [Channel("a", "numeric"), Channel("on", "command"), Channel("b", "numeric")]


def noisy(entity: str, rows: int, seed: int, *, constant: bool = False) -> Series:
    """Return a noisy sine that a command lifts, and a slower one, which is constant on request."""
    generator = np.random.default_rng(seed)
    t = np.arange(rows)
    on = (t // 40) % 2
    a = np.sin(t / 4) + on + 0.05 * generator.standard_normal(rows)
    b = np.full(rows, 3.0) if constant else 10 * np.cos(t / 9) + 0.5 * generator.standard_normal(rows)
    return Series(entity, np.arange(rows), np.stack([a, on, b], -1).astype(np.float32), None)


def training() -> Dataset:
    """Return two entities; the second has a constant channel."""
    return Dataset(CHANNELS, 1000, [noisy("e-0", 400, 0), noisy("e-1", 400, 1, constant=True)])


def single(values: Sequence[float] | NDArray[np.float64], entity: str = "e-0") -> Series:
    """Return a series of one channel."""
    column = np.asarray(values, np.float32)[:, None]
    return Series(entity, np.arange(len(column)), column, None)


def single_channel(values: Sequence[float] | NDArray[np.float64]) -> Dataset:
    """Return a data set of one entity with one channel."""
    return Dataset([Channel("a", "numeric")], 1000, [single(values)])


def changed(series: Series, rows: slice, columns: int | list[int], values: float) -> Series:
    """Overwrite some values."""
    copy = series.values.copy()
    copy[rows, columns] = values
    return replace(series, values=copy)


def in_other_units(series: Series, factor: float) -> Series:
    """Multiply the first channel."""
    return replace(series, values=series.values * np.array([factor, 1, 1], np.float32))
