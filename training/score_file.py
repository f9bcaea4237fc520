"""Scores a Parquet file with a published model: the live path's code, one row out for every row in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detector.models import Model, prove
from detector.offline import SeriesScores, score_series
from detector.registry import Registry
from stream.errors import UsageError
from training.datasets import Dataset, Rows, Series, read_dataset, read_rows


def load_model(spec: str, device: str = "cpu") -> Model:
    """Load and prove the model `REGISTRY/NAME[@VERSION]`.

    Raises UsageError if there is none of that name, CheckpointError if it can't be trusted.
    """
    root, _, wanted = spec.rpartition("/")
    if not root:
        raise UsageError(f"--model wants REGISTRY/NAME or REGISTRY/NAME@VERSION, got {spec!r}")
    registry = Registry(root)
    name, version = registry.resolve(wanted)
    detector = prove(registry.read(name, version), device)
    return Model(detector, np.arange(len(detector.manifest.channels)))


def score_file(
    data: Path, model: Model, out: Path, on_series: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write scores of every row of `data` to `out` and return how many rows got none.

    Columns: entity and t or ts as in the data, score, p_value, pred, provisional, final (see `SeriesScores`); null
    where a row has no value to score. Raises UsageError if the data lacks a channel of the model.
    """
    manifest = model.manifest
    dataset = fit_dataset(read_dataset(data, interval_ms=manifest.interval_ms), model)
    scored = []
    for done, series in enumerate(dataset.series):
        scored.append(score_series(model, series))
        on_series(done + 1, len(dataset.series))
    rows = read_rows(data, interval_ms=manifest.interval_ms)
    table = _table(rows, dataset, scored)
    pq.write_table(table, out, compression="zstd")
    return table.column("score").null_count


def fit_dataset(dataset: Dataset, model: Model) -> Dataset:
    """Put a data set's channels into the model's order; raise UsageError if they are not the same."""
    have = [(channel.name, channel.kind) for channel in dataset.channels]
    want = [(channel.name, channel.kind) for channel in model.manifest.channels]
    if sorted(have) != sorted(want):
        odd = sorted(f"{name} ({kind})" for name, kind in set(have) ^ set(want))
        raise UsageError(f"data and model {model.manifest.name} differ in channels: {', '.join(odd[:6])}")
    order = [have.index(channel) for channel in want]
    series = [Series(s.entity, s.slots, s.values[:, order], s.labels) for s in dataset.series]
    return Dataset(model.manifest.channels, dataset.interval_ms, series)


def _table(rows: Rows, dataset: Dataset, scored: list[SeriesScores]) -> pa.Table:
    place = _places(rows, dataset)
    columns = {
        field: np.concatenate([getattr(one, field) for one in scored])[place]
        for field in ("score", "p_value", "pred", "provisional", "final")
    }
    table = rows.keys
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, from_pandas=values.dtype.kind == "f"))
    return table


def _places(rows: Rows, dataset: Dataset) -> NDArray[np.int64]:
    """Return where each row's scores stand when those of all series follow each other, (n,)."""
    place = np.empty(len(rows.code), dtype=np.int64)
    start = 0
    for code, series in enumerate(dataset.series):
        own = np.flatnonzero(rows.code == code)
        place[own] = start + np.searchsorted(series.slots, rows.slots[own])
        start += len(series.slots)
    return place
