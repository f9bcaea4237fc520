"""The topics: names, configuration and creation. Knows no record's content."""

from collections.abc import Mapping
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from stream.errors import TransientError, UsageError
from stream.kafka_access import Right, failure
from stream.settings import TopicSettings

_DAY_MS = 86_400_000


class Topic(NamedTuple):
    """One topic's name without prefix, and what makes it what it is."""

    name: str
    compacted: bool = False
    retention_ms: int = 7 * _DAY_MS


TELEMETRY = Topic("telemetry")
WINDOWS = Topic("windows", retention_ms=_DAY_MS)
SCORES = Topic("scores")
ALERTS = Topic("alerts", retention_ms=90 * _DAY_MS)
# State of the worker's per-entity fold, written in the transaction of the scores it led to.
DECISIONS = Topic("decisions", compacted=True)
DEAD_LETTERS = Topic("dead-letters", retention_ms=30 * _DAY_MS)
# By family, so that one reader sees all entities of one in one order; what drift knows is rebuilt from it.
SUMMARIES = Topic("summaries", retention_ms=14 * _DAY_MS)
DRIFT = Topic("drift", retention_ms=365 * _DAY_MS)
# What a challenger made of a share of the windows, beside the champion's scores.
SHADOW_SCORES = Topic("shadow-scores")
MODELS = Topic("models", compacted=True)

ALL = (TELEMETRY, WINDOWS, SCORES, ALERTS, DECISIONS, DEAD_LETTERS, SUMMARIES, DRIFT, SHADOW_SCORES, MODELS)


def topic_name(settings: TopicSettings, topic: Topic) -> str:
    """Return the topic's full name."""
    return f"{settings.prefix}{topic.name}"


def group_name(settings: TopicSettings, service: str) -> str:
    """Return the consumer group of a service."""
    return f"{settings.prefix}telltale-{service}"


class Use(NamedTuple):
    """The topics of a service; where rights are given sparingly it sees no others."""

    reads: tuple[Topic, ...] = ()
    writes: tuple[Topic, ...] = ()


# By the name of the service, or of the verb.
USES = {
    # It reads notices again that the worker has not got to.
    "windower": Use(reads=(TELEMETRY, WINDOWS), writes=(WINDOWS, DEAD_LETTERS)),
    "worker": Use(reads=(WINDOWS, DECISIONS), writes=(SCORES, ALERTS, DECISIONS, SUMMARIES, SHADOW_SCORES)),
    "archiver": Use(reads=(TELEMETRY,)),
    # It reads its own events again, for the time in which none may follow.
    "drift": Use(reads=(SUMMARIES, DRIFT), writes=(DRIFT,)),
    "retrainer": Use(reads=(MODELS, DRIFT, SCORES, SHADOW_SCORES, ALERTS), writes=(MODELS,)),
    "models": Use(writes=(MODELS,)),
    "replay": Use(writes=(TELEMETRY,)),
    "alerts": Use(reads=(ALERTS,)),
}


def ensure_topics(
    admin: AdminClient, settings: TopicSettings, timeout_s: float = 30.0, *, service: str | None = None
) -> None:
    """Create what is missing, and check that entities keep their partition from topic to topic.

    service: the one that asks, if it is content with the topics it uses itself: it may not see others, nor make any.
    Raises UsageError if existing topics differ in their number of partitions, TransientError if the broker is away,
    AccessError if a topic is missing that may not be made.
    """
    wanted = _wanted(settings, service)
    partitions = partition_counts(admin, settings, timeout_s)
    if not partitions.keys() >= wanted.keys():
        new = [_new_topic(settings, topic) for topic in ALL if topic_name(settings, topic) not in partitions]
        _create(admin, new, wanted, timeout_s)
        partitions = partition_counts(admin, settings, timeout_s)
    if len(set(partitions.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in sorted(partitions.items()))
        raise UsageError(f"all topics want the same number of partitions, but {listed}")


def _wanted(settings: TopicSettings, service: str | None) -> dict[str, list[Right]]:
    """Return the topics that must be there, each with the rights by any of which it is seen."""
    if service is None:
        return {topic_name(settings, topic): [] for topic in ALL}
    wanted: dict[str, list[Right]] = {}
    for operation, topics in (("Read", USES[service].reads), ("Write", USES[service].writes)):
        for name in (topic_name(settings, topic) for topic in topics):
            wanted.setdefault(name, []).append(Right(operation, "topic", name))
    return wanted


def _create(admin: AdminClient, new: list[NewTopic], wanted: Mapping[str, list[Right]], timeout_s: float) -> None:
    for name, future in admin.create_topics(new, operation_timeout=timeout_s).items():
        try:
            future.result(timeout_s)
        except TimeoutError as error:
            raise TransientError(f"can't create topic {name}: no answer within {timeout_s:.0f} s") from error
        except KafkaException as error:
            code = error.args[0].code()
            refused = code == KafkaError.TOPIC_AUTHORIZATION_FAILED
            if code == KafkaError.TOPIC_ALREADY_EXISTS or (refused and name not in wanted):
                continue
            doing = f"topic {name} is not there, or not to be seen, and can't be created"
            needed = [*wanted.get(name, []), Right("Create", "topic", name)]
            raise failure(error.args[0], doing, needed) from error


def partition_counts(admin: AdminClient, settings: TopicSettings, timeout_s: float) -> dict[str, int]:
    """Return the number of partitions of each existing topic."""
    try:
        known = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise TransientError(f"can't list topics: {error.args[0].str()}") from error
    names = [topic_name(settings, topic) for topic in ALL]
    return {name: len(known[name].partitions) for name in names if name in known}


def topic_config(topic: Topic) -> dict[str, str]:
    """Return a topic's own settings on the brokers."""
    return {"cleanup.policy": "compact"} if topic.compacted else {"retention.ms": str(topic.retention_ms)}


def _new_topic(settings: TopicSettings, topic: Topic) -> NewTopic:
    return NewTopic(
        topic_name(settings, topic),
        num_partitions=settings.partitions,
        replication_factor=settings.replication,
        config=topic_config(topic),
    )
