"""The paper's distance is the product's residual without its scale, and what can be chosen changes it."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.training.baselines.made_up import training
from tests.unit.training.paper.made_up import TINY, one_numeric_channel
from training.baselines.diffadt import DiffADT
from training.paper.detector import PaperDetector


@pytest.fixture(scope="module")
def dataset():
    return one_numeric_channel(training())


def distances(dataset, **options):
    scorer = PaperDetector(TINY.detector, train_steps=4, **options).fit(dataset)
    return [scorer(series) for series in dataset.series]


@pytest.mark.parametrize("use_entity", [True, False])
def test_with_one_channel_it_is_the_products_residual_up_to_a_factor(dataset, use_entity):
    scaled = DiffADT(use_entity, train_steps=4, preset=TINY.detector).fit(dataset)
    for series, plain in zip(dataset.series, distances(dataset, use_entity=use_entity), strict=True):
        relative = scaled(series)
        factor = plain.sum() / relative.sum()
        assert plain == pytest.approx(factor * relative, rel=1e-4, abs=1e-6)
        assert 0 < factor != pytest.approx(1)


def test_units_do_not_matter(dataset):
    other = replace(dataset, series=[replace(s, values=s.values * np.float32([8, 1])) for s in dataset.series])
    for one, same in zip(distances(dataset), distances(other), strict=True):
        assert same == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_embedding_and_seed_change_it(dataset):
    base = distances(dataset)
    for other in distances(dataset, use_entity=False), distances(dataset, seed=1):
        assert not np.array_equal(base[0], other[0])
    assert np.array_equal(base[0], distances(dataset)[0])
