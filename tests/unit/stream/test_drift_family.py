"""When a family has drifted: never for one sick entity or for rows that only remember, soon when a fleet has moved."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from stream.contracts import DriftEvent
from stream.drift_family import FamilyWatch
from stream.settings import DriftSettings
from stream.sketch import Sketch
from tests.unit.stream.drift_fleet import (
    CHANNELS,
    LENGTH,
    MONTH,
    ONCE,
    PHI,
    block_means,
    fleet,
    sketches,
    summary,
    training_sketch,
    walk,
)

# Within so many blocks a shift of half a deviation in 30 % of the entities is found; in most draws within 48.
FOUND_WITHIN = 80
BEFORE = 100
SHIFT = 0.5


def test_the_drawn_means_are_those_of_rows():
    """The fleet is drawn by formula; here against rows."""
    noise = np.random.default_rng(0).standard_normal(2000 * LENGTH) * np.sqrt(1 - PHI**2)
    rows = lfilter([1.0], [1.0, -PHI], noise).reshape(-1, LENGTH).mean(1)
    means, _ = block_means(1, 5000, 4)
    assert means.std() == pytest.approx(rows.std(), rel=0.05)
    neighbours = [np.corrcoef(one[:-1], one[1:])[0, 1] for one in (rows, *means.T)]
    assert neighbours == pytest.approx([0.054] * 5, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_month_of_rows_that_remember_has_at_most_one_false_call(seed):
    """The bound is one a month; independent entities had none in any seed tried."""
    assert len(walk(fleet(seed, MONTH, 4), rule=DriftSettings())) <= 1


@pytest.mark.parametrize("seed", [2, 3])
def test_a_month_has_at_most_one_even_where_all_entities_feel_the_same(seed):
    """No quorum helps here: what one entity takes for drift, all do."""
    alike = np.repeat(fleet(seed, MONTH, 1), 2, axis=1)
    found = sketches(1) | {"e1": sketches(1)["e0"]}
    assert len(walk(alike, found, DriftSettings())) <= 1


@pytest.mark.parametrize("seed", [4, 5, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_half_a_deviation_in_a_third_of_the_entities_is_found_in_time(seed, sign):
    means = fleet(seed, BEFORE + FOUND_WITHIN, 10)
    means[BEFORE:, :3, 0] += sign * SHIFT
    ((block, event),) = walk(means)
    assert BEFORE < block < BEFORE + FOUND_WITHIN
    assert (event.watched, event.share) == (10, event.moved / 10)
    assert 2 <= event.moved <= 3
    (channel,) = event.channels
    assert channel.channel == "volts"
    assert {one.entity for one in channel.worst} <= {"e0", "e1", "e2"}
    assert all(np.sign(one.deviations) == sign and abs(one.deviations) > 0.25 for one in channel.worst)
    assert summary("e0", block - 1, [0.0] * 3).end_ms <= event.detected_at_ms
    assert event.first_block_ms < event.detected_at_ms <= summary("e0", block, [0.0] * 3).end_ms
    assert event.adwin == event.sketch == event.moved
    assert event.persistence == event.score == 0


def test_one_sick_entity_is_no_drift_however_sick_and_long():
    means = fleet(7, 400, 4)
    means[50:, 0] += 50.0
    assert walk(means) == []


def test_a_fault_in_the_whole_fleet_is_drift_only_when_it_has_lasted():
    """However large: it has been in the alerts for hours by then, and one that is over before is none."""
    means = fleet(19, 150, 4)
    short, long = means.copy(), means.copy()
    short[60:66] += 50.0
    long[60:] += 50.0
    assert walk(short) == []
    ((block, _),) = walk(long)
    assert block >= 60 + DriftSettings().min_blocks - 1


def test_a_family_of_one_may_be_told_to_drift_alone():
    means = fleet(8, 200, 1)
    means[50:, 0, 0] += 5.0
    assert walk(means) == []
    assert len(walk(means, rule=DriftSettings(min_entities=1, cooldown_s=10**9))) == 1


def test_the_score_counts_as_a_series_but_only_upwards():
    means = fleet(9, 200, 4)
    up, down = means.copy(), means.copy()
    up[50:, :, -1] += 3.0
    down[50:, :, -1] -= 3.0
    ((_, event),) = walk(up)
    assert event.score == event.moved
    assert [channel.channel for channel in event.channels] == [""]
    assert walk(down) == []


def test_a_shift_that_was_there_from_the_first_block_is_found_by_its_persistence():
    """ADWIN sees no change; the comparison with training alone does, for long."""
    means = fleet(10, 300, 4)
    means[:, :, 0] += 1.0
    ((block, event),) = walk(means)
    assert block < DriftSettings().persist_blocks + DriftSettings().window_blocks
    assert event.persistence == event.moved
    assert (event.adwin, event.sketch) == (0, event.moved)


def test_a_constant_series_is_no_drift_while_it_stays_so():
    still = {f"e{i}": Sketch(4.0, [7.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3) for i in range(3)}
    means = np.full((150, 3, 3), 7.0)
    assert walk(means, still) == []
    means[100:, :, 0] = 8.0
    assert len(walk(means, still)) == 1


def test_missing_blocks_and_channels_say_nothing():
    means = fleet(11, 300, 4)
    means[60:] = np.nan
    assert walk(means) == []
    means = fleet(11, 300, 4)
    means[:, :, 0] = np.nan
    means[::3] = np.nan
    means[100:, :, 1] += 2.0
    ((_, event),) = walk(means)
    assert [channel.channel for channel in event.channels] == ["amps"]


def test_a_few_values_of_a_block_say_nothing_of_its_mean():
    means = fleet(12, 200, 4)
    means[50:] += 5.0
    assert walk(means, counts=LENGTH // 10) == []


def test_a_storm_is_one_event_a_cool_down():
    rule = DriftSettings(cooldown_s=100 * LENGTH)
    means = fleet(13, 500, 4)
    means[40:] += 3.0
    times = [event.detected_at_ms for _, event in walk(means, rule=rule)]
    assert len(times) >= 3
    assert all(later - earlier >= 100 * LENGTH * 1000 for earlier, later in pairwise(times))


def test_what_was_published_before_keeps_the_cool_down():
    means = fleet(14, 120, 4)
    means[40:] += 3.0
    ((_, event),) = walk(means)
    sketch = training_sketch(sketches(4))
    successor = FamilyWatch("telltale", ONCE, lambda version: sketch)
    successor.remember(event)
    assert walk(means, watch=successor) == []


@pytest.mark.parametrize("silent", [False, True])
def test_an_entity_that_fell_silent_does_not_count(silent):
    """Two of four entities move, which is too little; without the other two it is all."""
    sketch = training_sketch(sketches(4))
    means = fleet(15, 250, 4)
    means[60:, :2, 0] += 3.0
    watch = FamilyWatch("telltale", DriftSettings(share=0.9), lambda version: sketch)
    rows = [(block, i) for block in range(250) for i in range(4) if not (silent and i >= 2 and block > 100)]
    events = [watch.add(summary(f"e{i}", block, means[block, i])) for block, i in rows]
    assert any(event is not None for event in events) == silent
    assert watch.watched == (2 if silent else 4)


@pytest.mark.parametrize("ahead", [10_000, -10_000])
def test_a_wild_clock_moves_neither_the_event_nor_its_cool_down(ahead):
    sketch = training_sketch(sketches(5))
    means = fleet(16, 250, 5)
    means[60:, :, 0] += 3.0
    watch = FamilyWatch("telltale", ONCE, lambda version: sketch)
    clock = [0, ahead, 0, ahead, 0]
    rows = [(block, i) for block in range(250) for i in range(5)]
    events = [watch.add(summary(f"e{i}", block + clock[i] * (block > 30), means[block, i])) for block, i in rows]
    (event,) = [event for event in events if event is not None]
    first, last = (summary("e0", block, [0.0] * 3).end_ms for block in (60, 100))
    assert first < event.detected_at_ms < last


def test_a_new_model_is_watched_from_the_start():
    sketch = training_sketch(sketches(4))
    after = training_sketch(sketches(4, mean=3.0))
    watch = FamilyWatch("telltale", DriftSettings(cooldown_s=0), {"v1": sketch, "v2": after}.__getitem__)
    means = fleet(16, 300, 4)
    means[40:] += 3.0
    assert walk(means[:100], watch=watch)
    assert watch.moved == 4
    events = []
    for block in range(100, 300):
        events += [watch.add(summary(f"e{i}", block, means[block, i], version="v2")) for i in range(4)]
    assert set(events) == {None}
    assert (watch.moved, watch.watched) == (0, 4)


def test_entities_and_models_without_a_sketch_are_not_watched():
    means = fleet(17, 100, 3)
    means[30:] += 5.0
    none = FamilyWatch("telltale", ONCE, lambda version: None)
    assert walk(means, watch=none) == []
    assert none.watched == 0
    one = training_sketch(sketches(1))
    some = FamilyWatch("telltale", ONCE, lambda version: one)
    assert walk(means, watch=some) == []
    assert some.watched == 1


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.floats(0.5, 5), st.integers(20, 80))
def test_a_replay_tells_the_same_and_an_event_survives_the_wire(seed, shift, at):
    means = fleet(seed, 120, 3)
    means[at:, :, 0] += shift
    events = walk(means)
    assert events == walk(means)
    for _, event in events:
        assert msgspec.json.decode(msgspec.json.encode(event), type=DriftEvent) == event


def test_blocks_of_several_windows_are_taken_where_rows_remember_for_long():
    found = sketches(4)
    slow = {name: msgspec.structs.replace(one, memory=[400.0] * (len(CHANNELS) + 1)) for name, one in found.items()}
    assert training_sketch(found).merged == 1
    assert training_sketch(slow).merged == 8
    means = fleet(18, 900, 4)
    means[400:] += 3.0
    ((block, event),) = walk(means, slow)
    assert event.block_slots == 8 * LENGTH
    assert (block + 1 + summary("e0", 0, [0.0] * 3).block) % 8 == 0
