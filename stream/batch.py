"""What one batch of telemetry does to one partition: which rows go where, what is told, and where it had to stop.

Knows no store and no broker; the windower fills it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

import msgspec
import numpy as np

from stream.errors import ContractError
from stream.kafka import Outgoing, Record
from stream.owned import OwnedEntity
from stream.rows import FamilyRows
from stream.window_store import RingRef, RingWrite


class Place(msgspec.Struct, gc=False):
    """Where the rows of a record stand in their family's arrays, and their slots; most records have one."""

    rows: FamilyRows
    first: int
    entity: str
    slots: list[int]
    offset: int

    @property
    def slot(self) -> int:
        """Of the first row."""
        return self.slots[0]


class Stretch(msgspec.Struct, gc=False):
    """Rows that stand together in their family's arrays and go into one ring: from `first` up to `end`."""

    entity: OwnedEntity
    ref: RingRef
    rows: FamilyRows
    first: int
    end: int


class Batch:
    """What one batch does to one partition: rows to write, messages to produce, and where it had to stop.

    broken: why records broke their contract, by index. refused: the same, and the rows that no window takes.
    places: of each record's rows, None where the record is broken; made for batches that are folded in order only.
    done: how many records, from the first one on, are taken or refused; the others are held.
    """

    def __init__(
        self, records: Sequence[Record], families: Sequence[FamilyRows], broken: dict[int, ContractError]
    ) -> None:
        self.records = records
        self.families = families
        self.broken = broken
        self.refused = dict(broken)
        self.places: list[Place | None] = []
        self.done = len(records)
        self.stretches: list[Stretch] = []
        self.touched: dict[str, OwnedEntity] = {}
        self._latest: dict[str, Stretch] = {}
        self._told: list[tuple[int, Outgoing]] = []  # with the index of the record that it is told after

    @property
    def next_offset(self) -> int | None:
        """The offset after the last record done, None if none is."""
        return self.records[self.done - 1].offset + 1 if self.done else None

    @property
    def held(self) -> Sequence[Record]:
        """The records not done, in order."""
        return self.records[self.done :]

    @property
    def outgoing(self) -> list[Outgoing]:
        """In the order of the records they come from."""
        return [message for _, message in sorted(self._told, key=itemgetter(0))]

    def tell(self, index: int, message: Outgoing | None) -> None:
        """Produce a message, if it is one, after those of earlier records."""
        if message is not None:
            self._told.append((index, message))

    def touch(self, entity: OwnedEntity) -> None:
        """Let the snapshot keep the entity's head, also where a row is refused: the head may remember it."""
        self.touched[entity.name] = entity

    def put(self, entity: OwnedEntity, rows: FamilyRows, first: int, end: int) -> None:
        """Take rows to be written; those that follow each other stay together."""
        latest = self._latest.get(entity.name)
        if latest is not None and latest.ref is entity.ref and latest.rows is rows and latest.end == first:
            latest.end = end
            return
        self._latest[entity.name] = stretch = Stretch(entity, entity.ref, rows, first, end)
        self.stretches.append(stretch)

    def writes(self) -> list[RingWrite]:
        """Return the rows to write, by family."""
        families: dict[int, list[Stretch]] = {}
        for stretch in self.stretches:
            families.setdefault(id(stretch.rows), []).append(stretch)
        return [_ring_write(stretches) for stretches in families.values()]

    def kept_contract(self) -> Counter[str]:
        """Count the records done that did not break their contract, by family."""
        if self.places:
            return Counter(place.rows.family.name for place in self.places[: self.done] if place is not None)
        # Rows of one record stand together.
        return Counter(
            {rows.family.name: np.count_nonzero(np.diff(rows.records, prepend=-1)) for rows in self.families}
        )

    def rest(self) -> "Batch":
        """Return what is held, decoded as it is."""
        broken = {index - self.done: error for index, error in self.broken.items() if index >= self.done}
        rest = Batch(self.held, [], broken)
        rest.places = self.places[self.done :]
        return rest


def _ring_write(stretches: Sequence[Stretch]) -> RingWrite:
    """Return the rows of stretches of one family."""
    rows, count = stretches[0].rows, len(stretches)
    first = np.fromiter((stretch.first for stretch in stretches), np.int64, count)
    lengths = np.fromiter((stretch.end for stretch in stretches), np.int64, count) - first
    owners = np.repeat(np.arange(count), lengths)
    at = np.arange(len(owners)) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    layout = stretches[0].ref.layout
    runs = layout.encode(owners, rows.slots[at], rows.offsets[at], rows.values[at])
    return RingWrite(layout, stretches[0].entity.ttl_ms, [stretch.ref for stretch in stretches], runs)


def places_of(families: Iterable[FamilyRows], count: int) -> list[Place | None]:
    """Return where the rows of each record stand, None of a broken one."""
    places: list[Place | None] = [None] * count
    for rows in families:
        slots, offsets, records = rows.slots.tolist(), rows.offsets.tolist(), rows.records.tolist()
        for name, (first, end) in zip(rows.entities, pairwise(rows.bounds), strict=True):
            for at, to in record_runs(records, first, end):
                places[records[at]] = Place(rows, at, name, slots[at:to], offsets[at])
    return places


def record_runs(records: list[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where the rows of each record stand."""
    while first < end:
        to = bisect_right(records, records[first], first, end)
        yield first, to
        first = to
