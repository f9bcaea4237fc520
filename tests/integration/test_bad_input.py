"""Records that break the contract between good telemetry: each is put aside with its reason, no good row suffers."""

from typing import NamedTuple

import msgspec
import pytest

from stream.contracts import DeadLetter
from stream.dead_letters import HEADER, MAX_KEPT_BYTES
from stream.kafka import make_producer, producer_config
from stream.settings import LimitSettings
from stream.topics import DEAD_LETTERS, TELEMETRY, topic_name
from tests.builders import untrained
from tests.faults.recorded import (
    FIRST,
    GEOMETRY,
    answer_of,
    assert_is_offline,
    recordings,
    telemetry,
    to_sample,
    wait_for_rows,
)
from tests.pipeline import make_settings, publish, read_all, running, wait_for

NOW = (FIRST + 50) * 1000
LIMIT = 100_000
MSGPACK = [("content-type", b"application/msgpack")]


class Bad(NamedTuple):
    """A record and the reason for which it must be refused."""

    reason: str
    value: bytes | None
    key: bytes | None = b"P-1"
    headers: list[tuple[str, bytes]] | None = None


def of(values, entity="P-1", ts=NOW):
    """Return a sample as JSON text, its values as they are written."""
    return f'{{"entity": "{entity}", "ts": {ts}, "values": {{{values}}}}}'.encode()


def packed(values):
    return msgspec.msgpack.encode({"entity": "P-1", "ts": NOW, "values": values})


BAD = {
    "not JSON": Bad("malformed", b"\x00\xffhello"),
    "cut off": Bad("malformed", of('"m0": 1')[:-3]),
    "no bytes at all": Bad("malformed", b""),
    "not UTF-8": Bad("malformed", of('"m0": 1').replace(b"P-1", b"P-\xff")),
    "nested too deeply": Bad("malformed", b'{"x": ' + b"[" * 40_000 + b"]" * 40_000 + b"}"),
    "an array for a number": Bad("schema", of('"m0": ' + "[" * 40_000)),
    "NaN": Bad("malformed", of('"m0": NaN')),
    "Infinity": Bad("malformed", of('"m0": Infinity')),
    "-Infinity": Bad("malformed", of('"m0": -Infinity')),
    "1e400": Bad("schema", of('"m0": 1e400')),
    "a number of 50,000 digits": Bad("schema", of('"m0": ' + "9" * 50_000)),
    "beyond float32": Bad("range", of('"m0": 1e308')),
    "beyond float32, negative": Bad("range", of('"m0": 1, "m1": -3.5e38')),
    "msgpack of NaN": Bad("range", packed({"m0": float("nan")}), headers=MSGPACK),
    "msgpack of infinity": Bad("range", packed({"m0": float("inf")}), headers=MSGPACK),
    "msgpack cut off": Bad("malformed", packed({"m0": 1.0})[:-3], headers=MSGPACK),
    "JSON that says it is msgpack": Bad("schema", of('"m0": 1'), headers=MSGPACK),
    "msgpack that says nothing": Bad("malformed", packed({"m0": 1.0})),
    "no entity": Bad("schema", b'{"ts": 1, "values": {}}'),
    "no time stamp": Bad("schema", b'{"entity": "P-1", "values": {}}'),
    "no values": Bad("schema", f'{{"entity": "P-1", "ts": {NOW}}}'.encode()),
    "an array": Bad("schema", b"[1, 2, 3]"),
    "null": Bad("schema", b"null"),
    "text for a number": Bad("schema", of('"m0": "1.5"')),
    "text for a time": Bad("schema", of('"m0": 1', ts=f'"{NOW}"')),
    "a fraction of a millisecond": Bad("schema", of('"m0": 1', ts=f"{NOW}.5")),
    "values in an array": Bad("schema", f'{{"entity": "P-1", "ts": {NOW}, "values": [1, 2]}}'.encode()),
    "a channel that is not declared": Bad("schema", of('"m0": 1, "m99": 2')),
    "seconds": Bad("timestamp", of('"m0": 1', ts=NOW // 1000)),
    "microseconds": Bad("timestamp", of('"m0": 1', ts=NOW * 1000)),
    "before time": Bad("timestamp", of('"m0": 1', ts=-1)),
    "a name too long": Bad("entity", of('"m0": 1', entity="a-" * 128 + "b"), key=b"a-" * 128 + b"b"),
    "a name of odd characters": Bad("entity", of('"m0": 1', entity="a b-c"), key=b"a b-c"),
    "a name without characters": Bad("entity", of('"m0": 1', entity=""), key=b""),
    "a key of another entity": Bad("key", of('"m0": 1', entity="M-6")),
    "a key nobody knows": Bad("key", of('"m0": 1'), key=b"someone-else"),
    "no key": Bad("key", of('"m0": 1'), key=None),
    "no value": Bad("empty", None),
    "too large": Bad("size", of('"m0": 1').ljust(LIMIT + 1)),
    "of no family": Bad("family", of('"m0": 1', entity="stranger"), key=b"stranger"),
}


@pytest.fixture
def model(tmp_path):
    return publish(tmp_path / "registry", *untrained(geometry=GEOMETRY))


@pytest.fixture
def settings(model, tmp_path, kafka_bootstrap, redis_url, topic_prefix):
    registry = tmp_path / "registry"
    settings = make_settings(model.manifest, registry, kafka_bootstrap, redis_url, topic_prefix)
    family = settings.families[0].model_copy(update={"entities": "*-*"})
    limits = LimitSettings(max_record_bytes=LIMIT)
    return settings.model_copy(update={"families": [family], "limits": limits})


def produce(settings, records):
    """Produce records and return where each went: (partition, offset) of those that are bad, with the record."""
    producer = make_producer(producer_config(settings.kafka))
    topic = topic_name(settings.topics, TELEMETRY)
    places = {}

    def at(bad):
        return lambda error, message: places.update({(message.partition(), message.offset()): bad})

    for bad in records:
        told = {"on_delivery": at(bad)} if bad.reason else {}
        producer.produce(topic, bad.value, bad.key, headers=bad.headers, **told)
    assert producer.flush(30) == 0
    return places


def mixed(good, bad):
    """Put the bad records between the good ones, evenly; the late one at the very end."""
    every = len(good) // (len(bad) + 1)
    result = []
    for i, sample in enumerate(good):
        result.append(Bad("", msgspec.json.encode(sample), sample.entity.encode()))
        if i % every == every - 1 and bad:
            result.append(bad.pop())
    return result + bad


def test_bad_records_are_put_aside_with_their_reason_and_no_good_row_suffers(model, settings):
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    late = Bad("late", msgspec.json.encode(to_sample(model, series[0], 0)), series[0].entity.encode())
    places = produce(settings, [*mixed(telemetry(model, series), list(BAD.values())), late])
    assert len(places) == len(BAD) + 1

    with running(settings):
        wait_for_rows(settings, answer.final_rows())
        wait_for(lambda: len(read_all(settings, DEAD_LETTERS)) >= len(places), "all dead letters")
    assert_is_offline(settings, answer)

    letters = read_all(settings, DEAD_LETTERS)
    told = {(record.partition, letter.offset): (record, letter) for record in letters for letter in [opened(record)]}
    assert len(told) == len(letters)
    assert told.keys() == places.keys()
    for place, bad in places.items():
        assert_tells(settings, *told[place], bad)


def opened(record):
    return msgspec.json.decode(record.header(HEADER), type=DeadLetter)


def assert_tells(settings, record, letter, bad):
    value = bad.value or b""
    assert letter.reason == bad.reason, letter.detail
    assert letter.detail
    assert record.value == value[:MAX_KEPT_BYTES]
    assert record.key == bad.key
    assert (letter.size, letter.truncated) == (len(value), len(value) > MAX_KEPT_BYTES)
    assert (letter.topic, letter.partition) == (topic_name(settings.topics, TELEMETRY), record.partition)
    assert list(record.headers)[:-1] == (bad.headers or [])
