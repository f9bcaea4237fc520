from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.ring import Layout

FIRST = 1_767_225_600
CAPACITY = 12
LAYOUT = Layout(CAPACITY, 2)
# How far a row is ahead of the newest one; a row is never so old that its place may belong to a newer lap.
STEPS = st.sampled_from([1, 1, 1, 2, 3, 0, -1, -2, 1 - CAPACITY, CAPACITY, CAPACITY + 1, 3 * CAPACITY])


class Ring:
    """The bytes that Redis keeps."""

    def __init__(self):
        self.data = bytearray(LAYOUT.size)

    def put(self, rows):
        """rows: (slot, offset, values) in arrival order."""
        slots, offsets, values = (np.array(column) for column in zip(*rows, strict=True))
        take([self], LAYOUT.encode(np.zeros_like(slots), slots, offsets, values.astype(np.float32)))

    def window(self, end_slot, length):
        parts = [bytes(self.data[r.first : r.last + 1]) for r in LAYOUT.window_ranges(end_slot, length)]
        return LAYOUT.decode_window(parts, end_slot, length)

    def index(self):
        part = LAYOUT.index_range()
        slots, offsets = LAYOUT.decode_index(bytes(self.data[part.first : part.last + 1]))
        return list(zip(slots.tolist(), offsets.tolist(), strict=True))


def take(rings, runs):
    assert (runs.positions >= 0).all()
    assert (runs.positions + runs.counts <= CAPACITY).all()
    assert len(runs.slots) == 16 * runs.counts.sum()
    assert len(runs.values) == LAYOUT.row_bytes * runs.counts.sum()
    LAYOUT.put([ring.data for ring in rings], runs)
    assert all(len(ring.data) == LAYOUT.size for ring in rings)


@st.composite
def batches(draw):
    """Draw batches of rows; no row is so old that its place belongs to a newer lap, but many laps go by."""
    newest, offset, result = FIRST + draw(st.integers(0, 3 * CAPACITY)), 0, []
    for size in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        batch = []
        for step in draw(st.lists(STEPS, min_size=size, max_size=size)):
            slot = newest + step
            newest = max(newest, slot)
            batch.append((slot, offset, (offset, np.nan if offset % 3 else -offset)))
            offset += 1
        result.append(batch)
    return result


def last_of_each_place(batch_of_batches):
    """Return slot -> (offset, values) of the rows that nothing took the place of."""
    model = {slot: (offset, values) for batch in batch_of_batches for slot, offset, values in batch}
    newest = {slot % CAPACITY: slot for slot in sorted(model)}
    return {slot: model[slot] for slot in newest.values()}


@given(batches(), st.integers(1, CAPACITY), st.integers(0, CAPACITY))
def test_a_ring_is_a_dictionary_in_which_a_newer_lap_takes_the_place_of_an_older_one(arrivals, length, back):
    """slots      0 . . . . . . . . . . 11 | 12 . . .      a row of slot 12 takes the place of slot 0"""
    ring = Ring()
    for batch in arrivals:
        ring.put(batch)
    kept = last_of_each_place(arrivals)
    end = max(kept) - back
    window = range(end - length + 1, end + 1)
    wanted = [kept[slot][1] if slot in kept else (np.nan, np.nan) for slot in window]

    values, rows = ring.window(end, length)

    assert values.dtype == np.float32
    assert values.shape == (2, length)
    np.testing.assert_array_equal(values.T, np.array(wanted, np.float32))
    assert rows == sum(slot in kept for slot in window)
    assert ring.index() == [(slot, kept[slot][0]) for slot in sorted(kept)]


@given(batches())
def test_writing_a_batch_again_changes_nothing(arrivals):
    ring = Ring()
    for batch in arrivals:
        ring.put(batch)
    before = bytes(ring.data)
    ring.put(arrivals[-1])
    assert bytes(ring.data) == before


@given(st.permutations([(FIRST + i, i, (i, -i)) for i in range(CAPACITY)]))
def test_arrival_order_of_distinct_slots_does_not_matter(rows):
    one, other = Ring(), Ring()
    one.put(rows)
    other.put(sorted(rows))
    assert one.data == other.data


@given(batches())
def test_how_rows_are_batched_does_not_matter(arrivals):
    """Hence of equal slots the last one stays, within a batch as well as across batches."""
    at_once, one_by_one = Ring(), Ring()
    at_once.put([row for batch in arrivals for row in batch])
    for batch in arrivals:
        for row in batch:
            one_by_one.put([row])
    assert at_once.data == one_by_one.data


@given(st.lists(batches(), min_size=1, max_size=4))
def test_rows_of_several_rings_are_written_as_each_rings_own(arrivals_by_ring):
    rows = [[row for batch in arrivals for row in batch] for arrivals in arrivals_by_ring]
    owners = np.repeat(np.arange(len(rows)), [len(of_ring) for of_ring in rows])
    slots, offsets, values = (np.array(column) for column in zip(*chain(*rows), strict=True))
    together, alone = [Ring() for _ in rows], [Ring() for _ in rows]
    take(together, LAYOUT.encode(owners, slots, offsets, values.astype(np.float32)))
    for ring, of_ring in zip(alone, rows, strict=True):
        ring.put(of_ring)
    assert [ring.data for ring in together] == [ring.data for ring in alone]


@given(st.integers(0, LAYOUT.size), st.integers(1, CAPACITY))
def test_a_ring_cut_short_or_gone_has_no_rows_behind_its_end(kept, length):
    ring = Ring()
    ring.put([(FIRST + i, i, (i, i)) for i in range(CAPACITY)])
    ring.data = ring.data[:kept]
    end = FIRST + CAPACITY - 1
    values, rows = ring.window(end, length)
    assert rows <= length
    if kept == 0:
        assert rows == 0
        assert np.isnan(values).all()
        assert ring.index() == []


def test_a_new_ring_has_no_rows():
    values, rows = Ring().window(FIRST, CAPACITY)
    assert (rows, np.isnan(values).all()) == (0, True)


def test_a_row_of_missing_values_is_a_row():
    ring = Ring()
    ring.put([(FIRST, 5, (np.nan, np.nan))])
    values, rows = ring.window(FIRST, 2)
    assert (rows, ring.index()) == (1, [(FIRST, 5)])
    assert np.isnan(values).all()
