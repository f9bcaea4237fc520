"""Recorded telemetry through a real broker into an archive: killed twice, it holds each row once."""

import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from confluent_kafka import TopicPartition

from deploy.replay import replay
from stream.archive import Archive
from stream.kafka import consumer_config, make_admin, make_consumer, watermarks
from stream.settings import FamilySettings, load_settings
from stream.topics import TELEMETRY, ensure_topics, group_name, topic_name
from tests.faults.live import processes
from tests.pipeline import wait_for
from training.archive import read_any, read_archive, sent_rows
from training.datasets import fingerprint, read_dataset

ENTITIES, ROWS = 3, 2000


def msl_rows(data_dir, path):
    """Write the first rows of some entities of MSL's training set into a file."""
    table = pq.read_table(data_dir / "MSL_train.parquet")
    names = table["entity"].unique().to_pylist()[:ENTITIES]
    parts = [table.filter(pc.equal(table["entity"].cast("string"), name)).slice(0, ROWS) for name in names]
    pq.write_table(pa.concat_tables(parts), path)


def settings_of(dataset, tmp_path, bootstrap, redis_url, prefix):
    family = FamilySettings(
        name="msl",
        numeric=[channel.name for channel in dataset.channels if channel.kind == "numeric"],
        commands=[channel.name for channel in dataset.channels if channel.kind == "command"],
    )
    settings = load_settings(
        kafka={"bootstrap": bootstrap},
        redis={"url": redis_url, "prefix": prefix.strip(".")},
        topics={"prefix": prefix, "partitions": 2},
        metrics={"port": 0},
        archive={"url": str(tmp_path / "archive"), "flush_s": 0.2, "upkeep_s": 0.2},
        families=[family],
    )
    ensure_topics(make_admin(settings.kafka), settings.topics)
    return settings


def behind(settings):
    """Return how many records lie behind the archiver's committed offsets."""
    topic = topic_name(settings.topics, TELEMETRY)
    consumer = make_consumer(consumer_config(settings.kafka, group_name(settings.topics, "archiver")))
    try:
        places = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        left = 0
        for place in consumer.committed([TopicPartition(topic, number) for number in places], timeout=10):
            left += watermarks(consumer, place, 10)[1] - max(0, place.offset)
        return left
    finally:
        consumer.close()


def test_an_archiver_killed_twice_keeps_each_row_once(tmp_path, data_dir, kafka_bootstrap, redis_url, topic_prefix):
    msl_rows(data_dir, tmp_path / "msl.parquet")
    dataset = read_dataset(tmp_path / "msl.parquet")
    settings = settings_of(dataset, tmp_path, kafka_bootstrap, redis_url, topic_prefix)
    archive = Archive(settings.archive.url)
    moments = np.random.default_rng(11)
    with processes(settings, tmp_path) as services:
        services.start("archiver")
        for part in range(3):
            before = archive.files()
            replay(
                settings,
                tmp_path / "msl.parquet",
                rows_per_s=None,
                interval_ms=None,
                stop=threading.Event(),
                columns=part == 2,
            )
            wait_for(lambda before=before: archive.files() != before, "a flush")
            if part < 2:
                time.sleep(moments.uniform(0, 0.4))
                services.kill("archiver")
                services.start("archiver")
        wait_for(lambda: behind(settings) == 0, "the archiver to have it all")
    sent = sent_rows(archive, "msl")
    assert sent.num_rows == 3 * dataset.rows
    assert fingerprint(read_archive(archive, settings.families[0])) == fingerprint(dataset)
    assert fingerprint(read_any(settings.archive.url, "msl")) == fingerprint(dataset)
