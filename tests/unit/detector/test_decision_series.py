"""What learning and adapting make of a series of scores."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.decision import SeriesMoments, initial_moments
from tests.unit.detector.scored_windows import MANIFEST, NEW, RULE, Walk, known, quiet

# A long memory, so that nothing but learning and adapting ends an alarm.
SLOW = msgspec.structs.replace(RULE, learning=0, adapt_after=60, memory=10**6)
FIRM = known((10**6, 1.0, 0.01), (10**6, 1.0, 0.01))


@pytest.mark.parametrize("hop", [1, 2, 4, 8, 16])
def test_learning_ends_with_the_hop_in_which_enough_slots_were_followed(hop):
    walk = Walk(np.full(96, 50.0), msgspec.structs.replace(SLOW, learning=30, adapt_after=0), hop=hop, moments=NEW)
    known_from = -(-30 // hop) * hop
    assert walk.learning == [slot < known_from for slot in range(96)]
    assert not walk.final[:known_from].any()


def test_gaps_and_wild_scores_teach_no_more_than_their_slots():
    rule = msgspec.structs.replace(SLOW, learning=32)
    scores = quiet(64)
    scores[4] = 1e9
    gaps = np.insert(scores, 8, np.full(8, np.nan))
    assert Walk(scores, rule).learning.count(True) == 32
    assert Walk(gaps, rule).learning.count(True) == 40


@settings(max_examples=30)
@given(st.integers(0, 40), st.floats(1.5, 1e6))
def test_after_learning_flags_are_those_of_one_who_never_learnt_and_has_the_same_moments(start, wild):
    rule = msgspec.structs.replace(SLOW, learning=32)
    scores = quiet(96)
    scores[start : start + 3] = wild
    scores[70:74] = wild
    learnt = Walk(scores[:32], rule, moments=NEW).moments
    judged = Walk(scores[32:], msgspec.structs.replace(rule, learning=0), moments=learnt)
    np.testing.assert_array_equal(Walk(scores, rule, moments=NEW).final[32:], judged.final)


def test_a_level_unlike_that_of_training_alarms_without_learning_and_not_with_it():
    rule = msgspec.structs.replace(RULE, learning=512)
    scores = quiet(1024, level=6.0)
    assert Walk(scores, msgspec.structs.replace(rule, learning=0)).final.any()
    assert not Walk(scores, rule).final.any()


def test_a_wild_score_while_learning_does_not_blind():
    rule = msgspec.structs.replace(RULE, learning=512)
    scores = quiet(1024)
    scores[40] = 1e9
    scores[1000:1004] = 8.0
    found = Walk(scores, rule).final
    assert found[1000:1004].all()
    assert not np.delete(found, np.s_[1000:1004]).any()


# Adapting


@pytest.mark.parametrize("hop", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("level", [3.0, 50.0, 1e6])
def test_a_lasting_step_alarms_until_it_has_lasted_for_more_than_adapt_after(level, hop):
    scores = np.concatenate([quiet(64), quiet(256, level, seed=1)])
    walk = Walk(scores, SLOW, hop=hop, moments=FIRM)
    end = 64 + 60 // hop * hop + hop
    assert not walk.final[:64].any()
    assert walk.final[64:end].all()
    assert walk.final[end:].mean() < 0.02
    assert ("final", end) in walk.adapted
    assert ("provisional", end) in walk.adapted


def test_without_adapting_it_alarms_on():
    scores = np.concatenate([quiet(64), quiet(1024, 3.0, seed=1)])
    walk = Walk(scores, msgspec.structs.replace(SLOW, adapt_after=0), moments=FIRM)
    assert walk.final[64:].all()
    assert walk.adapted == []


def test_the_new_level_has_the_moments_of_the_scores_in_the_alarm():
    scores = np.concatenate([quiet(64), quiet(64, 50.0, seed=1)])
    found = Walk(scores, SLOW, moments=FIRM).moments.final
    assert found.count == 64
    assert found.mean == pytest.approx(scores[64:].mean(), rel=1e-5)
    assert found.variance == pytest.approx(scores[64:].var(), rel=1e-4)


def test_a_step_further_up_alarms_again_and_so_does_one_after_the_old_level_is_normal_again():
    up, further = quiet(128, 3.0, seed=1), quiet(128, 9.0, seed=2)
    found = Walk(np.concatenate([quiet(64), up, further]), SLOW, moments=FIRM).final
    assert found[192:196].all()
    assert not found[-32:].any()
    rule = msgspec.structs.replace(SLOW, memory=128)
    found = Walk(np.concatenate([quiet(64), up, quiet(1024, seed=3), up]), rule, moments=FIRM).final
    assert found[64:68].all()
    assert not found[64 + 128 : -128].any()
    assert found[-128:-124].all()


def test_alarms_apart_do_not_add_up():
    """Each ends before it has lasted: a hop without an anomalous slot is between them."""
    alarm = [3.0] * 48 + [1.0] * 4
    walk = Walk(np.array(alarm * 8), SLOW, moments=FIRM)
    assert walk.adapted == []
    assert walk.final.sum() == 8 * 48


def test_a_gap_is_no_end_of_an_alarm():
    scores = np.concatenate([quiet(48, 3.0, seed=1), np.full(16, np.nan), quiet(48, 3.0, seed=2)])
    assert Walk(scores, SLOW, moments=FIRM).adapted[-1] == ("final", 48 + 16 + 16)


@pytest.mark.parametrize("at", [0, 30, 59])
def test_a_wild_score_in_an_alarm_does_not_blind_its_level(at):
    """The step beyond comes when one hop of the new level has passed, so that it is judged by the adapted moments."""
    scores = np.concatenate([quiet(64, 3.0, seed=1), quiet(8, 3.0, seed=2), quiet(8, 30.0, seed=3)])
    scores[at] = 1e9
    found = Walk(scores, SLOW, moments=FIRM).final
    assert found[:64].all()
    assert not found[64:72].any()
    assert found[72:76].all()


def test_a_wild_score_alone_is_flagged_and_changes_nothing_else():
    scores = quiet(256)
    scores[100] = 1e9
    walk = Walk(scores, SLOW, moments=FIRM)
    assert np.flatnonzero(walk.final).tolist() == [100]
    assert walk.adapted == []
    assert walk.moments.final_stretch.count == 0


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1.0, 1.0, 3.0, math.nan]), min_size=8, max_size=60))
def test_a_series_of_hops_goes_on_from_its_stored_state(levels):
    scores = np.repeat(levels, 4)
    whole = Walk(scores, SLOW, moments=FIRM)
    half = len(levels) // 2 * 4
    first = Walk(scores[:half], SLOW, moments=FIRM)
    stored = msgspec.json.decode(msgspec.json.encode(first.moments), type=SeriesMoments)
    second = Walk(scores[half:], SLOW, moments=stored)
    np.testing.assert_array_equal(np.concatenate([first.final, second.final]), whole.final)
    assert second.moments == whole.moments


def test_a_level_has_moved_while_its_mean_would_have_been_anomalous_in_training():
    """Up for good and adapted to, then back: the entity counts as moved in between."""
    usual = msgspec.structs.replace(FIRM, usual=2.0)
    up = Walk(np.concatenate([quiet(60), quiet(200, level=3.0)]), SLOW, moments=usual)
    assert not usual.moved
    assert up.moments.moved
    back = Walk(quiet(400), msgspec.structs.replace(SLOW, memory=100), moments=up.moments)
    assert not back.moments.moved
    unseen = msgspec.structs.replace(up.moments, usual=None)
    assert not unseen.moved


def test_what_is_usual_is_known_of_entities_of_training_alone():
    entity = MANIFEST.entities[0]
    threshold = entity.final.mean + MANIFEST.decision.final_sigmas * entity.final.deviation
    assert initial_moments(MANIFEST, entity).usual == threshold
    assert initial_moments(MANIFEST, msgspec.structs.replace(entity, name="")).usual is None
