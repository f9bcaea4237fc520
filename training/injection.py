"""Anomalies put into normal telemetry: what knobs are chosen by, so that no label is. Knows no detector.

Kinds are those that operators name: spikes, level shifts, drifts, noise bursts, stuck values, changed amplitude, and a
stretch that runs backwards.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.datasets import Series

# Size of an anomaly in half training ranges, and its length in slots, both drawn evenly on a logarithmic scale.
SIZES = (0.15, 1.5)
SHORTEST = 10
LONGEST_SPIKE = 3

Values = NDArray[np.float64]
# Changes a stretch of values (n,); the second argument is the anomaly's signed size, in the values' units.
Change = Callable[[Values, float, np.random.Generator], Values]


def _shift(values: Values, size: float, generator: np.random.Generator) -> Values:
    return values + size


def _drift(values: Values, size: float, generator: np.random.Generator) -> Values:
    return values + size * np.linspace(0, 1, len(values))


def _noise(values: Values, size: float, generator: np.random.Generator) -> Values:
    return values + 0.6 * abs(size) * generator.standard_normal(len(values))


def _stuck(values: Values, size: float, generator: np.random.Generator) -> Values:
    return np.full_like(values, values[0])


def _amplitude(values: Values, size: float, generator: np.random.Generator) -> Values:
    center = np.nanmedian(values)
    changed: Values = center + (values - center) * generator.choice([0.2, 2.5])
    return changed


def _reverse(values: Values, size: float, generator: np.random.Generator) -> Values:
    return 2 * np.nanmean(values) - values[::-1]


# Stuck, amplitude and reverse can't be seen where nothing moves: there they come with half a shift.
_NEED_MOVEMENT = (_stuck, _amplitude, _reverse)
_LEAST_MOVEMENT = 0.02

KINDS: dict[str, Change] = {
    "spike": _shift,
    "shift": _shift,
    "drift": _drift,
    "noise": _noise,
    "stuck": _stuck,
    "amplitude": _amplitude,
    "reverse": _reverse,
}


def inject(
    series: Series,
    numeric: list[int],
    half_range: NDArray[np.float64],
    kind: str,
    generator: np.random.Generator,
    *,
    first_row: int = 0,
    longest: int = 512,
) -> Series:
    """Return the series with one anomaly behind `first_row`, labelled.

    numeric: columns of the numeric channels, half_range: (C,) half their training ranges. One channel in eight is hit,
    at least one.
    """
    rows = len(series.slots) - first_row
    length = int(_log_uniform(generator, SHORTEST, longest))
    if kind == "spike":
        length = int(generator.integers(1, LONGEST_SPIKE + 1))
    length = min(length, rows // 3)
    begin = first_row + int(generator.integers(rows // 20, rows - length))
    stretch = slice(begin, begin + length)
    values, labels = series.values.copy(), np.zeros(len(series.slots), np.uint8)
    labels[stretch] = 1
    share = _log_uniform(generator, *SIZES) * generator.choice([-1.0, 1.0])
    for channel in generator.choice(len(numeric), max(1, len(numeric) // 8), replace=False):
        column, size = numeric[channel], float(share * half_range[channel])
        values[stretch, column] = _change(KINDS[kind], values[stretch, column], size, half_range[channel], generator)
    return replace(series, values=values, labels=labels)


def _change(
    change: Change, values: NDArray[np.float32], size: float, half_range: float, generator: np.random.Generator
) -> Values:
    before = values.astype(np.float64)
    after = change(before, size, generator)
    if change in _NEED_MOVEMENT and np.nanstd(before) <= _LEAST_MOVEMENT * half_range:
        after = after + size / 2
    return after


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
