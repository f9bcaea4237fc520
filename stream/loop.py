"""The transactional loop of every data-plane service. Knows Kafka's offsets and transactions, no record's content.

Consume a batch, let the stage work on it, then one transaction with everything it produced and the offsets it is
done with. A stage never sees a record twice without being told to drop its state first.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from stream.errors import AccessError, TelltaleError, TransientError
from stream.kafka import (
    Outgoing,
    Record,
    consumer_config,
    make_consumer,
    make_producer,
    producer_config,
    to_record,
    wait_for_broker,
    watermarks,
)
from stream.kafka_access import Right, failure
from stream.kafka_rights import lacking
from stream.metrics import Health, Metrics
from stream.settings import KafkaSettings
from stream.stable_offsets import StableOffsets
from stream.waiting import Stopping, in_slices, never, within

_log = structlog.get_logger()

POLL_S = 0.05
_CHECK_S = 1.0
_MARGIN_S = 1.0
# Leaving the group waits for its coordinator; the group notices all the same when the session is over.
_CLOSE_S = 5.0
# Of a batch, about; records that hold many rows are worked on fewer at a time.
_BATCH_BYTES = 16 * 2**20
_PARTITION = attrgetter("partition")


class Progress(NamedTuple):
    """What a stage made of a batch.

    next_offsets: by partition, the offset after the last record done. held: records not done, in order; they come
    again with the next batch, and nothing new of their partitions before that.
    """

    outgoing: list[Outgoing]
    next_offsets: dict[int, int]
    held: list[Record]


class Stage(Protocol):
    """The work between consuming and producing."""

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Take over a partition whose outputs are committed up to an offset; return the offset to start reading at.

        low: the oldest offset that Kafka still has. Records below `committed` then go to `replay`, not to `process`.
        """

    def replay(self, partition: int, records: Sequence[Record]) -> None:
        """Apply records whose outputs were committed before, without producing anything."""

    def process(self, records: Sequence[Record]) -> Progress:
        """Work on a batch, records of one partition in offset order; see `LoopConfig.keeps_records` for empty ones."""

    def check(self) -> None:
        """Look after what is owned, between two batches, once a second and before the end; also without records."""

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Learn that the last batch's transaction is committed, and at which offset each message stands."""

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget everything about partitions that belong to somebody else now."""


class LoopConfig(NamedTuple):
    """What one loop reads, and as whom.

    transactional_id: stable per process instance, so that its successor ends the transaction it left open.
    batch_records: how many records at most are worked on before a commit; fewer where they are large. batch_s: about
    how long a batch may take: nobody sees what it produces before all of it is done.
    keeps_records: the stage may keep records it has not done yet without having them held; so that it can do them
    later, it is given an empty batch once a second and another one at the end.
    """

    topic: str
    group: str
    transactional_id: str
    batch_records: int
    batch_s: float
    keeps_records: bool = False


class TransactionalLoop:
    """Runs a stage until told to stop; survives brokers and stores that go away for less than the deadline."""

    def __init__(
        self, kafka: KafkaSettings, config: LoopConfig, stage: Stage, metrics: Metrics, health: Health
    ) -> None:
        """Open no connection yet."""
        self._kafka = kafka
        self._config = config
        self._stage = stage
        self._metrics = metrics
        self._health = health
        self._owned: dict[int, int] = {}
        self._held: list[Record] = []
        self._record_bytes = 8 * 1024.0  # of the last batch, on average
        self._record_s = 0.0  # likewise, of work and commit
        self._paused: set[int] = set()
        self._lag_observed = 0.0
        self._checked = 0.0
        self._worked_at = 0.0
        self._stopping: Stopping = never
        self._consumer: Consumer | None = None
        self._stable_offsets = StableOffsets(kafka, config.topic, metrics, health)

    def run(self, stopping: Stopping) -> None:
        """Loop until `stopping()`; raise TransientError if nothing works for the whole deadline.

        Records replayed, committed or held for want of room are work; so a long rebuild is no failure.
        """
        failing_since: float | None = None
        self._stopping = stopping
        while not stopping():
            started = time.monotonic()
            try:
                self._run_connected()
            except TransientError as error:
                if self._worked_at > started or time.monotonic() - started > self._kafka.reconnect_deadline_s:
                    failing_since = None
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > self._kafka.reconnect_deadline_s:
                    raise
                self._health.set_ready("assignment", ready=False)
                _log.warning("dropping all state and joining again", topic=self._config.topic, error=str(error))
                time.sleep(0.5)

    def _run_connected(self) -> None:
        wait_for_broker(self._kafka, stopping=self._stopping)
        producer = make_producer(producer_config(self._kafka, self._config.transactional_id))
        doing = f"transactions of {self._config.transactional_id}"
        try:
            in_slices(producer.init_transactions, self._kafka.reconnect_deadline_s, doing, self._stopping)
        except KafkaException as error:
            raise self._failure(error.args[0], doing) from error
        self._consumer = consumer = make_consumer(consumer_config(self._kafka, self._config.group))
        try:
            consumer.subscribe([self._config.topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
            while not self._stopping():
                self._once(consumer, producer)
            self._stage.check()
            if self._config.keeps_records:
                self._work(consumer, producer, [])
        finally:
            self._forget(list(self._owned))
            self._consumer = None
            _leave(consumer)

    def _once(self, consumer: Consumer, producer: Producer) -> None:
        consumed = self._consume(consumer)  # may call _on_revoke, which takes records out of those held
        records = self._held + consumed
        self._health.tick()
        self._observe_lag(consumer)
        checked = self._check()
        if records or (checked and self._config.keeps_records):
            self._work(consumer, producer, records)

    def _work(self, consumer: Consumer, producer: Producer, records: list[Record]) -> None:
        self._held = []
        fresh = self._replay(records)
        if records and not fresh:
            return
        started = time.monotonic()
        progress = self._stage.process(fresh)
        self._held = progress.held
        self._pause(consumer, {record.partition for record in progress.held})
        if progress.next_offsets:
            self._commit(consumer, producer, progress)
            self._owned.update(progress.next_offsets)
        if (done := len(fresh) - len(progress.held)) > 0:
            self._record_s = (time.monotonic() - started) / done
        if progress.held and not progress.next_offsets:
            self._worked_at = time.monotonic()
            time.sleep(POLL_S)

    def _consume(self, consumer: Consumer) -> list[Record]:
        try:
            messages = consumer.consume(self._batch_records(), timeout=0.0 if self._held else POLL_S)
        except KafkaException as error:
            raise self._failure(error.args[0], f"consuming {self._config.topic}") from error
        records = [to_record(message) for message in messages if message.error() is None]
        if len(records) < len(messages):
            self._raise_for_any(messages)
        self._metrics.records_consumed.inc(len(records))
        if records:
            self._record_bytes = max(1.0, sum(len(record.value or b"") for record in records) / len(records))
        if self._owned.keys() >= {*map(_PARTITION, records)}:
            return records
        return [record for record in records if record.partition in self._owned]

    def _batch_records(self) -> int:
        """Return how many records the next batch takes at most, by what those of the last one took."""
        by_bytes = int(_BATCH_BYTES / self._record_bytes)
        by_time = int(self._config.batch_s / self._record_s) if self._record_s else by_bytes
        return min(self._config.batch_records, max(1, min(by_bytes, by_time)))

    def _replay(self, records: list[Record]) -> list[Record]:
        """Hand records below the committed offset to the stage silently; return the others."""
        runs = groupby(records, key=_PARTITION)  # the first record of a run is its oldest
        behind = {partition for partition, run in runs if next(run).offset < self._owned[partition]}
        if not behind:
            return records
        for partition in behind:
            done = self._owned[partition]
            self._stage.replay(partition, [r for r in records if r.partition == partition and r.offset < done])
            self._worked_at = time.monotonic()
        return [record for record in records if record.offset >= self._owned[record.partition]]

    def _commit(self, consumer: Consumer, producer: Producer, progress: Progress) -> None:
        """Publish a batch: 1. begin, 2. produce, 3. add the offsets, 4. commit, 5. tell the stage.

        The order is the guarantee: readers of committed records see outputs and offsets together or not at all.
        """
        delivered = _Deliveries()
        offsets = [TopicPartition(self._config.topic, p, offset) for p, offset in progress.next_offsets.items()]
        timeout = self._kafka.transaction_timeout_ms / 1000
        with self._metrics.txn_commit.time():
            try:
                producer.begin_transaction()
                _produce(producer, progress.outgoing, delivered)
                _add_offsets(producer, offsets, consumer.consumer_group_metadata(), timeout)
                producer.commit_transaction(timeout)
            except KafkaException as error:
                self._metrics.txn_aborts.inc()
                _abort(producer)
                raise self._not_committed(error.args[0], progress, delivered) from error
            except TransientError:
                self._metrics.txn_aborts.inc()
                raise
        self._worked_at = time.monotonic()
        self._stage.committed(delivered)

    def _failure(self, error: KafkaError, doing: str) -> TelltaleError:
        config = self._config
        needed = [
            Right("Read", "topic", config.topic),
            Right("Read", "group", config.group),
            Right("Write", "transactional id", config.transactional_id),
        ]
        return failure(error, doing, needed)

    def _not_committed(self, error: KafkaError, progress: Progress, delivered: "_Deliveries") -> TelltaleError:
        doing = "the transaction was not committed"
        if delivered.refused:
            return delivered.refused[0]
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:  # of which topic, it does not say
            missing = lacking(self._kafka, "Write", {message.topic for message in progress.outgoing})
            return failure(error, doing, missing) if missing else self._failure(error, doing)
        return self._failure(error, doing)

    def _raise_for_any(self, messages: Sequence[Any]) -> None:
        for message in messages:
            error = message.error()
            if error is not None and (error.fatal() or not error.retriable()):
                raise self._failure(error, f"reading partition {message.partition()}")
            if error is not None:
                _log.warning("kafka", error=error.str())

    def _check(self) -> bool:
        """Have the stage look after itself if it is time to; say whether it was."""
        if time.monotonic() - self._checked < _CHECK_S:
            return False
        self._checked = time.monotonic()
        self._stage.check()
        return True

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.inc(len(partitions))
        starts = [self._start(consumer, partition) for partition in partitions]
        consumer.incremental_assign(starts)
        # The client keeps a pause beyond the assignment it belonged to.
        consumer.resume(starts)
        self._health.set_ready("assignment", ready=True)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # One that was given up may hear of it when another one owns the partitions.
        if consumer is self._consumer:
            self._metrics.rebalances.inc(len(partitions))
            self._forget([partition.partition for partition in partitions])
        consumer.incremental_unassign(partitions)

    def _start(self, consumer: Consumer, place: TopicPartition) -> TopicPartition:
        partition = place.partition
        committed, low = self._committed_offset(consumer, place)
        start = self._stage.restore(partition, committed, low)
        self._owned[partition] = committed
        _log.info("took over a partition", topic=place.topic, partition=partition, committed=committed, start=start)
        return TopicPartition(place.topic, partition, start)

    def _committed_offset(self, consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
        """Return where the outputs end, and the oldest offset there is.

        The outputs of a new group end at the oldest offset; so do those of a group whose offset is gone, loudly.
        """
        deadline_s, doing = self._kafka.reconnect_deadline_s, f"offsets of {place.topic}/{place.partition}"
        try:
            known = in_slices(partial(_committed, consumer, place), deadline_s, doing, self._stopping)
        except KafkaException as error:
            raise self._failure(error.args[0], doing) from error
        low, high = watermarks(consumer, place, deadline_s, self._stopping)
        if known < 0:
            return low, low
        if low <= known <= high:
            return known, low
        cause = "the topic was made anew" if known > high else "retention removed records that were never processed"
        _log.error("committed offset is gone", topic=place.topic, committed=known, low=low, high=high, cause=cause)
        self._metrics.window_rebuilds.labels("offset_gone").inc()
        return low, low

    def _observe_lag(self, consumer: Consumer) -> None:
        if time.monotonic() - self._lag_observed < 1.0:
            return
        self._lag_observed = time.monotonic()
        behind: dict[int, int] = {}
        for partition, done in self._owned.items():
            place = TopicPartition(self._config.topic, partition)
            high = consumer.get_watermark_offsets(place, cached=True)[1]
            self._metrics.consumer_lag_records.labels(str(partition)).set(max(0, high - done))
            if high > done:
                behind[partition] = high
        self._stable_offsets.observe(consumer, behind)

    def _forget(self, partitions: list[int]) -> None:
        self._stage.drop(partitions)
        for partition in partitions:
            self._owned.pop(partition, None)
            self._metrics.consumer_lag_records.remove(str(partition))
        self._stable_offsets.forget(partitions)
        self._held = [record for record in self._held if record.partition in self._owned]
        self._paused &= set(self._owned)
        self._metrics.paused_partitions.set(len(self._paused))

    def _pause(self, consumer: Consumer, wanted: set[int]) -> None:
        place = [TopicPartition(self._config.topic, p) for p in wanted - self._paused]
        if place:
            consumer.pause(place)
        free = [TopicPartition(self._config.topic, p) for p in self._paused - wanted]
        if free:
            consumer.resume(free)
        self._paused = wanted
        self._metrics.paused_partitions.set(len(wanted))


class _Deliveries(list[tuple[Outgoing, int]]):
    """The messages that arrived, each with its offset; and what was said of those that a broker refused."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[AccessError] = []


def _committed(consumer: Consumer, place: TopicPartition, timeout_s: float) -> int:
    return int(consumer.committed([place], timeout=timeout_s)[0].offset)


def _leave(consumer: Consumer) -> None:
    """Leave the group; give the client up where the brokers don't answer."""
    try:
        within(_CLOSE_S, "leaving the group", consumer.close)
    except TransientError as error:
        _log.warning("the group notices by itself", error=str(error))


def _produce(producer: Producer, outgoing: list[Outgoing], delivered: _Deliveries) -> None:
    for message in outgoing:
        producer.produce(
            message.topic,
            partition=message.partition,
            key=message.key,
            value=message.value,
            headers=list(message.headers),
            on_delivery=_recorder(delivered, message),
        )
        producer.poll(0)


def _add_offsets(producer: Producer, offsets: list[TopicPartition], group: Any, timeout_s: float) -> None:
    """Add offsets to the transaction; a call that waits for a coordinator that is gone never returns by itself."""
    call = partial(producer.send_offsets_to_transaction, offsets, group, timeout_s)
    within(timeout_s + _MARGIN_S, "send_offsets_to_transaction", call)  # librdkafka issues 5456 and 5511


def _recorder(delivered: _Deliveries, message: Outgoing) -> Callable[[KafkaError | None, Any], None]:
    def record(error: KafkaError | None, sent: Any) -> None:
        if error is None:
            delivered.append((message, sent.offset()))
            return
        told = failure(error, f"producing to {message.topic}", [Right("Write", "topic", message.topic)])
        if isinstance(told, AccessError):
            delivered.refused.append(told)

    return record


def _abort(producer: Producer) -> None:
    """Try to abort, so that readers need not wait for the transaction's timeout; the producer is given up anyway."""
    try:
        producer.abort_transaction(5.0)
    except KafkaException as error:
        _log.warning("abort failed; the transaction ends by its timeout", error=_text(error))


def _text(error: KafkaException) -> str:
    return str(error.args[0].str())
