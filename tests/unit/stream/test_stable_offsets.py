"""Time lines of one partition: what is there, what committed readers get, and when the watch speaks."""

from types import SimpleNamespace

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException

from stream.metrics import Health, Metrics
from stream.settings import KafkaSettings
from stream.stable_offsets import MARGIN_S, StableOffsets

TIMEOUT_S = 5.0
PATIENCE_S = TIMEOUT_S + MARGIN_S


class World:
    def __init__(self):
        self.now = 0.0
        self.stable = {}
        self.metrics, self.health = Metrics(), Health(30.0)
        self.health.set_ready("assignment", ready=True)
        kafka = KafkaSettings(bootstrap="kafka-1:9092", transaction_timeout_ms=int(TIMEOUT_S * 1000))
        self.watch = StableOffsets(kafka, "telemetry", self.metrics, self.health, clock=lambda: self.now)
        self.consumer = SimpleNamespace(get_watermark_offsets=lambda place, timeout: self.ask(place.partition))

    def ask(self, partition):
        if self.stable[partition] is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return 0, self.stable[partition]

    def look(self, after_s, ends):
        self.now += after_s
        with structlog.testing.capture_logs() as lines:
            self.watch.observe(self.consumer, ends)
        return [line for line in lines if line["log_level"] == "error"]

    @property
    def held_back(self):
        return self.metrics.registry.get_sample_value("telltale_held_back_partitions")


@pytest.fixture
def world():
    return World()


def test_an_offset_that_stands_still_beyond_the_timeout_is_told_once_and_makes_the_service_unready(world):
    world.stable = {3: 7}
    assert world.look(0, {3: 9}) == []
    assert world.look(PATIENCE_S, {3: 12}) == []
    told = world.look(0.5, {3: 12})
    assert [(t["topic"], t["partition"], t["stable_offset"], t["end_offset"]) for t in told] == [
        ("telemetry", 3, 7, 12)
    ]
    wanted = "kafka-transactions.sh --bootstrap-server kafka-1:9092 abort --topic telemetry --partition 3"
    assert told[0]["way_out"] == f"{wanted} --start-offset 7"
    assert world.look(PATIENCE_S, {3: 12}) == []
    assert world.held_back == 1
    assert world.health.ready() == (False, "waiting for transactions that hold records back to end")


def test_a_stable_offset_that_moves_or_reaches_the_end_is_no_trouble(world):
    for second in range(60):
        world.stable = {3: second}
        assert world.look(1, {3: 100}) == []
    world.stable = {3: 100}
    assert world.look(PATIENCE_S * 2, {3: 100}) == []
    assert world.look(PATIENCE_S * 2, {3: 100}) == []
    assert world.health.ready()[0]


@pytest.mark.parametrize("ends", [{3: 9}, {}], ids=["the transaction ends", "all is read"])
def test_the_service_is_ready_again_when_the_records_are_free(world, ends):
    world.stable = {3: 7}
    world.look(0, {3: 9})
    assert world.look(PATIENCE_S + 1, {3: 9})
    world.stable = {3: 9}
    assert world.look(1, ends) == []
    assert world.held_back == 0
    assert world.health.ready()[0]


def test_a_partition_that_went_to_somebody_else_is_forgotten(world):
    world.stable = {3: 7}
    world.look(0, {3: 9})
    assert world.look(PATIENCE_S + 1, {3: 9})
    world.watch.forget([3])
    assert world.held_back == 0
    assert world.health.ready()[0]
    assert world.look(1, {3: 9}) == []


def test_a_broker_that_does_not_answer_says_nothing_about_transactions(world):
    world.stable = {3: 7}
    world.look(0, {3: 9})
    world.stable = {3: None}
    assert world.look(PATIENCE_S * 2, {3: 9}) == []
    assert world.health.ready()[0]
