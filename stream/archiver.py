"""Telemetry to the archive, each row once. Knows no window and no model.

The order is the guarantee: 1. records into buffers, 2. when it is time, each partition's rows into files, synced under
their own names, 3. one transaction with the offsets after them. A successor starts at the committed offset. What was
written and not committed is written again, and readers count it once.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import structlog
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from stream.archive import Archive, archived_family, file_name
from stream.archive_rows import PartitionBuffer
from stream.archive_upkeep import Upkeep
from stream.decoding import SampleDecoder
from stream.errors import TransientError, UsageError
from stream.kafka import Outgoing, Record, make_admin
from stream.kafka_access import Right, failure
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.rows import decode_records
from stream.service import Service, run_service
from stream.settings import Settings
from stream.topics import TELEMETRY, topic_name
from stream.waiting import wait_until

_log = structlog.get_logger()
_BATCH_RECORDS, _BATCH_S = 8000, 0.5
_ASK_S = 10.0
_PARTITION = attrgetter("partition")


class Archiver:
    """A stage of the transactional loop: implements `stream.loop.Stage` and keeps records."""

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        find_log: Callable[[], str],
        metrics: Metrics,
        *,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Own no partition yet. find_log: names the making of the topic that is read, see `stream.archive`."""
        self._settings = settings.archive
        self._archive = archive
        self._find_log = find_log
        self._metrics = metrics
        self._stopping = stopping
        self._clock = clock
        self._decoder = SampleDecoder(settings)
        self._upkeep = Upkeep(archive, settings.archive, metrics)
        self._looked = float("-inf")
        self._log = ""
        self._buffers: dict[int, PartitionBuffer] = {}
        self._since: float | None = None  # when the oldest record came that is not in a file
        metrics.archive_flush_age.set_function(self._age_s)

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Begin at the committed offset: what lies below is in files."""
        self._log = self._find_log()
        self._buffers[partition] = PartitionBuffer(partition, committed)
        return committed

    def replay(self, partition: int, records: Sequence[Record]) -> None:
        """Refuse: the archiver starts at the committed offset, so nothing lies below it."""
        raise AssertionError(f"{len(records)} records of partition {partition} lie below the committed offset")

    def process(self, records: Sequence[Record]) -> Progress:
        """Keep a batch, and write what is kept when it is time."""
        for partition, group in groupby(sorted(records, key=_PARTITION), _PARTITION):
            self._take(self._buffers[partition], list(group))
        size = sum(buffer.bytes for buffer in self._buffers.values())
        self._metrics.archive_buffer_bytes.set(size)
        due = size >= self._settings.buffer_mib * 2**20 or self._age_s() >= self._settings.flush_s
        return Progress([], self._flush() if due or self._stopping() else {}, [])

    def check(self) -> None:
        """Look after the files, a merge at a time: failing to do so is no reason not to archive."""
        try:
            if self._upkeep.step() or self._clock() - self._looked < self._settings.upkeep_s:
                return
            self._looked = self._clock()
            self._upkeep.plan(self._buffers.keys(), time.time())
        except TransientError as error:
            _log.warning("the archive could not be looked after", error=str(error))

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Nothing is left to do: what was written is forgotten already, and would be read again otherwise."""

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget rows that somebody else reads again now."""
        for partition in partitions:
            self._buffers.pop(partition, None)
        if all(buffer.first == buffer.end for buffer in self._buffers.values()):
            self._since = None

    def _take(self, buffer: PartitionBuffer, records: Sequence[Record]) -> None:
        if self._since is None:
            self._since = self._clock()
        decoded = decode_records(self._decoder, records)
        received_ms = np.fromiter((record.timestamp_ms for record in records), np.int64, len(records))
        for rows in decoded.families:
            buffer.take(rows, received_ms)
        for error in decoded.refused.values():
            self._metrics.records_rejected.labels(error.reason).inc()
        buffer.end = records[-1].offset + 1

    def _flush(self) -> dict[int, int]:
        """Write all buffers into files; return the offset after the last row of each partition."""
        done: dict[int, int] = {}
        with self._metrics.archive_flush.time():
            for partition, buffer in self._buffers.items():
                if buffer.end > buffer.first:
                    self._write(buffer)
                    done[partition] = buffer.end
        self._buffers |= {partition: PartitionBuffer(partition, end) for partition, end in done.items()}
        self._since = None
        self._metrics.archive_buffer_bytes.set(0)
        return done

    def _write(self, buffer: PartitionBuffer) -> None:
        name = file_name(self._log, buffer.partition, buffer.first, buffer.end - 1)
        for family, day, table in buffer.tables():
            size = self._archive.write(family, day, name, table)
            self._metrics.archive_written_bytes.labels("flush").inc(size)
            self._metrics.archived_rows.labels(family).inc(table.num_rows)

    def _age_s(self) -> float:
        since = self._since  # read by the thread that serves the metrics too
        return 0.0 if since is None else self._clock() - since


def log_name(admin: AdminClient, topic: str) -> str:
    """Return a name for this making of a topic: one that is deleted and made anew has the same offsets again."""
    try:
        described = admin.describe_topics(TopicCollection([topic]), request_timeout=_ASK_S)[topic].result(2 * _ASK_S)
    except KafkaException as error:
        raise failure(error.args[0], f"the id of topic {topic}", [Right("Describe", "topic", topic)]) from error
    return hashlib.blake2b(str(described.topic_id).encode(), digest_size=4).hexdigest()


def run_archiver(settings: Settings, stop: threading.Event) -> None:
    """Run the archiver as a service until `stop` is set; then what is kept is written and committed."""
    if not settings.families:
        raise UsageError("no family is declared: add [[families]] to the settings file, see docs/formats.md")
    for family in settings.families:
        archived_family(family)
    archive = Archive(settings.archive.url)
    wait_until(archive.make, settings.kafka.reconnect_deadline_s, "the archive", stop.is_set)
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    admin, topic = make_admin(settings.kafka), topic_name(settings.topics, TELEMETRY)
    stage = Archiver(settings, archive, lambda: log_name(admin, topic), metrics, stopping=stop.is_set)
    run_service(settings, Service("archiver", TELEMETRY, _BATCH_RECORDS, _BATCH_S, stage, metrics, health, True), stop)
