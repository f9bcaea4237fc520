"""Follows scores and alerts as any outside reader would: committed records only. Knows no window and no model."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stream.contracts import Alert, ScoreBlock
from stream.errors import TelltaleError, TransientError
from stream.kafka import (
    NO_GROUP,
    Record,
    consumer_config,
    make_admin,
    make_consumer,
    read_to_end,
    to_record,
    watermarks,
)
from stream.kafka_access import Right, failure
from stream.kafka_rights import require
from stream.settings import Settings
from stream.topics import Topic, partition_counts, topic_name

_ANSWER_S = 10.0
_ALERT = msgspec.json.Decoder(Alert)
_BLOCK = msgspec.json.Decoder(ScoreBlock)


class SeenAlert(NamedTuple):
    """An alert, and when this reader saw it (seconds since 1970)."""

    alert: Alert
    seen_s: float


class Subscriber:
    """Reads topics from a point on, without a group, so that any number of readers see everything."""

    def __init__(
        self, settings: Settings, *topics: Topic, from_beginning: bool = False, since_ms: int | None = None
    ) -> None:
        """Start at the beginning of the topics, at the first record of a Kafka time stamp, or at their present end."""
        since_ms = 0 if from_beginning else since_ms
        self._consumer = _assigned(settings, topics, since_ms)
        self._ended: set[tuple[str | None, int | None]] = set()

    def poll(self, timeout_s: float) -> Iterator[Record]:
        """Yield what has come, waiting for the first record up to `timeout_s`."""
        for message in self._consumer.consume(1000, timeout=timeout_s):
            error, place = message.error(), (message.topic(), message.partition())
            if error is None:
                self._ended.discard(place)
                yield to_record(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 so the client names its constant
                self._ended.add(place)
            elif not error.retriable() and error.code() not in NO_GROUP:
                needed = [Right("Read", "topic", str(message.topic()))]
                raise failure(error, "reading failed", needed)

    def at_end(self) -> bool:
        """Say whether everything that was there has been read."""
        return len(self._ended) == len(self._consumer.assignment())

    def close(self) -> None:
        """Give the connection back."""
        self._consumer.close()


def read_all(settings: Settings, topic: Topic, answer_s: float = _ANSWER_S) -> Iterator[Record]:
    """Yield the committed records of all partitions of a topic, each up to its present end.

    answer_s: how long the broker may take to say how many partitions there are.
    """
    name = topic_name(settings.topics, topic)
    for partition in range(partition_counts(make_admin(settings.kafka), settings.topics, answer_s)[name]):
        yield from read_to_end(settings.kafka, name, partition)


def decode_alert(record: Record) -> SeenAlert:
    """Decode a record of `alerts`."""
    return SeenAlert(_ALERT.decode(record.value or b""), time.time())


def decode_block(record: Record) -> ScoreBlock:
    """Decode a record of `scores`."""
    return _BLOCK.decode(record.value or b"")


def _assigned(settings: Settings, topics: tuple[Topic, ...], since_ms: int | None) -> Consumer:
    consumer = make_consumer(consumer_config(settings.kafka, "telltale-subscriber") | {"enable.partition.eof": True})
    try:
        consumer.assign(list(_places(settings, consumer, topics, since_ms)))
    except TelltaleError:
        consumer.close()
        raise
    return consumer


def _places(
    settings: Settings, consumer: Consumer, topics: tuple[Topic, ...], since_ms: int | None
) -> Iterator[TopicPartition]:
    counts = partition_counts(make_admin(settings.kafka), settings.topics, _ANSWER_S)
    for name in (topic_name(settings.topics, topic) for topic in topics):
        if name not in counts:
            require(settings.kafka, "Read", [name], f"topic {name} is not to be seen")
            raise TransientError(f"there is no topic {name}; start the services, which make it")
        for partition in range(counts[name]):
            place = TopicPartition(name, partition)
            low, high = watermarks(consumer, place, _ANSWER_S)
            place.offset = high if since_ms is None else low
            yield _later(consumer, place, since_ms, high) if since_ms else place


def _later(consumer: Consumer, place: TopicPartition, since_ms: int, high: int) -> TopicPartition:
    """Return the first record of a partition that is not older than a time, or its end."""
    asked = TopicPartition(str(place.topic), place.partition, since_ms)
    try:
        (found,) = consumer.offsets_for_times([asked], timeout=_ANSWER_S)
    except KafkaException as error:
        needed = [Right("Describe", "topic", str(place.topic))]
        raise failure(error.args[0], f"no offsets by time of {place.topic}", needed) from error
    place.offset = found.offset if found.offset >= 0 else high
    return place
