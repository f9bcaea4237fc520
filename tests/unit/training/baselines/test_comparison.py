from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.unit.training.baselines.made_up import single, single_channel
from training.baselines.comparison import Figures, compare
from training.baselines.protocol import Scorer
from training.datasets import Dataset, Series
from training.metrics import Scores

TRAIN = single_channel(np.zeros(20))


@dataclass(frozen=True)
class Itself:
    """The first channel is the score."""

    lookahead: int = 0

    def fit(self, dataset: Dataset) -> Scorer:
        def score(series: Series) -> Scores:
            return series.values[:, 0].astype(np.float64)

        return score


def labelled(values: list[float], labels: list[int], entity: str = "e-0") -> Series:
    return replace(single(values, entity), labels=np.array(labels, np.uint8))


def test_figures_are_means_over_entities_with_both_classes() -> None:
    right = labelled([0, 1, 2, 3], [0, 0, 1, 1])
    wrong = labelled([3, 2, 1, 0], [0, 0, 1, 1], "e-1")
    calm = labelled([0, 0, 0, 0], [0, 0, 0, 0], "e-2")
    test = replace(TRAIN, series=[right, wrong, calm])
    seen = list[Figures]()
    found = compare({"itself": Itself()}, TRAIN, test, (1, 3), seen.append)
    assert found == seen
    assert [(figures.name, figures.smoothing_size) for figures in found] == [("itself", 1), ("itself", 3)]
    assert found[0].roc_auc == pytest.approx(0.5)
    assert found[0].average_precision == pytest.approx((1 + 5 / 12) / 2)


def test_a_row_without_a_score_counts_as_the_least_anomalous() -> None:
    test = replace(TRAIN, series=[labelled([5, 6, 7, np.nan], [0, 0, 1, 1])])
    assert compare({"itself": Itself()}, TRAIN, test, [1])[0].roc_auc == pytest.approx((2 + 0.5) / 4)


def test_labels_are_wanted() -> None:
    with pytest.raises(ValueError, match="e-0 wants labels"):
        compare({"itself": Itself()}, TRAIN, TRAIN, [1])
