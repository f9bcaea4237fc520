"""From the slots of an entity's rows to the windows that become final. A pure fold: no clock, no store, no broker.

The same fold runs in the windower and offline, so both cut the same windows. Time line for hop 4, lateness 1:

    slots      0 1 2 3 4 5 6 7 8 9
    rows       x x x x x   x   x x
    watermark  . 0 1 2 3 . 4 . 6 8  one behind the newest slot, two while the row there may still come
    cuts               3         7  3 at slot 4; 7 at slot 9, since at slot 8 row 7 may still come
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from stream.clock_jumps import Doubt
from stream.errors import ContractError
from stream.grid import Geometry


class Cut(NamedTuple):
    """One window that is final; the fields are those of `stream.contracts.WindowNotice`."""

    end_slot: int
    new_slots: int
    rows: int
    ring: int
    first_slot: int
    gap_slots: int
    first_offset: int
    last_offset: int


class _Bucket:
    """The rows of one hop: a bit for each slot present, and the span of their offsets."""

    __slots__ = ("first_offset", "last_offset", "mask")

    def __init__(self, offset: int) -> None:
        self.mask = 0
        self.first_offset = offset
        self.last_offset = offset


class HeadRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot keeps of a head; the buckets come back from the ring's index.

    highest_slot: of the lives before this one. doubted_slot, doubted_rows: see `stream.clock_jumps.Doubt`.
    taken_minute: see `stream.newcomers`.
    """

    ring: int
    first_slot: int
    max_slot: int
    emitted_end: int
    gap_slots: int
    highest_slot: int = 0
    doubted_slot: int = 0
    doubted_rows: int = 0
    taken_minute: int = 0


class Head:
    """Where one entity stands: its newest slot, the last window cut, and which rows its next windows hold.

    jumped: whether the present life began by a jump of the clock, which only the process that saw it knows.
    taken_minute: when the entity was taken, in minutes of the log's time; kept for who takes them.
    """

    __slots__ = (
        "_buckets",
        "_doubt",
        "_highest_slot",
        "emitted_end",
        "first_slot",
        "gap_slots",
        "geometry",
        "jumped",
        "max_slot",
        "ring",
        "taken_minute",
    )

    def __init__(self, geometry: Geometry, first: int) -> None:
        """Start a life of an entity at the slot of its first row; that row is still to be added."""
        self.geometry = geometry
        self.jumped = False
        self.taken_minute = 0
        self._highest_slot = 0
        self._doubt = Doubt(geometry)
        self._begin(first, ring=first, gap_slots=0)

    def _begin(self, slot: int, ring: int, gap_slots: int) -> None:
        self.ring, self.first_slot, self.max_slot = ring, slot, slot
        self.emitted_end = self.geometry.last_boundary(slot - 1 - self.geometry.lateness)
        self.gap_slots = gap_slots
        self._buckets: dict[int, _Bucket] = {}

    def add(self, slot: int, offset: int) -> list[Cut]:
        """Accept a row and return the windows that its arrival makes final.

        Raises ContractError for a row behind the last window cut, which has been scored without it, and for one whose
        time stamp is doubted.
        """
        cuts: list[Cut] = []
        self.jumped = self._doubt.dispelled_by(slot, self.max_slot)
        if self.jumped or slot - self.max_slot > self.geometry.max_gap:
            cuts = self._begin_anew(slot, offset)
        if slot <= self.emitted_end:
            raise ContractError("late", f"slot {slot} came after the window up to slot {self.emitted_end} was final")
        self.first_slot = min(self.first_slot, slot)
        self.max_slot = max(self.max_slot, slot)
        self.restore_row(slot, offset)
        if self.max_slot - self.geometry.lateness < self.emitted_end + self.geometry.hop:
            return cuts  # the usual case, told apart without looking at the rows
        return cuts + self._cut_until(self._watermark())

    def _begin_anew(self, slot: int, offset: int) -> list[Cut]:
        """End the present life with the windows that make its rows final, and begin another.

        A life is named by its first slot. Where an earlier life may have had that slot, because the clock went back
        since, it is named by the offset of its first row instead, below 0: no two lives share a ring.
        """
        cuts = self._cut_until(self.max_slot + self.geometry.hop + self.geometry.final_delay)
        self._highest_slot = max(self._highest_slot, self.max_slot)
        ring = slot if slot > self._highest_slot else -1 - offset
        self._begin(slot, ring, gap_slots=max(0, slot - 1 - self.emitted_end))
        return cuts

    def add_run(self, slots: Sequence[int], offsets: Sequence[int]) -> Iterator[tuple[int, list[Cut]]]:
        """Add rows in ascending order, the first of them newer than all before, with no silence that ends a life.

        Does what adding one by one would; yields the index of each row that made windows final, and those windows.
        """
        at = 0
        while at < len(slots):
            if cuts := self.add(slots[at], offsets[at]):
                yield at, cuts
            due = self.emitted_end + self.geometry.hop + self.geometry.lateness
            end = bisect_left(slots, due, at + 1)
            if end > at + 1:  # rows before the one that may cut again
                self.max_slot = slots[end - 1]
                self._count(slots[at + 1 : end], offsets[at + 1 : end])
            at = end

    def add_quietly(self, first_slot: int, last_slot: int, first_offset: int, last_offset: int) -> bool:
        """Add rows of all slots from the first to the last one, newer than all before, if that is all there is to it.

        Returns False, and does nothing, where they make a window final, belong to two hops or end a doubt. Else it does
        what `add_run` would, and wants the same, in a fraction of the time: most entities of a batch have few rows.
        """
        number, bit = divmod(first_slot, self.geometry.hop)
        quiet = (
            self.max_slot < first_slot
            and last_slot - first_slot + bit < self.geometry.hop
            and last_slot - self.geometry.lateness < self.emitted_end + self.geometry.hop
            and not self._doubt.rows
        )
        if quiet:
            self.jumped, self.max_slot = False, last_slot
            self._extend(number, (1 << last_slot - first_slot + 1) - 1 << bit, first_offset, last_offset)
        return quiet

    def _count(self, slots: Sequence[int], offsets: Sequence[int]) -> None:
        """Count ascending rows, a hop's at once."""
        hop, at = self.geometry.hop, 0
        while at < len(slots):
            number, bit = divmod(slots[at], hop)
            end = bisect_left(slots, (number + 1) * hop, at)
            gapless = slots[end - 1] - slots[at] == end - 1 - at
            mask = (1 << end - at) - 1 << bit if gapless else sum(1 << slot % hop for slot in slots[at:end])
            self._extend(number, mask, offsets[at], offsets[end - 1])
            at = end

    def _extend(self, number: int, mask: int, first_offset: int, last_offset: int) -> None:
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket(first_offset)
        bucket.mask |= mask
        if first_offset < bucket.first_offset:
            bucket.first_offset = first_offset
        if last_offset > bucket.last_offset:
            bucket.last_offset = last_offset

    def restore_row(self, slot: int, offset: int) -> None:
        """Count a row that is known to be in the ring."""
        number, bit = divmod(slot, self.geometry.hop)
        self._extend(number, 1 << bit, offset, offset)

    def flush(self) -> list[Cut]:
        """Return one more window that covers the rows behind the last boundary, for a series known to have ended."""
        return self._cut_until(self.geometry.last_boundary(self.max_slot + self.geometry.hop - 1))

    def record(self) -> HeadRecord:
        """Return what a snapshot has to keep."""
        return HeadRecord(
            self.ring,
            self.first_slot,
            self.max_slot,
            self.emitted_end,
            self.gap_slots,
            self._highest_slot,
            self._doubt.slot,
            self._doubt.rows,
            self.taken_minute,
        )

    @classmethod
    def from_record(cls, geometry: Geometry, record: HeadRecord) -> "Head":
        """Rebuild a head from its snapshot; rows still in the ring are to be restored one by one."""
        head = cls(geometry, record.first_slot)
        head.ring, head._highest_slot = record.ring, record.highest_slot
        head._doubt.slot, head._doubt.rows = record.doubted_slot, record.doubted_rows
        head.taken_minute = record.taken_minute
        head.first_slot, head.max_slot = record.first_slot, record.max_slot
        head.emitted_end, head.gap_slots = record.emitted_end, record.gap_slots
        return head

    def _cut_until(self, watermark: int) -> list[Cut]:
        hop = self.geometry.hop
        ends = range(self.emitted_end + hop, self.geometry.last_boundary(watermark) + 1, hop)
        return [self._cut(end) for end in ends if self._matters(end)]

    def _watermark(self) -> int:
        """Return the newest slot up to which everything has come that may come: the row there may lag just so far."""
        slot = self.max_slot - self.geometry.lateness
        return slot if self._holds(slot) else slot - 1

    def _holds(self, slot: int) -> bool:
        number, bit = divmod(slot, self.geometry.hop)
        bucket = self._buckets.get(number)
        return bucket is not None and bool(bucket.mask >> bit & 1)

    def _matters(self, end: int) -> bool:
        """Say whether a window tells something new: it holds new rows, or rows whose score becomes final."""
        hop = self.geometry.hop
        first = (end - hop - self.geometry.final_delay + 1) // hop
        return any(number in self._buckets for number in range(first, end // hop + 1))

    def _cut(self, end: int) -> Cut:
        hop, length = self.geometry.hop, self.geometry.length
        oldest = (end - length + 1) // hop
        for number in [n for n in self._buckets if n < oldest]:
            del self._buckets[number]
        held = [bucket for number, bucket in self._buckets.items() if number <= end // hop]
        cut = Cut(
            end_slot=end,
            new_slots=end - self.emitted_end,
            rows=sum(bucket.mask.bit_count() for bucket in held),
            ring=self.ring,
            first_slot=self.first_slot,
            gap_slots=self.gap_slots,
            first_offset=min((bucket.first_offset for bucket in held), default=-1),
            last_offset=max((bucket.last_offset for bucket in held), default=-1),
        )
        self.emitted_end, self.gap_slots = end, 0
        return cut
