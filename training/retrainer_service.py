"""The retrainer as a service: which families are its own, what it listens to, and the loop. Decides nothing.

Families are shared out by membership in a group on `models`: whoever is assigned partition `crc32(family) modulo
partitions` looks after a family, so of two retrainers only one ever trains it. A member whose session ended is told so
at its next poll, before it decides anything else.
"""

import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from detector.registry import Registry
from stream.contracts import Alert, ModelEvent
from stream.errors import CheckpointError, TelltaleError, TransientError
from stream.kafka import (
    Record,
    consumer_config,
    make_admin,
    make_consumer,
    to_record,
    wait_for_broker,
)
from stream.kafka_access import Right, failure
from stream.kafka_rights import require
from stream.metrics import Health, Metrics, MetricsServer
from stream.model_events import announce
from stream.settings import Settings
from stream.subscriber import Subscriber, read_all
from stream.topics import (
    ALERTS,
    DRIFT,
    MODELS,
    SCORES,
    SHADOW_SCORES,
    ensure_topics,
    group_name,
    partition_counts,
    topic_name,
)
from stream.waiting import wait_until
from training.exclusion import Intervals, excluded
from training.observation import Observations
from training.retrain_process import ProcessJobs
from training.retrainer import Retrainer

_log = structlog.get_logger(__name__)
_ALERT = msgspec.json.Decoder(Alert)
_EVENT = msgspec.json.Decoder(ModelEvent)
_POLL_S = 0.2
_ROUND_S = 1.0
_ANSWER_S = 10.0


class Claims:
    """Membership in the group of retrainers."""

    def __init__(self, settings: Settings) -> None:
        """Ask to join."""
        self._topic = topic_name(settings.topics, MODELS)
        self._group = group_name(settings.topics, "retrainer")
        self._partitions: set[int] = set()
        self._count = partition_counts(make_admin(settings.kafka), settings.topics, _ANSWER_S)[self._topic]
        # Offsets are of no matter: what was decided is read from the registry.
        self._consumer = make_consumer(consumer_config(settings.kafka, self._group) | {"auto.offset.reset": "latest"})
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    @property
    def joined(self) -> bool:
        """Whether the group has given out its partitions to us, be it none yet."""
        return bool(self._partitions)

    def owns(self, family: str) -> bool:
        """Say whether a family is ours to look after."""
        return zlib.crc32(family.encode()) % self._count in self._partitions

    def poll(self, timeout_s: float) -> list[Record]:
        """Take part in the group's life and return what was decided by others, or by us."""
        try:
            messages = self._consumer.consume(100, timeout=timeout_s)
        except KafkaException as error:
            raise self._failure(error.args[0]) from error
        for message in messages:
            told = message.error()
            if told is not None and not told.retriable():
                raise self._failure(told)
        return [to_record(message) for message in messages if message.error() is None]

    def close(self) -> None:
        """Leave, so that others take over at once."""
        self._consumer.close()

    def _failure(self, error: KafkaError) -> TelltaleError:
        needed = [Right("Read", "topic", self._topic), Right("Read", "group", self._group)]
        return failure(error, "sharing families with other retrainers", needed)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._partitions |= {place.partition for place in partitions}

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._partitions -= {place.partition for place in partitions}


class Feed:
    """Score blocks and drift events of all families, into observations."""

    def __init__(self, settings: Settings, observations: Observations) -> None:
        """Listen to nothing yet."""
        self._settings = settings
        self._observations = observations
        self._drift = Subscriber(settings, DRIFT, from_beginning=True)
        self._scores: Subscriber | None = None

    def restart(self, since_ms: int | None) -> None:
        """Read scores from a Kafka time stamp on, or from now."""
        if self._scores is not None:
            self._scores.close()
        self._scores = Subscriber(self._settings, SCORES, SHADOW_SCORES, since_ms=since_ms)

    def poll(self, timeout_s: float) -> None:
        """Take in what has come."""
        for source, wait_s in ((self._drift, 0.0), (self._scores, timeout_s)):
            for record in source.poll(wait_s) if source is not None else ():
                self._observations.add(record)

    def close(self) -> None:
        """Give the connections back."""
        for source in (self._drift, self._scores):
            if source is not None:
                source.close()


class Service:
    """Rounds over the families that are owned."""

    def __init__(self, settings: Settings, claims: Claims, feed: Feed, retrainer: Retrainer, metrics: Metrics) -> None:
        """Own nothing yet."""
        self._settings = settings
        self._claims = claims
        self._feed = feed
        self._retrainer = retrainer
        self._metrics = metrics
        self._owned: set[str] = set()
        self._rounded = float("-inf")

    def once(self) -> None:
        """Listen for a moment; then, once a second or when something was decided, look after every family."""
        heard = self._claims.poll(_POLL_S)
        self._feed.poll(_POLL_S)
        for family in _families(heard):
            self._retrainer.wake(family)
        if heard or time.monotonic() - self._rounded >= _ROUND_S:
            self._rounded = time.monotonic()
            self._round()

    def _round(self) -> None:
        owned = {family.name for family in self._settings.families if self._claims.owns(family.name)}
        for name in self._owned - owned:
            self._retrainer.release(name)
        if owned - self._owned:
            since = [ms for ms in map(self._retrainer.since_ms, sorted(owned)) if ms is not None]
            self._feed.restart(min(since, default=None))
        self._owned = owned
        self._metrics.families_owned.set(len(owned))
        for family in self._settings.families:
            if family.name in owned:
                self._advance(family.name)

    def _advance(self, name: str) -> None:
        """Decide for a family; what can't be reached now is asked for again, and holds no other family up."""
        family = next(one for one in self._settings.families if one.name == name)
        try:
            self._retrainer.advance(family)
        except (TransientError, CheckpointError) as error:
            _log.warning("family_waits", family=name, error=str(error))


def run_retrainer(settings: Settings, stop: threading.Event) -> None:
    """Run the retrainer as a service until `stop` is set."""
    metrics, health = Metrics(), Health(settings.metrics.liveness_s)
    retraining, observations = settings.retraining, Observations(settings.topics)
    jobs = ProcessJobs(Path(retraining.work_dir), retraining.timeout_minutes * 60)
    with ExitStack() as cleanup:
        cleanup.enter_context(MetricsServer(settings.metrics, metrics, health))
        _prepare_topics(settings, stop)
        retrainer = Retrainer(
            settings,
            Registry(settings.registry),
            jobs,
            observe=observations.of,
            exclude=alarms_of(settings),
            announce=lambda event: announce(settings, event),
            metrics=metrics,
        )
        cleanup.callback(jobs.close)
        feed = Feed(settings, observations)
        cleanup.callback(feed.close)
        claims = Claims(settings)
        cleanup.callback(claims.close)
        _log.info("started", service="retrainer", families=[family.name for family in settings.families])
        _loop(Service(settings, claims, feed, retrainer, metrics), settings, health, stop.is_set)
    _log.info("stopped", service="retrainer")


def _prepare_topics(settings: Settings, stop: threading.Event) -> None:
    """Wait for a broker and the topics; raise AccessError for a right that would be missed only with a decision."""
    wait_for_broker(settings.kafka, stopping=stop.is_set)
    admin, deadline_s = make_admin(settings.kafka), settings.kafka.reconnect_deadline_s
    wait_until(lambda: ensure_topics(admin, settings.topics, service="retrainer"), deadline_s, "topics", stop.is_set)
    models = topic_name(settings.topics, MODELS)
    require(settings.kafka, "Write", [models], "decisions could not be announced")


def _loop(service: Service, settings: Settings, health: Health, stopping: Callable[[], bool]) -> None:
    """Go round until told to stop; raise TransientError if nothing works for the whole deadline."""
    failing_since: float | None = None
    while not stopping():
        try:
            service.once()
        except TransientError as error:
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > settings.kafka.reconnect_deadline_s:
                raise
            health.set_ready("assignment", ready=False)
            _log.warning("waiting", error=str(error))
            time.sleep(_POLL_S)
        else:
            failing_since = None
            health.set_ready("assignment", ready=True)
        health.tick()


def alarms_of(settings: Settings) -> Callable[[str, int, int | None], Intervals]:
    """Return a reader of the alerts topic: the intervals in which a family's entities were in alarm."""

    def read() -> Iterable[Alert]:
        return (_ALERT.decode(record.value or b"") for record in read_all(settings, ALERTS))

    return lambda family, end_ms, moved_ms: excluded(read(), family, end_ms, moved_ms)


def _families(records: Iterable[Record]) -> set[str]:
    found = set()
    for record in records:
        try:
            found.add(_EVENT.decode(record.value or b"").family)
        except msgspec.MsgspecError as error:
            _log.error("record_left_out", topic=record.topic, offset=record.offset, reason=str(error))
    return found
