"""Ridge regression of every channel on its own last rows: the strongest of the simple opponents."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import (
    Matrix,
    ScaledRows,
    ScoreRows,
    fit_per_entity,
    mean_over_channels,
    residual_scale,
)
from training.datasets import Dataset

LAGS = 60
# Penalties to choose from, in scaled units, by how well the first rows of a channel foretell its last ones.
PENALTIES = np.logspace(-3, 3, 7)
FITTED_SHARE = 0.7

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class RidgeAR:
    """One-step residual over what is usual in training, averaged over channels."""

    lags: int = LAGS
    lookahead: int = 0

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_per_entity(dataset, 0, self._fit)

    def _fit(self, rows: ScaledRows, generator: np.random.Generator) -> ScoreRows:
        models = [fit_regression(channel, self.lags) for channel in rows.filled.T]
        usual = residual_scale(_residual(models, rows))
        return lambda rows: mean_over_channels(_residual(models, rows) / usual)


@dataclass(frozen=True, eq=False)
class LagRegression:
    """Means of target and lags (p,), oldest lag first; coefficients (h,) for every length h of history up to p.

    The first rows of a series have less than p rows before them and get the best prediction from those.
    """

    mean: float
    mean_lags: Vector
    coefficients: list[Vector]
    penalty: float

    def predict(self, channel: Vector) -> Vector:
        """Predict each value (n,) from those before it."""
        lags = len(self.mean_lags)
        start = [
            self.mean + float((channel[:row] - self.mean_lags[lags - row :]) @ self.coefficients[row])
            for row in range(min(lags, len(channel)))
        ]
        if len(channel) <= lags:
            return np.array(start)
        full = self.coefficients[lags]
        rest = self.mean - full @ self.mean_lags + _windows(channel, lags) @ full
        return np.concatenate([start, rest])


def fit_regression(channel: Vector, lags: int) -> LagRegression:
    """Fit values (n,) to the `lags` before them; a short channel has fewer.

    The penalty is the one that predicts the last part of the channel best after a fit to the first.
    """
    lags = min(lags, (len(channel) - 1) // 2)
    if lags < 1:
        return LagRegression(float(channel.mean()), np.empty(0), [np.empty(0)], float(PENALTIES[-1]))
    past, target = _windows(channel, lags), channel[lags:]  # (n - p, p), (n - p,)
    penalty = _choose_penalty(past, target)
    mean_lags, mean = past.mean(0), float(target.mean())
    gram, moment = _moments(past - mean_lags, target - mean)
    return LagRegression(mean, mean_lags, _solve_every_length(gram, moment, penalty), penalty)


def _choose_penalty(past: Matrix, target: Vector) -> float:
    cut = max(1, round(FITTED_SHARE * len(target)))
    if cut == len(target):
        return float(PENALTIES[-1])
    mean_lags, mean = past[:cut].mean(0), target[:cut].mean()
    gram, moment = _moments(past[:cut] - mean_lags, target[:cut] - mean)
    values, vectors = np.linalg.eigh(gram)
    inverse = 1 / (np.maximum(values, 0)[:, None] + PENALTIES)  # (p, penalties)
    coefficients = vectors @ ((vectors.T @ moment)[:, None] * inverse)
    error = (target[cut:] - mean)[:, None] - (past[cut:] - mean_lags) @ coefficients
    return float(PENALTIES[np.argmin(np.square(error).sum(0))])


def _moments(past: Matrix, target: Vector) -> tuple[Matrix, Vector]:
    return past.T @ past, past.T @ target


def _solve_every_length(gram: Matrix, moment: Vector, penalty: float) -> list[Vector]:
    """Return the ridge coefficients of the last h lags, for h from 0 to p."""
    penalised = gram + penalty * np.eye(len(gram))
    lengths = range(1, len(gram) + 1)
    return [np.empty(0), *(np.asarray(np.linalg.solve(penalised[-h:, -h:], moment[-h:])) for h in lengths)]


def _windows(channel: Vector, lags: int) -> Matrix:
    """Return the values before each value but the first `lags`, contiguous because BLAS wants them so."""
    return np.ascontiguousarray(sliding_window_view(channel, lags)[:-1])


def _residual(models: list[LagRegression], rows: ScaledRows) -> Matrix:
    predicted = np.stack([model.predict(channel) for model, channel in zip(models, rows.filled.T, strict=True)], -1)
    residual: Matrix = np.abs(rows.numeric - predicted)
    return residual
