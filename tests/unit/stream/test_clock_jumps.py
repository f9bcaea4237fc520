from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import ContractError
from stream.grid import Geometry
from stream.heads import Head, HeadRecord

BASE = 1_000_000
JUMP = 1000
GEOMETRY = Geometry(length=8, hop=4, lateness=1, final_delay=4, slack=16, max_jump=JUMP, jump_rows=3)
FAR = st.integers(JUMP + 200, 900_000) | st.integers(-900_000, -JUMP - 200)
STEPS = [1, 1, 1, 1, 2, GEOMETRY.hop, GEOMETRY.max_gap, GEOMETRY.max_gap + 1, JUMP]


@st.composite
def walks(draw, *, least=1):
    """Draw slots that go on, some of them after a silence."""
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=least, max_size=30))
    slots = [BASE + draw(st.integers(0, 8))]
    for step in steps:
        slots.append(slots[-1] + step)
    return slots


def fold(slots, head=None, first_offset=0):
    """Return the head, what it cut, and which rows it refused with which reason."""
    head = head or Head(GEOMETRY, slots[0])
    cuts, refused = [], {}
    for offset, slot in enumerate(slots, first_offset):
        try:
            cuts += head.add(slot, offset)
        except ContractError as error:
            refused[offset] = error.reason
    return head, cuts, refused


def told(cuts):
    """Leave out what depends on how many records came before."""
    return [cut._replace(ring=0, first_offset=0, last_offset=0, gap_slots=0) for cut in cuts]


TIME_LINES = {
    "the one in the module": ("7 8 9000 9 10 5000 5001 11 5002 5003 5004 5005 7 8 9", ". . x . . x x . x x . . x x ."),
    "a row that is out alone": ("0 1 2000 2 3 -5000 4", ". . x . . x ."),
    "two regions in turn": ("0 5000 9000 5001 9001 5002 9002 1", ". x x x x x x ."),
    "a clock that stands still far away": ("0 5000 5000 5000 5000 1", ". x x x x ."),
    "a clock that went on far away, not in order": ("0 5000 4999 5001 5002 5003", ". x x x . ."),
    "as far as is believed at once": ("0 1000 1001 2 3", ". . . l l"),
    "back to the beginning of time": ("0 1 -9000 -8999 -8998 -8997 2", ". . x x . . x"),
    "a first row far ahead of all others": ("9000 0 1 2 3", ". x x . ."),
}


@pytest.mark.parametrize("name", TIME_LINES)
def test_time_lines(name):
    """x: refused as a jump of the clock, l: as late, dot: taken."""
    line, verdicts = TIME_LINES[name]
    slots = [BASE + int(slot) for slot in line.split()]
    _, _, refused = fold(slots)
    reasons = {"clock_jump": "x", "late": "l", None: "."}
    assert " ".join(reasons[refused.get(offset)] for offset in range(len(slots))) == verdicts


@given(walks(), st.lists(st.tuples(st.integers(0, 30), FAR, st.integers(1, 2)), max_size=6))
def test_fewer_rows_far_away_than_confirm_a_jump_change_nothing(slots, strays):
    """However many times, as long as a row of the present comes between."""
    mixed = list(slots)
    for place, far, count in sorted(strays, key=lambda stray: stray[0], reverse=True):
        if 0 < place < len(slots):
            mixed[place:place] = [slots[place - 1] + far + i for i in range(count)]
    head, cuts, refused = fold(mixed)
    plain, wanted, none = fold(slots)
    assert told(cuts) == told(wanted)
    assert set(refused.values()) <= {"clock_jump"}
    assert len(refused) == len(mixed) - len(slots)
    assert none == {}
    assert (head.max_slot, head.emitted_end) == (plain.max_slot, plain.emitted_end)


@given(walks(least=3), walks(least=6), FAR)
def test_a_confirmed_jump_ends_one_life_whole_and_begins_another_at_the_row_that_confirms(before, after, far):
    first = before[-1] + far
    after = [first, first + 1, *(slot - after[0] + first + 2 for slot in after)]
    _, cuts, refused = fold([*before, *after])
    assert refused == {len(before): "clock_jump", len(before) + 1: "clock_jump"}
    later = before[-1] + GEOMETRY.max_gap + 1  # a silence tells the end of a life too
    old, new = fold([*before, later])[1], fold(after[2:])[1]
    assert told(cuts) == told(old) + told(new)


@given(walks(least=2), st.lists(st.tuples(FAR, st.integers(1, 6)), min_size=1, max_size=6))
def test_no_two_lives_share_a_ring(slots, jumps):
    """Also where the clock comes back to slots that it has had."""
    log = list(slots)
    for far, count in jumps:
        log += [log[-1] + far + i for i in range(count)] + slots[:4]
    head, cuts, _ = fold(log)
    cuts += head.flush()
    names = [cut.ring for cut in cuts]
    begun = [names[0]] + [new for old, new in pairwise(names) if old != new]
    assert len(begun) == len(set(begun))
    assert all(cut.gap_slots >= 0 for cut in cuts)


@given(walks(least=2), st.lists(st.tuples(FAR, st.integers(1, 6)), min_size=1, max_size=4), st.data())
def test_a_head_restored_in_doubt_goes_on_doubting(slots, jumps, data):
    log = list(slots)
    for far, count in jumps:
        log += [log[-1] + far + i for i in range(count)] + slots[-2:]
    at = data.draw(st.integers(1, len(log)))
    head, before, refused = fold(log[:at])
    restored = Head.from_record(
        GEOMETRY, HeadRecord(*(getattr(head.record(), f) for f in HeadRecord.__struct_fields__))
    )
    restored._buckets = head._buckets
    _, after, also_refused = fold(log[at:], restored, at)
    whole, cuts, all_refused = fold(log)
    assert before + after == cuts
    assert refused | also_refused == all_refused
    assert restored.record() == whole.record()


def test_a_snapshot_of_before_there_was_doubt_is_understood():
    record = HeadRecord(BASE, BASE, BASE + 5, BASE + 3, 0)
    head, _, refused = fold([BASE + 6, BASE - 5000, BASE - 4999, BASE - 4998], Head.from_record(GEOMETRY, record))
    assert refused == {1: "clock_jump", 2: "clock_jump"}
    assert head.ring < 0
