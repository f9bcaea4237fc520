"""Puts recorded or simulated telemetry onto the telemetry topic, at a rate. Knows no window and no score."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer

from stream.contracts import Sample
from stream.errors import TransientError
from stream.kafka import make_admin, make_producer, producer_config, wait_for_broker
from stream.kafka_access import Right, failure
from stream.settings import Settings
from stream.topics import TELEMETRY, ensure_topics, topic_name
from training.datasets import Dataset, Series, read_dataset

_TICK_S = 0.02
_FLUSH_S = 30.0


class Sent(NamedTuple):
    """What was put onto the topic, and how long it took."""

    rows: int
    seconds: float


def replay(
    settings: Settings, path: Path, *, rows_per_s: float | None, interval_ms: int | None, stop: threading.Event
) -> Sent:
    """Put a Parquet data set onto the telemetry topic; without `rows_per_s` as fast as the broker takes it.

    Row t of a data set that only numbers its rows always gets the same time stamp, so a replay scores as before.
    """
    dataset = read_dataset(path, interval_ms=interval_ms)
    wait_for_broker(settings.kafka)
    ensure_topics(make_admin(settings.kafka), settings.topics, service="replay")
    return send(settings, samples(dataset), rows_per_s=rows_per_s, stop=stop)


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Yield the rows of all entities side by side, each entity's in order, as if all had begun together."""
    encoders = [_rows(dataset, series) for series in dataset.series]
    position = np.concatenate([series.slots - series.slots[0] for series in dataset.series])
    owner = np.repeat(np.arange(len(dataset.series)), [len(series.slots) for series in dataset.series])
    for index in owner[np.argsort(position, kind="stable")].tolist():
        yield next(encoders[index])


def _rows(dataset: Dataset, series: Series) -> Iterator[Sample]:
    names = [channel.name for channel in dataset.channels]
    commands = [channel.kind == "command" for channel in dataset.channels]
    for slot, row in zip(series.slots.tolist(), series.values, strict=True):
        values = {
            name: None if value != value else bool(value) if command else value
            for name, value, command in zip(names, row.tolist(), commands, strict=True)
        }
        yield Sample(series.entity, slot * dataset.interval_ms, values)


def send(
    settings: Settings,
    rows: Iterable[Sample],
    *,
    rows_per_s: float | None,
    stop: threading.Event,
    on_sent: Callable[[Sample], None] = lambda _: None,
) -> Sent:
    """Produce samples keyed by entity until they end or `stop` is set.

    Raises TransientError if the broker did not take a record.
    """
    producer = make_producer(producer_config(settings.kafka))
    topic = topic_name(settings.topics, TELEMETRY)
    encoder = msgspec.json.Encoder()
    failed: list[KafkaError] = []
    started = time.monotonic()
    count = 0
    for sample in rows:
        if stop.is_set() or failed:
            break
        _produce(producer, topic, sample, encoder, failed)
        on_sent(sample)
        count += 1
        if rows_per_s:
            _pace(producer, count, rows_per_s, started)
    if producer.flush(_FLUSH_S) or failed:
        if not failed:
            raise TransientError("telemetry was not delivered: no answer in time")
        raise failure(failed[0], "telemetry was not delivered", [Right("Write", "topic", topic)])
    return Sent(count, time.monotonic() - started)


def _produce(
    producer: Producer, topic: str, sample: Sample, encoder: msgspec.json.Encoder, failed: list[KafkaError]
) -> None:
    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    while True:
        try:
            producer.produce(topic, encoder.encode(sample), sample.entity.encode(), on_delivery=delivered)
        except BufferError:
            producer.poll(0.1)
        except KafkaException as error:
            raise failure(error.args[0], "telemetry can't be produced", [Right("Write", "topic", topic)]) from error
        else:
            producer.poll(0)
            return


def _pace(producer: Producer, count: int, rows_per_s: float, started: float) -> None:
    ahead = count / rows_per_s - (time.monotonic() - started)
    if ahead > _TICK_S:
        producer.poll(0)
        time.sleep(ahead)
