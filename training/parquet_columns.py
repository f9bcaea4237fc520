"""Columns of a Parquet file as arrays: times, entities, labels, channels. Refuses what has no clear meaning.

Knows no grid of slots and no series.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from numpy.typing import NDArray

from detector.manifest import Channel
from stream.contracts import check_entity
from stream.errors import ContractError, UsageError
from stream.grid import MAX_TS_MS, MIN_TS_MS, slot_of

# Row t = 0 of a data set that only numbers its rows stands at 2026-01-01T00:00:00Z.
DATASET_EPOCH_MS = 1_767_225_600_000
DEFAULT_INTERVAL_MS = 1000
ONLY_ENTITY = "all"
KEYS = ("entity", "ts", "t")
_RESERVED = (*KEYS, "label")
# What pandas calls an index without a name.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_UNITS_PER_MS = {"us": 1000, "ns": 1_000_000}

_log = structlog.get_logger(__name__)


class Times(NamedTuple):
    """Times of rows. ts_ms: (n,). exact: (n,), in the column's own unit, which may be finer than milliseconds."""

    ts_ms: NDArray[np.int64]
    exact: NDArray[np.int64]
    interval_ms: int


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file, all columns or those of these names that it has; raise UsageError if that can't be done."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            again = sorted({name for name in names if names.count(name) > 1})
            if again:
                raise UsageError(f"{path}: column {again[0]} is there {names.count(again[0])} times; keep one of them")
            return file.read(columns=None if columns is None else [name for name in columns if name in names])
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: can't be read as Parquet: {_first_line(error)}") from error


def read_channels(schema: pa.Schema, path: str | Path) -> list[Channel]:
    """Return the channels: floating point columns are numeric, bool and uint8 columns commands."""
    fields = [field for field in schema if field.name not in _RESERVED and not _is_index(field.name, path)]
    channels = [Channel(field.name, kind) for field in fields if (kind := _kind(field.type)) is not None]
    odd = [field for field in fields if _kind(field.type) is None]
    if odd:
        more = f" and {len(odd) - 1} more are neither floats nor bool" if len(odd) > 1 else ""
        raise UsageError(
            f"{path}: column {odd[0].name} is {odd[0].type}{more}; "
            "cast it to a float (numeric channel) or bool (command), or leave it out"
        )
    if all(channel.kind == "command" for channel in channels):
        raise UsageError(f"{path}: wants at least one numeric channel (a floating point column), got none")
    return channels


def read_entities(table: pa.Table, path: str | Path) -> tuple[NDArray[np.int64], list[str]]:
    """Return each row's entity as a number, and the names in order of first appearance."""
    if "entity" not in table.column_names:
        return np.zeros(table.num_rows, np.int64), [ONLY_ENTITY]
    try:
        text = _text(table["entity"])
    except pa.ArrowException as error:
        raise UsageError(f"{path}: column entity wants text, got {table['entity'].type}; cast it") from error
    if text.null_count:
        raise UsageError(f"{path}: column entity wants a name in every row, {text.null_count} have none")
    unique = text.unique()
    names = [str(name) for name in unique.to_pylist()]
    try:
        for name in names:
            check_entity(name)
    except ContractError as error:
        raise UsageError(f"{path}: {error}") from error
    return pc.index_in(text, value_set=unique).to_numpy().astype(np.int64), names


def read_times(table: pa.Table, path: str | Path, code: NDArray[np.int64], interval_ms: int | None) -> Times:
    """Return the rows' times and the interval: the given one, the usual distance of `ts`, or a second for `t`."""
    if "ts" in table.column_names:
        return _times_of_ts(table["ts"], path, code, interval_ms)
    if "t" in table.column_names:
        return _times_of_t(table["t"], path, interval_ms or DEFAULT_INTERVAL_MS)
    raise UsageError(f"{path}: wants a time column, ts (milliseconds or timestamps) or t (row numbers), got neither")


def read_values(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a channel as (n,), NaN = missing; numbers beyond float32 become infinite."""
    return np.array(table[name].cast(pa.float32(), safe=False).to_numpy())


def read_labels(table: pa.Table, path: str | Path) -> NDArray[np.uint8] | None:
    """Return the labels (n,), or None without such a column."""
    if "label" not in table.column_names:
        return None
    column = table["label"]
    if column.null_count:
        raise UsageError(f"{path}: column label wants 0 or 1 in every row, {column.null_count} have none")
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type)):
        raise UsageError(f"{path}: column label wants 0 or 1 in every row, got {column.type}; cast it to bool")
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise UsageError(f"{path}: column label wants 0 or 1 in every row, row {wrong[0]} has {values[wrong[0]]:g}")
    return values.astype(np.uint8)


def _text(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        raise pa.ArrowTypeError("numbers that are no names")
    return column.cast(pa.string())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_index(name: str, path: str | Path) -> bool:
    """Say whether a column is an index that pandas wrote along, which is no channel."""
    if not _PANDAS_INDEX.fullmatch(name):
        return False
    _log.warning("index_ignored", path=str(path), column=name, reason="an index without a name is no channel")
    return True


def _kind(column: pa.DataType) -> Literal["numeric", "command"] | None:
    if pa.types.is_floating(column):
        return "numeric"
    return "command" if pa.types.is_boolean(column) or pa.types.is_uint8(column) else None


def _times_of_ts(
    column: "pa.ChunkedArray[Any]", path: str | Path, code: NDArray[np.int64], interval_ms: int | None
) -> Times:
    if pa.types.is_timestamp(column.type):
        exact = _integers(column, "ts", path)
        ts_ms = _integers(pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False), "ts", path)
        per_ms = _UNITS_PER_MS.get(column.type.unit, 1)
    else:
        exact = ts_ms = _integers(column, "ts", path)
        per_ms = 1
    for extreme in (int(ts_ms.min()), int(ts_ms.max())):
        try:
            slot_of(extreme, 1)
        except ContractError as error:
            raise UsageError(f"{path}: {error}; rows that have no such time may be numbered in t instead") from error
    if per_ms == 1:  # time stamps in seconds have become milliseconds
        exact = ts_ms
    return Times(ts_ms, exact, interval_ms or _usual_interval(code, exact, per_ms, path))


def _times_of_t(column: "pa.ChunkedArray[Any]", path: str | Path, interval_ms: int) -> Times:
    numbers = _integers(column, "t", path)
    lowest = -((DATASET_EPOCH_MS - MIN_TS_MS) // interval_ms)
    highest = (MAX_TS_MS - 1 - DATASET_EPOCH_MS) // interval_ms
    if numbers.min() < lowest or numbers.max() > highest:
        raise UsageError(
            f"{path}: column t wants row numbers between {lowest} and {highest}, got {numbers.min()} to "
            f"{numbers.max()}; name it ts if it holds milliseconds since 1970"
        )
    return Times(DATASET_EPOCH_MS + numbers * interval_ms, numbers, interval_ms)


def _integers(column: "pa.ChunkedArray[Any]", name: str, path: str | Path) -> NDArray[np.int64]:
    if column.null_count:
        raise UsageError(f"{path}: column {name} wants a time in every row, {column.null_count} have none")
    wanted = "integers or timestamps" if name == "ts" else "integers"
    if not (pa.types.is_integer(column.type) or (name == "ts" and pa.types.is_timestamp(column.type))):
        raise UsageError(f"{path}: column {name} wants {wanted}, got {column.type}; cast it")
    try:
        return np.asarray(column.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: column {name} wants {wanted} below 2^63: {_first_line(error)}") from error


def _usual_interval(code: NDArray[np.int64], exact: NDArray[np.int64], per_ms: int, path: str | Path) -> int:
    """Return the median distance of an entity's rows in milliseconds."""
    order = np.lexsort((exact, code))
    distance = np.diff(exact[order])[np.diff(code[order]) == 0]
    distance = distance[distance > 0]
    if not len(distance):
        raise UsageError(f"{path}: the interval can't be told from one time per entity; name it")
    usual_ms = float(np.median(distance)) / per_ms
    if usual_ms < 0.5:
        raise UsageError(
            f"{path}: rows are {usual_ms:g} ms apart, and 1 ms is the shortest interval; number the rows in t instead"
        )
    return max(1, int(usual_ms + 0.5) if per_ms > 1 else int(usual_ms))
