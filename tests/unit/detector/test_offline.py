from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.cuts import cut_series
from detector.decision import decide, initial_moments
from detector.engine import Detector, WindowBatch
from detector.manifest import AlarmBudget, DecisionConfig, Moments, Peaks, ScoringConfig
from detector.models import Model
from detector.offline import score_all, score_series
from stream.grid import Geometry
from stream.heads import Head
from tests.builders import scored_windows, untrained

GEOMETRY = Geometry(length=16, hop=4, lateness=1, final_delay=4, slack=16)
MANIFEST, WEIGHTS = untrained(geometry=GEOMETRY, scoring=ScoringConfig(smoothing_size=9))
# Few slots to learn from, so that short series are judged too.
MANIFEST = msgspec.structs.replace(MANIFEST, decision=DecisionConfig(final_sigmas=0.1, learning=12, adapt_after=10))
# One alarm in so few slots that the floor lies about the scores of these series, and follows them.
PEAKS = Peaks(0.0, 100.0, Moments(10.0, 0.5, 0.25))
BUDGETED = msgspec.structs.replace(
    MANIFEST,
    decision=msgspec.structs.replace(
        MANIFEST.decision,
        resolve_after=2,
        budget=AlarmBudget(alarms_per_week=2 * 7 * 24 * 3600 / 40, provisional=PEAKS, final=PEAKS),
    ),
)
MODEL = Model(Detector(MANIFEST, WEIGHTS), np.arange(len(MANIFEST.channels)))
BASE = 1_767_225_600


class Series(NamedTuple):
    entity: str
    slots: np.ndarray
    values: np.ndarray

    def part(self, rows):
        return Series(self.entity, self.slots[rows], self.values[rows])


def series(rows=60, *, seed=0, gaps=(), entity="P-1"):
    """Draw rows with values missing here and there; gaps: how many slots to skip before which row."""
    generator = np.random.default_rng(seed)
    slots = BASE + seed + np.arange(rows)
    for row, skipped in gaps:
        slots[row:] += skipped
    values = generator.uniform(0, 2, (rows, len(MANIFEST.channels))).astype(np.float32)
    values[generator.random(values.shape) < 0.1] = np.nan
    values[rows // 3, MODEL.numeric] = np.nan
    return Series(entity, slots, values)


ALL = {
    "plain": series(),
    "a gap within a life": series(seed=1, gaps=[(20, 7)]),
    "two lives": series(seed=2, gaps=[(30, 500)]),
    "an entity never seen": series(seed=3, entity="new"),
    "shorter than a hop": series(rows=3, seed=4),
    "one row": series(rows=1, seed=5),
}
each_series = pytest.mark.parametrize("one", ALL.values(), ids=ALL.keys())


@given(
    steps=st.lists(st.sampled_from([1, 1, 1, 2, 5, 13, 40, 300]), max_size=60),
    first=st.integers(0, 30),
    lateness=st.integers(0, 9),
    delay=st.integers(0, 8),
    ended=st.booleans(),
)
def test_windows_are_those_that_the_windower_cuts_row_by_row(steps, first, lateness, delay, ended):
    geometry = Geometry(length=16, hop=4, lateness=lateness, final_delay=delay, slack=64)
    slots = BASE + first + np.concatenate([[0], np.cumsum(steps, dtype=np.int64)]).astype(np.int64)
    head = Head(geometry, int(slots[0]))
    wanted = [cut for index, slot in enumerate(slots.tolist()) for cut in head.add(slot, index)]
    wanted += head.flush() if ended else []
    assert cut_series(geometry, Series("P-1", slots, np.empty((len(slots), 0))), ended=ended) == wanted


def window_of(one, end, first):
    """Cut a window row by row: what the network is to see, and nothing of an earlier life."""
    values = np.full((len(MANIFEST.channels), GEOMETRY.length), np.nan, np.float32)
    for slot, row in zip(one.slots, one.values, strict=True):
        position = slot - (end - GEOMETRY.length + 1)
        if slot >= first and 0 <= position < GEOMETRY.length:
            values[:, position] = row
    return values


@each_series
def test_every_row_that_can_be_scored_has_a_score_and_no_other(one):
    found = score_series(MODEL, one)
    scorable = ~np.isnan(one.values[:, MODEL.numeric]).all(1)
    for field in (found.score, found.p_value, found.provisional):
        assert field.shape == one.slots.shape
        np.testing.assert_array_equal(np.isnan(field), ~scorable)
    assert ((found.p_value[scorable] > 0) & (found.p_value[scorable] <= 1)).all()
    assert not found.pred[~scorable].any()
    assert found.entity == one.entity


@each_series
@pytest.mark.parametrize("manifest", [MANIFEST, BUDGETED], ids=["sigmas", "a budget"])
def test_verdicts_and_thresholds_are_those_of_the_live_blocks(one, manifest):
    """Live blocks first, and then what the end of the series makes known."""
    model = Model(Detector(manifest, WEIGHTS), np.arange(len(manifest.channels)))
    found, moments = score_series(model, one), initial_moments(manifest, model.calibration(one.entity))
    cuts, told = cut_series(GEOMETRY, one), {}
    for notice, view in scored_windows(model, one, cuts):
        decision = decide(manifest, model.numeric_names, notice, view, moments)
        moments = decision.moments
        for block in decision.blocks:
            slots = zip(block.scores, block.p_values, block.preds, strict=True)
            for slot, (score, p_value, pred) in enumerate(slots, block.start_slot):
                threshold = np.nan if score is None else block.threshold
                told[block.stage, slot] = pred, np.array([score, p_value, threshold], dtype=float)
    for row, slot in enumerate(one.slots.tolist()):
        assert found.provisional_pred[row] == told["provisional", slot][0]
        if found.final[row]:
            pred, numbers = told["final", slot]
            assert found.pred[row] == pred
            ours = found.score[row], found.p_value[row], found.threshold[row]
            np.testing.assert_allclose(ours, numbers, rtol=1e-3)  # passes hold other windows; p-values have 4 digits
    scored = ~np.isnan(found.score)
    np.testing.assert_array_equal(np.isnan(found.threshold), ~scored)
    assert (found.score[found.pred] > found.threshold[found.pred]).all()


def test_a_budget_raises_thresholds_and_takes_verdicts_away():
    one = ALL["plain"]
    model = Model(Detector(BUDGETED, WEIGHTS), np.arange(len(BUDGETED.channels)))
    found, without = score_series(model, one), score_series(MODEL, one)
    known = ~np.isnan(found.threshold)
    assert (found.threshold[known] >= without.threshold[known]).all()
    assert found.pred.sum() < without.pred.sum()
    np.testing.assert_array_equal(found.score, without.score)


@each_series
def test_scores_are_those_of_the_first_window_that_knows_them(one):
    """Provisional: the first window that holds the row. Final: the first that holds `final_delay` slots more."""
    found = score_series(MODEL, one)
    provisional, final = np.full((2, len(one.slots)), np.nan)
    cuts = cut_series(GEOMETRY, one)
    ends = np.array([cut.end_slot for cut in cuts])
    values = np.stack([window_of(one, cut.end_slot, cut.first_slot) for cut in cuts])
    scores = MODEL.detector.score(WindowBatch([one.entity] * len(cuts), ends, values))
    for number, cut in enumerate(cuts):
        for row, slot in enumerate(one.slots):
            position = slot - (cut.end_slot - GEOMETRY.length + 1)
            if slot >= cut.first_slot and 0 <= position < GEOMETRY.length:
                if np.isnan(provisional[row]):
                    provisional[row] = scores.provisional[number, position]
                if np.isnan(final[row]) and slot <= cut.end_slot - GEOMETRY.final_delay:
                    final[row] = scores.final[number, position]
    np.testing.assert_allclose(found.provisional, provisional, rtol=1e-4, atol=1e-5)
    known = found.final & ~np.isnan(found.score)
    np.testing.assert_array_equal(known, ~np.isnan(final))
    np.testing.assert_allclose(found.score[known], final[known], rtol=1e-4, atol=1e-5)


@each_series
def test_only_the_last_rows_rest_on_less_than_they_should(one):
    found = score_series(MODEL, one)
    last = cut_series(GEOMETRY, one)[-1].end_slot
    np.testing.assert_array_equal(found.final, one.slots <= last - GEOMETRY.final_delay)


@pytest.mark.parametrize("rows", [12, 20, 31, 37, 59])
@pytest.mark.parametrize("name", ["plain", "a gap within a life", "two lives"])
def test_what_comes_later_does_not_change_what_was_known(name, rows):
    """Scores, p-values and decisions are of the past alone; only the window that ends a series is cut early."""
    one = ALL[name]
    part = one.part(slice(rows))
    whole, found = score_series(MODEL, one), score_series(MODEL, part)
    live_end = cut_series(GEOMETRY, part, ended=False)[-1].end_slot
    known = np.flatnonzero(part.slots <= live_end)
    final = np.flatnonzero(part.slots <= live_end - GEOMETRY.final_delay)
    assert len(final) > 0
    np.testing.assert_allclose(found.provisional[known], whole.provisional[known], rtol=1e-4)
    np.testing.assert_allclose(found.score[final], whole.score[final], rtol=1e-4)
    np.testing.assert_allclose(found.p_value[final], whole.p_value[final], rtol=1e-3)
    np.testing.assert_array_equal(found.pred[final], whole.pred[final])


def test_a_new_life_is_scored_as_if_there_had_been_no_other():
    """Only the threshold remembers."""
    one = ALL["two lives"]
    whole, alone = score_series(MODEL, one), score_series(MODEL, one.part(slice(30, None)))
    np.testing.assert_allclose(whole.score[30:], alone.score, rtol=1e-4)
    np.testing.assert_allclose(whole.provisional[30:], alone.provisional, rtol=1e-4)


def test_a_row_without_numbers_changes_no_other_row():
    one = ALL["plain"]
    empty = one._replace(values=one.values.copy())
    empty.values[10] = np.nan
    without = one.part(np.delete(np.arange(60), 10))
    found, wanted = score_series(MODEL, empty), score_series(MODEL, without)
    np.testing.assert_allclose(np.delete(found.score, 10), wanted.score, rtol=1e-4)
    assert np.isnan(found.score[10])


@each_series
def test_cuts_are_those_of_the_live_fold_and_one_more_for_a_series_that_ended(one):
    head = Head(GEOMETRY, int(one.slots[0]))
    live = [cut for row, slot in enumerate(one.slots.tolist()) for cut in head.add(slot, row)]
    assert cut_series(GEOMETRY, one, ended=False) == live
    assert cut_series(GEOMETRY, one)[: len(live)] == live
    assert cut_series(GEOMETRY, one)[-1].end_slot >= one.slots[-1]


def test_the_first_rows_after_a_silence_beyond_max_jump_are_left_out_as_they_are_live():
    one = series(seed=6, gaps=[(30, GEOMETRY.max_jump)])
    refused = np.arange(30, 30 + GEOMETRY.jump_rows - 1)
    found = score_series(MODEL, one)
    believing = msgspec.structs.replace(MANIFEST, geometry=msgspec.structs.replace(GEOMETRY, max_jump=10**6))
    model = Model(Detector(believing, WEIGHTS), MODEL.columns)
    wanted = score_series(model, one.part(np.delete(np.arange(60), refused)))
    for name in ("score", "provisional", "pred", "final"):
        np.testing.assert_array_equal(np.delete(getattr(found, name), refused), getattr(wanted, name))
    assert np.isnan(found.score[refused]).all()
    assert np.isnan(found.provisional[refused]).all()


def test_the_first_final_scores_are_judged_by_what_training_said_of_the_entity():
    one, model = ALL["plain"], with_decision(learning=0)
    found = score_series(model, one)
    fronts = [cut.end_slot - GEOMETRY.final_delay for cut in cut_series(GEOMETRY, one)]
    first = one.slots <= next(front for front in fronts if front >= one.slots[0])
    moments = initial_moments(model.manifest, model.calibration("P-1")).final
    threshold = moments.mean + model.manifest.decision.final_sigmas * moments.variance**0.5
    np.testing.assert_array_equal(found.pred[first], found.score[first] > threshold)


def test_a_series_is_learned_from_before_it_is_judged_and_its_scores_stay_the_same():
    one = ALL["plain"]
    found, at_once = score_series(MODEL, one), score_series(with_decision(learning=0), one)
    scored = np.cumsum(~np.isnan(found.provisional))
    assert at_once.pred[scored < 8].any()
    assert not found.pred[scored <= 12 - GEOMETRY.final_delay].any()
    assert found.pred.any()
    np.testing.assert_array_equal(found.score, at_once.score)


def with_decision(**changes):
    decision = msgspec.structs.replace(MANIFEST.decision, **changes)
    manifest = msgspec.structs.replace(MANIFEST, decision=decision)
    return Model(Detector(manifest, WEIGHTS), MODEL.columns)


def test_series_scored_side_by_side_score_as_one_by_one(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    together = list(score_all(MODEL, iter(ALL.values())))
    assert [found.entity for found in together] == [one.entity for one in ALL.values()]
    monkeypatch.undo()
    for found, one in zip(together, ALL.values(), strict=True):
        alone = score_series(MODEL, one)
        np.testing.assert_allclose(found.score, alone.score, rtol=1e-5)
        np.testing.assert_array_equal(found.pred, alone.pred)
