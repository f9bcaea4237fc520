import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from training.threshold import _pareto_quantile, _pareto_shape, budget_sigmas

WEEK_MS = 7 * 24 * 3600 * 1000
SLOTS = 4000
NAN = math.nan

NORMAL = {
    "exponential": lambda generator, slots: generator.exponential(size=slots),
    "gaussian": lambda generator, slots: generator.normal(size=slots),
    "heavy-tailed": lambda generator, slots: generator.standard_t(4, slots),
}
ANY = st.lists(
    st.lists(st.sampled_from([NAN, -1.0, 0.0, 1.0, 2.0, 2.5, 3.0, 7.0]) | st.floats(-3, 30), max_size=60).map(np.array),
    min_size=1,
    max_size=3,
).filter(lambda z: any(not np.isnan(one).all() for one in z))
GAPS = st.integers(0, 8)


def alarms(scores, threshold, merge_gap):
    """Count alarms slot by slot."""
    count, last = 0, None
    for slot, score in enumerate(scores):
        if score > threshold:
            count += last is None or slot - last - 1 > merge_gap
            last = slot
    return count


def for_alarms(z, number, merge_gap):
    """Return the threshold for a budget of so many alarms in all of these scores."""
    scored = sum(np.count_nonzero(~np.isnan(one)) for one in z)
    return budget_sigmas(z, 1000, number * WEEK_MS / (1000 * scored), merge_gap)


@given(ANY, GAPS, st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_a_larger_budget_never_asks_for_a_higher_threshold(z, gap, budgets):
    found = [for_alarms(z, number, gap) for number in sorted(budgets)]
    assert found == sorted(found, reverse=True)
    assert all(map(math.isfinite, found))


@settings(max_examples=200)
@given(ANY, GAPS, st.integers(0, 12))
def test_from_the_threshold_upwards_the_data_keep_the_budget(z, gap, number):
    """As far as they can break it at all: below, a lower threshold would join alarms and so seem to keep it."""
    found = for_alarms(z, number + 0.5, gap)
    levels = np.unique(np.concatenate(z)[~np.isnan(np.concatenate(z))])
    counts = [sum(alarms(one, level, gap) for one in z) for level in levels if level >= found]
    assert max(counts, default=0) <= number


@settings(max_examples=200)
@given(ANY, GAPS, st.integers(10, 30))
def test_where_the_data_hold_the_budget_no_lower_threshold_keeps_it(z, gap, number):
    found = for_alarms(z, number, gap)
    values = np.unique(np.concatenate(z)[~np.isnan(np.concatenate(z))])
    most = max(sum(alarms(one, level, gap) for one in z) for level in [values[0] - 1, *values])
    below = [level for level in [values[0] - 1, *values] if level < found]
    assert sum(alarms(one, below[-1], gap) for one in z) > min(number, most - 1)


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("gap", [0, 30])
@pytest.mark.parametrize(("number", "least", "most"), [(1, 1 / 5, 3), (5, 1 / 3, 2), (50, 2 / 3, 3 / 2)])
def test_new_scores_like_those_of_training_raise_about_as_many_alarms_as_the_budget(name, gap, number, least, most):
    """The mean of several trainings; what the data barely hold may err on the side of fewer alarms."""
    draw, kept = NORMAL[name], []
    fresh = np.random.default_rng(99)
    for seed in range(8):
        generator = np.random.default_rng(seed)
        threshold = for_alarms([draw(generator, SLOTS) for _ in range(3)], number, gap)
        new = draw(fresh, 30 * SLOTS)
        kept.append(fast_alarms(new, threshold, gap) / 10)
    assert least * number <= np.mean(kept) <= most * number


def fast_alarms(scores, threshold, merge_gap):
    slots = np.flatnonzero(scores > threshold)
    return len(slots) and 1 + np.count_nonzero(np.diff(slots) - 1 > merge_gap)


@pytest.mark.parametrize("name", NORMAL)
def test_a_budget_beyond_the_data_asks_for_more_than_they_show(name):
    z = [NORMAL[name](np.random.default_rng(seed), SLOTS) for seed in range(3)]
    found = [for_alarms(z, number, 10) for number in (0.9, 0.1, 0.01)]
    assert max(one.max() for one in z) <= found[0] < found[1] < found[2]


@pytest.mark.parametrize("number", [0.1, 3, 40])
def test_an_entity_may_be_split_at_a_silence(number):
    """A silence longer than merge_gap, so that no alarm reaches across it."""
    generator = np.random.default_rng(3)
    parts = [generator.exponential(size=SLOTS) for _ in range(2)]
    whole = np.concatenate([parts[0], np.full(20, NAN), parts[1]])
    assert for_alarms([whole], number, 15) == for_alarms(parts, number, 15)


@given(ANY, GAPS, st.floats(0.01, 100), st.integers(1, 9))
def test_entities_without_a_score_and_their_order_say_nothing(z, gap, number, slots):
    more = [np.full(slots, NAN), *reversed(z), np.empty(0)]
    assert for_alarms(more, number, gap) == pytest.approx(for_alarms(z, number, gap))


@given(ANY, GAPS, st.floats(0.01, 100), st.integers(1, 9))
def test_a_gap_before_or_behind_all_scores_says_nothing(z, gap, number, slots):
    padded = [np.concatenate([np.full(slots, NAN), one, np.full(slots, NAN)]) for one in z]
    assert for_alarms(padded, number, gap) == for_alarms(z, number, gap)


@given(ANY, GAPS, st.floats(0.01, 100), st.floats(0.1, 10), st.floats(-5, 5))
def test_the_answer_has_the_unit_and_the_origin_of_the_scores(z, gap, number, unit, origin):
    wanted = for_alarms(z, number, gap) * unit + origin
    assert for_alarms([one * unit + origin for one in z], number, gap) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("slots", [1, 2, 500])
@pytest.mark.parametrize("number", [0.001, 1, 1000])
def test_scores_that_never_change_are_all_normal(slots, number):
    assert for_alarms([np.full(slots, 1.5)], number, 5) == 1.5


def test_alarms_with_few_slots_between_them_are_one():
    """Rising from one period to the next:  . 9 . 9 . . . 9 .      three alarms, or two with a slot between allowed."""
    z = np.array([0, 9, 0, 9, 0, 0, 0, 9, 0] * 10, dtype=float) + np.linspace(0, 1, 90)
    assert for_alarms([z], 12, 0) == z[5 * 9 + 7]  # four periods of three are above
    assert for_alarms([z], 12, 1) == z[3 * 9 + 7]  # six periods of two are above


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3])
def test_the_tail_is_a_generalised_pareto_distribution(shape):
    excesses = stats.genpareto.rvs(shape, size=20_000, random_state=np.random.default_rng(1))
    assert _pareto_shape(excesses) == pytest.approx(shape, abs=0.05)
    for exceeded in (0.5, 0.01, 1e-5):
        wanted = stats.genpareto.isf(exceeded, shape, scale=2.5)
        assert _pareto_quantile(exceeded, shape, 2.5) == pytest.approx(wanted)


@pytest.mark.parametrize("z", [[], [np.empty(0)], [np.full(3, NAN)]])
def test_no_score_is_no_answer(z):
    with pytest.raises(ValueError, match="at least one score"):
        budget_sigmas(z, 1000, 1.0, 0)


@pytest.mark.parametrize("wrong", [(0, 1.0, 0), (1000, 0.0, 0), (1000, NAN, 0), (1000, 1.0, -1)])
def test_a_budget_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="alarms_per_week and interval_ms above 0"):
        budget_sigmas([np.ones(3)], *wrong)
