"""Telemetry in Parquet: reads it, fingerprints it and says where live windows end. Knows no model; never imports torch.

Columns: `entity` (text, optional), a time (`ts`: milliseconds or a timestamp type; or `t`: the row's number), an
optional `label`, and channels: floating point columns are numeric, bool and uint8 columns are commands. Null, NaN and
what float32 can't hold are missing; of rows that share a slot the last one counts.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray

from detector.manifest import Channel
from stream.errors import UsageError
from training.parquet_columns import (
    DATASET_EPOCH_MS,
    KEYS,
    ONLY_ENTITY,
    read_channels,
    read_entities,
    read_labels,
    read_table,
    read_times,
    read_values,
)

__all__ = [
    "DATASET_EPOCH_MS",
    "ONLY_ENTITY",
    "Dataset",
    "Rows",
    "Series",
    "fingerprint",
    "read_dataset",
    "read_rows",
    "to_dataset",
    "warn_of_still_channels",
    "window_ends",
]

_FLOAT32_MAX = float(np.finfo(np.float32).max)

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
    table = read_table(path)
    return to_dataset(table, path, read_channels(table.schema, path), interval_ms=interval_ms)


def to_dataset(
    table: pa.Table, path: str | Path, channels: list[Channel], *, interval_ms: int | None = None
) -> Dataset:
    """Make a data set of rows with these channels; `path` says in messages where they come from.

    Interval and errors as `read_dataset`.
    """
    if table.num_rows < 2:
        raise UsageError(f"{path}: wants at least 2 rows, got {table.num_rows}")
    code, names = read_entities(table, path)
    times = read_times(table, path, code, interval_ms)
    order = np.lexsort((times.exact, code))
    if (np.diff(order) != 1).any():
        _log.warning("rows_sorted", path=str(path), reason="rows of an entity were apart or out of time order")
    values = _values(table, channels, order, path)
    labels = None if any(channel.name == "label" for channel in channels) else read_labels(table, path)
    labels = None if labels is None else labels[order]
    code, exact = code[order], times.exact[order]
    slots = _slots(times.ts_ms[order], times.interval_ms)
    keep = ~_repeated(code, exact, values, labels, order, path)
    keep &= _last_of_slot(code, slots, keep, path)
    code, slots, values, labels = code[keep], slots[keep], values[keep], None if labels is None else labels[keep]
    _warn_of_distance(code, slots, times.interval_ms, path)
    cuts = np.searchsorted(code, np.arange(len(names) + 1))
    series = [
        Series(name, slots[low:high], values[low:high], None if labels is None else labels[low:high])
        for name, low, high in zip(names, cuts[:-1], cuts[1:], strict=True)
    ]
    return Dataset(channels, times.interval_ms, series)


def read_rows(path: str | Path, *, interval_ms: int) -> Rows:
    """Return which entity and slot each row of a file belongs to, in the file's order. Errors as `read_dataset`."""
    table = read_table(path, KEYS)
    code, names = read_entities(table, path)
    times = read_times(table, path, code, interval_ms)
    return Rows(table, names, code, _slots(times.ts_ms, interval_ms))


def warn_of_still_channels(dataset: Dataset, path: str | Path) -> None:
    """Log which channels never change or were never sent: a model can say little of them."""
    still, never = list[str](), list[str]()
    for column, channel in enumerate(dataset.channels):
        low, high = _range(np.concatenate([series.values[:, column] for series in dataset.series]))
        if np.isnan(low):
            never.append(channel.name)
        elif low == high:
            still.append(channel.name)
    if still:
        _log.warning("channels_never_change", path=str(path), channels=still)
    if never:
        _log.warning("channels_without_values", path=str(path), channels=never)


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
    """Return the live window ends whose last `hop` slots hold rows; the last one may lie beyond the series' end."""
    return (np.unique(series.slots // hop) + 1) * hop - 1


def _slots(ts_ms: NDArray[np.int64], interval_ms: int) -> NDArray[np.int64]:
    return (2 * ts_ms + interval_ms) // (2 * interval_ms)  # as stream.grid.slot_of


def _values(
    table: pa.Table, channels: list[Channel], order: NDArray[np.int64], path: str | Path
) -> NDArray[np.float32]:
    """Return the rows' values in this order, (n, C_all)."""
    values = np.empty((len(order), len(channels)), np.float32)
    infinite, beyond_one = dict[str, int](), list[str]()
    for column, channel in enumerate(channels):
        own = read_values(table, channel.name)
        lost = np.isinf(own)
        own[lost] = np.nan
        low, high = _range(own)
        if lost.any():
            infinite[channel.name] = int(lost.sum())
        if channel.kind == "command" and high > 1:
            beyond_one.append(channel.name)
        if float(high) - float(low) > _FLOAT32_MAX:
            raise UsageError(f"{path}: column {channel.name} spans {low:g} to {high:g}; bring it to a smaller unit")
        values[:, column] = own[order]
    if infinite:
        _log.warning("infinite_values_are_missing", path=str(path), values=infinite)
    if beyond_one:
        _log.warning("commands_above_one_count_as_on", path=str(path), channels=beyond_one)
    if np.isnan(values[:, [channel.kind == "numeric" for channel in channels]]).all():
        raise UsageError(f"{path}: wants values, every numeric channel is missing in every row")
    return values


def _range(values: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest value, NaN if there is none."""
    return np.fmin.reduce(values), np.fmax.reduce(values)


def _repeated(
    code: NDArray[np.int64],
    exact: NDArray[np.int64],
    values: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    order: NDArray[np.int64],
    path: str | Path,
) -> NDArray[np.bool_]:
    """Select rows that say the same as the next one, (n,); refuse those that have its time and say something else."""
    again = np.flatnonzero((np.diff(code) == 0) & (np.diff(exact) == 0))
    one, other = values[again], values[again + 1]
    differ = ((one != other) & ~(np.isnan(one) & np.isnan(other))).any(1)
    if labels is not None:
        differ |= labels[again] != labels[again + 1]
    if differ.any():
        first = again[differ][0]
        raise UsageError(
            f"{path}: rows {order[first]} and {order[first + 1]} have the same entity and time, "
            "but not the same values; keep one of them"
        )
    if len(again):
        _log.warning("rows_repeated", path=str(path), dropped=len(again), reason="they say the same as another row")
    repeated = np.zeros(len(code), np.bool_)
    repeated[again] = True
    return repeated


def _last_of_slot(
    code: NDArray[np.int64], slots: NDArray[np.int64], kept: NDArray[np.bool_], path: str | Path
) -> NDArray[np.bool_]:
    """Select the last row of every slot, which is the one a ring would hold; count those lost that were kept so far."""
    last = np.append((np.diff(code) != 0) | (np.diff(slots) != 0), True)
    dropped = int((kept & ~last).sum())
    if dropped:
        _log.warning("rows_share_slots", path=str(path), dropped=dropped)
    return last


def _warn_of_distance(code: NDArray[np.int64], slots: NDArray[np.int64], interval_ms: int, path: str | Path) -> None:
    distance = np.diff(slots)[np.diff(code) == 0]
    usual = float(np.median(distance)) if len(distance) else 1.0
    if usual > 1:
        _log.warning(
            "rows_are_far_apart",
            path=str(path),
            interval_ms=interval_ms,
            usual_distance_ms=usual * interval_ms,
            reason="windows are mostly gaps; name the interval that the rows have",
        )
