"""Announces decisions about models on their topic. Decides nothing; the registry holds what was decided."""

import msgspec
from confluent_kafka import KafkaError, KafkaException

from stream.contracts import ModelEvent
from stream.errors import TransientError
from stream.kafka import make_producer, producer_config
from stream.kafka_access import Right, failure
from stream.settings import Settings
from stream.topics import MODELS, topic_name

_ENCODER = msgspec.json.Encoder()


def announce(settings: Settings, event: ModelEvent, timeout_s: float = 10.0) -> None:
    """Publish a decision; return once the broker has it.

    Raises TransientError if no broker took it in time, AccessError if it may not be written.
    """
    topic, failed = topic_name(settings.topics, MODELS), list[KafkaError]()
    producer = make_producer(producer_config(settings.kafka) | {"message.timeout.ms": round(timeout_s * 1000)})

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    doing, needed = f"{event.kind} of {event.family} was not announced", [Right("Write", "topic", topic)]
    try:
        producer.produce(topic, _ENCODER.encode(event), event.key, on_delivery=delivered)
        left = producer.flush(timeout_s + 1.0)
    except KafkaException as error:
        raise failure(error.args[0], doing, needed) from error
    if failed:
        raise failure(failed[0], doing, needed)
    if left:
        raise TransientError(f"{doing}: no answer within {timeout_s:.0f} s")
