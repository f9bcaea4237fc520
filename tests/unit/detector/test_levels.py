import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.levels import NO_SCORES, Level, follow, follow_level
from detector.manifest import DecisionConfig, Moments

RULE = DecisionConfig()
NOTHING = Moments(0, 0.0, 0.0)
SERIES = st.lists(st.floats(0, 1e3), min_size=1, max_size=40)


@given(SERIES)
def test_moments_are_mean_and_variance_while_nothing_is_clipped(scores):
    found = follow(NOTHING, np.array(scores), math.inf, RULE)
    assert found.count == len(scores)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.variance == pytest.approx(np.var(scores), abs=1e-6)


@given(SERIES, st.lists(st.integers(0, 40)), st.floats(0, 1e3))
def test_moments_do_not_depend_on_how_a_series_is_cut_into_blocks(scores, cuts, limit):
    """Up to the limit, which each block gets from those before it."""
    whole = follow(NOTHING, np.array(scores), limit, RULE)
    moments = NOTHING
    for block in np.split(np.array(scores), sorted(cuts)):
        moments = follow(moments, block, limit, RULE)
    assert moments.count == whole.count
    assert moments.mean == pytest.approx(whole.mean)
    assert moments.variance == pytest.approx(whole.variance, abs=1e-6)


@given(SERIES, st.floats(0, 1e3))
def test_a_score_above_the_limit_counts_as_the_limit(scores, limit):
    before, series = Moments(10, 1.0, 0.5), np.array(scores)
    assert follow(before, series, limit, RULE) == follow(before, np.minimum(series, limit), math.inf, RULE)


@given(SERIES, st.integers(0, 40))
def test_gaps_have_no_moments(scores, at):
    with_gap = np.insert(np.array(scores), min(at, len(scores)), math.nan)
    assert follow(NOTHING, with_gap, 500, RULE) == follow(NOTHING, np.array(scores), 500, RULE)
    assert follow(Moments(3, 1.0, 0.5), np.array([math.nan]), 500, RULE) == Moments(3, 1.0, 0.5)


@given(st.integers(1, 60), SERIES)
def test_the_past_weighs_no_more_than_the_memory(memory, scores):
    rule = DecisionConfig(memory=memory)
    found = follow(Moments(10**6, 5.0, 1.0), np.array(scores), math.inf, rule)
    assert found.count == max(memory, len(scores))
    assert found.variance >= 0
    if len(scores) >= memory:
        assert found.mean == pytest.approx(np.mean(scores))


def judged_blocks(levels, rule, seed=0):
    """Return the share of slots above the threshold, by block of 64, of a noisy series that takes these levels."""
    generator = np.random.default_rng(seed)
    moments, shares = Moments(rule.memory, 1.0, 0.01), []
    for level in levels:
        scores = level + generator.normal(0, 0.1, 64)
        shares.append((scores > moments.mean + rule.final_sigmas * moments.deviation).mean())
        moments = follow(moments, scores, moments.mean + rule.limit_sigmas * moments.deviation, rule)
    return np.array(shares), moments


@pytest.mark.parametrize("deviations", [6, 20, 50])
def test_a_lasting_change_of_level_is_adapted_to_within_the_memory(deviations):
    rule = DecisionConfig(memory=1280)
    shares, moments = judged_blocks([1 + 0.1 * deviations] * 40, rule)
    assert shares[0] > 0.9
    assert (shares[rule.memory // 64 :] < 0.1).all()
    assert moments.mean == pytest.approx(1 + 0.1 * deviations, rel=0.2)


def test_a_short_anomaly_however_wild_does_not_blind_the_detector():
    rule = DecisionConfig(memory=5000)
    shares, moments = judged_blocks([1.0] * 20 + [1e9] + [1.0] * 20, rule)
    assert shares[20] == 1
    assert (np.delete(shares, 20) < 0.1).all()
    assert moments.mean + 3 * moments.deviation < 2


# Levels


@given(SERIES)
def test_without_an_alarm_a_level_is_its_moments(scores):
    before = Moments(100, 1.0, 0.25)
    found = follow_level(Level(before, Moments(9, 5.0, 1.0)), np.array(scores), RULE, alarmed=False)
    limit = 1 + 0.5 * RULE.limit_sigmas
    assert found == Level(follow(before, np.array(scores), limit, RULE), NO_SCORES)


@given(st.lists(st.lists(st.floats(10, 11), min_size=1, max_size=30), min_size=1, max_size=60))
def test_an_alarm_is_the_new_level_once_it_holds_more_scores_than_adapt_after(hops):
    rule = DecisionConfig(adapt_after=100, memory=50, limit_sigmas=math.inf)
    level, seen = Level(Moments(100, 1.0, 0.25), NO_SCORES), []
    for hop in hops:
        level = follow_level(level, np.array(hop), rule, alarmed=True)
        seen += hop
        assert level.adapted == (len(seen) > rule.adapt_after)
        of_alarm = level.moments if level.adapted else level.stretch
        assert of_alarm.count == len(seen)
        assert of_alarm.mean == pytest.approx(np.mean(seen))
        assert of_alarm.variance == pytest.approx(np.var(seen), abs=1e-9)
        if level.adapted:
            assert level.stretch == NO_SCORES
            seen = []


@given(SERIES, st.floats(0.5, 1e3))
def test_levels_have_no_unit(scores, unit):
    hop, rule = np.array(scores), DecisionConfig(adapt_after=1)
    level = Level(Moments(100, 1.0, 0.25), Moments(9, 5.0, 1.0))
    scaled = Level(Moments(100, unit, 0.25 * unit**2), Moments(9, 5.0 * unit, unit**2))
    one = follow_level(level, hop, rule, alarmed=True).moments
    other = follow_level(scaled, hop * unit, rule, alarmed=True).moments
    assert other.mean == pytest.approx(one.mean * unit)
    assert other.variance == pytest.approx(one.variance * unit**2, rel=1e-6, abs=1e-9)


def test_a_hop_of_gaps_says_nothing():
    level = Level(Moments(100, 1.0, 0.25), Moments(9, 5.0, 1.0))
    assert follow_level(level, np.full(4, np.nan), RULE, alarmed=False) == level
