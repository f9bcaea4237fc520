from itertools import cycle, pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import ContractError
from stream.grid import Geometry
from stream.heads import Cut, Head, HeadRecord

BASE = 960  # a boundary of every hop used here


@st.composite
def geometries(draw):
    hop = draw(st.integers(1, 4))
    length = hop * draw(st.integers(-(-8 // hop), 12 // hop + 2))
    lateness, final_delay = draw(st.integers(0, 5)), draw(st.integers(0, length - hop))
    slack = max(1, 2 * (hop + lateness) + final_delay) + draw(st.integers(0, 5))
    return Geometry(length=length, hop=hop, lateness=lateness, final_delay=final_delay, slack=slack)


@st.composite
def series(draw, *, lives=True):
    """Draw a geometry and ascending slots with gaps, some of them longer than a life survives."""
    geometry = draw(geometries())
    longest = geometry.max_gap if lives else geometry.max_gap - geometry.lateness  # in whatever order rows come
    steps = [1, 1, 1, 1, 2, geometry.hop, geometry.final_delay + 1, longest]
    steps += [geometry.max_gap + 1, 3 * geometry.capacity] if lives else []
    usable = st.sampled_from([step for step in steps if 0 < step <= longest or lives])
    slots = BASE + draw(st.integers(0, 8)) + np.cumsum([0, *draw(st.lists(usable, max_size=40))])
    return geometry, slots.tolist()


@st.composite
def shuffled_series(draw):
    """Draw a geometry, ascending slots of one life, and an order in which none lags more than the lateness."""
    geometry, slots = draw(series(lives=False))
    delays = draw(st.lists(st.integers(0, geometry.lateness), min_size=len(slots), max_size=len(slots)))
    ties = draw(st.permutations(range(len(slots))))
    order = sorted(range(len(slots)), key=lambda i: (slots[i] + delays[i], ties[i]))
    return geometry, slots, [slots[i] for i in order]


def run(geometry, slots):
    """Return the head after these rows, numbered by arrival, and the cuts."""
    head = Head(geometry, slots[0])
    return head, [cut for offset, slot in enumerate(slots) for cut in head.add(slot, offset)]


def new_range(cut):
    """Return the slots that a cut announces: none before the life's first one."""
    return range(max(cut.end_slot - cut.new_slots + 1, cut.first_slot), cut.end_slot + 1)


def final_range(geometry, cut):
    """Return the slots whose score a cut makes final."""
    front = cut.end_slot - geometry.final_delay
    return range(max(front - cut.new_slots + 1, cut.first_slot), front + 1)


def window(geometry, cut):
    return range(cut.end_slot - geometry.length + 1, cut.end_slot + 1)


def lives_of(slots, max_gap):
    """Split ascending slots where a silence is too long."""
    return np.split(slots, np.flatnonzero(np.diff(slots) > max_gap) + 1)


def as_drawn(geometry, slots):
    """Return which windows each row cuts, by slot, leaving out rows that cut none."""
    head = Head(geometry, slots[0] + BASE)
    cuts = {slot: [cut.end_slot - BASE for cut in head.add(slot + BASE, slot)] for slot in slots}
    return {slot: ends for slot, ends in cuts.items() if ends}


SMALL = {"length": 8, "hop": 4, "final_delay": 4, "slack": 16}

TIME_LINES = {
    "in order, a window is cut by its last row": (0, "0 1 2 3 4 5 6 7", {3: [3], 7: [7]}),
    "a missing last row is waited for until a later one comes": (0, "0 1 2 . 4", {4: [3]}),
    "with lateness 1 the row after the end cuts": (1, "0 1 2 3 4", {4: [3]}),
    "a row may lag by the whole lateness": (1, "0 1 2 4 3", {3: [3]}),
    "and no longer": (1, "0 1 2 . 4 5", {5: [3]}),
    "lateness 2": (2, "0 2 1 5 3 4 6 7 8 9", {3: [3], 9: [7]}),
    "a gap is cut only as far as it has news": (0, "0 1 . . . . . . . . . . 12 . . 15", {12: [3, 7], 15: [15]}),
    "a life may begin anywhere": (0, ". . 2 3 4 5 6 7", {3: [3], 7: [7]}),
    "a silence of more than max_gap ends a life": (
        0,
        "0 1 2 3 " + ". " * 12 + "16 17 18 19",
        {3: [3], 16: [7], 19: [19]},
    ),
}


@pytest.mark.parametrize("name", TIME_LINES)
def test_time_lines(name):
    """Each number is a row in order of arrival, each dot a slot without one."""
    lateness, line, cuts = TIME_LINES[name]
    geometry = Geometry(**SMALL, lateness=lateness)
    assert as_drawn(geometry, [int(slot) for slot in line.split() if slot != "."]) == cuts


@given(shuffled_series())
def test_arrival_order_within_lateness_does_not_matter(case):
    """Only the ring's name and the offsets are of the arrival."""
    geometry, slots, arrival = case

    def told(cuts):
        return [(cut.end_slot, new_range(cut), cut.rows, cut.first_slot, cut.gap_slots) for cut in cuts]

    assert told(run(geometry, arrival)[1]) == told(run(geometry, slots)[1])


@given(series())
def test_new_slots_tile_each_life(case):
    """Every slot from a life's first one to the end of its last window is new in exactly one window."""
    geometry, slots = case
    head, cuts = run(geometry, slots)
    cuts += head.flush()
    for life in lives_of(slots, geometry.max_gap):
        told = [slot for cut in cuts if cut.ring == life[0] for slot in new_range(cut)]
        assert told == list(range(life[0], told[-1] + 1))
        assert told[-1] >= life[-1]


@given(series())
def test_every_row_becomes_final_once_when_the_series_goes_on(case):
    geometry, slots = case
    later = slots[-1] + geometry.max_gap + 1  # a new life tells the end of the old one
    _, cuts = run(geometry, [*slots, later])
    for slot in slots:
        final = [cut for cut in cuts if slot in final_range(geometry, cut) and cut.ring <= slot]
        assert len(final) == 1
        assert slot in window(geometry, final[0])


@given(shuffled_series())
def test_a_window_counts_the_rows_it_holds_and_spans_their_offsets(case):
    geometry, _, arrival = case
    head = Head(geometry, arrival[0])
    present = {}
    for offset, slot in enumerate(arrival):
        cuts = head.add(slot, offset)
        present[slot] = offset
        for cut in cuts:
            inside = [present[slot] for slot in window(geometry, cut) if slot in present]
            assert cut.rows == len(inside) > 0
            assert (cut.first_offset, cut.last_offset) == (min(inside), max(inside))


@given(shuffled_series())
def test_rows_counted_at_the_cut_are_all_the_window_ever_gets(case):
    geometry, _, arrival = case
    _, cuts = run(geometry, arrival)
    for cut in cuts:
        assert cut.rows == sum(slot in window(geometry, cut) for slot in arrival)


@given(series())
def test_no_row_takes_the_place_of_one_that_an_uncut_window_needs(case):
    """At the moment a window is cut, everything in its ring is within one lap of its first slot."""
    geometry, slots = case
    head = Head(geometry, slots[0])
    for offset, slot in enumerate(slots):
        life = head.ring
        for cut in head.add(slot, offset):
            if head.ring == life:
                assert slot - geometry.capacity < cut.end_slot - geometry.length + 1


@given(series(), st.data())
def test_a_row_behind_the_last_window_is_late_and_changes_nothing(case, data):
    geometry, slots = case
    head, _ = run(geometry, slots)
    before = head.record()
    late = data.draw(st.integers(head.emitted_end - 3 * geometry.length, head.emitted_end))
    with pytest.raises(
        ContractError, match=f"slot {late} came after the window up to slot {head.emitted_end}"
    ) as caught:
        head.add(late, len(slots))
    assert caught.value.reason == "late"
    assert head.record() == before


@given(series(), st.data())
def test_a_head_restored_anywhere_goes_on_as_if_nothing_had_happened(case, data):
    """What a ring still holds is enough: the newest lap of the present life."""
    geometry, slots = case
    cut_at = data.draw(st.integers(1, len(slots)))
    head, before = run(geometry, slots[:cut_at])
    restored = Head.from_record(geometry, HeadRecord(*msgspec_fields(head.record())))
    for offset, slot in enumerate(slots[:cut_at]):
        if head.ring <= slot and slot > head.max_slot - geometry.capacity:
            restored.restore_row(slot, offset)
    after = [cut for offset, slot in enumerate(slots[cut_at:], cut_at) for cut in restored.add(slot, offset)]
    whole, cuts = run(geometry, slots)
    assert before + after == cuts
    assert restored.record() == whole.record()
    assert restored.flush() == whole.flush()


@given(series(), st.lists(st.integers(0, 45), max_size=4))
def test_rows_added_in_runs_do_what_they_do_one_by_one(case, breaks):
    """A run ends where a life does, and anywhere else it likes."""
    geometry, slots = case
    head, cuts = run(geometry, slots)
    lives = np.flatnonzero(np.diff(slots) > geometry.max_gap) + 1
    in_runs, told = Head(geometry, slots[0]), []
    for first, end in pairwise(sorted({0, len(slots), *lives.tolist(), *(at for at in breaks if at < len(slots))})):
        told += [(first, cut) for cut in in_runs.add(slots[first], first)]
        offsets = list(range(first + 1, end))
        for at, cuts_of_row in in_runs.add_run(slots[first + 1 : end], offsets):
            told += [(offsets[at], cut) for cut in cuts_of_row]
    one_by_one = Head(geometry, slots[0])
    assert told == [(offset, cut) for offset, slot in enumerate(slots) for cut in one_by_one.add(slot, offset)]
    assert [cut for _, cut in told] == cuts
    assert (in_runs.record(), in_runs.flush()) == (head.record(), head.flush())


@given(shuffled_series(), st.lists(st.integers(1, 6), min_size=1), st.integers(1, 2))
def test_rows_added_quietly_do_what_they_do_one_by_one_and_those_that_do_more_do_nothing(case, sizes, doubt_every):
    """Whatever stretches the rows come in, and also while a time stamp is doubted."""
    geometry, _, slots = case
    geometry = msgspec.structs.replace(geometry, max_jump=0)
    one_by_one, head, at = Head(geometry, slots[0]), Head(geometry, slots[0]), 0
    for number, size in enumerate(cycle(sizes)):
        stretch = range(at, min(at + size, len(slots)))
        if not stretch:
            break
        if number % doubt_every:
            refuse_a_jump(head, one_by_one)
        cuts = [cut for offset in stretch for cut in one_by_one.add(slots[offset], offset)]
        run, before = [slots[offset] for offset in stretch], everything(head)
        if run == list(range(run[0], run[-1] + 1)) and head.add_quietly(run[0], run[-1], stretch[0], stretch[-1]):
            assert cuts == []
        else:
            assert everything(head) == before
            assert [cut for offset in stretch for cut in head.add(slots[offset], offset)] == cuts
        assert everything(head) == everything(one_by_one)
        at = stretch.stop


def test_rows_of_one_hop_that_cut_nothing_are_added_quietly():
    """Else the test above would compare one by one with itself."""
    head = Head(Geometry(**SMALL), BASE)
    head.add(BASE, 0)
    assert head.add_quietly(BASE + 1, BASE + 2, 1, 2)
    assert not head.add_quietly(BASE + 2, BASE + 2, 3, 3)  # not newer
    assert not head.add_quietly(BASE + 3, BASE + 3, 3, 3)  # the window's last
    assert not head.add_quietly(BASE + 3, BASE + 4, 3, 4)


def refuse_a_jump(*heads):
    for head in heads:
        with pytest.raises(ContractError, match="ahead"):
            head.add(head.max_slot + head.geometry.longest_step + 1, 0)


def everything(head):
    buckets = {n: (b.mask, b.first_offset, b.last_offset) for n, b in head._buckets.items()}
    return head.record(), head.jumped, buckets


def msgspec_fields(record):
    return [getattr(record, name) for name in record.__struct_fields__]


@given(series())
def test_a_new_life_says_how_long_the_silence_was(case):
    """slots      last window of the old life | gap_slots | first row of the new one"""
    geometry, slots = case
    head, cuts = run(geometry, slots)
    cuts += head.flush()
    lives = [[cut for cut in cuts if cut.ring == life[0]] for life in lives_of(slots, geometry.max_gap)]
    assert [cut.gap_slots for cut in lives[0]] == [0] * len(lives[0])
    for old, new in pairwise(lives):
        assert [cut.gap_slots for cut in new] == [new[0].first_slot - 1 - old[-1].end_slot] + [0] * (len(new) - 1)


@given(series())
def test_windows_end_at_the_same_slots_whenever_an_entity_started(case):
    geometry, slots = case
    head, cuts = run(geometry, slots)
    assert all((cut.end_slot + 1) % geometry.hop == 0 for cut in cuts + head.flush())


@given(series())
def test_nothing_is_left_to_flush_twice(case):
    geometry, slots = case
    head, cuts = run(geometry, slots)
    flushed = head.flush()
    assert max(cut.end_slot for cut in cuts + flushed) >= slots[-1]
    assert head.flush() == []


def test_a_cut_has_the_fields_of_a_notice():
    _, cuts = run(Geometry(**SMALL), [BASE, BASE + 1, BASE + 2, BASE + 3])
    assert cuts == [Cut(BASE + 3, 4, 4, ring=BASE, first_slot=BASE, gap_slots=0, first_offset=0, last_offset=3)]
