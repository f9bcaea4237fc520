"""Which rights a principal lacks, as the brokers tell it: their errors name the kind of a right, seldom the topic."""

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, TopicCollection

from stream.kafka import make_admin
from stream.kafka_access import Right, failure
from stream.settings import KafkaSettings

_ANSWER_S = 10.0


def lacking(settings: KafkaSettings, operation: str, topics: Iterable[str]) -> list[Right]:
    """Return the right to the operation on each topic where it lacks; nothing of topics that are not there."""
    admin = make_admin(settings)
    wanted = TopicCollection(sorted(set(topics)))
    asked = admin.describe_topics(wanted, include_authorized_operations=True, request_timeout=_ANSWER_S)
    missing = []
    for name, answer in asked.items():
        try:
            allowed = {one.name for one in answer.result(2 * _ANSWER_S).authorized_operations or ()}
        except KafkaException as error:
            refused = error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
        else:
            refused = operation.upper() not in allowed
        if refused:
            missing.append(Right(operation, "topic", name))
    return missing


def require(settings: KafkaSettings, operation: str, topics: Iterable[str], doing: str) -> None:
    """Raise AccessError, naming each right that lacks; for what would be refused late, or never, by itself."""
    if missing := lacking(settings, operation, topics):
        raise failure(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), doing, missing)
