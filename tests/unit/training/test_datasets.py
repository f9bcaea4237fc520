import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.manifest import Channel
from stream.errors import UsageError
from stream.frames import frame
from stream.grid import slot_of
from training.datasets import DATASET_EPOCH_MS, Series, fingerprint, read_dataset, window_ends

TS = 1_780_000_000_000


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def two_entities(path: Path, order: list[int] | None = None, **changes: object) -> Path:
    order = order or [0, 1, 2, 3, 4]
    columns = {
        "entity": pa.array(["b", "b", "b", "a", "a"]),
        "t": pa.array([0, 1, 2, 0, 1], pa.int32()),
        "on": pa.array([True, None, False, True, False]),
        "value": pa.array([0.5, 1.5, None, 3.5, 4.5], pa.float64()),
        "c1": pa.array([0, 1, 0, 1, None], pa.uint8()),
        "label": pa.array([0, 0, 1, 0, 1], pa.uint8()),
    } | changes
    pq.write_table(pa.table(columns).take(order), path)
    return path


def test_reads_kinds_entities_times_and_missing_values(tmp_path: Path) -> None:
    dataset = read_dataset(two_entities(tmp_path / "d.parquet"))
    assert dataset.channels == [Channel("on", "command"), Channel("value", "numeric"), Channel("c1", "command")]
    assert [series.entity for series in dataset.series] == ["b", "a"]
    assert (dataset.rows, dataset.interval_ms, dataset.numeric, dataset.commands) == (5, 1000, [1], [0, 2])
    b, a = dataset.series
    np.testing.assert_array_equal(b.values, np.array([[1, 0.5, 0], [np.nan, 1.5, 1], [0, np.nan, 0]], np.float32))
    np.testing.assert_array_equal(a.values, np.array([[1, 3.5, 1], [0, 4.5, np.nan]], np.float32))
    assert b.labels is not None
    assert b.labels.tolist() == [0, 0, 1]
    assert b.slots.tolist() == [DATASET_EPOCH_MS // 1000 + i for i in range(3)]


def test_a_dictionary_entity_is_a_string_entity(tmp_path: Path) -> None:
    plain = read_dataset(two_entities(tmp_path / "a.parquet"))
    encoded = read_dataset(
        two_entities(tmp_path / "b.parquet", entity=pa.array(["b", "b", "b", "a", "a"]).dictionary_encode())
    )
    assert fingerprint(plain) == fingerprint(encoded)


def test_without_entity_and_label_there_is_one_entity(tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path / "d.parquet", t=[0, 1, 5], x=[1.0, 2.0, 3.0]))
    assert [series.entity for series in dataset.series] == ["all"]
    assert dataset.series[0].labels is None
    assert np.diff(dataset.series[0].slots).tolist() == [1, 4]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([TS, TS + 60_000, TS + 120_000]),
        pa.array([TS, TS + 60_000, TS + 120_000], pa.timestamp("ms")),
        pa.array([datetime.fromtimestamp((TS + 60_000 * i) / 1000, UTC) for i in range(3)], pa.timestamp("ns", "UTC")),
    ],
)
def test_ts_may_be_milliseconds_or_timestamps(tmp_path: Path, times: pa.Array) -> None:
    dataset = read_dataset(write(tmp_path / "d.parquet", ts=times, x=[1.0, 2.0, 3.0]))
    assert dataset.interval_ms == 60_000
    assert dataset.series[0].slots.tolist() == [slot_of(TS + 60_000 * i, 60_000) for i in range(3)]


def test_slots_are_those_of_the_live_grid(tmp_path: Path) -> None:
    ts = [TS + 700 * i + i % 3 for i in range(200)]
    dataset = read_dataset(write(tmp_path / "d.parquet", ts=ts, x=[1.0] * 200), interval_ms=700)
    assert dataset.series[0].slots.tolist() == [slot_of(value, 700) for value in ts]


def test_of_rows_in_one_slot_the_last_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", ts=[TS, TS + 1000, TS + 1001, TS + 2000], x=[1.0, 2.0, 3.0, 4.0])
    assert read_dataset(path, interval_ms=1000).series[0].values[:, 0].tolist() == [1, 3, 4]


@pytest.mark.parametrize("order", [[3, 0, 4, 1, 2], [0, 2, 1, 3, 4]])
def test_disordered_rows_are_sorted(tmp_path: Path, order: list[int]) -> None:
    tidy = read_dataset(two_entities(tmp_path / "a.parquet"))
    untidy = read_dataset(two_entities(tmp_path / "b.parquet", order))
    found = {series.entity: series for series in untidy.series}
    for series in tidy.series:
        np.testing.assert_array_equal(found[series.entity].values, series.values)
        np.testing.assert_array_equal(found[series.entity].slots, series.slots)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": pa.array([1, 2, 3, 4, 5], pa.uint8())}, "at least one numeric channel"),
        ({"value": pa.array([1, 2, 3, 4, 5], pa.int64())}, "column value is int64; cast it"),
        ({"t": pa.array([0, 1, 1, 0, 1])}, "rows 1 and 2 have the same entity and time"),
        ({"t": pa.array([0, 1, None, 0, 1])}, "column t wants a time in every row"),
        ({"t": pa.array([0.0, 1.0, 2.0, 0.0, 1.0])}, "column t wants integers"),
        ({"entity": pa.array(["b", "b", None, "a", "a"])}, "wants a name in every row"),
        ({"entity": pa.array(["b", "b", "b", "a b", "a b"])}, "entity wants letters"),
        ({"ts": pa.array([1, 2, 3, 1, 2])}, "milliseconds since 1970 between 2000 and 2100"),
        ({"label": pa.array([0, 0, None, 0, 1], pa.uint8())}, "column label wants 0 or 1"),
    ],
)
def test_what_is_not_telemetry_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_dataset(two_entities(tmp_path / "d.parquet", **changes))


def test_too_few_rows_no_time_and_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 2 rows"):
        read_dataset(write(tmp_path / "a.parquet", t=[0], x=[1.0]))
    with pytest.raises(UsageError, match="wants a time column"):
        read_dataset(write(tmp_path / "b.parquet", x=[1.0, 2.0]))
    (tmp_path / "c.parquet").write_text("entity,t,x")
    for name in ("c.parquet", "absent.parquet"):
        with pytest.raises(UsageError, match="can't be read as Parquet"):
            read_dataset(tmp_path / name)


def test_the_fingerprint_is_of_the_rows_and_not_of_the_labels(tmp_path: Path) -> None:
    base = fingerprint(read_dataset(two_entities(tmp_path / "a.parquet")))
    labels = pa.array([1, 0, 1, 0, 1], pa.uint8())
    assert fingerprint(read_dataset(two_entities(tmp_path / "b.parquet", label=labels))) == base
    for number, changes in enumerate(
        [
            {"value": pa.array([0.5, 1.5, None, 3.5, 4.6])},
            {"c1": pa.array([0, 1, 0, 1, 0], pa.uint8())},
            {"t": pa.array([0, 1, 3, 0, 1])},
            {"entity": pa.array(["b", "b", "b", "c", "c"])},
        ]
    ):
        assert fingerprint(read_dataset(two_entities(tmp_path / f"{number}.parquet", **changes))) != base


@given(
    gaps=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    hop=st.integers(1, 7),
    length=st.integers(7, 20),
    start=st.integers(0, 10**6),
)
def test_live_windows_cover_every_row_once_at_its_place(gaps: list[int], hop: int, length: int, start: int) -> None:
    slots = start + np.cumsum(gaps)
    series = Series("a", slots, np.stack([slots, -slots], -1).astype(np.float32), None)
    ends = window_ends(series, hop)
    assert ((ends + 1) % hop == 0).all()
    windows = frame(series.slots, series.values, ends, length)
    wanted = ends[:, None] + np.arange(1 - length, 1)
    present = np.isin(wanted, slots)
    np.testing.assert_array_equal(windows[:, 0], np.where(present, wanted, np.nan))
    np.testing.assert_array_equal(windows[:, 1], np.where(present, -wanted, np.nan))
    assert np.sort(windows[:, 0, -hop:][present[:, -hop:]]).tolist() == slots.tolist()


def test_reading_data_needs_no_torch() -> None:
    code = "import sys, training.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
