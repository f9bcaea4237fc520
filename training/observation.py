"""What the retrainer sees of live scores and drift: counts by family and version. Pure: records in, figures out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from stream.contracts import DriftEvent, ScoreBlock
from stream.kafka import Record
from stream.settings import TopicSettings
from stream.topics import DRIFT, SCORES, SHADOW_SCORES, topic_name
from training.gates import Tally, count
from training.retraining import Drift

# Entities that are remembered by family; of more than these the share of unknown ones is as good.
_MOST_ENTITIES = 10_000

_log = structlog.get_logger(__name__)
_BLOCK = msgspec.json.Decoder(ScoreBlock)
_DRIFT = msgspec.json.Decoder(DriftEvent)


class Observation:
    """One family's live scores since its phase began, its newest drift, and which entities are alive."""

    def __init__(self) -> None:
        """Have seen nothing."""
        self.since_ms = 0
        self.drift: Drift | None = None
        self._tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
        self._entities: dict[str, int] = {}
        self._usual: dict[str, Mapping[str, float]] = {}

    def begin(self, since_ms: int, usual: Mapping[str, Mapping[str, float]]) -> None:
        """Count anew, records from a Kafka time stamp on. usual: by version, entities' mean scores in training."""
        self.since_ms = since_ms
        self._tallies.clear()
        self._usual = dict(usual)

    def tally(self, version: str | None) -> Tally:
        """Return what a version scored on `scores`."""
        return self._tallies.get(("scores", version or ""), Tally())

    def shadow(self, version: str | None) -> Tally:
        """Return what a version scored aside."""
        return self._tallies.get(("shadow", version or ""), Tally())

    def unknown(self, known: Iterable[str]) -> float:
        """Return the share of the live entities that are not among these."""
        return len(self._entities.keys() - set(known)) / len(self._entities) if self._entities else 0.0

    @property
    def newest_ms(self) -> int | None:
        """How far the fleet's rows are, whatever the clock of one in ten; None before any was scored."""
        return sorted(self._entities.values())[9 * (len(self._entities) - 1) // 10] if self._entities else None

    def add(self, source: str, block: ScoreBlock, timestamp_ms: int) -> None:
        """Count a block; source: `scores` or `shadow`."""
        if not block.learning and (block.entity in self._entities or len(self._entities) < _MOST_ENTITIES):
            end_ms = (block.start_slot + len(block.scores)) * block.interval_ms
            self._entities[block.entity] = max(end_ms, self._entities.get(block.entity, end_ms))
        usual = self._usual.get(block.model.version)
        if usual is None or timestamp_ms < self.since_ms:
            return
        place = source, block.model.version
        self._tallies[place] = count(self._tallies[place], block, usual.get(block.entity, usual[""]))


class Observations:
    """All families' observations, fed by the records of the topics."""

    def __init__(self, topics: TopicSettings) -> None:
        """Have seen nothing."""
        self._sources = {topic_name(topics, SCORES): "scores", topic_name(topics, SHADOW_SCORES): "shadow"}
        self._drift = topic_name(topics, DRIFT)
        self._families: dict[str, Observation] = defaultdict(Observation)

    def of(self, family: str) -> Observation:
        """Return what was seen of a family."""
        return self._families[family]

    def add(self, record: Record) -> None:
        """Take a record in; one that can't be read is told in the log and left out."""
        try:
            if record.topic == self._drift:
                event = _DRIFT.decode(record.value or b"")
                drift = Drift(event.model.version, event.detected_at_ms, event.first_block_ms)
                self._families[event.family].drift = drift
            elif record.topic in self._sources:
                block = _BLOCK.decode(record.value or b"")
                self._families[block.family].add(self._sources[record.topic], block, record.timestamp_ms)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.error("record_left_out", topic=record.topic, offset=record.offset, reason=str(error))
