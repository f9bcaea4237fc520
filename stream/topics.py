"""The topics: names, configuration and creation. Knows no record's content."""

from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from stream.errors import TransientError, UsageError
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

ALL = (TELEMETRY, WINDOWS, SCORES, ALERTS, DECISIONS, DEAD_LETTERS)


def topic_name(settings: TopicSettings, topic: Topic) -> str:
    """Return the topic's full name."""
    return f"{settings.prefix}{topic.name}"


def group_name(settings: TopicSettings, service: str) -> str:
    """Return the consumer group of a service."""
    return f"{settings.prefix}telltale-{service}"


def ensure_topics(admin: AdminClient, settings: TopicSettings, timeout_s: float = 30.0) -> None:
    """Create what is missing, and check that entities keep their partition from topic to topic.

    Raises UsageError if existing topics differ in their number of partitions, TransientError if the broker is away.
    """
    new = [_new_topic(settings, topic) for topic in ALL]
    for name, future in admin.create_topics(new, operation_timeout=timeout_s).items():
        try:
            future.result(timeout_s)
        except TimeoutError as error:
            raise TransientError(f"can't create topic {name}: no answer within {timeout_s:.0f} s") from error
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TransientError(f"can't create topic {name}: {error.args[0].str()}") from error
    partitions = partition_counts(admin, settings, timeout_s)
    if len(set(partitions.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in sorted(partitions.items()))
        raise UsageError(f"all topics want the same number of partitions, but {listed}")


def partition_counts(admin: AdminClient, settings: TopicSettings, timeout_s: float) -> dict[str, int]:
    """Return the number of partitions of each existing topic."""
    try:
        known = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise TransientError(f"can't list topics: {error.args[0].str()}") from error
    names = [topic_name(settings, topic) for topic in ALL]
    return {name: len(known[name].partitions) for name in names if name in known}


def _new_topic(settings: TopicSettings, topic: Topic) -> NewTopic:
    config = {"cleanup.policy": "compact"} if topic.compacted else {"retention.ms": str(topic.retention_ms)}
    return NewTopic(
        topic_name(settings, topic),
        num_partitions=settings.partitions,
        replication_factor=settings.replication,
        config=config,
    )
