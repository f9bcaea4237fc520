"""Joins a Parquet file of scores with one of labels, row by row. Computes no figure and forgives no mismatch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream.errors import UsageError
from training.datasets import ONLY_ENTITY
from training.metrics import Flags, Scores

TIME_COLUMNS = ("ts", "t")


@dataclass(frozen=True)
class LabelledSeries:
    """One entity's rows in time order. score: finite; p_value: NaN where the row has no score.

    A row without a score gets the entity's lowest one and no alarm, so an unscored anomaly counts as missed.
    """

    entity: str
    labels: Flags
    score: Scores
    pred: Flags
    p_value: Scores | None
    unscored_rows: int


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


def join(scores_path: str | Path, labels_path: str | Path) -> list[LabelledSeries]:
    """Return every entity's labelled scores; raise UsageError naming the first row or column that doesn't fit."""
    scores_path, labels_path = Path(scores_path), Path(labels_path)
    time = _common_time(scores_path, labels_path)
    scores = _read(scores_path, time, ["score", "pred"], ["p_value"])
    labels = _read(labels_path, time, ["label"], [])
    _check_same_rows(scores, labels)
    return list(_series(scores, labels))


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
    order = np.lexsort((times, codes))
    rows = Rows(path, names, codes[order], times[order], table.take(order))
    _check_unique(rows)
    return rows


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


def _check_unique(rows: Rows) -> None:
    again = np.flatnonzero((np.diff(rows.codes) == 0) & (np.diff(rows.times) == 0))
    if len(again):
        raise UsageError(f"{rows.path} has {rows.describe(again[0])} twice")


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


def _series(scores: Rows, labels: Rows) -> Iterator[LabelledSeries]:
    label = _flags(labels, "label", missing_allowed=False)
    pred = _flags(scores, "pred", missing_allowed=True)
    score = _numbers(scores, "score")
    p_value = _numbers(scores, "p_value") if "p_value" in scores.columns.column_names else None
    unscored = np.isnan(score)
    ends = np.append(np.flatnonzero(np.diff(scores.codes)) + 1, len(scores.codes))
    for name, first, end in zip(scores.names, [0, *ends[:-1]], ends, strict=True):
        rows, missing = slice(first, end), unscored[first:end]
        own = score[rows]
        own[missing] = own[~missing].min(initial=np.inf) if not missing.all() else 0.0
        yield LabelledSeries(
            entity=name,
            labels=label[rows],
            score=own,
            pred=pred[rows] & ~missing,
            p_value=None if p_value is None else p_value[rows],
            unscored_rows=int(missing.sum()),
        )


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
