"""The false-alarm floor: the budget it keeps, what it forgets, and what it takes no notice of."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from detector.decision import SeriesMoments, initial_moments
from detector.floor import (
    WEEK_MS,
    Floor,
    FloorRule,
    floor_deviations,
    floor_rule,
    follow_floor,
    pareto_quantile,
    start_floor,
)
from detector.levels import NO_SCORES, merge
from detector.manifest import AlarmBudget, Manifest, Moments, Peaks
from tests.unit.detector.scored_windows import MANIFEST, RULE, Walk
from training.threshold import measure_peaks

GAP = RULE.resolve_after
HOP = 64
DRAW = {
    "exponential": lambda generator, slots: generator.exponential(size=slots) - 1,
    "autoregressive": lambda generator, slots: lfilter(
        [math.sqrt(1 - 0.9**2)], [1, -0.9], generator.normal(size=slots)
    ),
    "heavy-tailed": lambda generator, slots: generator.standard_t(4, slots) / math.sqrt(2),
    "gaussian": lambda generator, slots: generator.normal(size=slots),
}
EXCESSES = st.builds(Moments, st.floats(1, 500), st.floats(0.01, 5), st.floats(0.001, 30))
FLOORS = st.builds(Floor, st.floats(1, 1e6), EXCESSES)
RULES = st.builds(FloorRule, st.floats(0, 5), st.floats(10, 1e6), st.integers(0, 60))
Z = st.lists(st.sampled_from([math.nan, 0.0, 1.9, 2.1, 2.5, 3.0, 7.0, 1e9]) | st.floats(-3, 30), max_size=200)


def budgeted(peaks: Peaks, alarm_slots: float, **changes: object) -> Manifest:
    """Return a manifest under which each stage may raise one alarm in so many slots."""
    alarms = 2 * WEEK_MS / (alarm_slots * MANIFEST.interval_ms)
    budget = AlarmBudget(alarms_per_week=alarms, provisional=peaks, final=peaks)
    return msgspec.structs.replace(MANIFEST, decision=msgspec.structs.replace(RULE, budget=budget, **changes))


def trained(name: str, alarm_slots: float, seed: int = 0) -> tuple[Floor, FloorRule]:
    generator = np.random.default_rng([seed, 1])
    manifest = budgeted(measure_peaks([DRAW[name](generator, 30_000)], GAP), alarm_slots)
    floor, rule = start_floor(manifest, "final"), floor_rule(manifest, "final")
    assert floor is not None
    assert rule is not None
    assert rule.alarm_slots == pytest.approx(alarm_slots)
    return floor, rule


def alarm_count(flags: np.ndarray) -> int:
    slots = np.flatnonzero(flags)
    return len(slots) and 1 + int(np.count_nonzero(np.diff(slots) - 1 > GAP))


def alarms_per_budget(z: np.ndarray, floor: Floor, rule: FloorRule, *, rolling: bool = True) -> float:
    """Return how many alarms a series raises for every one that its budget allows, behind its first third."""
    flags = np.zeros(len(z), bool)
    for first in range(0, len(z), HOP):
        hop, most = z[first : first + HOP], floor_deviations(floor, rule)
        flags[first : first + HOP] = hop > most
        floor = follow_floor(floor, hop, most, rule) if rolling else floor
    late = flags[len(z) // 3 :]
    return alarm_count(late) * rule.alarm_slots / len(late)


def mean_ratio(train: str, live: str, scale: float, *, rolling: bool = True) -> float:
    found = []
    for seed in range(3):
        floor, rule = trained(train, 10_080, seed)
        z = scale * DRAW[live](np.random.default_rng([seed, 2]), 40 * 10_080)
        found.append(alarms_per_budget(z, floor, rule, rolling=rolling))
    return float(np.mean(found))


@pytest.mark.parametrize("name", ["exponential", "autoregressive", "heavy-tailed"])
def test_a_long_run_of_scores_like_those_of_training_raises_the_alarms_of_the_budget_within_a_factor_of_two(name):
    assert 0.5 <= mean_ratio(name, name, 1) <= 2


@pytest.mark.parametrize(
    ("train", "live", "scale", "least"),
    [
        ("exponential", "exponential", 1.5, 0.5),
        ("autoregressive", "autoregressive", 1.5, 0.2),  # errs on the side of fewer alarms
        ("gaussian", "heavy-tailed", 1, 0.5),
    ],
)
def test_scores_whose_tail_grew_after_training_come_back_to_the_budget_and_would_not_without_following(
    train, live, scale, least
):
    assert mean_ratio(train, live, scale, rolling=False) > 10
    assert least <= mean_ratio(train, live, scale) <= 2


def test_scores_that_became_quieter_get_a_lower_floor():
    floor, rule = trained("exponential", 10_080)
    before = floor_deviations(floor, rule)
    z = 0.67 * DRAW["exponential"](np.random.default_rng(5), 400_000)
    for first in range(0, len(z), HOP):
        floor = follow_floor(floor, z[first : first + HOP], floor_deviations(floor, rule), rule)
    assert rule.level < floor_deviations(floor, rule) < 0.85 * before


@settings(max_examples=200)
@given(Z, st.lists(st.integers(0, 200)), st.integers(0, 60), st.floats(2.1, 30))
def test_a_series_may_be_cut_anywhere(z, cuts, gap, most):
    rule, start = FloorRule(2.0, 500.0, gap), Floor(1000.0, Moments(60.0, 0.5, 0.3))
    whole = follow_floor(start, np.array(z), most, rule)
    parts = start
    for part in np.split(np.array(z), sorted(cuts)):
        parts = follow_floor(parts, part, most, rule)
    assert (parts.open, parts.quiet) == (whole.open, whole.quiet)
    assert parts.excesses.count == pytest.approx(whole.excesses.count)
    assert floor_deviations(parts, rule) == pytest.approx(floor_deviations(whole, rule))


@given(Z, st.integers(0, 60))
def test_peaks_are_those_that_a_walk_slot_by_slot_finds(z, gap):
    """While nothing is forgotten: a peak counts when more than `gap` slots behind it are at or below the level."""
    peaks, open_peak, quiet = [], None, 0
    for score in z:
        if score > 2.0:
            open_peak, quiet = max(open_peak or 0.0, score - 2.0), 0
        elif open_peak is not None:
            quiet += 1
            if quiet > gap:
                peaks.append(open_peak)
                open_peak, quiet = None, 0
    found = follow_floor(Floor(0.0, NO_SCORES), np.array(z), math.inf, FloorRule(2.0, 1e9, gap))
    assert found.slots == np.count_nonzero(~np.isnan(z))
    assert found.excesses.count == len(peaks)
    assert (found.open, found.quiet) == (pytest.approx(open_peak) if open_peak else None, quiet)
    if peaks:
        assert found.excesses.mean == pytest.approx(np.mean(peaks))
        assert found.excesses.variance == pytest.approx(np.var(peaks), rel=1e-6, abs=1e-6)


@given(Z, st.floats(2.1, 30), st.floats(1, 1e6))
def test_an_alarms_peak_counts_as_the_threshold_however_high_it_is(z, most, higher):
    rule, start, z = FloorRule(2.0, 500.0, 10), Floor(1000.0, Moments(60.0, 0.5, 0.3)), np.array(z)
    assert follow_floor(start, np.where(z > most, z + higher, z), most, rule) == follow_floor(start, z, most, rule)


@given(FLOORS, RULES, st.floats(1.01, 100))
def test_the_floor_is_at_least_the_level_and_a_smaller_budget_never_lowers_it(floor, rule, rarer):
    found = floor_deviations(floor, rule)
    assert rule.level <= found < math.inf
    assert floor_deviations(floor, rule._replace(alarm_slots=rule.alarm_slots * rarer)) >= found


def test_a_level_that_is_passed_less_often_than_the_budget_allows_is_the_floor():
    assert floor_deviations(Floor(1000.0, Moments(1.0, 3.0, 4.0)), FloorRule(2.5, 900.0, 0)) == 2.5
    assert floor_deviations(Floor(1000.0, NO_SCORES), FloorRule(2.5, 1e9, 0)) == 2.5


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.2])
def test_of_many_peaks_the_floor_is_the_quantile_of_their_pareto_distribution(shape):
    peaks = stats.genpareto.rvs(shape, scale=1.5, size=100_000, random_state=np.random.default_rng(1))
    floor = Floor(1e6, merge(NO_SCORES, 0.0, peaks))
    wanted = 2 + stats.genpareto.isf(0.01, shape, scale=1.5)  # one slot in 10 has a peak, one in 1000 may pass
    assert floor_deviations(floor, FloorRule(2.0, 1000.0, 0)) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("shape", [-0.3, 0.0, 1e-12, 0.3])
def test_the_tail_is_a_generalised_pareto_distribution(shape):
    for exceeded in (0.5, 0.01, 1e-5):
        wanted = stats.genpareto.isf(exceeded, shape, scale=2.5)
        assert pareto_quantile(exceeded, shape, 2.5) == pytest.approx(wanted)


@given(st.floats(1, 1e7), EXCESSES, st.floats(10, 1e5))
def test_training_weighs_no_more_than_is_remembered_and_what_it_says_stays(slots, excesses, alarm_slots):
    floor = start_floor(budgeted(Peaks(2.0, slots, excesses), alarm_slots), "final")
    assert floor is not None
    assert floor.slots <= slots
    assert floor.slots <= 2 * alarm_slots * 1.001 or floor.excesses.count <= 50.001
    assert floor.excesses.count / floor.slots == pytest.approx(excesses.count / slots)
    assert (floor.excesses.mean, floor.excesses.variance) == (excesses.mean, excesses.variance)


# Under the decision


PEAKS = Peaks(1.5, 10_000.0, Moments(100.0, 0.5, 0.25))
SERIES = st.lists(st.sampled_from([1.0, 1.0, 1.0, 1.2, 1.4, 3.0, math.nan]), min_size=8, max_size=60)


def walked(scores, manifest, moments=None):
    moments = moments or start(manifest)
    return Walk(scores, manifest.decision, moments=moments)


def start(manifest):
    moments = initial_moments(manifest, manifest.entities[0], followed=RULE.learning)
    return msgspec.structs.replace(moments, provisional=Moments(2000, 1.0, 0.01), final=Moments(2000, 1.0, 0.01))


@settings(max_examples=30)
@given(SERIES, st.floats(30, 1e6))
def test_a_budget_only_ever_takes_alarms_away(levels, alarm_slots):
    """Of a series that adapts to no alarm and forgets none, so that both judge by the same moments."""
    steady = {"adapt_after": 0, "learning": 0}
    manifest = budgeted(PEAKS, alarm_slots, **steady)
    scores = np.repeat(levels, 4) + np.random.default_rng(0).normal(0, 0.1, 4 * len(levels))
    without = Walk(scores, msgspec.structs.replace(RULE, **steady), moments=start(MANIFEST))
    found = walked(scores, manifest)
    for stage in ("provisional", "final"):
        assert not (np.array(found.preds[stage]) & ~np.array(without.preds[stage])).any()
    assert without.moments.final_floor is None
    assert found.moments.final == without.moments.final


@settings(max_examples=30)
@given(SERIES, st.integers(1, 59))
def test_a_series_of_hops_goes_on_from_its_stored_floor(levels, at):
    manifest = budgeted(PEAKS, 400.0)
    scores = np.repeat(levels, 4) + np.random.default_rng(0).normal(0, 0.1, 4 * len(levels))
    at = 4 * min(at, len(levels) - 1)
    whole, first = walked(scores, manifest), walked(scores[:at], manifest)
    stored = msgspec.json.decode(msgspec.json.encode(first.moments), type=SeriesMoments)
    second = walked(scores[at:], manifest, stored)
    assert first.preds["final"] + second.preds["final"] == whole.preds["final"]
    assert first.preds["provisional"] + second.preds["provisional"] == whole.preds["provisional"]
    assert second.moments == whole.moments


def test_learning_teaches_the_floor_nothing():
    manifest = budgeted(PEAKS, 400.0, learning=200)
    begin = initial_moments(manifest, manifest.entities[0])
    walk = walked(np.random.default_rng(0).normal(5, 1, 200), manifest, begin)
    assert walk.moments.final_floor == begin.final_floor
    assert walk.moments.final != begin.final


@pytest.mark.parametrize("train", ["heavy-tailed", "gaussian"])
def test_both_stages_together_keep_the_budget_on_a_long_run_whatever_tail_training_showed(train):
    """Behind the first third, by which a tail is learned that training did not show; both stages say the same."""
    generator = np.random.default_rng(3)
    z, slots = DRAW["heavy-tailed"](generator, 60_000), 4_000.0
    peaks = measure_peaks([DRAW[train](generator, 30_000)], GAP)
    manifest = budgeted(peaks, slots, learning=0, adapt_after=0)
    rolling = Walk(1 + 0.1 * z, manifest.decision, hop=16, moments=start(manifest))
    flags = np.array(rolling.preds["final"]) | np.array(rolling.preds["provisional"])
    allowed = 2 * 40_000 / slots
    assert allowed / 2 <= alarm_count(flags[20_000:]) <= 2 * allowed
    without = Walk(
        1 + 0.1 * z, msgspec.structs.replace(RULE, learning=0, adapt_after=0), hop=16, moments=start(MANIFEST)
    )
    assert alarm_count(without.final[20_000:]) > 4 * allowed
