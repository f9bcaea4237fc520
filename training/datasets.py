"""Telemetry in Parquet: reads it, fingerprints it and says where live windows end. Knows no model; never imports torch.

Columns: `entity` (text, optional), a time (`ts`: milliseconds or a timestamp type; or `t`: the row's number), an
optional `label`, and channels: floating point columns are numeric, bool and uint8 columns are commands.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from numpy.typing import NDArray

from detector.manifest import Channel
from stream.contracts import check_entity
from stream.errors import ContractError, UsageError
from stream.grid import MAX_TS_MS, MIN_TS_MS

# Row t = 0 of a data set that only numbers its rows stands at 2026-01-01T00:00:00Z.
DATASET_EPOCH_MS = 1_767_225_600_000
DEFAULT_INTERVAL_MS = 1000
ONLY_ENTITY = "all"
_RESERVED = ("entity", "ts", "t", "label")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Series:
    """One entity's rows in time order: slots (n,) ascending, values (n, C_all) NaN = missing, labels (n,) or None."""

    entity: str
    slots: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Series of entities that share their channels, in order of their first row."""

    channels: list[Channel]
    interval_ms: int
    series: list[Series]

    @property
    def rows(self) -> int:
        """Rows of all entities."""
        return sum(len(series.slots) for series in self.series)

    @property
    def numeric(self) -> list[int]:
        """Columns of `values` that hold numeric channels."""
        return [i for i, channel in enumerate(self.channels) if channel.kind == "numeric"]

    @property
    def commands(self) -> list[int]:
        """Columns of `values` that hold command channels."""
        return [i for i, channel in enumerate(self.channels) if channel.kind == "command"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a file in its order. keys: its entity and time columns. code: (n,) into names. slots: (n,)."""

    keys: pa.Table
    names: list[str]
    code: NDArray[np.int64]
    slots: NDArray[np.int64]


def read_dataset(path: str | Path, *, interval_ms: int | None = None) -> Dataset:
    """Read a Parquet file. Without `interval_ms` it is the usual distance of `ts`, or a second for `t`.

    Raises UsageError if the file can't be read as telemetry.
    """
    table = _read_table(path)
    if table.num_rows < 2:
        raise UsageError(f"{path}: wants at least 2 rows, got {table.num_rows}")
    channels = _channels(table.schema, path)
    code, names = _entities(table, path)
    ts_ms, interval_ms = _times(table, path, code, interval_ms)
    order = _order(code, ts_ms, path)
    slots = (2 * ts_ms[order] + interval_ms) // (2 * interval_ms)  # as stream.grid.slot_of
    keep = _last_of_slot(code[order], slots, path)
    order, slots = order[keep], slots[keep]
    values = np.empty((len(order), len(channels)), np.float32)
    for column, channel in enumerate(channels):
        values[:, column] = _float_column(table, channel.name)[order]
    labels = _labels(table, path)
    labels = None if labels is None else labels[order]
    cuts = np.searchsorted(code[order], np.arange(len(names) + 1))
    series = [
        Series(name, slots[low:high], values[low:high], None if labels is None else labels[low:high])
        for name, low, high in zip(names, cuts[:-1], cuts[1:], strict=True)
    ]
    return Dataset(channels, interval_ms, series)


def read_rows(path: str | Path, *, interval_ms: int) -> Rows:
    """Return which entity and slot each row of a file belongs to, in the file's order. Errors as `read_dataset`."""
    table = _read_table(path)
    code, names = _entities(table, path)
    ts_ms, _ = _times(table, path, code, interval_ms)
    present = [name for name in ("entity", "ts", "t") if name in table.column_names]
    return Rows(table.select(present), names, code, (2 * ts_ms + interval_ms) // (2 * interval_ms))


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 of channels, interval and rows; labels don't count."""
    digest = hashlib.sha256(msgspec.json.encode([dataset.interval_ms, dataset.channels]))
    for series in dataset.series:
        digest.update(f"\n{series.entity}\n{len(series.slots)}\n".encode())
        digest.update(np.ascontiguousarray(series.slots, "<i8").tobytes())
        # Missing is missing: NaN payloads must not tell two equal data sets apart.
        canonical = np.where(np.isnan(series.values), np.float32(np.nan), series.values)
        digest.update(np.ascontiguousarray(canonical, "<f4").tobytes())
    return digest.hexdigest()


def window_ends(series: Series, hop: int) -> NDArray[np.int64]:
    """Return the live window ends whose last `hop` slots cover the series; the last one may lie beyond its end."""
    first, last = (int(slot) // hop for slot in (series.slots[0], series.slots[-1]))
    return np.arange(first + 1, last + 2, dtype=np.int64) * hop - 1


def _read_table(path: str | Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path}: can't be read as Parquet: {error}") from error


def _channels(schema: pa.Schema, path: str | Path) -> list[Channel]:
    channels = []
    for field in schema:
        if field.name in _RESERVED:
            continue
        if pa.types.is_floating(field.type):
            channels.append(Channel(field.name, "numeric"))
        elif pa.types.is_boolean(field.type) or pa.types.is_uint8(field.type):
            channels.append(Channel(field.name, "command"))
        else:
            raise UsageError(
                f"{path}: column {field.name} is {field.type}; cast it to a float (numeric channel) or bool (command)"
            )
    if all(channel.kind == "command" for channel in channels):
        raise UsageError(f"{path}: wants at least one numeric channel (a floating point column), got none")
    return channels


def _entities(table: pa.Table, path: str | Path) -> tuple[NDArray[np.int64], list[str]]:
    """Return each row's entity as a number, and the names in order of first appearance."""
    if "entity" not in table.column_names:
        return np.zeros(table.num_rows, np.int64), [ONLY_ENTITY]
    column = table["entity"]
    if column.null_count:
        raise UsageError(f"{path}: column entity wants a name in every row, {column.null_count} have none")
    text = column.cast(pa.string())
    unique = text.unique()
    names = [str(name) for name in unique.to_pylist()]
    try:
        for name in names:
            check_entity(name)
    except ContractError as error:
        raise UsageError(f"{path}: {error}") from error
    return pc.index_in(text, value_set=unique).to_numpy().astype(np.int64), names


def _times(
    table: pa.Table, path: str | Path, code: NDArray[np.int64], interval_ms: int | None
) -> tuple[NDArray[np.int64], int]:
    """Return each row's time stamp and the interval."""
    if "ts" not in table.column_names and "t" not in table.column_names:
        raise UsageError(
            f"{path}: wants a time column, ts (milliseconds or timestamps) or t (row numbers), got neither"
        )
    if "ts" in table.column_names:
        ts_ms = _integers(table, "ts", path)
        interval_ms = interval_ms or _usual_distance(code, ts_ms, path)
    else:
        interval_ms = interval_ms or DEFAULT_INTERVAL_MS
        ts_ms = DATASET_EPOCH_MS + _integers(table, "t", path) * interval_ms
    if ts_ms.min() < MIN_TS_MS or ts_ms.max() >= MAX_TS_MS:
        raise UsageError(
            f"{path}: time stamps want milliseconds between 2000 and 2100, got {ts_ms.min()} to {ts_ms.max()}"
        )
    return ts_ms, interval_ms


def _integers(table: pa.Table, name: str, path: str | Path) -> NDArray[np.int64]:
    column = table[name]
    if column.null_count:
        raise UsageError(f"{path}: column {name} wants a time in every row, {column.null_count} have none")
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False)
    elif not pa.types.is_integer(column.type):
        raise UsageError(f"{path}: column {name} wants integers or timestamps, got {column.type}")
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _usual_distance(code: NDArray[np.int64], ts_ms: NDArray[np.int64], path: str | Path) -> int:
    order = np.lexsort((ts_ms, code))
    distance = np.diff(ts_ms[order])[np.diff(code[order]) == 0]
    distance = distance[distance > 0]
    if not len(distance):
        raise UsageError(f"{path}: the interval can't be told from one time per entity; name it")
    return max(1, int(np.median(distance)))


def _order(code: NDArray[np.int64], ts_ms: NDArray[np.int64], path: str | Path) -> NDArray[np.int64]:
    """Return the row order by entity and time; refuse two rows of one entity and time."""
    order = np.lexsort((ts_ms, code))
    if (np.diff(order) != 1).any():
        _log.warning("rows_sorted", path=str(path), reason="rows of an entity were apart or out of time order")
    same = (np.diff(code[order]) == 0) & (np.diff(ts_ms[order]) == 0)
    if same.any():
        first, second = order[np.flatnonzero(same)[0]], order[np.flatnonzero(same)[0] + 1]
        raise UsageError(f"{path}: rows {first} and {second} have the same entity and time; keep one of them")
    return order


def _last_of_slot(code: NDArray[np.int64], slots: NDArray[np.int64], path: str | Path) -> NDArray[np.bool_]:
    """Select the last row of every slot, which is the one a ring would hold."""
    keep = np.append((np.diff(code) != 0) | (np.diff(slots) != 0), True)
    if not keep.all():
        _log.warning("rows_share_slots", path=str(path), dropped=int((~keep).sum()))
    return keep


def _float_column(table: pa.Table, name: str) -> NDArray[np.float32]:
    return np.asarray(table[name].cast(pa.float32(), safe=False).to_numpy())


def _labels(table: pa.Table, path: str | Path) -> NDArray[np.uint8] | None:
    if "label" not in table.column_names:
        return None
    if table["label"].null_count:
        raise UsageError(f"{path}: column label wants 0 or 1 in every row, {table['label'].null_count} have none")
    return np.asarray(table["label"].cast(pa.uint8()).to_numpy())
