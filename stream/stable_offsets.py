"""Says so when records wait behind a transaction that nobody ends. Owns that watch; reads no record.

Readers of committed records get what lies below a partition's last stable offset, which is the start of its oldest open
transaction. A transaction ends at the latest with its time-out; where a broker has lost track of one, the offset never
moves again and every reader stands still without an error.
"""

import time
from collections.abc import Callable, Iterable, Mapping

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from stream.metrics import Health, Metrics
from stream.settings import KafkaSettings

_log = structlog.get_logger()

# Beyond its time-out the broker should long have ended a transaction.
MARGIN_S = 10.0
_ASK_S = 1.0
_READY = "transactions that hold records back to end"


class StableOffsets:
    """Watches the partitions that one process reads."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        metrics: Metrics,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take records for held back after the time-out of a transaction and a margin without a move."""
        self._kafka = kafka
        self._topic = topic
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._limit_s = kafka.transaction_timeout_ms / 1000 + MARGIN_S
        self._since: dict[int, tuple[int, float]] = {}  # stable offset and when it was first seen
        self._told: set[int] = set()

    def observe(self, consumer: Consumer, ends: Mapping[int, int]) -> None:
        """Look at partitions that are not read to their end (their high watermark); tell of one that stands still."""
        for partition, end in ends.items():
            try:
                # To a reader of committed records who asks, the stable offset is the end.
                stable = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_ASK_S)[1]
            except KafkaException:
                return  # the broker is away, which reading tells
            if not self._stands_still(partition, stable, end):
                self._told.discard(partition)
            elif partition not in self._told:
                self._told.add(partition)
                self._tell(partition, stable, end)
        self.forget(self._since.keys() - ends.keys())

    def forget(self, partitions: Iterable[int]) -> None:
        """Begin anew with partitions that are read to their end, or by somebody else."""
        for partition in list(partitions):
            self._since.pop(partition, None)
            self._told.discard(partition)
        self._metrics.held_back_partitions.set(len(self._told))
        self._health.set_ready(_READY, ready=not self._told)

    def _stands_still(self, partition: int, stable: int, end: int) -> bool:
        if stable >= end:
            self._since.pop(partition, None)
            return False
        known, since = self._since.setdefault(partition, (stable, self._clock()))
        if known != stable:
            self._since[partition] = stable, self._clock()
            return False
        return self._clock() - since > self._limit_s

    def _tell(self, partition: int, stable: int, end: int) -> None:
        tool, place = "kafka-transactions.sh --bootstrap-server", f"--topic {self._topic} --partition {partition}"
        _log.error(
            "records wait behind a transaction that nobody ends",
            topic=self._topic,
            partition=partition,
            stable_offset=stable,
            end_offset=end,
            look=f"{tool} {self._kafka.bootstrap} find-hanging {place}",
            way_out=f"{tool} {self._kafka.bootstrap} abort {place} --start-offset {stable}",
        )
