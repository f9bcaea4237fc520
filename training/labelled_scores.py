"""Joins a Parquet file of scores with one of labels, row by row. Computes no figure and forgives no mismatch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.errors import UsageError
from training.datasets import ONLY_ENTITY
from training.metrics import Flags, Scores

TIME_COLUMNS = ("ts", "t")
# Columns of numbers and flags that a file of scores may have.
OPTIONAL = ("provisional", "provisional_pred", "threshold")
Wide = NDArray[np.float32]


@dataclass(frozen=True)
class LabelledSeries:
    """One entity's rows in time order. score: finite; p_value, threshold: NaN where the row has no score.

    A row without a score gets the entity's lowest one and no alarm, so an unscored anomaly counts as missed. What the
    files don't hold is None. times: (n,), milliseconds if interval_s is there, else row numbers. residual, expected,
    observed: (n, C), by `channels`, NaN where missing; residual is the channel's share of the row's deviation, expected
    and observed are in the data's units.
    """

    entity: str
    labels: Flags
    score: Scores
    pred: Flags
    p_value: Scores | None
    unscored_rows: int
    times: NDArray[np.int64]
    interval_s: float | None = None
    provisional: Scores | None = None
    provisional_pred: Flags | None = None
    threshold: Scores | None = None
    channels: tuple[str, ...] = ()
    residual: Wide | None = None
    expected: Wide | None = None
    observed: Wide | None = None


@dataclass(frozen=True)
class Rows:
    """A file's rows sorted by entity and time. names: sorted; codes, times: (n,), codes point into names."""

    path: Path
    names: list[str]
    codes: NDArray[np.int64]
    times: NDArray[np.int64]
    columns: pa.Table

    def describe(self, row: int) -> str:
        """Name a row for a person."""
        return f"{self.names[self.codes[row]]} at {self.times[row]}"


def join(scores_path: str | Path, labels_path: str | Path, *, with_channels: bool = True) -> list[LabelledSeries]:
    """Return every entity's labelled scores; raise UsageError naming the first row or column that doesn't fit.

    with_channels: read what there is for every channel too, which takes most of the memory.
    """
    scores_path, labels_path = Path(scores_path), Path(labels_path)
    time = _common_time(scores_path, labels_path)
    channels = channel_names(scores_path, labels_path) if with_channels else ()
    numeric = numeric_columns(labels_path)
    observed = list(channels) if set(channels) <= set(numeric) else []
    wide = ["residual", "expected"] if with_channels else []
    scores = _read(scores_path, time, ["score", "pred"], ["p_value", *OPTIONAL, *wide])
    labels = _read(labels_path, time, ["label"], observed)
    _check_same_rows(scores, labels)
    return list(_series(scores, labels, time, channels))


def channel_names(scores_path: str | Path, labels_path: str | Path) -> tuple[str, ...]:
    """Return the names behind the list columns: a JSON list in the scores' metadata, else the data's numeric columns.

    The metadata stand in the Parquet schema under `channels`.
    """
    text = (_schema(Path(scores_path)).metadata or {}).get(b"channels")
    if text is None:
        return tuple(numeric_columns(labels_path))
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise UsageError(f"{scores_path} wants metadata `channels` as a JSON list of names: {error}") from error


def final_delay(scores_path: str | Path) -> int | None:
    """Return how many rows later than the row itself `score` is known, or None if the file's metadata don't say."""
    text = (_schema(Path(scores_path)).metadata or {}).get(b"final_delay")
    try:
        return None if text is None else int(text)
    except ValueError as error:
        raise UsageError(f"{scores_path} wants metadata `final_delay` as a number of rows, got {text!r}") from error


def numeric_columns(path: str | Path) -> list[str]:
    """Return a data file's numeric channels, in its own order."""
    reserved = (*TIME_COLUMNS, "entity", "label")
    return [
        field.name for field in _schema(Path(path)) if pa.types.is_floating(field.type) and field.name not in reserved
    ]


def _common_time(scores_path: Path, labels_path: Path) -> str:
    names = [set(_schema(path).names) for path in (scores_path, labels_path)]
    for time in TIME_COLUMNS:
        if all(time in columns for columns in names):
            return time
    raise UsageError(f"{scores_path} and {labels_path} want a time column in common: {' or '.join(TIME_COLUMNS)}")


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} can't be read as Parquet: {error}") from error


def _read(path: Path, time: str, wanted: list[str], optional: list[str]) -> Rows:
    present = _schema(path).names
    missing = [name for name in wanted if name not in present]
    if missing:
        raise UsageError(f"{path} wants a column {missing[0]}, it has: {', '.join(present[:8])}")
    columns = [name for name in ("entity", time, *wanted, *optional) if name in present]
    table = pq.read_table(path, columns=columns)
    if not table.num_rows:
        raise UsageError(f"{path} has no rows")
    names, codes = _entities(path, table)
    times = _times(path, table.column(time))
    if "entity" in table.column_names:
        table = table.drop_columns(["entity"])
    order = np.lexsort((times, codes))
    return _without_repetitions(Rows(path, names, codes[order], times[order], table.take(order)))


def _entities(path: Path, table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
    if "entity" not in table.column_names:
        return [ONLY_ENTITY], np.zeros(table.num_rows, np.int64)
    column = table.column("entity").cast(pa.string()).combine_chunks()
    if column.null_count:
        raise UsageError(f"{path} has a row without an entity")
    names, codes = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int64)


def _times(path: Path, column: "pa.ChunkedArray[Any]") -> NDArray[np.int64]:
    if column.null_count:
        raise UsageError(f"{path} has a row without a time")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
    elif not pa.types.is_integer(column.type):
        raise UsageError(f"{path} wants times as integers or time stamps, got {column.type}")
    return column.cast(pa.int64()).to_numpy()


def _without_repetitions(rows: Rows) -> Rows:
    """Keep a row that stands twice once; refuse two different rows of one entity and time."""
    again = np.flatnonzero((np.diff(rows.codes) == 0) & (np.diff(rows.times) == 0))
    for row in again.tolist():
        pair = rows.columns.slice(row, 2).to_pylist()
        if repr(pair[0]) != repr(pair[1]):
            raise UsageError(f"{rows.path} has {rows.describe(row)} twice, with different values")
    if not len(again):
        return rows
    keep = np.setdiff1d(np.arange(len(rows.codes)), again)
    return Rows(rows.path, rows.names, rows.codes[keep], rows.times[keep], rows.columns.take(keep))


def _check_same_rows(scores: Rows, labels: Rows) -> None:
    for there, lacking in ((labels, scores), (scores, labels)):
        foreign = sorted(set(there.names) - set(lacking.names))
        if foreign:
            raise UsageError(f"{lacking.path} lacks {len(foreign)} entities of {there.path}, first {foreign[0]}")
    common = min(len(scores.codes), len(labels.codes))
    differ = (scores.codes[:common] != labels.codes[:common]) | (scores.times[:common] != labels.times[:common])
    if not differ.any() and len(scores.codes) == len(labels.codes):
        return
    row = int(differ.argmax()) if differ.any() else common
    there, lacking = (labels, scores) if _is_first(labels, scores, row) else (scores, labels)
    raise UsageError(f"{lacking.path} lacks a row of {there.path}: {there.describe(row)}")


def _is_first(one: Rows, other: Rows, row: int) -> bool:
    """Return whether the one file's row comes before the other's, which therefore lacks it."""
    if row >= len(one.codes) or row >= len(other.codes):
        return row < len(one.codes)
    return bool((one.codes[row], one.times[row]) < (other.codes[row], other.times[row]))


def _series(scores: Rows, labels: Rows, time: str, channels: tuple[str, ...]) -> Iterator[LabelledSeries]:
    label = _flags(labels, "label", missing_allowed=False)
    columns = _columns(scores, len(channels))
    if channels and set(channels) <= set(labels.columns.column_names):
        columns["observed"] = _observed(labels, channels)
    unscored = np.isnan(_numbers(scores, "score"))
    apart = np.diff(scores.times)[np.diff(scores.codes) == 0]
    usual_s = float(np.median(apart)) / 1000 if time == "ts" and len(apart) else None
    ends = np.append(np.flatnonzero(np.diff(scores.codes)) + 1, len(scores.codes))
    for name, first, end in zip(scores.names, [0, *ends[:-1]], ends, strict=True):
        own = {column: values[first:end] for column, values in columns.items()}
        missing, times = unscored[first:end], scores.times[first:end]
        own |= {column: _least_anomalous(own[column]) for column in ("score", "provisional") if column in own}
        own["pred"] = own["pred"] & ~missing
        yield LabelledSeries(
            entity=name,
            labels=label[first:end],
            p_value=own.pop("p_value", None),
            unscored_rows=int(missing.sum()),
            times=times,
            interval_s=float(np.median(np.diff(times))) / 1000 if usual_s and len(times) > 1 else usual_s,
            channels=channels,
            **own,
        )


def _columns(scores: Rows, width: int) -> dict[str, Any]:
    """Return the columns of scores that are there, by the names they have in a series."""
    present = set(scores.columns.column_names)
    numbers = present & {"score", "p_value", "provisional", "threshold"}
    flags, lists = present & {"pred", "provisional_pred"}, present & {"residual", "expected"}
    return {
        **{name: _numbers(scores, name) for name in numbers},
        **{name: _flags(scores, name, missing_allowed=True) for name in flags},
        **{name: _lists(scores, name, width) for name in lists},
    }


def _least_anomalous(score: Scores) -> Scores:
    """Fill rows without a score with the lowest one, or 0 where no row has one."""
    missing = np.isnan(score)
    return np.where(missing, 0.0 if missing.all() else score[~missing].min(initial=np.inf), score)


def _observed(labels: Rows, channels: tuple[str, ...]) -> Wide:
    values = [labels.columns.column(name).cast(pa.float32()).to_numpy() for name in channels]
    return np.stack(values, axis=1)


def _lists(rows: Rows, name: str, width: int) -> Wide:
    """Return a column of lists as (n, width), NaN for a null row or value."""
    column: Any = rows.columns.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise UsageError(f"{rows.path} wants {name} as lists of numbers, got {column.type}")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(column).drop_null().to_numpy()
    if (lengths != width).any():
        raise UsageError(f"{rows.path} wants {name} with a number for each of {width} channels, got {lengths[0]}")
    values = np.full((len(present), width), np.nan, np.float32)
    values[present] = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).reshape(-1, width)
    return values


def _flags(rows: Rows, name: str, *, missing_allowed: bool) -> Flags:
    column = rows.columns.column(name)
    if column.null_count and not missing_allowed:
        raise UsageError(f"{rows.path} has a row without {name}")
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type)):
        raise UsageError(f"{rows.path} wants {name} as 0 and 1, got {column.type}")
    values = column.cast(pa.int64()).cast(pa.float64()).to_numpy()  # NaN for null
    wrong = np.flatnonzero((values != 0) & (values != 1) & ~np.isnan(values))
    if len(wrong):
        raise UsageError(f"{rows.path} wants {name} as 0 and 1, got {values[wrong[0]]} for {rows.describe(wrong[0])}")
    return np.asarray(values == 1)


def _numbers(rows: Rows, name: str) -> Scores:
    """Return a column as float64, NaN for null; a number that is not finite is refused."""
    column = rows.columns.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise UsageError(f"{rows.path} wants {name} as numbers, got {column.type}")
    values = column.cast(pa.float64()).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(values) & column.is_valid().to_numpy())
    if len(wrong):
        raise UsageError(
            f"{rows.path} wants {name} finite or null, got {values[wrong[0]]} for {rows.describe(wrong[0])}"
        )
    return np.array(values)
