"""A fleet changes its regime on real Kafka: it alerts at once, then the drift event comes, once."""

import msgspec
import numpy as np
import pytest
from confluent_kafka import TopicPartition

from detector.manifest import DecisionConfig
from detector.worker import run_worker
from stream.contracts import BlockSummary, DriftEvent
from stream.drift import run_drift
from stream.grid import Geometry
from stream.kafka import consumer_config, make_consumer
from stream.settings import DriftSettings
from stream.topics import DRIFT, SUMMARIES, group_name, topic_name
from stream.windower import run_windower
from tests import pipeline
from tests.builders import untrained
from training.sketch import sketch_of

GEOMETRY = Geometry(length=32, hop=8, final_delay=8, slack=4096)
ENTITIES = ("P-1", "P-2", "P-3", "P-4")
BLOCKS, MOVES = 90, 50
FIRST = 1_767_225_600 // GEOMETRY.length * GEOMETRY.length
RULE = DriftSettings(cooldown_s=10**6)


def rows(entity, blocks, seed):
    """Return slots and values (n, 2) of an entity in its usual regime."""
    generator = np.random.default_rng([ENTITIES.index(entity), seed])
    count = blocks * GEOMETRY.length
    return FIRST + np.arange(count), generator.normal(0.5, 0.2, (count, 2))


@pytest.fixture(scope="module")
def model():
    """An untrained network whose manifest holds sketches of the usual regime; the score's is too wide to move."""
    manifest, weights = untrained(numeric=2, commands=0, entities=ENTITIES, geometry=GEOMETRY)
    entities = []
    for entry in manifest.entities:
        slots, values = rows(entry.name, 200, seed=1)
        scores = np.random.default_rng(0).normal(0, 1000, len(slots))
        sketch = sketch_of(slots, values.astype(np.float32), slots, scores, GEOMETRY.length)
        entities.append(msgspec.structs.replace(entry, sketch=sketch))
    decision = DecisionConfig(final_sigmas=3.0, provisional_sigmas=3.0, learning=64, adapt_after=200, memory=10**6)
    return msgspec.structs.replace(manifest, entities=entities, decision=decision), weights


@pytest.fixture
def settings(model, tmp_path, kafka_bootstrap, redis_url, topic_prefix, redis_prefix):
    manifest, weights = model
    pipeline.publish(tmp_path, manifest, weights)
    return pipeline.make_settings(manifest, tmp_path, kafka_bootstrap, redis_url, topic_prefix, drift=RULE)


def send_regimes(settings, first, last):
    """Send the rows of these blocks; from block MOVES on the first channel is two deviations higher."""
    messages = []
    for entity in ENTITIES:
        slots, values = rows(entity, BLOCKS, seed=2)
        values[MOVES * GEOMETRY.length :, 0] += 0.4
        part = slice(first * GEOMETRY.length, last * GEOMETRY.length)
        messages += [
            pipeline.sample(["m0", "m1"], entity, int(slot) * 1000, row)
            for slot, row in zip(slots[part], values[part], strict=True)
        ]
    messages.sort(key=lambda message: msgspec.json.decode(message[1])["ts"])
    pipeline.send(settings, messages)


def events(settings):
    return [msgspec.json.decode(record.value, type=DriftEvent) for record in pipeline.read_all(settings, DRIFT)]


def summaries(settings):
    return [msgspec.json.decode(record.value, type=BlockSummary) for record in pipeline.read_all(settings, SUMMARIES)]


def caught_up(settings):
    """Say whether the drift service has committed every summary."""
    ends = {record.partition: record.offset + 1 for record in pipeline.read_all(settings, SUMMARIES)}
    consumer = make_consumer(consumer_config(settings.kafka, group_name(settings.topics, "drift")))
    topic = topic_name(settings.topics, SUMMARIES)
    try:
        places = consumer.committed([TopicPartition(topic, partition) for partition in ends], timeout=10)
    finally:
        consumer.close()
    return all(place.offset >= ends[place.partition] for place in places)


def test_a_change_of_regime_is_told_once_however_often_the_service_starts(settings):
    with pipeline.running(settings, run_windower, run_worker):
        with pipeline.running(settings, run_drift):
            send_regimes(settings, 0, BLOCKS - 1)
            pipeline.wait_for(lambda: events(settings), "a drift event")
        send_regimes(settings, BLOCKS - 1, BLOCKS)
        with pipeline.running(settings, run_drift):  # rebuilds what it knew, from the summaries
            wanted = len(ENTITIES) * (BLOCKS - 1)
            pipeline.wait_for(lambda: len(summaries(settings)) >= wanted, "the last summaries")
            pipeline.wait_for(lambda: caught_up(settings), "drift to take them")
    (event,) = events(settings)
    moved_ms = (FIRST + MOVES * GEOMETRY.length) * 1000
    assert moved_ms < event.detected_at_ms < moved_ms + 30 * GEOMETRY.length * 1000
    assert event.family == "test"
    assert 2 <= event.watched <= len(ENTITIES)  # at this speed the partitions of telemetry are not side by side
    assert event.moved >= 2
    (channel,) = event.channels
    assert channel.channel == "m0"
    told = summaries(settings)
    assert len({(one.entity, one.block) for one in told}) == len(told)
    assert {one.entity for one in told} == set(ENTITIES)
