"""The Kafka client: tuned settings, and clients made from them. Knows no record and no topic of ours.

The numbers are measured choices; `docs/decisions.md` gives the comparison.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.errors import AccessError, TransientError, UsageError
from stream.kafka_access import Right, failure, login_refusal, security_config
from stream.settings import KafkaSettings
from stream.waiting import Stopping, never, refuse_to_wait

_log = structlog.get_logger()

# A client that is assigned its partitions still asks for its group's coordinator, which it never uses.
NO_GROUP = (KafkaError.GROUP_AUTHORIZATION_FAILED,)

# Of a call that is made again if there is none.
_ANSWER_S = 5.0

Headers = Sequence[tuple[str, bytes | None]]


class Record(NamedTuple):
    """A consumed message."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers = ()

    def header(self, name: str) -> str | None:
        """Return a header's text, None where it is absent or null."""
        for key, value in self.headers:
            if key == name and value is not None:
                return value.decode(errors="replace")
        return None


class Outgoing(NamedTuple):
    """A message to produce."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def require_bootstrap(settings: KafkaSettings) -> str:
    """Return the brokers' address; raise UsageError with the way out if there is none."""
    if not settings.bootstrap:
        raise UsageError("no Kafka address: set kafka.bootstrap (TELLTALE_KAFKA__BOOTSTRAP) or run `telltale up`")
    return settings.bootstrap


def _common(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap.servers": require_bootstrap(settings),
        "reconnect.backoff.max.ms": 1000,
        "log_level": 4,
        **security_config(settings),
    }


def consumer_config(settings: KafkaSettings, group: str) -> dict[str, Any]:
    """Return the settings of a data-plane consumer: explicit offsets, committed records only, fast fetches."""
    config = _common(settings) | {
        "group.id": group,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        # Our own start policy: a lost offset is an event, never a silent jump.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        # With the defaults the local queue refills once a second: a fifth of the throughput.
        "fetch.queue.backoff.ms": 10,
        "fetch.message.max.bytes": 4 * 2**20,
        "queued.max.messages.kbytes": settings.queue_mib * 1024,
        "fetch.wait.max.ms": 20,
    }
    if settings.group_protocol == "classic":
        config["partition.assignment.strategy"] = "cooperative-sticky"
        if settings.session_timeout_ms:
            config["session.timeout.ms"] = settings.session_timeout_ms
    return config


def producer_config(settings: KafkaSettings, transactional_id: str | None = None) -> dict[str, Any]:
    """Return the settings of a producer; with a transactional id it produces exactly once."""
    config = _common(settings) | {
        "enable.idempotence": True,
        "compression.type": "lz4",
        # The partitioner of the Java clients, so that everybody's keys land on the same partition.
        "partitioner": "murmur2_random",
        "linger.ms": 5,
        # The default of 100 ms makes every second transaction wait that long.
        "retry.backoff.ms": 5,
        "queue.buffering.max.messages": 1_000_000,
    }
    if transactional_id:
        config["transactional.id"] = transactional_id
        config["transaction.timeout.ms"] = settings.transaction_timeout_ms
    return config


def make_consumer(config: Mapping[str, Any]) -> Consumer:
    """Return a consumer whose client errors go to the log; a refused login is raised from its next call."""
    return Consumer({**config, "error_cb": partial(_on_client_error, config)}, logger=_CLIENT_LOG)


def make_producer(config: Mapping[str, Any]) -> Producer:
    """Return a producer whose client errors go to the log; a refused login is raised from its next poll."""
    return Producer({**config, "error_cb": partial(_on_client_error, config)}, logger=_CLIENT_LOG)


def make_admin(settings: KafkaSettings) -> AdminClient:
    """Return an admin client whose client errors go to the log; a refused login is raised from its next poll."""
    config = _common(settings)
    return AdminClient(config | {"error_cb": partial(_on_client_error, config)}, logger=_CLIENT_LOG)


def wait_for_broker(settings: KafkaSettings, deadline_s: float | None = None, stopping: Stopping = never) -> None:
    """Return once a broker answers; raise TransientError after the deadline, or when `stopping()`.

    Raises AccessError as soon as login or certificate are refused.
    """
    admin = make_admin(settings)
    limit = deadline_s if deadline_s is not None else settings.reconnect_deadline_s
    end = time.monotonic() + limit
    while True:
        try:
            admin.list_topics(timeout=min(3.0, limit))
            return
        except KafkaException as error:
            admin.poll(0)  # tells the client's own errors, which the call's does not
            if time.monotonic() >= end:
                raise TransientError(
                    f"no Kafka broker answered at {settings.bootstrap} within {limit:.0f} s: {error.args[0].str()}"
                ) from error
            refuse_to_wait(stopping, f"a Kafka broker at {settings.bootstrap}")
            _log.warning("waiting for a Kafka broker", bootstrap=settings.bootstrap, error=error.args[0].str())


def to_record(message: Any) -> Record:
    """Take what we use out of a consumed message that carries no error."""
    # Made for every row of telemetry: a named tuple's own constructor takes four times as long.
    return tuple.__new__(
        Record,
        (
            message.topic(),
            message.partition(),
            message.offset(),
            message.key(),
            message.value(),
            message.timestamp()[1],
            message.headers() or (),
        ),
    )


def read_to_end(
    settings: KafkaSettings,
    topic: str,
    partition: int,
    first: int | None = None,
    timeout_s: float = 60.0,
    stopping: Stopping = never,
) -> Iterator[Record]:
    """Yield the committed records of a partition from an offset (or its beginning) up to its present end.

    The end is the high watermark at the start: an open transaction below it is waited for, so everything that was
    committed before the call is seen. Raises TransientError if the end is not reached in time, or when `stopping()`.
    """
    config = consumer_config(settings, "telltale-reader") | {"enable.partition.eof": True}
    place = TopicPartition(topic, partition)
    # A reader of committed records is told the start of the oldest open transaction instead of the high watermark.
    scout = make_consumer(config | {"isolation.level": "read_uncommitted"})
    try:
        low, high = watermarks(scout, place, timeout_s, stopping)
    finally:
        scout.close()
    place.offset = low if first is None else max(first, low)
    if place.offset >= high:
        return
    consumer = make_consumer(config)
    try:
        consumer.assign([place])
        yield from _until(consumer, place, high, timeout_s, stopping)
    finally:
        consumer.close()


def watermarks(
    consumer: Consumer, place: TopicPartition, timeout_s: float, stopping: Stopping = never
) -> tuple[int, int]:
    """Return the oldest offset there is and the end of a partition; wait for one that was made just now.

    Raises TransientError after the time-out, or when `stopping()`.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            low, high = consumer.get_watermark_offsets(place, timeout=min(_ANSWER_S, timeout_s))
        except KafkaException as error:
            needed = [Right("Describe", "topic", str(place.topic))]
            told = failure(error.args[0], f"no offsets of {place.topic}/{place.partition}", needed)
            # The client does not say which other errors pass by themselves, as while a leader is being chosen.
            if isinstance(told, AccessError) or time.monotonic() >= end:
                raise told from error
            refuse_to_wait(stopping, f"offsets of {place.topic}/{place.partition}")
            time.sleep(0.1)
        else:
            return low, high


def _until(
    consumer: Consumer, place: TopicPartition, high: int, timeout_s: float, stopping: Stopping
) -> Iterator[Record]:
    end = time.monotonic() + timeout_s
    # Control records at the end are never delivered, so the end is known by the end-of-partition event alone.
    while time.monotonic() < end:
        refuse_to_wait(stopping, f"the end of {place.topic}/{place.partition}")
        for record in consumer.consume(1000, timeout=0.2):
            error = record.error()
            if error is None:
                yield to_record(record)
            elif error.code() in NO_GROUP:
                continue
            elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 so the client names its constant
                needed = [Right("Read", "topic", place.topic)]
                raise failure(error, f"reading {place.topic}/{place.partition} failed", needed)
            elif (record.offset() or 0) >= high:
                return
    raise TransientError(f"{place.topic}/{place.partition} was not read to offset {high} within {timeout_s:.0f} s")


class _ClientLog(logging.Logger):
    """Takes librdkafka's own lines, which would go to stderr as they are, into our log as debug messages.

    What matters of them comes as errors of the calls and through `_on_client_error`.
    """

    def log(self, level: int, msg: object, *args: object, **_: Any) -> None:
        _log.debug("librdkafka", level=level, line=str(msg) % args if args else str(msg))


_CLIENT_LOG = _ClientLog("librdkafka")


_QUIET_S = 5.0
_last_told: dict[str, float] = {}


def _on_client_error(config: Mapping[str, Any], error: KafkaError) -> None:
    """Tell of a client's error, of each kind once in a while: a broker that is away fails twenty times a second.

    Raises AccessError for a refused login, which the client passes on from the call that it is in.
    """
    if (refused := login_refusal(error, config)) is not None:
        raise refused
    name, now = error.name(), time.monotonic()
    if now - _last_told.get(name, float("-inf")) >= _QUIET_S:
        _last_told[name] = now
        _log.warning("kafka client", error=error.str(), code=name, fatal=error.fatal())
