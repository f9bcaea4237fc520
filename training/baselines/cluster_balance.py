"""One-class classification by local cluster balance (Hayashi et al. 2024), on short windows.

As the abstract and the authors' published experiment have it: k-means on sliding windows; the local cluster balance of
a stretch is how many of its windows fall into each cluster; the local prototype is the average of that over training;
the score is their Manhattan distance. Our reading: balances are shares, the stretch lies around the row, windows hold
all numeric channels, and the number of clusters and the stretch's length, which the authors search, are fixed.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import Matrix, ScaledRows, ScoreRows, fit_per_entity
from training.baselines.windows import WindowPlan
from training.datasets import Dataset
from training.metrics import Scores

PLAN = WindowPlan(most=None, longest=10)
_STARTS = 3


@dataclass(frozen=True)
class ClusterBalance:
    """Distance of the local cluster balance around each row to the local prototype, in [0, 2]."""

    seed: int = 0
    clusters: int = 20
    stretch: int = 101
    plan: WindowPlan = PLAN

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.stretch // 2 + self.plan.lookahead

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_per_entity(dataset, self.seed, self._fit)

    def _fit(self, rows: ScaledRows, generator: np.random.Generator) -> ScoreRows:
        windows = self.plan.windows(rows)
        most = len(np.unique(windows, axis=0))
        model = KMeans(min(self.clusters, most), n_init=_STARTS, random_state=int(generator.integers(2**31)))
        prototype = np.bincount(model.fit_predict(windows), minlength=model.n_clusters) / len(windows)

        def score(rows: ScaledRows) -> Scores:
            balance = cluster_balance(model.predict(self.plan.windows(rows)), model.n_clusters, self.stretch)
            distance: Scores = np.abs(balance - prototype).sum(1)
            return distance

        return score


def cluster_balance(cluster: np.ndarray[tuple[int], np.dtype[np.int32]], clusters: int, stretch: int) -> Matrix:
    """Return each cluster's share of the windows in the stretch around each row, (n, clusters); shorter at the ends."""
    rows = np.arange(len(cluster))
    seen = np.vstack([np.zeros(clusters), np.cumsum(cluster[:, None] == np.arange(clusters), axis=0)])
    first, end = np.maximum(rows - stretch // 2, 0), np.minimum(rows + stretch // 2 + 1, len(rows))
    share: Matrix = (seen[end] - seen[first]) / (end - first)[:, None]
    return share
