"""The honest opponents that take a few lines each; deep detectors have to beat them to be worth their cost."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import (
    Matrix,
    ScaledRows,
    ScoreRows,
    fit_per_entity,
    mean_over_channels,
    residual_scale,
)
from training.baselines.windows import ScoreWindows, WindowPlan, fit_on_windows
from training.datasets import Dataset

# Principal components are kept up to this share of the variance.
EXPLAINED = 0.9
ALL_WINDOWS = WindowPlan(most=None)
SOME_WINDOWS = WindowPlan(most=2000)


@dataclass(frozen=True)
class Random:
    """A uniform score that has seen nothing: what a metric gives away."""

    seed: int = 0
    lookahead: int = 0

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_per_entity(dataset, self.seed, self._fit)

    def _fit(self, rows: ScaledRows, generator: np.random.Generator) -> ScoreRows:
        seed = int(generator.integers(2**63))
        return lambda rows: np.random.default_rng(seed).random(len(rows.numeric))


@dataclass(frozen=True)
class MedianDeviation:
    """Distance to the training median over what is usual in training, averaged over channels."""

    lookahead: int = 0

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_per_entity(dataset, 0, self._fit)

    def _fit(self, rows: ScaledRows, generator: np.random.Generator) -> ScoreRows:
        median = np.median(rows.filled, axis=0)
        usual = residual_scale(np.abs(rows.numeric - median))
        return lambda rows: mean_over_channels(np.abs(rows.numeric - median) / usual)


@dataclass(frozen=True)
class PCAError:
    """Residual of the window around each row after projection to the principal subspace of training windows.

    Every value's residual is divided by what is usual for it in training; the plain length of the residual vector finds
    fewer of the anomalies injected into training rows.
    """

    plan: WindowPlan = ALL_WINDOWS

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_on_windows(dataset, 0, self.plan, self._fit)

    def _fit(self, windows: Matrix, seed: int) -> ScoreWindows:
        mean = windows.mean(0)
        basis = _principal_basis(windows)

        def residual(windows: Matrix) -> Matrix:
            centred = windows - mean
            distance: Matrix = np.abs(centred - centred @ basis.T @ basis)
            return distance

        usual = residual_scale(residual(windows))
        return lambda tested: mean_over_channels(residual(tested) / usual)


def _principal_basis(windows: Matrix) -> Matrix:
    """Return the principal components (k, D) of windows (m, D); none of windows all alike."""
    if not windows.var(0).any():
        return np.empty((0, windows.shape[1]))
    return np.asarray(PCA(EXPLAINED, svd_solver="covariance_eigh").fit(windows).components_)


@dataclass(frozen=True)
class NearestNeighbour:
    """Euclidean distance of the window around each row to the nearest training window."""

    seed: int = 0
    plan: WindowPlan = SOME_WINDOWS

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_on_windows(dataset, self.seed, self.plan, self._fit)

    def _fit(self, windows: Matrix, seed: int) -> ScoreWindows:
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(windows)
        return lambda tested: np.asarray(search.kneighbors(tested)[0][:, 0])
