"""The demo's sources: what they stream, train on, and know to be wrong."""

from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import demo_sources
from deploy.demo_sources import FileSource, SimulatorSource, choose_source, declare
from detector.registry import check_name
from stream.errors import UsageError
from stream.grid import slot_of
from training.datasets import fingerprint, read_dataset

NOW_S = 1_790_000_000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(demo_sources.time, "time", lambda: NOW_S)


def rows_of(source, count):
    return list(islice(source.rows(), count))


def table(rows=60, entities=("a-1", "b-1"), labels=None):
    t = np.tile(np.arange(rows), len(entities))
    columns = {"entity": np.repeat(entities, rows), "t": t, "m0": np.sin(t / 5), "c0": t % 7 == 0}
    if labels is not None:
        columns["label"] = np.array(labels, dtype=np.uint8)
    return pa.table(columns)


def test_a_source_is_the_simulator_or_a_file(tmp_path):
    assert choose_source("simulator", 10, 0).name == "simulator"
    pq.write_table(table(), tmp_path / "x_test.parquet")
    assert choose_source(str(tmp_path / "x_test.parquet"), 10, 0).name == "x_test.parquet"
    with pytest.raises(UsageError, match="simulator or a Parquet file"):
        choose_source(str(tmp_path / "none.parquet"), 10, 0)


def test_every_simulated_row_is_of_one_family_with_its_channels_and_the_next_of_its_entity():
    source = SimulatorSource(30, 0)
    slots = {}
    for row in rows_of(source, 2000):
        (family,) = (family for family in source.families if family.matches(row.entity))
        assert set(row.values) == set(family.channels)
        slots.setdefault(row.entity, []).append(slot_of(row.ts, family.interval_ms))
    assert all(after == before + 1 for of_one in slots.values() for before, after in pairwise(of_one))
    assert len({of_one[0] for of_one in slots.values()}) == 1


def test_a_run_of_the_simulator_ends_about_now_and_streams_what_was_planned():
    seconds = 60
    source = SimulatorSource(seconds, 0)
    rows = int(source.rows_per_s * seconds)
    last_ms = rows_of(source, rows)[-1].ts
    assert abs(last_ms - NOW_S * 1000) <= 2 * source.families[0].interval_ms
    first_ms = rows_of(source, 1)[0].ts
    faults = source.faults()
    assert [fault.first_ms for fault in faults] == sorted(fault.first_ms for fault in faults)
    assert faults
    for fault in faults:
        (family,) = (family for family in source.families if family.matches(fault.entity))
        assert set(fault.channels) <= set(family.channels)
        assert first_ms <= fault.first_ms <= fault.last_ms <= last_ms


def test_the_seed_decides_what_is_simulated():
    one, same, other = SimulatorSource(30, 1), SimulatorSource(30, 1), SimulatorSource(30, 2)
    assert rows_of(one, 400) == rows_of(same, 400)
    assert one.faults() == same.faults()
    assert rows_of(one, 400) != rows_of(other, 400)


def test_training_data_stay_the_same_whenever_and_however_long_the_demo_runs(monkeypatch):
    before = SimulatorSource(30, 0)
    monkeypatch.setattr(demo_sources.time, "time", lambda: NOW_S + 12_345)
    after = SimulatorSource(90, 0)
    for early, late in zip(before.families, after.families, strict=True):
        data = before.training(early)
        assert fingerprint(data) == fingerprint(after.training(late))
        assert declare(data, early.name, early.entities, early.geometry) == early == late
        assert all(early.matches(series.entity) for series in data.series)


def test_a_file_is_streamed_as_it_is_recorded_within_the_demos_time(tmp_path):
    pq.write_table(table(rows=4000), tmp_path / "x.parquet")
    source = FileSource(tmp_path / "x.parquet", seconds=20)
    rows = list(source.rows())
    assert len(rows) == 8000
    assert len(rows) / source.rows_per_s <= 20
    assert [row.entity for row in rows[:4]] == ["a-1", "b-1", "a-1", "b-1"]
    (family,) = source.families
    assert (family.numeric, family.commands, family.matches("a-1")) == (["m0"], ["c0"], True)


def test_a_file_trains_on_the_one_beside_it_else_on_the_first_half_of_each_entity(tmp_path):
    pq.write_table(table(rows=60), tmp_path / "x_test.parquet")
    alone = FileSource(tmp_path / "x_test.parquet", 10)
    half = alone.training(alone.families[0])
    whole = read_dataset(tmp_path / "x_test.parquet")
    for series, of_whole in zip(half.series, whole.series, strict=True):
        assert (series.entity, series.slots.tolist()) == (of_whole.entity, of_whole.slots[:30].tolist())
        np.testing.assert_array_equal(series.values, of_whole.values[:30])

    pq.write_table(table(rows=25), tmp_path / "x_train.parquet")
    beside = FileSource(tmp_path / "x_test.parquet", 10)
    trained = fingerprint(beside.training(beside.families[0]))
    assert trained == fingerprint(read_dataset(tmp_path / "x_train.parquet"))


@settings(deadline=None, max_examples=30)
@given(labels=st.lists(st.booleans(), min_size=2, max_size=20).map(lambda one: one if len(one) % 2 == 0 else one[:-1]))
def test_the_labelled_rows_are_the_known_faults_run_by_run(tmp_path_factory, labels):
    file = tmp_path_factory.mktemp("labelled") / "x.parquet"
    rows = len(labels) // 2
    pq.write_table(table(rows=rows, labels=labels), file)
    source = FileSource(file, 10)
    interval_ms = source.families[0].interval_ms
    told = [
        (fault.entity, ts)
        for fault in source.faults()
        for ts in range(fault.first_ms, fault.last_ms + interval_ms, interval_ms)
    ]
    assert set(told) == {
        (series.entity, int(slot) * interval_ms)
        for series in read_dataset(file).series
        for slot in series.slots[series.labels == 1]
    }
    assert len(told) == len(set(told))
    of_one = [(fault.entity, fault.last_ms) for fault in source.faults()]
    assert not any((fault.entity, fault.first_ms - interval_ms) in of_one for fault in source.faults())


def test_a_file_without_labels_knows_no_fault(tmp_path):
    pq.write_table(table(), tmp_path / "x.parquet")
    assert FileSource(tmp_path / "x.parquet", 10).faults() == []


@pytest.mark.parametrize("stem", ["MSL_test", "größe", "a b.c", "-x-", "_", "9" * 100, "a" * 63 + "-b", "日本", "."])
def test_any_file_name_gives_a_family_that_can_be_declared(tmp_path, stem):
    pq.write_table(table(), tmp_path / f"{stem}.parquet")
    (family,) = FileSource(tmp_path / f"{stem}.parquet", 10).families
    assert check_name(family.name) == family.name
