"""Replay: rows side by side, each entity's in order, at the rate asked for, none lost unsaid."""

import threading

import msgspec
import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from deploy import replay
from deploy.replay import blocks, samples, send
from detector.manifest import Channel
from stream.columns import COLUMNS, ColumnReader, to_columns
from stream.contracts import Sample, SampleColumns
from stream.decoding import SampleDecoder
from stream.errors import TransientError
from stream.settings import FamilySettings, load_settings
from training.datasets import Dataset, Series

INTERVAL_MS = 500
FIRST = 3_534_451_200
CHANNELS = [Channel("m0", "numeric"), Channel("c0", "command"), Channel("m1", "numeric")]
FAMILY = FamilySettings(name="rover", interval_ms=INTERVAL_MS, numeric=["m0", "m1"], commands=["c0"])


class Broker:
    """A producer's clock and memory in one: `full` calls find its queue full, message `lost` is never delivered."""

    def __init__(self):
        self.now = 0.0
        self.messages = []
        self.headers = []
        self.full = 0
        self.lost = None
        self.unanswered = 0
        self.refuses = False

    def produce(self, topic, value, key, headers, on_delivery):
        if self.refuses:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self.full:
            self.full -= 1
            raise BufferError
        error = KafkaError(KafkaError._MSG_TIMED_OUT) if len(self.messages) == self.lost else None
        self.messages.append((self.now, topic, key, value))
        self.headers.append(headers)
        on_delivery(error, None)

    def poll(self, timeout_s):
        self.now += timeout_s

    def flush(self, timeout_s):
        return self.unanswered

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def broker(monkeypatch):
    made = Broker()
    monkeypatch.setattr(replay, "make_producer", lambda config: made)
    monkeypatch.setattr(replay, "time", made)
    return made


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return load_settings(kafka={"bootstrap": "nowhere:1"}, topics={"prefix": "p."}, families=[FAMILY])


def series(entity, slots):
    generator = np.random.default_rng(len(slots))
    values = generator.uniform(-5, 5, (len(slots), len(CHANNELS))).astype(np.float32)
    values[:, 1] = values[:, 1] > 0
    values[generator.random(values.shape) < 0.2] = np.nan
    return Series(entity, FIRST + np.array(sorted(slots)), values, None)


slots_of = st.sets(st.integers(0, 60), min_size=1, max_size=25)
datasets = st.lists(slots_of, min_size=1, max_size=4).map(
    lambda many: Dataset(CHANNELS, INTERVAL_MS, [series(f"e-{i}", slots) for i, slots in enumerate(many)])
)


@given(datasets)
def test_every_row_comes_once_and_in_its_entitys_order_as_if_all_had_begun_together(dataset):
    rows = list(samples(dataset))
    assert len(rows) == dataset.rows
    first = {one.entity: int(one.slots[0]) for one in dataset.series}
    for one in dataset.series:
        assert [row.ts for row in rows if row.entity == one.entity] == (one.slots * INTERVAL_MS).tolist()
    since = [row.ts // INTERVAL_MS - first[row.entity] for row in rows]
    assert since == sorted(since)


@given(datasets)
def test_a_row_on_the_wire_is_the_row_of_the_data_set(dataset):
    decoder = SampleDecoder(load_settings(families=[FAMILY]))
    back = {one.entity: [] for one in dataset.series}
    for row in samples(dataset):
        decoded = decoder.decode(row.entity.encode(), msgspec.json.encode(row))
        m0, m1, c0 = decoded.values
        assert c0 is None or isinstance(c0, bool)
        back[row.entity].append([m0, c0, m1])
    for one in dataset.series:
        np.testing.assert_array_equal(np.array(back[one.entity], dtype=np.float32), one.values)


@given(datasets, st.data())
def test_rows_sent_together_are_the_rows_of_the_data_set(dataset, data):
    """Those of one hop in one record, and no record before its last row is due."""
    hops = [data.draw(st.integers(1, 20)) for _ in dataset.series]
    sent, reader = list(blocks(dataset, hops)), ColumnReader(FAMILY)
    for one, hop in zip(dataset.series, hops, strict=True):
        of_entity = [reader.read(block) for block in sent if block.entity == one.entity]
        slots = [np.array(ts_ms) // INTERVAL_MS for ts_ms, _ in of_entity]
        np.testing.assert_array_equal(np.concatenate(slots), one.slots)
        np.testing.assert_array_equal(np.concatenate([values for _, values in of_entity])[:, [0, 2, 1]], one.values)
        assert [len(set(own // hop)) for own in slots] == [1] * len(slots)
        assert len({int(own[0]) // hop for own in slots}) == len(slots)
    first = {one.entity: int(one.slots[0]) for one in dataset.series}
    due = [np.frombuffer(block.ts, np.int64)[-1] // INTERVAL_MS - first[block.entity] for block in sent]
    assert due == sorted(due)


def test_rows_sent_together_are_counted_one_by_one_and_say_what_they_are(broker, settings):
    together = to_columns("e-1", ["m0", "m1"], np.arange(5) * 1000, np.zeros((5, 2), np.float32))
    assert send(settings, [together], rows_per_s=None, stop=threading.Event()).rows == 5
    assert broker.headers == [[("content-type", COLUMNS.encode())]]
    assert msgspec.msgpack.decode(broker.messages[0][3], type=SampleColumns) == together


def made_up(count):
    return [Sample(f"e-{i % 3}", 1000 * i, {"m0": float(i)}) for i in range(count)]


def test_samples_are_keyed_by_entity_and_reported_as_they_go(broker, settings):
    seen = []
    sent = send(settings, made_up(7), rows_per_s=None, stop=threading.Event(), on_sent=seen.append)
    assert sent.rows == 7
    assert seen == made_up(7)
    assert [(topic, key) for _, topic, key, _ in broker.messages] == [
        ("p.telemetry", f"e-{i % 3}".encode()) for i in range(7)
    ]
    assert [msgspec.json.decode(value, type=Sample) for *_, value in broker.messages] == made_up(7)


@given(rate=st.floats(1, 5000), count=st.integers(1, 200))
def test_rows_never_run_ahead_of_their_rate_nor_fall_behind_it(rate, count):
    broker = Broker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "make_producer", lambda config: broker)
        patch.setattr(replay, "time", broker)
        configured = load_settings(kafka={"bootstrap": "nowhere:1"})
        send(configured, made_up(count), rows_per_s=rate, stop=threading.Event())
    for i, (at_s, *_) in enumerate(broker.messages):
        assert i / rate - replay._TICK_S - 1e-6 <= at_s <= i / rate + 1e-6


def test_a_full_queue_is_waited_for(broker, settings):
    broker.full = 3
    assert send(settings, made_up(5), rows_per_s=None, stop=threading.Event()).rows == 5
    assert len(broker.messages) == 5


def test_it_stops_when_asked(broker, settings):
    stop = threading.Event()

    def stop_at_three(sample):
        if sample.ts == 2000:
            stop.set()

    assert send(settings, made_up(9), rows_per_s=None, stop=stop, on_sent=stop_at_three).rows == 3
    assert len(broker.messages) == 3


def test_a_row_that_is_not_delivered_is_told(broker, settings):
    broker.lost = 2
    with pytest.raises(TransientError, match="telemetry was not delivered"):
        send(settings, made_up(5), rows_per_s=None, stop=threading.Event())


def test_a_broker_that_never_answers_is_told(broker, settings):
    broker.unanswered = 4
    with pytest.raises(TransientError, match="no answer in time"):
        send(settings, made_up(5), rows_per_s=None, stop=threading.Event())


def test_a_row_that_cant_be_produced_is_told(broker, settings):
    broker.refuses = True
    with pytest.raises(TransientError, match="can't be produced"):
        send(settings, made_up(5), rows_per_s=None, stop=threading.Event())
