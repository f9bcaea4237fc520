"""A scale that trains in a second, and a lab on data that are made up."""

from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream.grid import Geometry
from tests.unit.training.baselines.made_up import noisy
from training.paper.lab import Lab
from training.paper.scale import SCALES, NewestRows

GEOMETRY = Geometry(length=64, hop=32, final_delay=12, slack=96)
_NETWORK = msgspec.structs.replace(
    SCALES["quick"].detector, geometry=GEOMETRY, layers=2, width=16, state=8, batch=8, layer="s4d"
)
TINY = msgspec.structs.replace(
    SCALES["quick"],
    detector=_NETWORK,
    cascade=_NETWORK,
    layers=(1, 2, 3, 4),
    detector_steps={"SMAP": 4, "MSL": 4, "SMD": 4},
    cascade_steps=3,
    opponent_steps=2,
    levels=(2.0, 1e-9),
    span=2,
    rows={"SMD": NewestRows(train=300, test=200)},
)


def table(entities, rows, seed):
    """Make rows of two numeric channels and a command; a labelled stretch of each entity lies far off."""
    parts = []
    for number, entity in enumerate(entities):
        series = noisy(entity, rows, seed + number)
        label = np.zeros(rows, np.uint8)
        label[rows // 2 : rows // 2 + 20 + 10 * number] = 1
        a = series.values[:, 0] + np.float32(4) * label * (seed > 0)
        columns = {"entity": [entity] * rows, "t": np.arange(rows), "a": a, "on": series.values[:, 1] > 0}
        parts.append(pa.table(columns | {"b": series.values[:, 2], "label": label}))
    return pa.concat_tables(parts)


def write_family(folder, family, entities=("e-0", "e-1"), rows=400):
    for part, seed in (("train", 0), ("test", 10)):
        made = table(entities, rows, seed)
        pq.write_table(made if part == "test" else made.drop(["label"]), folder / f"{family}_{part}.parquet")


def lab(folder, scale=TINY, **options):
    return Lab(folder, scale, **options)


def one_numeric_channel(dataset):
    """Leave out channel b."""
    series = [replace(each, values=each.values[:, :2]) for each in dataset.series]
    return replace(dataset, channels=dataset.channels[:2], series=series)
