import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.levels import NO_SCORES
from training.threshold import decision_rule, measure_peaks

NAN = math.nan
SLOTS = 4000
ANY = st.lists(
    st.lists(st.sampled_from([NAN, -1.0, 0.0, 1.0, 2.0, 2.5, 3.0, 7.0]) | st.floats(-3, 30), max_size=60).map(np.array),
    min_size=1,
    max_size=3,
).filter(lambda z: any(not np.isnan(one).all() for one in z))
GAPS = st.integers(0, 8)


def peaks_above(scores, level, gap):
    """Find the highest score of each stretch above the level, slot by slot."""
    peaks, last = [], None
    for slot, score in enumerate(scores):
        if score > level:
            if last is None or slot - last - 1 > gap:
                peaks.append(score)
            peaks[-1] = max(peaks[-1], score)
            last = slot
    return peaks


@settings(max_examples=200)
@given(ANY, GAPS)
def test_peaks_are_those_that_a_walk_slot_by_slot_finds(z, gap):
    found = measure_peaks(z, gap)
    wanted = np.array([peak - found.level for one in z for peak in peaks_above(one, found.level, gap)])
    assert found.slots == sum(np.count_nonzero(~np.isnan(one)) for one in z)
    assert found.excesses.count == len(wanted)
    if len(wanted):
        assert found.excesses.mean == pytest.approx(wanted.mean())
        assert found.excesses.variance == pytest.approx(wanted.var(), abs=1e-9)


@settings(max_examples=200)
@given(ANY, GAPS)
def test_from_the_level_upwards_no_threshold_has_more_peaks_than_the_tail_may_have(z, gap):
    found = measure_peaks(z, gap)
    levels = np.unique(np.concatenate(z)[~np.isnan(np.concatenate(z))])
    counts = {level: sum(len(peaks_above(one, level, gap)) for one in z) for level in [levels[0] - 1, *levels]}
    most = max(counts.values())
    assert all(count <= max(10, most / 4) for level, count in counts.items() if level >= found.level)
    lower = [count for level, count in counts.items() if level < found.level]
    assert not lower or max(lower) > min(max(10, most / 4), most - 1)


@pytest.mark.parametrize("gap", [0, 30])
def test_many_scores_have_a_quarter_of_the_most_peaks(gap):
    z = [np.random.default_rng(seed).exponential(size=SLOTS) for seed in range(3)]
    found = measure_peaks(z, gap)
    most = max(sum(len(peaks_above(one, level, gap)) for one in z) for level in np.linspace(0, 6, 60))
    assert found.excesses.count == pytest.approx(most / 4, rel=0.1)


def test_an_entity_may_be_split_at_a_silence():
    """A silence longer than the gap, so that no stretch reaches across it."""
    parts = [np.random.default_rng(seed).exponential(size=SLOTS) for seed in range(2)]
    whole = np.concatenate([parts[0], np.full(20, NAN), parts[1]])
    assert measure_peaks([whole], 15) == measure_peaks(parts, 15)


@given(ANY, GAPS, st.integers(1, 9))
def test_entities_without_a_score_and_gaps_before_or_behind_all_scores_say_nothing(z, gap, slots):
    empty = np.full(slots, NAN)
    padded = [empty, *(np.concatenate([empty, one, empty]) for one in z), np.empty(0)]
    assert measure_peaks(padded, gap) == measure_peaks(z, gap)


@given(ANY, GAPS, st.floats(0.1, 10), st.floats(-5, 5))
def test_peaks_have_the_unit_of_the_scores_and_their_origin_is_the_levels(z, gap, unit, origin):
    one, other = measure_peaks(z, gap), measure_peaks([z_ * unit + origin for z_ in z], gap)
    # Scores that only rounding keeps apart may become one.
    if one.excesses.count == other.excesses.count:
        assert other.level == pytest.approx(one.level * unit + origin, rel=1e-3, abs=1e-3)
        assert other.excesses.mean == pytest.approx(one.excesses.mean * unit, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("slots", [1, 2, 500])
def test_scores_that_never_change_have_no_peak(slots):
    found = measure_peaks([np.full(slots, 1.5)], 5)
    assert (found.level, found.slots, found.excesses) == (1.5, slots, NO_SCORES)


@pytest.mark.parametrize("z", [[np.empty(0)], [np.full(3, NAN)]])
def test_no_score_has_no_peak(z):
    assert measure_peaks(z, 0).slots == 0
    assert measure_peaks(z, 0).excesses == NO_SCORES


# The rule


Z = [np.random.default_rng(0).normal(size=SLOTS)]


def test_an_entity_learns_for_a_window_and_adapts_within_one():
    rule = decision_rule(512, None, Z, Z)
    assert rule.learning == 512
    assert 0 < rule.adapt_after < 512
    assert rule.budget is None


def test_a_budget_changes_nothing_but_itself():
    rule, without = decision_rule(128, 2.5, Z, [2 * Z[0]]), decision_rule(128, None, Z, Z)
    assert rule.budget is not None
    assert rule.budget.alarms_per_week == 2.5
    assert rule.budget.provisional == measure_peaks(Z, rule.resolve_after)
    assert rule.budget.final == measure_peaks([2 * Z[0]], rule.resolve_after)
    assert (rule.final_sigmas, rule.provisional_sigmas, rule.adapt_after) == (
        without.final_sigmas,
        without.provisional_sigmas,
        without.adapt_after,
    )


@pytest.mark.parametrize("wrong", [0.0, -1.0, NAN])
def test_a_budget_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="alarms_per_week above 0"):
        decision_rule(128, wrong, Z, Z)
