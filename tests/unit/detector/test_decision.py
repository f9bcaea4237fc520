import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.blocks import EVIDENCE_CHANNELS, unscored
from detector.decision import SeriesMoments, tail_probability
from detector.levels import follow
from detector.manifest import Tail
from stream.contracts import ScoreBlock
from tests.bundles import LENGTH
from tests.unit.detector.scored_windows import END, KNOWN, NEW, NUMERIC, RULE, decided, known, notice, view


@st.composite
def windows(draw):
    """Draw a notice and what its window scored, with gaps, a life that began not long ago, and hops without rows."""
    score = st.floats(0, 10, width=32)
    one = notice(
        new_slots=draw(st.sampled_from([4, 8, LENGTH, 3 * LENGTH])),
        final_delay=draw(st.integers(0, 12)),
        first_slot=END - draw(st.sampled_from([0, 1, 3, 6, LENGTH, 10**6])),
    )
    final, provisional = (
        draw(st.lists(s, min_size=LENGTH, max_size=LENGTH)) for s in (score, score | st.just(math.nan))
    )
    return one, view(provisional, final)


def front(one, stage):
    return one.end_slot - (one.final_delay if stage == "final" else 0)


def new_slots(one, stage):
    """Return the slots whose score this window makes known."""
    return range(max(front(one, stage) - one.new_slots + 1, one.first_slot), front(one, stage) + 1)


# p-values


TAILS = st.tuples(
    st.lists(st.floats(0.01, 0.9999), min_size=2, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(-3, 30), min_size=6, max_size=6, unique=True).map(sorted),
).map(lambda pair: Tail(pair[0], pair[1][: len(pair[0])]))


@given(TAILS, st.lists(st.floats(-100, 1e6), min_size=2, max_size=20))
def test_a_higher_score_is_never_more_probable_and_none_is_impossible(tail, z):
    p = tail_probability(tail, np.array(sorted(z)))
    assert (np.diff(p) <= 1e-15).all()
    assert ((p > 0) & (p <= 1)).all()


@given(TAILS)
def test_the_tails_own_values_have_their_levels(tail):
    p = tail_probability(tail, np.array(tail.values))
    np.testing.assert_allclose(p, 1 - np.array(tail.levels), rtol=1e-6)


def test_beyond_the_tail_the_decay_goes_on_as_between_its_last_two_levels():
    p = tail_probability(Tail([0.9, 0.99], [1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, [0.1, 0.01, 0.001, 0.0001])


def test_a_gap_has_no_p_value():
    assert np.isnan(tail_probability(Tail([0.5, 0.9], [0.0, 1.0]), np.array([math.nan]))).all()


# Blocks


@given(windows())
def test_each_stage_tells_its_new_slots_and_no_others(window):
    """slots      | . . . final . . | . . provisional |      final_delay apart, each as long as the notice is new"""
    one, scores = window
    blocks = {block.stage: block for block in decided(one, scores).blocks}
    for stage in ("provisional", "final"):
        slots = new_slots(one, stage)
        assert (stage in blocks) == (len(slots) > 0)
        if slots:
            block = blocks[stage]
            assert (block.start_slot, len(block.scores)) == (slots[0], len(slots))
            assert block.ts_ms == slots[0] * 1000
            assert len(block.scores) == len(block.p_values) == len(block.preds)


@given(windows())
def test_gaps_and_slots_outside_the_window_are_null_and_the_rest_are_the_windows_scores(window):
    one, scores = window
    for block in decided(one, scores).blocks:
        series = getattr(scores, block.stage)
        for i, score in enumerate(block.scores):
            position = block.start_slot + i - (END - LENGTH + 1)
            inside = 0 <= position < LENGTH and not np.isnan(series[position])
            assert (score is None) == (block.p_values[i] is None) == (not inside)
            if inside:
                assert score == pytest.approx(float(series[position]), rel=1e-6)
                assert 0 < block.p_values[i] <= 1
            else:
                assert block.preds[i] is False


@given(windows())
def test_a_slot_is_anomalous_when_its_score_is_above_its_stages_threshold(window):
    one, scores = window
    moments = known((100, 2.0, 0.25), (100, 3.0, 1.0))
    thresholds = {"provisional": 2.0 + 0.5 * RULE.provisional_sigmas, "final": 3.0 + 1.0 * RULE.final_sigmas}
    for block in decided(one, scores, moments).blocks:
        assert block.threshold == thresholds[block.stage]
        series = getattr(scores, block.stage)
        for i, pred in enumerate(block.preds):
            position = block.start_slot + i - (END - LENGTH + 1)
            assert pred == bool(position >= 0 and series[position] > block.threshold)


@given(windows())
def test_a_hit_spans_the_anomalous_slots_of_its_block_and_has_the_highest_of_them(window):
    one, scores = window
    decision = decided(one, scores)
    hits = {hit.stage: hit for hit in decision.hits}
    assert set(hits) == {block.stage for block in decision.blocks if any(block.preds)}
    for block in decision.blocks:
        if block.stage in hits:
            hit = hits[block.stage]
            flagged = [block.start_slot + i for i, pred in enumerate(block.preds) if pred]
            assert (hit.first_slot, hit.last_slot) == (flagged[0], flagged[-1])
            assert hit.peak_slot in flagged
            assert hit.score == pytest.approx(max(s for s in block.scores if s is not None), rel=1e-6)
            assert hit.score > hit.threshold == block.threshold
            assert hit.z > 0
            assert hit.channels == block.channels


@given(windows())
def test_each_stage_follows_its_own_scores_and_a_block_is_judged_by_those_before_it(window):
    one, scores = window
    decision = decided(one, scores)
    blocks = {block.stage: block for block in decision.blocks}
    for stage in ("provisional", "final"):
        wanted = getattr(KNOWN, stage)
        if stage in blocks:
            told = np.array(blocks[stage].scores, dtype=float)
            wanted = follow(wanted, told, wanted.mean + RULE.limit_sigmas * wanted.deviation, RULE)
        found = getattr(decision.moments, stage)
        assert (found.count, found.mean) == (wanted.count, pytest.approx(wanted.mean, rel=1e-5))
        assert found.variance == pytest.approx(wanted.variance, rel=1e-4, abs=1e-6)


@given(windows())
def test_the_evidence_is_what_the_most_deviating_channels_did_at_the_peak(window):
    one, scores = window
    for block in decided(one, scores).blocks:
        if all(score is None for score in block.scores):
            assert block.channels == []
            continue
        peak = block.start_slot - (END - LENGTH + 1) + int(np.nanargmax(np.array(block.scores, dtype=float)))
        residual = scores.residual[:, peak]
        order = np.argsort(-residual)[:EVIDENCE_CHANNELS]
        assert [evidence.channel for evidence in block.channels] == [NUMERIC[c] for c in order]
        assert sum(evidence.share for evidence in block.channels) == pytest.approx(1, abs=1e-3)
        for evidence, channel in zip(block.channels, order, strict=True):
            assert evidence.observed == scores.values[channel, peak]
            assert (evidence.low + evidence.high) / 2 == pytest.approx(evidence.expected)
            assert evidence.high - evidence.low == pytest.approx(2 * scores.band[channel, peak])


def test_a_channel_that_is_missing_at_the_peak_was_not_observed():
    scores = view([1.0] * LENGTH)
    scores.values[0] = np.nan
    observed = {e.channel: e.observed for e in decided(notice(), scores).blocks[0].channels}
    assert observed["a"] is None
    assert observed["b"] is not None


@given(windows())
def test_a_block_survives_the_wire(window):
    for block in decided(*window).blocks:
        assert msgspec.json.decode(msgspec.json.encode(block), type=ScoreBlock) == block


@given(windows())
def test_without_a_model_the_same_slots_are_told_as_gaps(window):
    one, scores = window
    told = [(b.stage, b.start_slot, len(b.scores)) for b in decided(one, scores).blocks]
    blocks = unscored(one)
    assert [(b.stage, b.start_slot, len(b.scores)) for b in blocks] == told
    assert {score for b in blocks for score in b.scores + b.p_values} <= {None}
    assert not any(pred for b in blocks for pred in b.preds)
    assert {b.model.version for b in blocks} <= {"none"}


def test_a_series_without_spread_still_gets_finite_numbers():
    flat = known((100, 1.0, 0.0), (100, 1.0, 0.0))
    decision = decided(notice(), view([2.0] * LENGTH), flat)
    assert all(math.isfinite(hit.z) for hit in decision.hits)
    assert all(block.preds == [True] * 4 for block in decision.blocks)
    assert all(p > 0 for block in decision.blocks for p in block.p_values)


def test_a_score_at_the_threshold_is_normal():
    even = known((100, 1.0, 1.0), (100, 1.0, 1.0))
    decision = decided(notice(), view([1 + RULE.provisional_sigmas] * LENGTH, [1 + RULE.final_sigmas] * LENGTH), even)
    assert decision.hits == []


@given(windows())
def test_a_silence_between_two_lives_is_told_once(window):
    one, scores = window
    told = decided(msgspec.structs.replace(one, gap_slots=321), scores).blocks
    assert sum(block.gap_slots for block in told) == (321 if any(b.stage == "provisional" for b in told) else 0)
    silent = unscored(msgspec.structs.replace(one, gap_slots=321))
    assert sum(block.gap_slots for block in silent) == (321 if any(b.stage == "provisional" for b in silent) else 0)


# Learning


@given(windows())
def test_nothing_is_anomalous_in_a_block_of_an_entity_that_is_too_new_and_the_block_says_so(window):
    one, scores = window
    decision = decided(one, scores, NEW)
    assert decision.hits == []
    assert all(block.learning and not any(block.preds) for block in decision.blocks)
    assert not any(block.learning for block in decided(one, scores).blocks)


@given(windows())
def test_an_entity_that_is_too_new_gets_all_the_rest(window):
    """Scores, p-values, evidence, and moments that follow."""
    one, scores = window
    new, old = decided(one, scores, NEW), decided(one, scores)
    silent = [msgspec.structs.replace(block, preds=[False] * len(block.preds), learning=True) for block in old.blocks]
    assert new.blocks == silent
    assert (new.moments.provisional, new.moments.final) == (old.moments.provisional, old.moments.final)


@given(windows(), st.integers(0, 10**6))
def test_an_entity_is_followed_slot_by_slot_as_it_gets_its_first_scores(window, before):
    one, scores = window
    decision = decided(one, scores, msgspec.structs.replace(NEW, followed=before))
    told = [score for block in decision.blocks if block.stage == "provisional" for score in block.scores]
    assert decision.moments.followed == before + len(told) - told.count(None)


@given(windows())
def test_a_state_survives_its_topic_and_one_of_before_starts_to_learn(window):
    moments = decided(*window).moments
    assert msgspec.json.decode(msgspec.json.encode(moments), type=SeriesMoments) == moments
    fields = {"version": "v1", "provisional": moments.provisional, "final": moments.final}
    restored = msgspec.json.decode(msgspec.json.encode(fields), type=SeriesMoments)
    assert restored == SeriesMoments("v1", moments.provisional, moments.final)
    assert restored.followed == 0


def test_a_block_of_before_was_judged():
    told = msgspec.json.decode(msgspec.json.encode(decided(notice(), view([1.0] * LENGTH)).blocks[0]))
    del told["learning"]
    assert not msgspec.convert(told, ScoreBlock).learning
