"""Telemetry to windows: rows into Redis, notices of finished windows to Kafka. Knows no model and no score.

The order of one batch is the guarantee: 1. rows into the rings (repeating them changes nothing), 2. one transaction
with notices, dead letters and input offsets, 3. a fenced snapshot of the heads with the next offset R. A successor
starts at R, at or below the committed offset C, applies records silently up to C and produces from C on.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from stream.acknowledgements import Acknowledgements, KafkaAcknowledgements
from stream.breaker import Breaker
from stream.contracts import SourceRange, WindowNotice
from stream.decoding import Row, SampleDecoder, to_float32
from stream.errors import ContractError, UsageError
from stream.grid import slot_of
from stream.heads import Cut, Head, HeadRecord
from stream.kafka import Outgoing, Record, wait_until
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.newcomers import Newcomers
from stream.owned import OwnedEntity, OwnedPartition, Unscored
from stream.refusals import Refusals
from stream.ring import Write
from stream.service import Service, run_service
from stream.settings import Settings
from stream.topics import DEAD_LETTERS, TELEMETRY, WINDOWS, topic_name
from stream.window_store import RingRef, RingWrite, Snapshot, WindowStore, connect

_log = structlog.get_logger()
_BATCH_RECORDS = 2000
_NOTICE = msgspec.json.Encoder()
_HEAD = msgspec.msgpack.Encoder()
_HEAD_DECODER = msgspec.msgpack.Decoder(HeadRecord)


class _Fitting(NamedTuple):
    """A record that kept its contract."""

    record: Record
    row: Row
    slot: int
    values: NDArray[np.float32]


class _Batch:
    """What one batch does to one partition: rows to write, messages to produce, and where it had to stop."""

    def __init__(self) -> None:
        self.rows: dict[RingRef, list[_Fitting]] = defaultdict(list)
        self.touched: dict[str, OwnedEntity] = {}
        self.outgoing: list[Outgoing] = []
        self.next_offset: int | None = None
        self.held: list[Record] = []

    def refuse(self, letter: Outgoing | None) -> None:
        if letter is not None:
            self.outgoing.append(letter)


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
        self._pending: dict[int, _Batch] = {}

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
        self._refusals.tell()
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
        batch = _Batch()
        fitting, refused = self._decode(records)
        for index, record in enumerate(records):
            error = refused.get(record.offset)
            if error is None:
                one = fitting[record.offset]
                if not silent and not self._has_room(state, partition, one):
                    batch.held = list(records[index:])
                    break
                error = self._add(state, batch, one, silent=silent)
            if error is not None and not silent:
                batch.refuse(self._refusals.letter(record, error))
            batch.next_offset = record.offset + 1
        if not silent:
            batch.refuse(self._refusals.summary(partition))
            self._watch(records[: len(records) - len(batch.held)], fitting, refused)
        return batch

    def _watch(self, done: Sequence[Record], fitting: dict[int, _Fitting], refused: dict[int, ContractError]) -> None:
        """Let the breaker know how many records of each family kept their contract."""
        taken = Counter(fitting[record.offset].row.family.name for record in done if record.offset in fitting)
        broken = Counter(
            (self._decoder.family_name(record.key), refused[record.offset].reason)
            for record in done
            if record.offset in refused
        )
        self._breaker.observe(taken, broken)

    def _add(self, state: OwnedPartition, batch: _Batch, one: _Fitting, *, silent: bool) -> ContractError | None:
        try:
            entity = state.entities.get(one.row.entity) or self._new_entity(state, one, silent=silent)
            batch.touched[entity.name] = entity  # also where the row is refused: the head may remember it
            cuts = entity.head.add(one.slot, one.record.offset)
        except ContractError as error:
            return error
        if cuts or entity.head.ring != entity.ref.ring:
            self._announce(batch, entity, cuts, one.record, silent=silent)
            entity.follow_head()
        batch.rows[entity.ref].append(one)
        return None

    def _announce(self, batch: _Batch, entity: OwnedEntity, cuts: list[Cut], record: Record, *, silent: bool) -> None:
        if not silent:
            batch.outgoing += [self._notice(entity, cut, record) for cut in cuts]
            entity.unscored.extend(Unscored(cut.ring, cut.first_slot, cut.end_slot) for cut in cuts)
            self._metrics.notices.inc(len(cuts))
            if entity.head.jumped:
                self._metrics.clock_jumps.inc()
                _log.warning("the clock of an entity jumped", entity=entity.name, slot=entity.head.first_slot)

    def _decode(self, records: Sequence[Record]) -> tuple[dict[int, _Fitting], dict[int, ContractError]]:
        """Decode records of one partition; both results are by offset."""
        refused: dict[int, ContractError] = {}
        rows: dict[str, list[tuple[Record, Row, int]]] = defaultdict(list)
        for record in records:
            try:
                row = self._decoder.decode(record.key, record.value, record.header("content-type"))
                rows[row.family.name].append((record, row, slot_of(row.ts_ms, row.family.interval_ms)))
            except ContractError as error:
                refused[record.offset] = error
        fitting: dict[int, _Fitting] = {}
        for of_family in rows.values():
            width = len(of_family[0][1].family.channels)
            values, fits = to_float32([row.values for _, row, _ in of_family], width)
            for (record, row, slot), one, fit in zip(of_family, values, fits.tolist(), strict=True):
                if fit:
                    fitting[record.offset] = _Fitting(record, row, slot, one)
                else:
                    refused[record.offset] = ContractError("range", "values want finite numbers within float32")
        return fitting, refused

    def _new_entity(self, state: OwnedPartition, one: _Fitting, *, silent: bool) -> OwnedEntity:
        minute = state.newcomers.take(one.row.entity, one.record.timestamp_ms, silent=silent)
        family = one.row.family
        head = Head(self._geometries[family.name], one.slot)
        head.taken_minute = minute
        # Of a life whose first row is not in Kafka any more, the ring that unscored windows are read from.
        known = (w for w in state.unscored[one.row.entity] if w.first_slot <= one.slot <= w.end_slot)
        if (window := next(known, None)) is not None:
            head.ring, head.first_slot = window.ring, window.first_slot
        entity = state.add_entity(one.row.entity, family, head)
        self._observe_entities()
        return entity

    def _has_room(self, state: OwnedPartition, partition: int, one: _Fitting) -> bool:
        entity = state.entities.get(one.row.entity)
        if entity is None or one.slot <= entity.last_slot_with_room:
            return True
        state.forget_scored(self._acks.scored_up_to(partition))
        return one.slot <= entity.last_slot_with_room

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

    def _write(self, partition: int, batch: _Batch) -> None:
        writes = [
            RingWrite(ref, batch.touched[ref.entity].ttl_ms, _writes(ref, rows)) for ref, rows in batch.rows.items()
        ]
        self._store.write_rows(partition, self._partitions[partition].epoch, writes)

    def _save(self, partition: int, batch: _Batch) -> None:
        if batch.next_offset is not None:
            heads = {name: _HEAD.encode(entity.head.record()) for name, entity in batch.touched.items()}
            state = self._partitions[partition]
            self._store.save_heads(partition, state.epoch, batch.next_offset, heads)
            state.next_offset = batch.next_offset

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


def _writes(ref: RingRef, rows: list[_Fitting]) -> list[Write]:
    slots = np.array([one.slot for one in rows], dtype=np.int64)
    offsets = np.array([one.record.offset for one in rows], dtype=np.int64)
    return ref.layout.encode(slots, offsets, np.stack([one.values for one in rows]))


def run_windower(settings: Settings, stop: threading.Event) -> None:
    """Run the windower as a service until `stop` is set."""
    if not settings.families:
        raise UsageError("no family is declared: add [[families]] to the settings file, see docs/formats.md")
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    store = connect(settings.redis, metrics.time_redis, layout=settings.layout)
    wait_until(store.check, settings.kafka.reconnect_deadline_s, "Redis", stop.is_set)
    acks = KafkaAcknowledgements(settings)
    try:
        stage = Windower(settings, store, acks, metrics, health)
        run_service(settings, Service("windower", TELEMETRY, _BATCH_RECORDS, stage, metrics, health), stop)
    finally:
        acks.close()
        store.close()
