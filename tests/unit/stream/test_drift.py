"""The drift service's stage: what it tells, what it rebuilds, and what it takes from a manifest."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.contracts import DriftEvent
from stream.drift import DriftMonitor
from stream.errors import TransientError
from stream.kafka import BY_KEY, Record
from stream.metrics import Metrics
from stream.settings import DriftSettings, Settings
from stream.sketch import MANIFEST, Sketch, read_sketch
from tests.unit.stream.drift_fleet import LENGTH, fleet, sketches, summary, training_sketch

SETTINGS = Settings(drift=DriftSettings(cooldown_s=200 * LENGTH))
SKETCH = training_sketch(sketches(4))
ENCODE = msgspec.json.encode


def records(blocks=150, at=40, shift=3.0, partition=0):
    """Return a family's summaries as consumed; its fleet moves at a block."""
    means = fleet(0, blocks, 4)
    means[at:] += shift
    rows = [summary(f"e{i}", block, means[block, i]) for block in range(blocks) for i in range(4)]
    return [Record("summaries", partition, at, b"rover", ENCODE(row), 0) for at, row in enumerate(rows)]


RECORDS = records()


def monitor(published=(), metrics=None, sketch=SKETCH):
    one = DriftMonitor(SETTINGS, lambda family, version: sketch, lambda: published, metrics or Metrics())
    assert one.restore(0, 0, 0) == 0
    return one


def told(progress):
    return [msgspec.json.decode(message.value, type=DriftEvent) for message in progress.outgoing]


WHOLE = told(monitor().process(RECORDS))


def test_a_moved_fleet_is_told_once_and_counted():
    metrics = Metrics()
    one = monitor(metrics=metrics)
    progress = one.process(RECORDS)
    (message,) = progress.outgoing
    assert (message.topic, message.partition, message.key) == ("drift", BY_KEY, b"rover")
    assert progress.next_offsets == {0: len(RECORDS)}
    assert progress.held == []
    one.committed([(message, 0)])
    sample = metrics.registry.get_sample_value
    assert sample("telltale_drift_events_total", {"family": "rover"}) == 1
    assert sample("telltale_drift_moved_entities", {"family": "rover"}) == 4
    assert sample("telltale_drift_watched_entities", {"family": "rover"}) == 4


@given(st.lists(st.integers(1, 200), max_size=6))
@settings(max_examples=15)
def test_how_summaries_are_batched_does_not_matter(sizes):
    one, at, events = monitor(), 0, []
    for size in [*sizes, len(RECORDS)]:
        if RECORDS[at : at + size]:
            events += told(one.process(RECORDS[at : at + size]))
        at += size
    assert events == WHOLE


@given(st.integers(0, len(RECORDS)), st.booleans())
@settings(max_examples=15)
def test_a_successor_tells_what_is_left_to_tell(committed, lost):
    """It died before or after its transaction at some offset; what was committed is not told again, all else is."""
    before = told(monitor().process(RECORDS[:committed])) if committed else []
    one = DriftMonitor(SETTINGS, lambda family, version: SKETCH, lambda: before, Metrics())
    assert one.restore(0, committed, 0) == 0
    if committed:
        one.replay(0, RECORDS[:committed])
    rest = told(one.process(RECORDS[committed:])) if committed < len(RECORDS) else []
    assert before + rest == WHOLE


def test_a_successor_that_finds_the_oldest_summaries_gone_does_not_repeat_an_event():
    kept = RECORDS[100:]
    successor = monitor(published=WHOLE)
    assert told(successor.process(kept)) == []
    assert len(told(monitor().process(kept))) == 1  # it is the published event that it keeps quiet for


def test_a_partition_that_went_away_is_forgotten():
    one = monitor()
    one.process(RECORDS[:100])
    one.drop([0, 3])
    with pytest.raises(KeyError):
        one.process(RECORDS[100:])


def test_families_do_not_count_for_each_other():
    lander = [Record("summaries", 0, r.offset, b"lander", r.value.replace(b'"rover"', b'"lander"'), 0) for r in RECORDS]
    mixed = [record for pair in zip(RECORDS, lander, strict=True) for record in pair]
    events = told(monitor().process(mixed))
    assert [event.family for event in events] == ["rover", "lander"]
    assert len({event.id for event in events}) == 2


def manifest(**changes):
    channels = [{"name": "volts", "kind": "numeric"}, {"name": "on", "kind": "command"}]
    entity = {"name": "e0", "sketch": {name: [1.0, 2.0] for name in Sketch.__struct_fields__[1:]} | {"blocks": 9}}
    fields = {"name": "rover", "version": "v1", "geometry": {"length": 64, "hop": 8}, "channels": channels}
    return {**fields, "entities": [entity, {"name": "e1", "sketch": None}, {"name": "e2"}], **changes}


def write(folder, content):
    path = folder / "rover" / "v1"
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(content)


def test_a_sketch_is_read_from_the_manifest_of_the_version_in_use(tmp_path):
    write(tmp_path, json.dumps(manifest()))
    sketch = read_sketch(str(tmp_path), "rover", "v1", 16)
    assert (sketch.channels, sketch.length, sketch.merged) == (["volts"], 64, 1)
    assert list(sketch.entities) == ["e0"]
    np.testing.assert_array_equal(sketch.entities["e0"].mean, [1.0, 2.0])


@pytest.mark.parametrize(
    "content",
    [
        "{",
        json.dumps(manifest(entities=[{"name": "e0"}])),
        json.dumps(manifest(channels=[])),
        json.dumps({"name": "rover"}),
    ],
    ids=["broken", "of before sketches", "another number of channels", "another file"],
)
def test_a_manifest_without_a_usable_sketch_leaves_the_family_unwatched(tmp_path, content):
    write(tmp_path, content)
    assert read_sketch(str(tmp_path), "rover", "v1", 16) is None
    assert monitor(sketch=None).process(RECORDS).outgoing == []


def test_a_version_that_is_gone_leaves_the_family_unwatched(tmp_path):
    assert read_sketch(str(tmp_path), "rover", "v1", 16) is None


def test_a_registry_that_does_not_answer_is_tried_again(tmp_path, monkeypatch):
    write(tmp_path, json.dumps(manifest()))

    def away(*_):
        raise OSError("no route")

    monkeypatch.setattr("stream.sketch.read_file", away)
    with pytest.raises(TransientError, match="no route"):
        read_sketch(str(tmp_path), "rover", "v1", 16)
