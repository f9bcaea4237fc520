"""Telemetry to windows: rows into Redis, notices of finished windows to Kafka. Knows no model and no score.

The order of one batch is the guarantee: 1. rows into the rings (repeating them changes nothing), 2. one transaction
with notices, dead letters and input offsets. After it, and once a second: 3. a fenced snapshot of the heads with the
next offset R. A successor starts at R, at or below the committed offset C, applies records silently up to C and
produces from C on.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from operator import attrgetter, lt

import msgspec
import numpy as np
import structlog

from stream.acknowledgements import Acknowledgements, KafkaAcknowledgements
from stream.batch import Batch, Place, places_of, record_runs
from stream.breaker import Breaker
from stream.contracts import SourceRange, WindowNotice
from stream.decoding import SampleDecoder
from stream.errors import ContractError, UsageError
from stream.heads import Cut, Head, HeadRecord
from stream.kafka import Outgoing, Record
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.newcomers import Newcomers
from stream.owned import OwnedEntity, OwnedPartition, Unscored
from stream.refusals import Refusals
from stream.rows import FamilyRows, decode_records
from stream.service import Service, run_service
from stream.settings import Settings
from stream.topics import DEAD_LETTERS, TELEMETRY, WINDOWS, topic_name
from stream.waiting import wait_until
from stream.window_store import Snapshot, WindowStore, connect

_log = structlog.get_logger()
# The more rows of an entity come together, the less each of them costs; batches are that large only after a backlog.
_BATCH_RECORDS, _BATCH_S = 32_000, 0.5
_NOTICE = msgspec.json.Encoder()
_HEAD = msgspec.msgpack.Encoder()
_HEAD_DECODER = msgspec.msgpack.Decoder(HeadRecord)


class Windower:
    """A stage of the transactional loop: implements `stream.loop.Stage`."""

    def __init__(
        self, settings: Settings, store: WindowStore, acks: Acknowledgements, metrics: Metrics, health: Health
    ) -> None:
        """Own no partition yet."""
        self._settings = settings
        self._store = store
        self._acks = acks
        self._metrics = metrics
        self._decoder = SampleDecoder(settings)
        self._geometries = {family.name: family.geometry for family in settings.families}
        self._windows = topic_name(settings.topics, WINDOWS)
        dead_letters = topic_name(settings.topics, DEAD_LETTERS)
        self._refusals = Refusals(dead_letters, settings.limits.dead_letters_per_s, metrics)
        self._breaker = Breaker(settings.limits.refused_share, metrics, health)
        self._partitions: dict[int, OwnedPartition] = {}
        self._pending: dict[int, Batch] = {}
        self._waiting: dict[int, Batch] = {}  # records that were held

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Take over a partition: from its snapshot, or from the oldest telemetry where there is none."""
        epoch = self._store.acquire(partition)
        snapshot = self._store.load(partition)
        usable = snapshot.next_offset is not None and low <= snapshot.next_offset <= committed
        newcomers = Newcomers(self._settings.limits, whole_log=usable or low == 0)
        state = self._partitions[partition] = OwnedPartition(epoch, newcomers)
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
        self._keep(partition, batch)

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
        self._refusals.tell()
        for partition in self._partitions:
            self._save(partition)

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Remember where the notices stand, and store the heads.

        After every batch: a Redis that falls back to older data is known by its snapshot alone, so that what is written
        between two of them could be lost unseen.
        """
        for message, offset in delivered:
            if message.topic == self._windows:
                self._partitions[message.partition].announced.append((offset, (message.key or b"").decode()))
        for partition, batch in self._pending.items():
            self._keep(partition, batch)
            self._save(partition)
        self._pending = {}

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that belong to somebody else now."""
        for partition in partitions:
            self._partitions.pop(partition, None)
            self._pending.pop(partition, None)
            self._waiting.pop(partition, None)
        self._observe_entities()

    def _apply(self, partition: int, records: Sequence[Record], *, silent: bool) -> Batch:
        """Fold records into heads up to the first one whose place in its ring is still needed."""
        batch = self._waiting.pop(partition, None)
        if batch is None or batch.records != records:
            batch = Batch(records, *decode_records(self._decoder, records))
            if not self._fold_by_entity(self._partitions[partition], batch, silent=silent):
                batch.places = places_of(batch.families, len(records))
        if batch.places:
            self._fold_in_order(partition, batch, silent=silent)
        if batch.held:
            self._waiting[partition] = batch.rest()
        self._tell_refused(partition, batch, silent=silent)
        return batch

    def _tell_refused(self, partition: int, batch: Batch, *, silent: bool) -> None:
        if silent:
            return
        for index in sorted(index for index in batch.refused if index < batch.done):
            batch.tell(index, self._refusals.letter(batch.records[index], batch.refused[index]))
        batch.tell(batch.done, self._refusals.summary(partition))
        broken = Counter(
            (self._decoder.family_name(batch.records[index].key), error.reason)
            for index, error in batch.broken.items()
            if index < batch.done
        )
        self._breaker.observe(batch.kept_contract(), broken)

    def _fold_by_entity(self, state: OwnedPartition, batch: Batch, *, silent: bool) -> bool:
        """Fold rows of which none can have to wait: whatever the order of entities, it comes out the same.

        Returns False, and does nothing, if one may have to.
        """
        known = [_surely_fitting(state, rows) for rows in batch.families]
        fitting = [entities for entities in known if entities is not None]
        if len(fitting) < len(known):
            return False
        for rows, entities in zip(batch.families, fitting, strict=True):
            self._fold_family(state, batch, rows, entities, silent=silent)
        return True

    def _fold_family(
        self, state: OwnedPartition, batch: Batch, rows: FamilyRows, entities: list[OwnedEntity], *, silent: bool
    ) -> None:
        spans = rows.spans()
        ends = zip(*spans[1:], strict=True)
        for entity, (first, end), gapless, span in zip(
            entities, pairwise(rows.bounds), spans.gapless, ends, strict=True
        ):
            if gapless and entity.head.add_quietly(*span):
                batch.touch(entity)
                batch.put(entity, rows, first, end)
            else:
                self._fold_entity(state, batch, rows, entity, first, end, silent=silent)

    def _fold_entity(
        self,
        state: OwnedPartition,
        batch: Batch,
        rows: FamilyRows,
        entity: OwnedEntity,
        first: int,
        end: int,
        *,
        silent: bool,
    ) -> None:
        slots, offsets, records = (part[first:end].tolist() for part in (rows.slots, rows.offsets, rows.records))
        if entity.head.max_slot < slots[0] and all(map(lt, slots, slots[1:])):
            for at, cuts in entity.head.add_run(slots, offsets):
                self._announce(batch, entity, cuts, records[at], silent=silent)
            batch.touch(entity)
            batch.put(entity, rows, first, end)
            return
        for at, to in record_runs(records, 0, end - first):
            place = Place(rows, first + at, entity.name, slots[at:to], offsets[at])
            self._add(state, batch, records[at], place, silent=silent)

    def _fold_in_order(self, partition: int, batch: Batch, *, silent: bool) -> None:
        """Fold row by row, up to the first one that has to wait for the worker."""
        state = self._partitions[partition]
        for index, place in enumerate(batch.places):
            if place is not None:
                if not silent and not self._has_room(state, partition, place):
                    batch.done = index
                    return
                self._add(state, batch, index, place, silent=silent)

    def _add(self, state: OwnedPartition, batch: Batch, index: int, place: Place, *, silent: bool) -> None:
        """Add the rows of a record, all of them or, where the first one is refused, none: the others can't be then."""
        try:
            entity = state.entities.get(place.entity)
            if entity is None:
                entity = self._new_entity(state, place, batch.records[index].timestamp_ms, silent=silent)
            batch.touch(entity)
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

    def _announce(self, batch: Batch, entity: OwnedEntity, cuts: list[Cut], index: int, *, silent: bool) -> None:
        """Announce the windows that the row of a record made final."""
        if not silent:
            for cut in cuts:
                batch.tell(index, self._notice(entity, cut, batch.records[index]))
            entity.unscored.extend(Unscored(cut.ring, cut.first_slot, cut.end_slot) for cut in cuts)
            self._metrics.notices.inc(len(cuts))
            if entity.head.jumped:
                self._metrics.clock_jumps.inc()
                _log.warning("the clock of an entity jumped", entity=entity.name, slot=entity.head.first_slot)
        entity.follow_head()

    def _new_entity(self, state: OwnedPartition, one: Place, timestamp_ms: int, *, silent: bool) -> OwnedEntity:
        minute = state.newcomers.take(one.entity, timestamp_ms, silent=silent)
        family = one.rows.family
        head = Head(self._geometries[family.name], one.slot)
        head.taken_minute = minute
        # Of a life whose first row is not in Kafka any more, the ring that unscored windows are read from.
        known = (w for w in state.unscored[one.entity] if w.first_slot <= one.slot <= w.end_slot)
        if (window := next(known, None)) is not None:
            head.ring, head.first_slot = window.ring, window.first_slot
        entity = state.add_entity(one.entity, family, head)
        self._observe_entities()
        return entity

    def _has_room(self, state: OwnedPartition, partition: int, one: Place) -> bool:
        entity = state.entities.get(one.entity)
        newest = one.slots[-1]
        if entity is None or newest <= entity.last_slot_with_room:
            return True
        state.forget_scored(self._acks.scored_up_to(partition))
        return newest <= entity.last_slot_with_room

    def _notice(self, entity: OwnedEntity, cut: Cut, record: Record) -> Outgoing:
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

    def _write(self, partition: int, batch: Batch) -> None:
        self._store.write_rows(partition, self._partitions[partition].epoch, batch.writes())

    def _keep(self, partition: int, batch: Batch) -> None:
        if batch.next_offset is not None:
            state = self._partitions[partition]
            state.touched |= batch.touched
            state.next_offset = batch.next_offset

    def _save(self, partition: int) -> None:
        state = self._partitions[partition]
        if state.next_offset is not None:
            heads = {name: _HEAD.encode(entity.head.record()) for name, entity in state.touched.items()}
            self._store.save_heads(partition, state.epoch, state.next_offset, heads)
            state.touched.clear()

    def _restore_entities(self, partition: int, state: OwnedPartition, snapshot: Snapshot) -> None:
        """Rebuild the heads as of the snapshot; rows that a dead process wrote after it are still to come."""
        for name, data in snapshot.heads.items():
            family = self._settings.family_of(name)
            if family is None:
                _log.warning("dropping an entity whose family is no longer declared", entity=name)
                continue
            head = Head.from_record(self._geometries[family.name], _HEAD_DECODER.decode(data))
            state.add_entity(name, family, head)
            state.newcomers.count(head.taken_minute)
        entities = list(state.entities.values())
        indexes = self._store.read_indexes(partition, [entity.ref for entity in entities])
        for entity, (slots, offsets) in zip(entities, indexes, strict=True):
            for slot, offset in zip(slots.tolist(), offsets.tolist(), strict=True):
                if offset < (snapshot.next_offset or 0):
                    entity.head.restore_row(slot, offset)

    def _restore_unscored(self, partition: int, state: OwnedPartition) -> None:
        for offset, notice in self._acks.outstanding(partition):
            state.unscored[notice.entity].append(Unscored(notice.ring, notice.first_slot, notice.end_slot))
            state.announced.append((offset, notice.entity))
        for entity in state.entities.values():
            entity.limit()

    def _observe_entities(self) -> None:
        self._metrics.entities_active.set(sum(len(state.entities) for state in self._partitions.values()))


def _surely_fitting(state: OwnedPartition, rows: FamilyRows) -> list[OwnedEntity] | None:
    """Return the entities of the rows if every one is known and surely takes its own, None else."""
    if not rows.entities:
        return []
    entities = [state.entities.get(name) for name in rows.entities]
    oldest = np.minimum.reduceat(rows.slots, rows.bounds[:-1]).tolist()
    newest = np.maximum.reduceat(rows.slots, rows.bounds[:-1]).tolist()
    fitting = [
        entity
        for entity, first, last in zip(entities, oldest, newest, strict=True)
        if entity is not None and entity.surely_takes(first, last)
    ]
    return fitting if len(fitting) == len(entities) else None


def _check_together(head: Head, first: int) -> None:
    """Refuse rows of one record of which the first might finish a window that the next one belongs to.

    It can't where none lags more than the lateness, since windows are cut up to there only and rows of a record ascend.
    A row that is late by itself is left to the head.
    """
    oldest = head.max_slot - head.geometry.lateness
    if head.emitted_end < first < oldest:
        raise ContractError("late", f"rows that come together want slots from {oldest} on, got {first}")


def run_windower(settings: Settings, stop: threading.Event) -> None:
    """Run the windower as a service until `stop` is set."""
    if not settings.families:
        raise UsageError("no family is declared: add [[families]] to the settings file, see docs/formats.md")
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    store = connect(settings.redis, metrics.time_redis, layout=settings.layout)
    wait_until(store.check, settings.kafka.reconnect_deadline_s, "Redis", stop.is_set)
    acks = KafkaAcknowledgements(settings, stopping=stop.is_set)
    try:
        stage = Windower(settings, store, acks, metrics, health)
        run_service(settings, Service("windower", TELEMETRY, _BATCH_RECORDS, _BATCH_S, stage, metrics, health), stop)
    finally:
        acks.close()
        store.close()
