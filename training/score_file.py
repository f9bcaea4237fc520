"""Scores a Parquet file with a published model: the live path's code, one row out for every row in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detector.models import Model, prove
from detector.offline import score_all
from detector.registry import Registry
from stream.errors import UsageError
from training.datasets import Dataset, Series, read_dataset, read_rows

_NARROW = ("score", "p_value", "pred", "threshold", "provisional", "provisional_pred", "final")
_FLAGS = ("pred", "provisional_pred", "final")
_WIDE = ("residual", "expected")
# Lists of so many rows are made at once: few enough for their copies to be small beside the data.
_ROWS_PER_GROUP = 65_536


def load_model(spec: str, device: str = "cpu") -> Model:
    """Load and prove the model `REGISTRY/NAME[@VERSION]`.

    Raises UsageError if there is none of that name, CheckpointError if it can't be trusted.
    """
    registry, name, version = find_model(spec)
    detector = prove(registry.read(name, version), device)
    return Model(detector, np.arange(len(detector.manifest.channels)))


def find_model(spec: str) -> tuple[Registry, str, str]:
    """Return where the model `REGISTRY/NAME[@VERSION]` is; raise UsageError if there is none of that name."""
    root, _, wanted = spec.rpartition("/")
    if not root:
        raise UsageError(f"--model wants REGISTRY/NAME or REGISTRY/NAME@VERSION, got {spec!r}")
    registry = Registry(root)
    return registry, *registry.resolve(wanted)


def score_file(
    data: Path,
    model: Model,
    out: Path,
    on_series: Callable[[int, int], None] = lambda done, total: None,
    *,
    explain: bool = False,
) -> int:
    """Write scores of every row of `data` to `out` and return how many rows got none.

    Columns: entity and t or ts as in the data, the fields of `SeriesScores` that are one number a row; null
    where a row has no value to score. explain: lists residual and expected too, by the numeric channels that the
    metadata name under `channels`; residual is null where a value is missing. The metadata `final_delay` say how many
    rows after its own a score is final. Raises UsageError if the data lacks a channel of the model.
    """
    manifest = model.manifest
    dataset = fit_dataset(read_dataset(data, interval_ms=manifest.interval_ms), model)
    rows = read_rows(data, interval_ms=manifest.interval_ms)
    columns = _columns(len(rows.slots), len(model.numeric) if explain else None)
    found = zip(dataset.series, score_all(model, dataset.series, explain=explain), strict=True)
    for number, (series, scores) in enumerate(found):
        own = np.flatnonzero(rows.code == number)
        place = np.searchsorted(series.slots, rows.slots[own])
        for name, values in columns.items():
            values[own] = getattr(scores, name)[place]
        on_series(number + 1, len(dataset.series))
    metadata: dict[str, object] = {"final_delay": manifest.geometry.final_delay}
    _write(out, rows.keys, columns, metadata | ({"channels": model.numeric_names} if explain else {}))
    return int(np.isnan(columns["score"]).sum())


def fit_dataset(dataset: Dataset, model: Model) -> Dataset:
    """Put a data set's channels into the model's order; raise UsageError if they are not the same."""
    have = [(channel.name, channel.kind) for channel in dataset.channels]
    want = [(channel.name, channel.kind) for channel in model.manifest.channels]
    if sorted(have) != sorted(want):
        missing = [f"{name} ({kind}) is missing" for name, kind in sorted(set(want) - set(have))]
        unknown = [f"{name} ({kind}) is unknown" for name, kind in sorted(set(have) - set(want))]
        raise UsageError(f"data and model {model.manifest.name} differ in channels: {_few(missing + unknown)}")
    order = [have.index(channel) for channel in want]
    series = [Series(s.entity, s.slots, s.values[:, order], s.labels) for s in dataset.series]
    return Dataset(model.manifest.channels, dataset.interval_ms, series)


def _few(texts: list[str], most: int = 6) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _columns(rows: int, channels: int | None) -> dict[str, NDArray[Any]]:
    """Make room for the scores of all rows of a file, in its order."""
    columns: dict[str, NDArray[Any]] = {
        name: np.zeros(rows, bool) if name in _FLAGS else np.full(rows, np.nan) for name in _NARROW
    }
    if channels is not None:
        columns |= {name: np.full((rows, channels), np.nan, np.float32) for name in _WIDE}
    return columns


def _write(out: Path, keys: pa.Table, columns: dict[str, NDArray[Any]], metadata: dict[str, object]) -> None:
    types = {name: _arrow_type(values) for name, values in columns.items()}
    schema = pa.schema([*keys.schema, *types.items()]).with_metadata(
        {name: msgspec.json.encode(value) for name, value in metadata.items()}
    )
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in _groups(keys, columns, schema):
            writer.write_table(group)


def _groups(keys: pa.Table, columns: dict[str, NDArray[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    for start in range(0, keys.num_rows, _ROWS_PER_GROUP):
        part = slice(start, start + _ROWS_PER_GROUP)
        arrays = [_arrow_array(values[part]) for values in columns.values()]
        yield pa.Table.from_arrays([*keys.slice(start, _ROWS_PER_GROUP).columns, *arrays], schema=schema)


def _arrow_type(values: NDArray[Any]) -> pa.DataType:
    plain = pa.from_numpy_dtype(values.dtype)
    return plain if values.ndim == 1 else pa.list_(plain)


def _arrow_array(values: NDArray[Any]) -> "pa.Array[Any]":
    """Return values (n,) as they are and values (n, C) as lists, NaN as null."""
    flat: pa.Array[Any] = pa.array(values.reshape(-1), from_pandas=values.dtype.kind == "f")
    if values.ndim == 1:
        return flat
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
