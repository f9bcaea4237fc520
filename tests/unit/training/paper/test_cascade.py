"""Runs of Tables 5 and 6: when a loss has arrived, and that runs repeat."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.baselines.made_up import training
from tests.unit.training.paper.made_up import TINY
from training.paper.cascade import first_stays_below, run_cascade


def by_definition(losses, level, span):
    span = min(span, len(losses))
    means = {end: sum(losses[end - span : end]) / span for end in range(span, len(losses) + 1)}
    good = [end for end in means if all(mean <= level for later, mean in means.items() if later >= end)]
    return min(good, default=None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.sampled_from([0.0, 2.25, 4.5]), st.integers(1, 6))
def test_a_loss_has_arrived_when_it_never_leaves(losses, level, span):
    assert first_stays_below([float(loss) for loss in losses], level, span) == by_definition(losses, level, span)


@pytest.fixture(scope="module")
def run():
    def make(layer="s4d", layers=2, course="warm_up", seed=0):
        return run_cascade(training(), TINY, layer, layers, course, seed=seed, device="cpu")

    return make


@pytest.fixture(scope="module")
def base(run):
    return run()


def test_a_run_repeats(run, base):
    one, other = base, run()
    assert (one.losses, one.l1, one.l1_deterministic) == (other.losses, other.l1, other.l1_deterministic)
    assert one.losses != run(seed=1).losses
    assert len(one.losses) == TINY.cascade_steps


def test_what_is_varied_is_what_differs(run, base):
    deeper, res, constant = run(layers=3), run(layer="res"), run(course="constant")
    assert deeper.parameters > base.parameters
    assert res.parameters != base.parameters
    assert constant.parameters == base.parameters
    assert constant.losses[0] == base.losses[0]  # the first loss is known before the first train step
    assert constant.losses[1:] != base.losses[1:]


def test_the_last_part_is_measured(base):
    one = base
    last = one.losses[-round(len(one.losses) * 500 / 800) :]
    assert (one.l2_mean, one.l2_deviation) == (pytest.approx(np.mean(last)), pytest.approx(np.std(last)))
    assert all(math.isfinite(figure) and figure > 0 for figure in (one.l1, one.l1_deterministic, one.seconds))
