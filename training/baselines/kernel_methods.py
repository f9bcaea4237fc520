"""Kernel PCA and the one-class support vector machine, on short windows."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import KernelPCA as KernelPCAModel
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import OneClassSVM

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import SCALE_FLOOR, Matrix
from training.baselines.windows import ScoreWindows, WindowPlan, fit_on_windows
from training.datasets import Dataset
from training.metrics import Scores

PLAN = WindowPlan(most=1000)


@dataclass(frozen=True)
class KernelPCA:
    """Squared distance to a kernel principal subspace in feature space (Hoffmann 2007, Eq. 8), Gaussian kernel."""

    seed: int = 0
    components: int = 50
    plan: WindowPlan = PLAN

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_on_windows(dataset, self.seed, self.plan, self._fit)

    def _fit(self, windows: Matrix, seed: int) -> ScoreWindows:
        gamma = kernel_width(windows)
        similarity = rbf_kernel(windows, gamma=gamma)  # (m, m)
        components = min(self.components, len(windows))
        model = KernelPCAModel(components, kernel="precomputed", eigen_solver="randomized", random_state=seed)
        model.fit(similarity)
        mean = similarity.mean()

        def score(tested: Matrix) -> Scores:
            to_training = rbf_kernel(tested, windows, gamma=gamma)  # (q, m)
            from_mean = 1 - 2 * to_training.mean(1) + mean
            inside = np.square(model.transform(to_training)).sum(1)
            outside: Scores = np.maximum(from_mean - inside, 0)
            return outside

        return score


@dataclass(frozen=True)
class OneClassSupportVectors:
    """Distance beyond the hyperplane that keeps normal windows from the origin (Schölkopf et al. 2001)."""

    seed: int = 0
    nu: float = 0.1
    plan: WindowPlan = PLAN

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_on_windows(dataset, self.seed, self.plan, self._fit)

    def _fit(self, windows: Matrix, seed: int) -> ScoreWindows:
        model = OneClassSVM(gamma=kernel_width(windows), nu=self.nu).fit(windows)
        return lambda tested: np.asarray(-model.decision_function(tested), dtype=np.float64)


def kernel_width(windows: Matrix) -> float:
    """Return the gamma of the Gaussian kernel: 1 / (D variance), as is usual, but never that of windows all alike."""
    return float(1 / (windows.shape[1] * max(windows.var(), SCALE_FLOOR**2)))
