"""Block summaries to drift events. Owns which family is followed and from where; knows no statistics and no model.

What is known of a family is rebuilt from the retained summaries whenever its partition is taken over; events are told
only of summaries behind the committed offset, in the transaction that moves it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import msgspec
import structlog

from stream.contracts import BlockSummary, DriftEvent
from stream.drift_family import FamilyWatch
from stream.kafka import BY_KEY, Outgoing, Record
from stream.kafka_rights import require
from stream.loop import Progress
from stream.metrics import Health, Metrics
from stream.service import Service, run_service
from stream.settings import Settings
from stream.sketch import TrainingSketch, read_sketch
from stream.subscriber import read_all
from stream.topics import DRIFT, SUMMARIES, topic_name

_log = structlog.get_logger()
_SUMMARY = msgspec.json.Decoder(BlockSummary)
_EVENT = msgspec.json.Decoder(DriftEvent)
_ENCODER = msgspec.json.Encoder()
_BATCH_RECORDS, _BATCH_S = 1000, 0.5
# Versions whose sketch is kept: workers change theirs one after the other, and back.
_KEPT_SKETCHES = 4
_ANSWER_S = 30.0

# By family and version.
SketchSource = Callable[[str, str], TrainingSketch | None]


class DriftMonitor:
    """A stage of the transactional loop: implements `stream.loop.Stage`."""

    def __init__(
        self,
        settings: Settings,
        read_sketch: SketchSource,
        read_events: Callable[[], Iterable[DriftEvent]],
        metrics: Metrics,
    ) -> None:
        """Own no partition yet. read_events: the committed drift events of all families."""
        self._settings = settings
        self._read_sketch = read_sketch
        self._read_events = read_events
        self._metrics = metrics
        self._drift = topic_name(settings.topics, DRIFT)
        self._sketches: OrderedDict[tuple[str, str], TrainingSketch | None] = OrderedDict()
        self._families: dict[int, dict[str, FamilyWatch]] = {}
        self._events: list[DriftEvent] = []

    def restore(self, partition: int, committed: int, low: int) -> int:
        """Start from the oldest summary, which goes to `replay` up to the committed offset."""
        self._families[partition] = {}
        self._events = list(self._read_events())
        return low

    def replay(self, partition: int, records: Sequence[Record]) -> None:
        """Learn from summaries whose events are out already."""
        for record in records:
            self._fold(partition, record)

    def process(self, records: Sequence[Record]) -> Progress:
        """Fold summaries and tell what they decide."""
        events = [event for record in records if (event := self._fold(record.partition, record)) is not None]
        self._observe({record.partition for record in records})
        return Progress(
            [Outgoing(self._drift, BY_KEY, event.family.encode(), _ENCODER.encode(event)) for event in events],
            {record.partition: record.offset + 1 for record in records},
            [],
        )

    def check(self) -> None:
        """Do nothing: all that this stage knows comes with the records."""

    def committed(self, delivered: Sequence[tuple[Outgoing, int]]) -> None:
        """Log and count what was published."""
        for message, _ in delivered:
            event = _EVENT.decode(message.value or b"")
            self._metrics.drift_events.labels(event.family).inc()
            _log.warning(
                "drift", family=event.family, moved=event.moved, watched=event.watched, version=event.model.version
            )

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget partitions that belong to somebody else now."""
        for partition in partitions:
            self._families.pop(partition, None)

    def _fold(self, partition: int, record: Record) -> DriftEvent | None:
        summary = _SUMMARY.decode(record.value or b"")
        families = self._families[partition]
        watch = families.get(summary.family)
        if watch is None:
            watch = families[summary.family] = self._watch(summary.family)
        return watch.add(summary)

    def _watch(self, family: str) -> FamilyWatch:
        watch = FamilyWatch(self._settings.deployment, self._settings.drift, partial(self._sketch_of, family))
        for event in self._events:
            if event.family == family:
                watch.remember(event)
        return watch

    def _sketch_of(self, family: str, version: str) -> TrainingSketch | None:
        key = family, version
        if key not in self._sketches:
            self._sketches[key] = self._read_sketch(family, version)
            if len(self._sketches) > _KEPT_SKETCHES * max(1, len(self._settings.families)):
                self._sketches.popitem(last=False)
        return self._sketches[key]

    def _observe(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            for family, watch in self._families[partition].items():
                self._metrics.drift_watched_entities.labels(family).set(watch.watched)
                self._metrics.drift_moved_entities.labels(family).set(watch.moved)


def read_events(settings: Settings) -> Iterator[DriftEvent]:
    """Yield the committed events of the drift topic; raise AccessError for a right that only an event would miss."""
    for operation in ("Read", "Write"):
        doing = "drift events could not be remembered or told"
        require(settings.kafka, operation, [topic_name(settings.topics, DRIFT)], doing)
    for record in read_all(settings, DRIFT, _ANSWER_S):
        yield _EVENT.decode(record.value or b"")


def run_drift(settings: Settings, stop: threading.Event) -> None:
    """Run the drift monitor as a service until `stop` is set."""
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)

    def sketch_of(family: str, version: str) -> TrainingSketch | None:
        return read_sketch(settings.registry, family, version, settings.drift.max_merged)

    stage = DriftMonitor(settings, sketch_of, partial(read_events, settings), metrics)
    run_service(settings, Service("drift", SUMMARIES, _BATCH_RECORDS, _BATCH_S, stage, metrics, health), stop)
