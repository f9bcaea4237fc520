"""How far the worker is with the windows announced to it. Knows the worker's group by name, nothing of its work."""

import time
from collections.abc import Iterator
from typing import Protocol, cast

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream.contracts import WindowNotice
from stream.kafka import consumer_config, make_consumer, read_to_end
from stream.kafka_access import Right, failure
from stream.settings import Settings
from stream.topics import WINDOWS, group_name, topic_name
from stream.waiting import Stopping, never

_NOTICE = msgspec.json.Decoder(WindowNotice)


class Acknowledgements(Protocol):
    """What the windower asks about the worker."""

    def scored_up_to(self, partition: int) -> int:
        """Return the offset in `windows` up to which (exclusive) the worker has scored."""

    def outstanding(self, partition: int) -> Iterator[tuple[int, WindowNotice]]:
        """Yield offset and notice of every announced window the worker has not scored."""


class KafkaAcknowledgements:
    """Asks Kafka for the committed offsets of the worker's group."""

    def __init__(
        self, settings: Settings, worker_group: str = "worker", max_age_s: float = 0.05, stopping: Stopping = never
    ) -> None:
        """Connect on first use; an answer is reused for `max_age_s`. stopping: breaks waiting off."""
        self._stopping = stopping
        self._kafka = settings.kafka
        self._topic = topic_name(settings.topics, WINDOWS)
        self._group = group_name(settings.topics, worker_group)
        self._consumer = make_consumer(consumer_config(settings.kafka, self._group))
        self._max_age_s = max_age_s
        self._known: dict[int, tuple[float, int]] = {}

    def scored_up_to(self, partition: int) -> int:
        """Return the worker's committed offset, 0 if it has none."""
        asked, offset = self._known.get(partition, (float("-inf"), 0))
        if time.monotonic() - asked < self._max_age_s:
            return offset
        offset = self._ask(partition)
        self._known[partition] = (time.monotonic(), offset)
        return offset

    def outstanding(self, partition: int) -> Iterator[tuple[int, WindowNotice]]:
        """Read what is between the worker's committed offset and the end of `windows`."""
        first = self._ask(partition)
        for record in read_to_end(self._kafka, self._topic, partition, first, stopping=self._stopping):
            yield record.offset, _NOTICE.decode(record.value or b"")

    def close(self) -> None:
        """Give the connection back."""
        self._consumer.close()

    def _ask(self, partition: int) -> int:
        place = TopicPartition(self._topic, partition)
        try:
            return max(0, self._consumer.committed([place], timeout=5.0)[0].offset)
        except KafkaException as error:
            needed = [Right("Describe", "group", self._group), Right("Describe", "topic", self._topic)]
            raise failure(self._cause(error), f"how far the worker is with {place.topic}", needed) from error

    def _cause(self, error: KafkaException) -> KafkaError:
        """Return why there was no answer: a refusal does not come from the call, which runs out of time."""
        told = [
            problem for message in self._consumer.consume(10, timeout=0) if (problem := message.error()) is not None
        ]
        return next(iter(told), cast("KafkaError", error.args[0]))
