"""Puts recorded or simulated telemetry onto the telemetry topic, at a rate. Knows no window and no score."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer

from stream.columns import COLUMNS, to_columns
from stream.contracts import Sample, SampleColumns
from stream.errors import TransientError, UsageError
from stream.kafka import make_admin, make_producer, producer_config, wait_for_broker
from stream.kafka_access import Right, failure
from stream.settings import Settings
from stream.topics import TELEMETRY, ensure_topics, topic_name
from training.datasets import Dataset, Series, read_dataset

_TICK_S = 0.02
_FLUSH_S = 30.0
_JSON = msgspec.json.Encoder()
_MSGPACK = msgspec.msgpack.Encoder()


class EncodedSample(NamedTuple):
    """A sample with the bytes it is sent as, for who has to send faster than it can be encoded."""

    entity: str
    ts: int
    value: bytes


_Telemetry = TypeVar("_Telemetry", Sample, SampleColumns, EncodedSample)


class Sent(NamedTuple):
    """What was put onto the topic, and how long it took."""

    rows: int
    seconds: float


def replay(
    settings: Settings,
    path: Path,
    *,
    rows_per_s: float | None,
    interval_ms: int | None,
    stop: threading.Event,
    columns: bool = False,
) -> Sent:
    """Put a Parquet data set onto the telemetry topic; without `rows_per_s` as fast as the broker takes it.

    Row t of a data set that only numbers its rows always gets the same time stamp, so a replay scores as before.
    columns: put the rows of a hop of an entity into one record. Raises UsageError for an entity without a family then.
    """
    dataset = read_dataset(path, interval_ms=interval_ms)
    hops = [_hop(settings, series.entity) for series in dataset.series] if columns else []
    wait_for_broker(settings.kafka)
    ensure_topics(make_admin(settings.kafka), settings.topics, service="replay")
    if columns:
        return send(settings, blocks(dataset, hops), rows_per_s=rows_per_s, stop=stop)
    return send(settings, samples(dataset), rows_per_s=rows_per_s, stop=stop)


def _hop(settings: Settings, entity: str) -> int:
    family = settings.family_of(entity)
    if family is None:
        raise UsageError(f"how many rows go into a record is said by the family, but none is declared for {entity!r}")
    return family.hop


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Yield the rows of all entities side by side, each entity's in order, as if all had begun together."""
    encoders = [_rows(dataset, series) for series in dataset.series]
    position = np.concatenate([series.slots - series.slots[0] for series in dataset.series])
    owner = np.repeat(np.arange(len(dataset.series)), [len(series.slots) for series in dataset.series])
    for index in owner[np.argsort(position, kind="stable")].tolist():
        yield next(encoders[index])


def blocks(dataset: Dataset, slots: Sequence[int]) -> Iterator[SampleColumns]:
    """Yield the rows of all entities side by side, those of a hop, `slots` of each series, in one record.

    A record comes when its last row does.
    """
    names = [channel.name for channel in dataset.channels]
    ready: list[tuple[int, int, int, int]] = []  # position of the last row, series, first row, end
    for number, (series, width) in enumerate(zip(dataset.series, slots, strict=True)):
        bounds = [*np.flatnonzero(np.diff(series.slots // width, prepend=-1)).tolist(), len(series.slots)]
        position = (series.slots - series.slots[0]).tolist()
        ready += [(position[end - 1], number, first, end) for first, end in pairwise(bounds)]
    for _, number, first, end in sorted(ready):
        series = dataset.series[number]
        ts_ms = series.slots[first:end] * dataset.interval_ms
        yield to_columns(series.entity, names, ts_ms, series.values[first:end])


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
    rows: Iterable[_Telemetry],
    *,
    rows_per_s: float | None,
    stop: threading.Event,
    on_sent: Callable[[_Telemetry], None] = lambda _: None,
) -> Sent:
    """Produce samples, or records of many, keyed by entity until they end or `stop` is set.

    Raises TransientError if the broker did not take a record.
    """
    producer = make_producer(producer_config(settings.kafka))
    topic = topic_name(settings.topics, TELEMETRY)
    failed: list[KafkaError] = []
    started = time.monotonic()
    count = 0
    for one in rows:
        if stop.is_set() or failed:
            break
        _produce(producer, topic, one, failed)
        on_sent(one)
        count += one.count if isinstance(one, SampleColumns) else 1
        if rows_per_s:
            _pace(producer, count, rows_per_s, started)
    if producer.flush(_FLUSH_S) or failed:
        if not failed:
            raise TransientError("telemetry was not delivered: no answer in time")
        raise failure(failed[0], "telemetry was not delivered", [Right("Write", "topic", topic)])
    return Sent(count, time.monotonic() - started)


def encode(rows: Iterable[Sample]) -> list[EncodedSample]:
    """Encode samples ahead of sending them."""
    return [EncodedSample(one.entity, one.ts, _JSON.encode(one)) for one in rows]


def _payload(one: Sample | SampleColumns | EncodedSample) -> bytes:
    if isinstance(one, EncodedSample):
        return one.value
    return _MSGPACK.encode(one) if isinstance(one, SampleColumns) else _JSON.encode(one)


def _produce(
    producer: Producer, topic: str, one: Sample | SampleColumns | EncodedSample, failed: list[KafkaError]
) -> None:
    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    together = isinstance(one, SampleColumns)
    value = _payload(one)
    headers: list[tuple[str, str | bytes | None]] = [("content-type", COLUMNS.encode())] if together else []
    while True:
        try:
            producer.produce(topic, value, one.entity.encode(), headers=headers, on_delivery=delivered)
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
