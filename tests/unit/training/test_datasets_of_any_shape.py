"""Files that nobody here has seen: what they mean, and which sentence refuses them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from detector.manifest import Channel
from stream.errors import UsageError
from training.datasets import Dataset, fingerprint, read_dataset, read_rows, warn_of_still_channels, window_ends

TS = 1_780_000_000_000
T = pa.array(range(6))
X = pa.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])


def write(folder: Path, **columns: object) -> Path:
    path = folder / "d.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def read(folder: Path, **columns: object) -> Dataset:
    return read_dataset(write(folder, **columns))


@pytest.fixture
def said() -> Iterator[Callable[[], dict[str, Any]]]:
    """Return the warnings so far, by event."""
    with capture_logs() as logs:
        yield lambda: {log["event"]: log for log in logs}


@pytest.mark.parametrize("of", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_every_float_is_numeric(tmp_path: Path, of: pa.DataType) -> None:
    dataset = read(tmp_path, t=T, x=X.cast(of))
    assert dataset.channels == [Channel("x", "numeric")]
    assert dataset.series[0].values[:, 0].tolist() == X.to_pylist()


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array(range(6), of) for of in (pa.int8(), pa.int16(), pa.uint16(), pa.int32(), pa.int64())),
        pa.array(range(6)).cast(pa.decimal128(30, 2)),
        pa.array("abcdef"),
        pa.nulls(6),
        pa.nulls(6, pa.list_(pa.float32())),
        pa.nulls(6, pa.timestamp("ns")),
    ],
    ids=lambda column: str(column.type),
)
def test_what_may_be_number_or_state_is_refused_with_what_to_cast_it_to(tmp_path: Path, column: pa.Array) -> None:
    with pytest.raises(UsageError, match=r"column y is .*cast it to a float .* or bool"):
        read(tmp_path, t=T, x=X, y=column)


def test_of_many_odd_columns_one_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="column a is int64 and 2 more are neither floats nor bool"):
        read(tmp_path, t=T, x=X, a=T, b=T, c=T)


def test_an_index_without_a_name_is_no_channel(tmp_path: Path, said) -> None:
    assert read(tmp_path, t=T, x=X, __index_level_0__=T).channels == [Channel("x", "numeric")]
    assert "index_ignored" in said()


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([T, X, X], ["t", "x", "x"]), tmp_path / "d.parquet")
    with pytest.raises(UsageError, match="column x is there 2 times"):
        read_dataset(tmp_path / "d.parquet")


def test_one_file_is_read_and_not_its_folders(tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    assert read(tmp_path / "year=2026", t=T, x=X).channels == [Channel("x", "numeric")]
    with pytest.raises(UsageError, match="can't be read as Parquet"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_times_mean_the_same_in_every_unit_and_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    ms = pa.array([TS + 2000 * i for i in range(6)])
    plain = read(tmp_path, ts=ms, x=X)
    stamped = read(tmp_path, ts=ms.cast(pa.timestamp("ms")).cast(pa.timestamp(unit, zone)), x=X)
    assert fingerprint(stamped) == fingerprint(plain)
    assert stamped.interval_ms == 2000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ts": [str(TS + i) for i in range(6)]}, "column ts wants integers or timestamps, got string; cast it"),
        ({"ts": [TS / 1000 + i for i in range(6)]}, "column ts wants integers or timestamps, got double"),
        ({"ts": [TS // 1000 + i for i in range(6)]}, "it looks like seconds"),
        ({"ts": pa.array([2**63 + i for i in range(6)], pa.uint64())}, "column ts wants .* below 2.63"),
        ({"ts": pa.array(range(6), pa.timestamp("ns"))}, "numbered in t instead"),
        ({"ts": pa.array([TS * 1000 + 100 * i for i in range(6)], pa.timestamp("us"))}, "0.1 ms apart"),
        ({"t": [TS + i for i in range(6)]}, "column t wants row numbers .* name it ts"),
        ({"t": [i * 10**18 for i in range(6)]}, "column t wants row numbers"),
        ({"t": pa.array([TS * 1000 + i for i in range(6)], pa.timestamp("us"))}, "column t wants integers"),
    ],
)
def test_times_that_are_none_are_refused(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, x=X, **columns)


def test_rows_within_a_millisecond_keep_their_order_and_the_last_one_counts(tmp_path: Path, said) -> None:
    ns = [(TS + 1000 * i) * 10**6 for i in range(5)]
    dataset = read(tmp_path, ts=pa.array([ns[0] + 9, *ns], pa.timestamp("ns")), x=X)
    assert dataset.series[0].values[:, 0].tolist() == [0.5, 2.5, 3.5, 4.5, 5.5]
    assert said()["rows_share_slots"]["dropped"] == 1


def test_a_row_that_says_the_same_again_is_dropped_with_a_warning(tmp_path: Path, said) -> None:
    table = pa.table({"t": T, "x": pa.array([0.5, None, 2.5, 3.5, 4.5, 5.5]), "c": pa.array([True, None] * 3)})
    pq.write_table(table, tmp_path / "once.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(1, 2), table.slice(1, 1)]), tmp_path / "again.parquet")
    once, again = (read_dataset(tmp_path / f"{name}.parquet") for name in ("once", "again"))
    assert fingerprint(again) == fingerprint(once)
    warnings = said()
    assert warnings["rows_repeated"]["dropped"] == 3
    assert "rows_share_slots" not in warnings
    rows = read_rows(tmp_path / "again.parquet", interval_ms=1000)
    assert rows.slots[6:].tolist() == rows.slots[[1, 2, 1]].tolist()


@pytest.mark.parametrize("column", ["x", "label"])
def test_a_row_that_says_otherwise_at_the_same_time_is_refused(tmp_path: Path, column: str) -> None:
    columns = {"t": [0, 1, 1, 2], "x": [0.5, 1.5, 1.5, 2.5], "label": [0, 0, 0, 0]}
    columns[column][1] = 1
    with pytest.raises(UsageError, match="rows 1 and 2 have the same entity and time, but not the same values"):
        read(tmp_path, **columns)


def test_what_float32_cant_hold_is_missing(tmp_path: Path, said) -> None:
    dataset = read(tmp_path, t=T, x=[np.inf, -np.inf, 1e300, np.nan, None, 1.0], y=X)
    np.testing.assert_array_equal(dataset.series[0].values[:, 0], np.array([*[np.nan] * 5, 1], np.float32))
    assert said()["infinite_values_are_missing"]["values"] == {"x": 3}


def test_a_channel_may_be_missing_but_not_all(tmp_path: Path) -> None:
    nothing = pa.nulls(6, pa.float32())
    assert read(tmp_path, t=T, x=X, y=nothing).rows == 6
    with pytest.raises(UsageError, match="every numeric channel is missing in every row"):
        read(tmp_path, t=T, x=nothing, y=[np.inf] * 6, c=[True] * 6)


def test_values_too_far_apart_for_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"column x spans -3e.38 to 3e.38"):
        read(tmp_path, t=T, x=[3e38, -3e38] * 3)


def test_still_and_absent_channels_are_named(tmp_path: Path, said) -> None:
    flat, nothing = pa.array([7.0, None] * 3), pa.nulls(6, pa.float32())
    path = write(tmp_path, t=T, x=X, flat=flat, nothing=nothing, off=[False] * 6, on=[True, False] * 3)
    warn_of_still_channels(read_dataset(path), path)
    warnings = said()
    assert warnings["channels_never_change"]["channels"] == ["flat", "off"]
    assert warnings["channels_without_values"]["channels"] == ["nothing"]


def test_commands_of_more_than_one_are_told(tmp_path: Path, said) -> None:
    read(tmp_path, t=T, x=X, mode=pa.array([0, 1, 2, 3, 0, 1], pa.uint8()), on=pa.array([0, 1] * 3, pa.uint8()))
    assert said()["commands_above_one_count_as_on"]["channels"] == ["mode"]


@pytest.mark.parametrize(("step", "warned"), [(1, False), (60, True)])
def test_rows_far_apart_are_told(tmp_path: Path, said, step: int, warned: bool) -> None:
    read(tmp_path, t=[step * i for i in range(6)], x=X)
    assert ("rows_are_far_apart" in said()) == warned


NAMES = pa.array(["a", "a", "b", "b", "b", "c"])


@pytest.mark.parametrize(
    "names",
    [NAMES.dictionary_encode(), NAMES.cast(pa.large_string()), NAMES.cast(pa.large_string()).dictionary_encode()],
    ids=lambda names: str(names.type),
)
def test_names_mean_the_same_however_they_are_kept(tmp_path: Path, names: pa.Array) -> None:
    assert fingerprint(read(tmp_path, entity=names, t=T, x=X)) == fingerprint(read(tmp_path, entity=NAMES, t=T, x=X))


@pytest.mark.parametrize(
    "names",
    [pa.array([1.0] * 6), pa.array([True] * 6), pa.array([["a"]] * 6), pa.array([b"\xff"] * 6)],
    ids=lambda names: str(names.type),
)
def test_entities_without_a_name_in_text_are_refused(tmp_path: Path, names: pa.Array) -> None:
    with pytest.raises(UsageError, match="column entity wants text, got"):
        read(tmp_path, entity=names, t=T, x=X)


@pytest.mark.parametrize("of", [pa.bool_(), pa.int8(), pa.int64(), pa.uint32()], ids=str)
def test_labels_are_flags_or_whole_numbers(tmp_path: Path, of: pa.DataType) -> None:
    labels = read(tmp_path, t=T, x=X, label=pa.array([0, 0, 1, 1, 0, 0]).cast(of)).series[0].labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0.0, 1.0] * 3), "got double; cast it to bool"),
        (pa.array(["no", "yes"] * 3), "got string"),
        (pa.array(["no", "yes"] * 3).dictionary_encode(), "got dictionary"),
        (pa.array([0, 2] * 3), "row 1 has 2"),
        (pa.array([0, -1] * 3), "row 1 has -1"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path: Path, labels: pa.Array, message: str) -> None:
    with pytest.raises(UsageError, match="column label wants 0 or 1 in every row, " + message):
        read(tmp_path, t=T, x=X, label=labels)


def test_a_silence_of_years_makes_no_windows(tmp_path: Path) -> None:
    dataset = read(tmp_path, ts=[TS, TS + 1, TS + 2, TS + 3, TS + 10**12, TS + 10**12 + 1], x=X)
    assert dataset.interval_ms == 1
    assert len(window_ends(dataset.series[0], 64)) == 2


FLOATS = st.floats(width=64) | st.none()
COLUMNS = st.sampled_from(
    [
        (pa.float16(), st.floats(width=16) | st.none()),
        (pa.float32(), st.floats(width=32) | st.none()),
        (pa.float64(), FLOATS),
        (pa.bool_(), st.booleans() | st.none()),
        (pa.uint8(), st.integers(0, 255) | st.none()),
        (pa.int16(), st.integers(-5, 5)),
        (pa.string(), st.text(max_size=3)),
    ]
)
TIMES = st.sampled_from(
    [
        (pa.int64(), st.integers(0, 20)),
        (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
        (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.int64(), st.integers(TS, TS + 10**4)),
        (pa.timestamp("s", "UTC"), st.integers(TS // 1000, TS // 1000 + 50)),
        (pa.timestamp("ns"), st.integers(TS * 10**6, TS * 10**6 + 10**10)),
        (pa.timestamp("us"), st.integers(-(2**62), 2**62)),
        (pa.float64(), FLOATS),
    ]
)
ENTITIES = st.sampled_from(
    [
        (pa.string(), st.sampled_from(["a", "b", "c-1"])),
        (pa.large_string(), st.sampled_from(["a", "b"]) | st.none()),
        (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
        (pa.int32(), st.integers(0, 3)),
        (pa.string(), st.text(max_size=3)),
    ]
)
LABELS = st.sampled_from(
    [
        (pa.bool_(), st.booleans()),
        (pa.int64(), st.integers(0, 1)),
        (pa.int8(), st.integers(-1, 2)),
        (pa.float32(), FLOATS),
    ]
)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 12))
    kinds = {name: draw(COLUMNS) for name in draw(st.lists(st.sampled_from(["x", "y", "z", ""]), unique=True))}
    kinds |= {draw(st.sampled_from(["ts", "t"])): draw(TIMES)}
    for name, of in (("entity", ENTITIES), ("label", LABELS)):
        if draw(st.booleans()):
            kinds[name] = draw(of)
    columns = {
        name: pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), of) for name, (of, values) in kinds.items()
    }
    return pa.table(columns)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=tables())
def test_any_file_is_a_data_set_or_is_refused_in_one_line(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "any.parquet"
    pq.write_table(table, path)
    dataset = data_set_or_complaint(path)
    if isinstance(dataset, str):
        assert dataset.startswith(f"{path}: ")
        assert "\n" not in dataset
        return
    assert dataset.interval_ms >= 1
    assert len(dataset.numeric) >= 1
    assert len({series.entity for series in dataset.series}) == len(dataset.series)
    for series in dataset.series:
        assert len(series.slots) >= 1
        assert (np.diff(series.slots) > 0).all()
        assert series.values.dtype == np.float32
        assert series.values.shape == (len(series.slots), len(dataset.channels))
        assert not np.isinf(series.values).any()
        assert series.labels is None or set(series.labels.tolist()) <= {0, 1}
    assert_rows_are_found(path, dataset)


def data_set_or_complaint(path: Path) -> Dataset | str:
    with capture_logs():
        try:
            return read_dataset(path)
        except UsageError as error:
            return str(error)


def assert_rows_are_found(path: Path, dataset: Dataset) -> None:
    """Every row of the file lies in a slot that the data set holds, and every slot has its rows."""
    rows = read_rows(path, interval_ms=dataset.interval_ms)
    assert rows.names == [series.entity for series in dataset.series]
    for code, series in enumerate(dataset.series):
        assert np.unique(rows.slots[rows.code == code]).tolist() == series.slots.tolist()
