# mypy: ignore-errors, what it imports is in another environment
"""Online detectors of river: they learn the training rows one by one, then score each row before they learn it.

Arguments: see `detector_job.run`; repeats must be 1, as they go on learning. Its LocalOutlierFactor is left out: it
did not end one entity's 7,565 rows of 25 values within 200 s on a busy machine.
"""

import sys

import numpy as np
from detector_job import Rows, Score, run
from river import anomaly, compose, preprocessing

# Training rows lie in [-1, 1]; beyond twice that a half-space tree tells nothing apart.
_LIMITS = (-2.0, 2.0)


def _as_dicts(rows: Rows) -> list[dict[int, float]]:
    return [dict(enumerate(row)) for row in rows.tolist()]


def _online(model, rows: Rows) -> Score:
    for row in _as_dicts(rows):
        model.learn_one(row)

    def score(rows: Rows) -> Rows:
        found = []
        for row in _as_dicts(rows):
            found.append(model.score_one(row))
            model.learn_one(row)
        return np.array(found)

    return score


def half_space_trees(rows: Rows, seed: int) -> Score:
    """Mass of the leaves that a row falls into (Tan et al. 2011)."""
    limits = dict.fromkeys(range(rows.shape[1]), _LIMITS)
    return _online(anomaly.HalfSpaceTrees(seed=seed, limits=limits), rows)


def one_class_svm(rows: Rows, seed: int) -> Score:
    """Distance beyond a hyperplane that stochastic gradients move."""
    return _online(compose.Pipeline(preprocessing.StandardScaler(), anomaly.OneClassSVM()), rows)


def gaussian(rows: Rows, seed: int) -> Score:
    """Tail probability of the newest value under the Gaussian of all before."""
    model = anomaly.GaussianScorer()
    for value in rows[:, -1].tolist():
        model.learn_one(None, value)

    def score(rows: Rows) -> Rows:
        found = []
        for value in rows[:, -1].tolist():
            found.append(model.score_one(None, value))
            model.learn_one(None, value)
        return np.array(found)

    return score


if __name__ == "__main__":
    detectors = {
        "half-space-trees": half_space_trees,
        "one-class-svm": one_class_svm,
        "gaussian": gaussian,
    }
    run("river", detectors, sys.argv[1:])
