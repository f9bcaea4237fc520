"""Laws that every baseline keeps, whatever its method."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from tests.unit.training.baselines.made_up import A, B, changed, in_other_units, noisy, training
from tests.unit.training.made_up import TINY
from training.baselines.protocol import Baseline, Options, Scorer
from training.baselines.table import BASELINES

OPTIONS = Options(seed=3, train_steps=20, preset=TINY)
# A row far outside the training range, and a stretch of rows.
SPIKE = slice(200, 201)
STRETCH = slice(150, 250)
BLIND = {"random"}
# It looks at how many windows of a hundred rows are of which kind: one of another kind does not stand out.
BLIND_TO_SPIKES = BLIND | {"oc-lcb"}
# And far off in a direction in which no training window differs, the nearest kind stays the nearest.
BLIND_TO_CONSTANTS = BLIND | {"oc-lcb"}


class Fitted(NamedTuple):
    name: str
    baseline: Baseline
    scorer: Scorer


@pytest.fixture(scope="module", params=list(BASELINES))
def fitted(request: pytest.FixtureRequest) -> Fitted:
    baseline = BASELINES[request.param](OPTIONS)
    return Fitted(request.param, baseline, baseline.fit(training()))


def assert_highest_within(fitted: Fitted, scores: np.ndarray, rows: slice) -> None:
    """A baseline that looks ahead sees an anomaly that early, and its windows may end as much later."""
    reach = fitted.baseline.lookahead
    assert rows.start - reach <= int(np.argmax(scores)) < rows.stop + max(reach, 1)


def test_a_level_change_gets_the_highest_score(fitted: Fitted) -> None:
    scores = fitted.scorer(changed(noisy("e-0", 400, 2), STRETCH, A, 9.0))
    if fitted.name not in BLIND:
        assert_highest_within(fitted, scores, STRETCH)


def test_a_spike_gets_the_highest_score(fitted: Fitted) -> None:
    scores = fitted.scorer(changed(noisy("e-0", 400, 2), SPIKE, A, 30.0))
    if fitted.name not in BLIND_TO_SPIKES:
        assert_highest_within(fitted, scores, SPIKE)


def test_a_constant_channel_that_moves_gets_the_highest_score(fitted: Fitted) -> None:
    scores = fitted.scorer(changed(noisy("e-1", 400, 4, constant=True), STRETCH, B, 40.0))
    assert np.isfinite(scores).all()
    if fitted.name not in BLIND_TO_CONSTANTS:
        assert_highest_within(fitted, scores, STRETCH)


def test_scores_do_not_depend_on_units_and_equal_seeds_give_equal_scores(fitted: Fitted) -> None:
    here = training()
    elsewhere = replace(here, series=[in_other_units(series, 1024) for series in here.series])
    again = BASELINES[fitted.name](OPTIONS).fit(elsewhere)
    test = changed(noisy("e-0", 300, 2), STRETCH, A, 4.0)
    np.testing.assert_allclose(again(in_other_units(test, 1024)), fitted.scorer(test), rtol=1e-4, atol=1e-6)


def test_a_score_depends_on_no_more_later_rows_than_said(fitted: Fitted) -> None:
    test = noisy("e-0", 400, 2)
    later = fitted.scorer(changed(test, slice(300, 400), [A, B], 50.0))
    known = 300 - fitted.baseline.lookahead
    np.testing.assert_allclose(later[:known], fitted.scorer(test)[:known], rtol=1e-5, atol=1e-6)
    if fitted.name not in BLIND:
        assert not np.allclose(later[300:], fitted.scorer(test)[300:], rtol=1e-2)


def test_only_rows_without_any_numeric_value_have_no_score(fitted: Fitted) -> None:
    test = changed(noisy("e-0", 300, 2), slice(0, 3), A, np.nan)
    test = changed(test, slice(100, 140), [A, B], np.nan)
    test = changed(test, slice(200, 220), B, np.nan)
    np.testing.assert_array_equal(np.isnan(fitted.scorer(test)), np.isin(np.arange(300), np.arange(100, 140)))


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_a_series_may_be_short(fitted: Fitted, rows: int) -> None:
    scores = fitted.scorer(noisy("e-0", rows, 2))
    assert scores.shape == (rows,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", [name for name in BASELINES if "diffadt" not in name])
def test_training_series_may_be_short(name: str) -> None:
    own = training()
    few = replace(own, series=[noisy("e-0", 1, 0), noisy("e-1", 5, 1)])
    scorer = BASELINES[name](OPTIONS).fit(few)
    assert np.isfinite(scorer(noisy("e-0", 50, 2))).all()
    assert np.isfinite(scorer(noisy("e-1", 50, 2))).all()


def test_the_table_has_the_rows_of_the_papers_table_3_in_its_order() -> None:
    paper = ["kernel-pca", "oc-svm", "oc-alp", "oc-lcb", "lstm-ae", "beatgan", "diffadt-no-embedding", "diffadt"]
    assert list(BASELINES)[:8] == paper


def test_another_seed_gives_another_random_score() -> None:
    one, other = (BASELINES["random"](Options(seed=seed)).fit(training()) for seed in (0, 1))
    test = noisy("e-0", 50, 2)
    assert not np.isclose(one(test), other(test)).any()
