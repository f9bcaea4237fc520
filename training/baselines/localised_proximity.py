"""Average localised proximity (Lenz, Peralta & Cornelis 2021), on short windows.

Ours, from the paper's definition: the authors' library was last released in 2022. What differs: values are in units
of the training range, where the paper divides by the interquartile range, which is zero for many telemetry channels.
"""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import Matrix
from training.baselines.windows import ScoreWindows, WindowPlan, fit_on_windows
from training.datasets import Dataset
from training.metrics import Scores

# The paper's defaults: k = 5.5 log n neighbour distances, each compared with those of l = 6 log n neighbours.
K_FACTOR = 5.5
L_FACTOR = 6.0
PLAN = WindowPlan(most=1000)


@dataclass(frozen=True)
class LocalisedProximity:
    """One minus the average localised proximity of the window around each row, in [0, 1]."""

    seed: int = 0
    plan: WindowPlan = PLAN

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_on_windows(dataset, self.seed, self.plan, self._fit)

    def _fit(self, windows: Matrix, seed: int) -> ScoreWindows:
        if len(windows) == 1:  # a point without others has no distance to them: it gets one like itself
            windows = windows.repeat(2, axis=0)
        k, l = (_neighbours(factor, len(windows)) for factor in (K_FACTOR, L_FACTOR))  # noqa: E741
        proximity = AverageLocalisedProximity(windows, k, l)
        return lambda tested: 1 - proximity(tested)


class AverageLocalisedProximity:
    """Proximity to training points (m, D) in [0, 1], Manhattan distance; the letters are the paper's."""

    def __init__(self, points: Matrix, k: int, l: int) -> None:  # noqa: E741
        """Measure every training point's distances to its k nearest others; 1 <= k < m, 1 <= l <= m."""
        self._k, self._l = k, l
        self._search = NearestNeighbors(metric="manhattan").fit(points)
        self._own = self._search.kneighbors(n_neighbors=k)[0]  # (m, k)

    def __call__(self, tested: Matrix) -> Scores:
        """Return the weighted mean of the localised proximities at all k scales, the highest weighing most.

        At scale i, the distance d_i to the i-th neighbour is set against D_i, what the l nearest training points have
        as their own i-th distance, the nearest weighing most: D_i / (D_i + d_i), and 1/2 where both are 0.
        """
        distance, neighbour = self._search.kneighbors(tested, max(self._k, self._l))
        d = distance[:, : self._k]  # (q, k)
        D = np.einsum("qlk,l->qk", self._own[neighbour[:, : self._l]], _linear_weights(self._l))
        proximity = np.divide(D, D + d, out=np.full_like(d, 0.5), where=D + d > 0)
        weighted: Scores = -np.sort(-proximity, axis=1) @ _linear_weights(self._k)
        return weighted


def _neighbours(factor: float, points: int) -> int:
    """Return a multiple of log m, less than m because a point is not its own neighbour."""
    return min(max(1, round(factor * math.log(points))), points - 1)


def _linear_weights(count: int) -> Matrix:
    """Return weights that fall linearly and sum to one."""
    weights: Matrix = np.arange(count, 0, -1.0) * 2 / (count * (count + 1))
    return weights
