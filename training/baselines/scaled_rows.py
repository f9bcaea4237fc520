"""Series in the units that baselines work in: every entity's training range is [-1, 1]. Knows no method."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.baselines.protocol import Scorer
from training.datasets import Dataset, Series
from training.metrics import Scores
from training.scaling import Scaling, measure_scaling, scale

# Added to residual scales, in scaled units: a channel that training shows as constant may still have some noise.
SCALE_FLOOR = 0.01

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScaledRows:
    """One series. numeric: (n, C), NaN = missing. filled: (n, C), finite. commands: (n, K), -1, 0 = missing or 1.

    A gap is filled with the value before it, or the training median where there is none. Rows count as consecutive.
    """

    numeric: Matrix
    filled: Matrix
    commands: Matrix


@dataclass(frozen=True, eq=False)
class Scaler:
    """Training ranges and medians by entity. median: (E, C), in scaled units."""

    numeric: list[int]
    commands: list[int]
    index: dict[str, int]
    scaling: Scaling
    median: Matrix

    def __call__(self, series: Series) -> ScaledRows:
        """Scale a series of a fitted entity."""
        index = self.index[series.entity]
        numeric = _scale(series.values[:, self.numeric], self.scaling, index)
        commands = np.sign(2.0 * series.values[:, self.commands] - 1)
        return ScaledRows(numeric, _fill(numeric, self.median[index]), np.where(np.isnan(commands), 0, commands))


ScoreRows = Callable[[ScaledRows], Scores]
FitRows = Callable[[ScaledRows, np.random.Generator], ScoreRows]


def fit_scaler(dataset: Dataset) -> Scaler:
    """Measure training ranges and medians of every entity; a channel that it never sent has its median at 0."""
    scaling = measure_scaling(dataset)
    median = [
        _median(_scale(series.values[:, dataset.numeric], scaling, index))
        for index, series in enumerate(dataset.series)
    ]
    index = {series.entity: number for number, series in enumerate(dataset.series)}
    return Scaler(dataset.numeric, dataset.commands, index, scaling, np.array(median))


def fit_per_entity(dataset: Dataset, seed: int, fit: FitRows) -> Scorer:
    """Fit one model an entity, each with a generator of its own."""
    scaler = fit_scaler(dataset)
    models = {
        series.entity: fit(scaler(series), np.random.default_rng([seed, number]))
        for number, series in enumerate(dataset.series)
    }

    def score(series: Series) -> Scores:
        rows = scaler(series)
        return where_present(rows, models[series.entity](rows))

    return score


def where_present(rows: ScaledRows, scores: Scores) -> Scores:
    """Take the score from rows without any numeric value."""
    return np.where(np.isnan(rows.numeric).all(1), np.nan, scores)


def residual_scale(residual: Matrix) -> Matrix:
    """Return mean + standard deviation + floor of each channel's training residuals (n, C), NaN = missing."""
    present = ~np.isnan(residual)
    count = np.maximum(present.sum(0), 1)
    mean = np.where(present, residual, 0).sum(0) / count
    variance = np.where(present, (residual - mean) ** 2, 0).sum(0) / count
    scale: Matrix = mean + np.sqrt(variance) + SCALE_FLOOR
    return scale


def mean_over_channels(residual: Matrix) -> Scores:
    """Average residuals (n, C) over the channels that are present; 0 where none is."""
    present = ~np.isnan(residual)
    mean: Scores = np.where(present, residual, 0).sum(1) / np.maximum(present.sum(1), 1)
    return mean


def _scale(values: NDArray[np.float32], scaling: Scaling, index: int) -> Matrix:
    scaled = scale(values, scaling.minimum[index], scaling.maximum[index]).astype(np.float64)
    return np.where(np.isfinite(scaled), scaled, np.nan)


def _median(numeric: Matrix) -> Matrix:
    columns = [column[~np.isnan(column)] for column in numeric.T]
    return np.array([np.median(column) if len(column) else 0.0 for column in columns])


def _fill(numeric: Matrix, first: Matrix) -> Matrix:
    above = np.vstack([first, numeric])
    last = np.where(np.isnan(above), 0, np.arange(len(above))[:, None])
    filled: Matrix = np.take_along_axis(above, np.maximum.accumulate(last, axis=0), 0)[1:]
    return filled
