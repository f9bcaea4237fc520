"""Telemetry to windows: rows into Redis, notices of finished windows to Kafka. Knows no model and no score.

The order of one batch is the guarantee: 1. rows into the rings (repeating them changes nothing), 2. one transaction
with notices, dead letters and input offsets, 3. a fenced snapshot of the heads with the next offset R. A successor
starts at R, at or below the committed offset C, applies records silently up to C and produces from C on.
"""

import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter

import msgspec
import numpy as np
import structlog

from stream.acknowledgements import Acknowledgements, KafkaAcknowledgements
from stream.contracts import SourceRange, WindowNotice
from stream.dead_letters import dead_letter
from stream.decoding import SampleDecoder
from stream.errors import ContractError, UsageError
from stream.heads import Cut, Head, HeadRecord
from stream.kafka import Outgoing, Record, wait_until
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.ring import Layout, PackedRows
from stream.rows import FamilyRows, decode_records
from stream.service import Service, run_service
from stream.settings import FamilySettings, Settings
from stream.topics import DEAD_LETTERS, TELEMETRY, WINDOWS, topic_name
from stream.window_store import RingRef, RingWrite, Snapshot, WindowStore, connect

_log = structlog.get_logger()
# Longer than telemetry is kept, so that a ring is never gone while its head is remembered.
_RING_KEPT_MS = 8 * 86_400_000
_BATCH_RECORDS = 8000
_NOTICE = msgspec.json.Encoder()
_HEAD = msgspec.msgpack.Encoder()
_HEAD_DECODER = msgspec.msgpack.Decoder(HeadRecord)


class _Place(msgspec.Struct, gc=False):
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


class _Entity:
    """One entity's head and which of its windows the worker has still to score."""

    def __init__(self, name: str, family: FamilySettings, head: Head, unscored: "deque[tuple[int, int]]") -> None:
        self.name = name
        self.family = family
        self.geometry = head.geometry
        self.head = head
        self.unscored = unscored  # (ring, end_slot), oldest first
        self.last_slot_with_room = 0.0
        self._layout = Layout(self.geometry.capacity, len(family.channels))
        self.ref = RingRef(name, head.ring, self._layout)
        # How long an idle ring is kept.
        self.ttl_ms = max(_RING_KEPT_MS, 2 * self.geometry.capacity * family.interval_ms)
        self.limit()

    def follow_head(self) -> None:
        """Name the ring of the present life, and work out which row may come."""
        if self.ref.ring != self.head.ring:
            self.ref = RingRef(self.name, self.head.ring, self._layout)
        self.limit()

    def surely_takes(self, oldest: int, newest: int) -> bool:
        """Say whether rows between two slots stay in this life and find room, in whatever order, each by itself.

        A window that is cut on the way leaves room up to `slack` slots behind its end.
        """
        head, geometry = self.head, self.geometry
        return (
            head.emitted_end < oldest
            and newest <= head.max_slot + geometry.max_gap
            and newest <= self.last_slot_with_room
            and newest <= head.emitted_end + geometry.hop + geometry.slack
        )

    def limit(self) -> None:
        """Work out which row may come: none may take the place of one that an unscored window of its ring needs."""
        oldest = next((end for ring, end in self.unscored if ring == self.head.ring), None)
        self.last_slot_with_room = float("inf") if oldest is None else float(oldest + self.geometry.slack)


class _Partition:
    """What a windower knows of a partition it owns."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.next_offset: int | None = None  # of the snapshot
        self.entities: dict[str, _Entity] = {}
        self.unscored: dict[str, deque[tuple[int, int]]] = defaultdict(deque)
        self.announced: deque[tuple[int, str]] = deque()  # offset in `windows` and entity
        self.waiting: _Batch | None = None  # records that were held

    def add_entity(self, name: str, family: FamilySettings, head: Head) -> _Entity:
        entity = self.entities[name] = _Entity(name, family, head, self.unscored[name])
        return entity

    def forget_scored(self, scored_up_to: int) -> None:
        while self.announced and self.announced[0][0] < scored_up_to:
            name = self.announced.popleft()[1]
            self.unscored[name].popleft()
            if name in self.entities:
                self.entities[name].limit()


class _Stretch(msgspec.Struct, gc=False):
    """Rows that stand together in their family's arrays and go into one ring: from `first` up to `end`."""

    entity: _Entity
    ref: RingRef
    rows: FamilyRows
    first: int
    end: int


class _Batch:
    """What one batch does to one partition: rows to write, messages to produce, and where it had to stop.

    places: of each record's rows, None where the record is refused; made for batches that are folded in order only.
    done: how many records, from the first one on, are taken or refused; the others are held.
    """

    def __init__(self, records: Sequence[Record], refused: dict[int, ContractError]) -> None:
        self.records = records
        self.refused = refused
        self.places: list[_Place | None] = []
        self.done = len(records)
        self.stretches: list[_Stretch] = []
        self.touched: dict[str, _Entity] = {}
        self._latest: dict[str, _Stretch] = {}
        self._told: list[tuple[int, Outgoing]] = []  # with the index of the record that it is told after

    @property
    def next_offset(self) -> int | None:
        return self.records[self.done - 1].offset + 1 if self.done else None

    @property
    def held(self) -> Sequence[Record]:
        return self.records[self.done :]

    @property
    def outgoing(self) -> list[Outgoing]:
        """In the order of the records they come from."""
        return [message for _, message in sorted(self._told, key=itemgetter(0))]

    def tell(self, index: int, message: Outgoing) -> None:
        self._told.append((index, message))

    def put(self, entity: _Entity, rows: FamilyRows, first: int, end: int) -> None:
        """Take rows to be written; those that follow each other stay together."""
        latest = self._latest.get(entity.name)
        if latest is not None and latest.ref is entity.ref and latest.rows is rows and latest.end == first:
            latest.end = end
            return
        self.touched[entity.name] = entity
        self._latest[entity.name] = stretch = _Stretch(entity, entity.ref, rows, first, end)
        self.stretches.append(stretch)

    def rest(self) -> "_Batch":
        """Return what is held, decoded as it is."""
        rest = _Batch(self.held, {index - self.done: e for index, e in self.refused.items() if index >= self.done})
        rest.places = self.places[self.done :]
        return rest


class Windower:
    """A stage of the transactional loop: implements `stream.loop.Stage`."""

    def __init__(self, settings: Settings, store: WindowStore, acks: Acknowledgements, metrics: Metrics) -> None:
        """Own no partition yet."""
        self._settings = settings
        self._store = store
        self._acks = acks
        self._metrics = metrics
        self._decoder = SampleDecoder(settings)
        self._geometries = {family.name: family.geometry for family in settings.families}
        self._windows = topic_name(settings.topics, WINDOWS)
        self._dead_letters = topic_name(settings.topics, DEAD_LETTERS)
        self._partitions: dict[int, _Partition] = {}
        self._pending: dict[int, _Batch] = {}

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Take over a partition: from its snapshot, or from the oldest telemetry where there is none."""
        state = self._partitions[partition] = _Partition(self._store.acquire(partition))
        snapshot = self._store.load(partition)
        usable = snapshot.next_offset is not None and low <= snapshot.next_offset <= committed
        if usable:
            state.next_offset = snapshot.next_offset
            self._restore_entities(partition, state, snapshot)
        elif committed > low:
            self._metrics.window_rebuilds.labels("no_snapshot").inc()
            _log.warning("rebuilding windows from telemetry", partition=partition, first=low, committed=committed)
        self._restore_unscored(partition, state)
        return snapshot.next_offset if usable and snapshot.next_offset is not None else low

    def replay(self, partition: int, records: Sequence[Record]) -> None:
        """Apply records whose notices are already committed."""
        batch = self._apply(partition, records, silent=True)
        self._write(partition, batch)
        self._save(partition, batch)

    def process(self, records: Sequence[Record]) -> Progress:
        """Put a batch of telemetry into the rings and announce the windows it finished."""
        progress = Progress([], {}, [])
        for partition, group in groupby(sorted(records, key=attrgetter("partition")), attrgetter("partition")):
            batch = self._apply(partition, list(group), silent=False)
            self._write(partition, batch)
            self._pending[partition] = batch
            progress.outgoing.extend(batch.outgoing)
            progress.held.extend(batch.held)
            if batch.next_offset is not None:
                progress.next_offsets[partition] = batch.next_offset
        return progress

    def check(self) -> None:
        """Renew the snapshots, which fails where Redis has lost its data: nobody else would notice and rebuild it."""
        for partition, state in self._partitions.items():
            if state.next_offset is not None:
                self._store.save_heads(partition, state.epoch, state.next_offset, {})

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Remember where the notices stand, and store the snapshot that belongs to the transaction."""
        for message, offset in delivered:
            if message.topic == self._windows:
                self._partitions[message.partition].announced.append((offset, (message.key or b"").decode()))
        for partition, batch in self._pending.items():
            self._save(partition, batch)
        self._pending = {}

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that belong to somebody else now."""
        for partition in partitions:
            self._partitions.pop(partition, None)
            self._pending.pop(partition, None)
        self._observe_entities()

    def _apply(self, partition: int, records: Sequence[Record], *, silent: bool) -> _Batch:
        """Fold records into heads up to the first one whose place in its ring is still needed."""
        state = self._partitions[partition]
        batch, state.waiting = state.waiting, None
        if batch is None or batch.records != records:
            families, refused = decode_records(self._decoder, records)
            batch = _Batch(records, refused)
            if all(_surely_fits(state, rows) for rows in families):
                for rows in families:
                    self._fold_by_entity(state, batch, rows, silent=silent)
            else:
                batch.places = _places(families, len(records))
                self._fold_in_order(partition, batch, silent=silent)
        else:
            self._fold_in_order(partition, batch, silent=silent)
        if batch.held:
            state.waiting = batch.rest()
        if not silent:
            for index, error in batch.refused.items():
                if index < batch.done:
                    batch.tell(index, self._refuse(records[index], error))
        return batch

    def _fold_by_entity(self, state: _Partition, batch: _Batch, rows: FamilyRows, *, silent: bool) -> None:
        """Fold rows of which none can have to wait: whatever the order of entities, it comes out the same."""
        slots, offsets, records = rows.slots.tolist(), rows.offsets.tolist(), rows.records.tolist()
        descents = (np.flatnonzero(np.diff(rows.slots) <= 0) + 1).tolist()
        for name, (first, end) in zip(rows.entities, pairwise(rows.bounds), strict=True):
            entity = state.entities[name]
            if entity.head.max_slot < slots[first] and bisect_right(descents, first) == bisect_left(descents, end):
                for at, cuts in entity.head.add_run(slots[first:end], offsets[first:end]):
                    self._announce(batch, entity, cuts, records[first + at], silent=silent)
                batch.put(entity, rows, first, end)
            else:
                for at, to in _record_runs(records, first, end):
                    self._add(
                        state, batch, records[at], _Place(rows, at, name, slots[at:to], offsets[at]), silent=silent
                    )

    def _fold_in_order(self, partition: int, batch: _Batch, *, silent: bool) -> None:
        """Fold row by row, up to the first one that has to wait for the worker."""
        state = self._partitions[partition]
        for index, place in enumerate(batch.places):
            if place is not None:
                if not silent and not self._has_room(state, partition, place):
                    batch.done = index
                    return
                self._add(state, batch, index, place, silent=silent)

    def _add(self, state: _Partition, batch: _Batch, index: int, place: _Place, *, silent: bool) -> None:
        """Add the rows of a record, all of them or, where the first one is refused, none: the others can't be then."""
        try:
            entity = state.entities.get(place.entity) or self._new_entity(state, place)
            if len(place.slots) > 1:
                _check_together(entity.head, place.slot)
            cuts = entity.head.add(place.slot, place.offset)
        except ContractError as error:
            batch.refused[index] = error
            return
        if cuts or entity.head.ring != entity.ref.ring:
            self._announce(batch, entity, cuts, index, silent=silent)
        for slot in place.slots[1:]:
            if cuts := entity.head.add(slot, place.offset):
                self._announce(batch, entity, cuts, index, silent=silent)
        batch.put(entity, place.rows, place.first, place.first + len(place.slots))

    def _announce(self, batch: _Batch, entity: _Entity, cuts: list[Cut], index: int, *, silent: bool) -> None:
        """Announce the windows that the row of a record made final."""
        if not silent:
            for cut in cuts:
                batch.tell(index, self._notice(entity, cut, batch.records[index]))
            entity.unscored.extend((cut.ring, cut.end_slot) for cut in cuts)
            self._metrics.notices.inc(len(cuts))
        entity.follow_head()

    def _new_entity(self, state: _Partition, one: _Place) -> _Entity:
        limit = self._settings.limits.max_entities_per_partition
        if len(state.entities) >= limit:
            raise ContractError("entity_limit", f"a partition takes {limit} entities; {one.entity!r} is beyond")
        family = one.rows.family
        head = Head(self._geometries[family.name], one.slot)
        # Of a life whose first row is not in Kafka any more, the ring that unscored windows are read from.
        known = (ring for ring, end in state.unscored[one.entity] if ring <= one.slot <= end)
        head.ring = head.first_slot = next(known, one.slot)
        entity = state.add_entity(one.entity, family, head)
        self._observe_entities()
        return entity

    def _has_room(self, state: _Partition, partition: int, one: _Place) -> bool:
        entity = state.entities.get(one.entity)
        newest = one.slots[-1]
        if entity is None or newest <= entity.last_slot_with_room:
            return True
        state.forget_scored(self._acks.scored_up_to(partition))
        return newest <= entity.last_slot_with_room

    def _notice(self, entity: _Entity, cut: Cut, record: Record) -> Outgoing:
        notice = WindowNotice(
            entity=entity.name,
            family=entity.family.name,
            interval_ms=entity.family.interval_ms,
            end_slot=cut.end_slot,
            length=entity.geometry.length,
            new_slots=cut.new_slots,
            final_delay=entity.geometry.final_delay,
            rows=cut.rows,
            ring=cut.ring,
            first_slot=cut.first_slot,
            gap_slots=cut.gap_slots,
            source=SourceRange(record.topic, record.partition, cut.first_offset, cut.last_offset),
            trigger_ms=record.timestamp_ms,
        )
        return Outgoing(self._windows, record.partition, entity.name.encode(), _NOTICE.encode(notice))

    def _refuse(self, record: Record, error: ContractError) -> Outgoing:
        self._metrics.records_rejected.labels(error.reason).inc()
        self._metrics.dead_letters.labels(error.reason).inc()
        if error.reason == "late":
            self._metrics.late_records.inc()
        return dead_letter(self._dead_letters, record, error)

    def _write(self, partition: int, batch: _Batch) -> None:
        packed: dict[int, PackedRows] = {}
        writes = []
        for stretch in batch.stretches:
            rows = stretch.rows
            if id(rows) not in packed:
                packed[id(rows)] = PackedRows(stretch.ref.layout, rows.slots, rows.offsets, rows.values)
            cut_out = packed[id(rows)].writes(stretch.first, stretch.end)
            writes.append(RingWrite(stretch.ref, stretch.entity.ttl_ms, cut_out))
        self._store.write_rows(partition, self._partitions[partition].epoch, writes)

    def _save(self, partition: int, batch: _Batch) -> None:
        if batch.next_offset is not None:
            heads = {name: _HEAD.encode(entity.head.record()) for name, entity in batch.touched.items()}
            state = self._partitions[partition]
            self._store.save_heads(partition, state.epoch, batch.next_offset, heads)
            state.next_offset = batch.next_offset

    def _restore_entities(self, partition: int, state: _Partition, snapshot: Snapshot) -> None:
        """Rebuild the heads as of the snapshot; rows that a dead process wrote after it are still to come."""
        for name, data in snapshot.heads.items():
            family = self._settings.family_of(name)
            if family is None:
                _log.warning("dropping an entity whose family is no longer declared", entity=name)
                continue
            head = Head.from_record(self._geometries[family.name], _HEAD_DECODER.decode(data))
            state.add_entity(name, family, head)
        entities = list(state.entities.values())
        indexes = self._store.read_indexes(partition, [entity.ref for entity in entities])
        for entity, (slots, offsets) in zip(entities, indexes, strict=True):
            for slot, offset in zip(slots.tolist(), offsets.tolist(), strict=True):
                if offset < (snapshot.next_offset or 0):
                    entity.head.restore_row(slot, offset)

    def _restore_unscored(self, partition: int, state: _Partition) -> None:
        for offset, notice in self._acks.outstanding(partition):
            state.unscored[notice.entity].append((notice.ring, notice.end_slot))
            state.announced.append((offset, notice.entity))
        for entity in state.entities.values():
            entity.limit()

    def _observe_entities(self) -> None:
        self._metrics.entities_active.set(sum(len(state.entities) for state in self._partitions.values()))


def _surely_fits(state: _Partition, rows: FamilyRows) -> bool:
    """Say whether every row is of a known entity that surely takes it."""
    if not rows.entities:
        return True
    oldest = np.minimum.reduceat(rows.slots, rows.bounds[:-1]).tolist()
    newest = np.maximum.reduceat(rows.slots, rows.bounds[:-1]).tolist()
    for name, first, last in zip(rows.entities, oldest, newest, strict=True):
        entity = state.entities.get(name)
        if entity is None or not entity.surely_takes(first, last):
            return False
    return True


def _places(families: Iterable[FamilyRows], count: int) -> list[_Place | None]:
    """Return where the rows of each record stand, None of a refused one."""
    places: list[_Place | None] = [None] * count
    for rows in families:
        slots, offsets, records = rows.slots.tolist(), rows.offsets.tolist(), rows.records.tolist()
        for name, (first, end) in zip(rows.entities, pairwise(rows.bounds), strict=True):
            for at, to in _record_runs(records, first, end):
                places[records[at]] = _Place(rows, at, name, slots[at:to], offsets[at])
    return places


def _check_together(head: Head, first: int) -> None:
    """Refuse rows of one record of which the first might finish a window that the next one belongs to.

    It can't where none lags more than the lateness, since windows are cut up to there only and rows of a record ascend.
    A row that is late by itself is left to the head.
    """
    oldest = head.max_slot - head.geometry.lateness
    if head.emitted_end < first < oldest:
        raise ContractError("late", f"rows that come together want slots from {oldest} on, got {first}")


def _record_runs(records: list[int], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where the rows of each record stand."""
    while first < end:
        to = bisect_right(records, records[first], first, end)
        yield first, to
        first = to


def run_windower(settings: Settings, stop: threading.Event) -> None:
    """Run the windower as a service until `stop` is set."""
    if not settings.families:
        raise UsageError("no family is declared: add [[families]] to the settings file, see docs/formats.md")
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    store = connect(settings.redis, metrics.time_redis, layout=settings.layout)
    wait_until(store.check, settings.kafka.reconnect_deadline_s, "Redis", stop.is_set)
    acks = KafkaAcknowledgements(settings)
    try:
        stage = Windower(settings, store, acks, metrics)
        run_service(settings, Service("windower", TELEMETRY, _BATCH_RECORDS, stage, metrics, health), stop)
    finally:
        acks.close()
        store.close()
