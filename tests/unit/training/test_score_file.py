"""Files of scores: a row for every row of the data, and what the channels did in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import training.score_file
from detector.cuts import cut_series
from detector.engine import Detector, WindowBatch
from detector.manifest import Channel, ScoringConfig
from detector.models import Model
from detector.offline import score_series
from stream.errors import UsageError
from stream.frames import frame
from stream.grid import Geometry
from tests.builders import untrained
from training.datasets import Dataset, Series, read_dataset
from training.score_file import fit_dataset, score_file

GEOMETRY = Geometry(length=16, hop=4, lateness=1, final_delay=4, slack=16)
MANIFEST, WEIGHTS = untrained(numeric=3, commands=1, geometry=GEOMETRY, scoring=ScoringConfig(smoothing_size=9))
MODEL = Model(Detector(MANIFEST, WEIGHTS), np.arange(len(MANIFEST.channels)))
NUMERIC = ["m0", "m1", "m2"]
NARROW = ["score", "p_value", "pred", "threshold", "provisional", "provisional_pred", "final"]


def table(rows: int = 40, entities: tuple[str, ...] = ("P-1", "M-6", "new"), seed: int = 0) -> pa.Table:
    """Draw telemetry with missing values, rows without any, and silences within a life and beyond one."""
    generator = np.random.default_rng(seed)
    count = rows * len(entities)
    t = np.tile(np.arange(rows), len(entities))
    t[(t > rows // 2)] += 5
    t[(t > rows // 2 + 15)] += 300
    columns: dict[str, Any] = {"entity": np.repeat(entities, rows), "t": t}
    empty = generator.random(count) < 0.05
    for name in NUMERIC:
        values = generator.uniform(0, 2, count).astype(np.float32)
        columns[name] = np.where(empty | (generator.random(count) < 0.1), np.float32(np.nan), values)
    return pa.table(columns | {"c0": generator.random(count) < 0.5})


def score(folder: Path, data: pa.Table, *, explain: bool = False) -> pa.Table:
    pq.write_table(data, folder / "data.parquet")
    unscored = score_file(folder / "data.parquet", MODEL, folder / "scores.parquet", explain=explain)
    scores = pq.read_table(folder / "scores.parquet")
    assert scores["score"].null_count == unscored
    return scores


def wide(scores: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return np.array([[np.nan if value is None else value for value in row] for row in scores[name].to_pylist()])


def test_scores_are_the_same_with_and_without_explanations(tmp_path: Path) -> None:
    plain, explained = (score(tmp_path, table(), explain=explain) for explain in (False, True))
    assert plain.column_names == ["entity", "t", *NARROW]
    assert explained.select(plain.column_names).equals(plain)
    assert explained.column_names == [*plain.column_names, "residual", "expected"]
    assert explained.schema.field("residual").type == explained.schema.field("expected").type == pa.list_(pa.float32())


def test_every_row_says_how_it_was_judged(tmp_path: Path) -> None:
    """A row with a score has the threshold it was judged by; the flags are those of the offline path."""
    scores = score(tmp_path, table())
    assert [value is None for value in scores["threshold"].to_pylist()] == [
        value is None for value in scores["score"].to_pylist()
    ]
    assert scores.schema.field("provisional_pred").type == scores.schema.field("pred").type == pa.bool_()
    for series in fit_dataset(read_dataset(tmp_path / "data.parquet", interval_ms=1000), MODEL).series:
        own = scores.filter(pa.array(np.array(scores["entity"].to_pylist()) == series.entity))
        found = score_series(MODEL, series)
        assert own["provisional_pred"].to_pylist() == found.provisional_pred.tolist()
        assert own["pred"].to_pylist() == found.pred.tolist()


def test_the_metadata_name_the_channels_and_how_long_a_score_waits(tmp_path: Path) -> None:
    metadata = score(tmp_path, table(), explain=True).schema.metadata
    assert json.loads(metadata[b"channels"]) == NUMERIC
    assert json.loads(metadata[b"final_delay"]) == GEOMETRY.final_delay
    assert b"channels" not in score(tmp_path, table()).schema.metadata


def test_a_residual_is_missing_exactly_where_the_value_is(tmp_path: Path) -> None:
    data = table()
    scores = score(tmp_path, data, explain=True)
    present = np.stack([~np.isnan(data[name].to_numpy()) for name in NUMERIC], 1)
    np.testing.assert_array_equal(np.isnan(wide(scores, "residual")), ~present)
    assert np.isfinite(wide(scores, "expected")).all()
    assert [value is None for value in scores["score"].to_pylist()] == (~present.any(1)).tolist()


@pytest.mark.parametrize("name", NUMERIC)
def test_a_spiked_channel_has_the_largest_residual_in_its_row(tmp_path: Path, name: str) -> None:
    data = table()
    rows = [3, 11, 39, 40, 75, 119]
    values = data[name].to_numpy().copy()
    values[rows] = [40, -40, 1e6, -1e30, 50, 3e38]
    data = data.set_column(data.column_names.index(name), name, pa.array(values))
    residual = wide(score(tmp_path, data, explain=True), "residual")
    assert (np.nanargmax(residual[rows], 1) == NUMERIC.index(name)).all()


def test_channels_are_told_as_the_window_saw_them_that_made_the_row_final(tmp_path: Path) -> None:
    """Of a series that ended, the last rows are told as its last window saw them."""
    pq.write_table(table(), tmp_path / "data.parquet")
    for series in fit_dataset(read_dataset(tmp_path / "data.parquet", interval_ms=1000), MODEL).series:
        found = score_series(MODEL, series, explain=True)
        assert found.residual is not None
        assert found.expected is not None
        residual, expected = (np.full((len(series.slots), len(NUMERIC)), np.nan) for _ in range(2))
        cuts = cut_series(GEOMETRY, series)
        for number, cut in enumerate(cuts):
            values = frame(series.slots, series.values, np.array([cut.end_slot]), GEOMETRY.length)
            values[..., : max(0, cut.first_slot - cut.end_slot + GEOMETRY.length - 1)] = np.nan
            window = MODEL.detector.score(WindowBatch([series.entity], np.array([cut.end_slot]), values))
            front = cut.end_slot if number == len(cuts) - 1 else cut.end_slot - GEOMETRY.final_delay
            for row, slot in enumerate(series.slots.tolist()):
                if np.isnan(expected[row, 0]) and cut.first_slot <= slot <= front:
                    position = slot - cut.end_slot - 1
                    residual[row], expected[row] = window.residual[0, :, position], window.expected[0, :, position]
        residual[np.isnan(series.values[:, MODEL.numeric])] = np.nan
        np.testing.assert_allclose(found.residual, residual, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.expected, expected, rtol=1e-3, atol=1e-4)


def test_every_row_gets_its_own_score_wherever_it_stands(tmp_path: Path) -> None:
    data = table()
    order = np.random.default_rng(1).permutation(len(data))
    ordered, mixed = score(tmp_path, data, explain=True), score(tmp_path, data.take(order), explain=True)
    wanted = ordered.take(order)
    assert mixed.select(["entity", "t", "pred", "final"]).equals(wanted.select(["entity", "t", "pred", "final"]))
    for name in ("residual", "expected"):
        np.testing.assert_allclose(wide(mixed, name), wide(wanted, name), rtol=1e-3, atol=1e-4)


def test_a_file_written_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(tmp_path, table(), explain=True)
    monkeypatch.setattr(training.score_file, "_ROWS_PER_GROUP", 7)
    assert score(tmp_path, table(), explain=True).equals(whole)


def test_repeated_rows_and_rows_of_one_slot_share_a_score(tmp_path: Path) -> None:
    data = table(rows=20)
    scores = score(tmp_path, pa.concat_tables([data, data.slice(5, 2)]), explain=True)
    assert len(scores) == len(data) + 2
    assert scores.slice(len(data)).equals(scores.slice(5, 2))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([("m0", "numeric"), ("m2", "numeric"), ("c0", "command")], r"channels: m1 \(numeric\) is missing$"),
        ([("m0", "numeric"), ("m1", "numeric"), ("m2", "numeric")], r"channels: c0 \(command\) is missing$"),
        (
            [("m0", "numeric"), ("m1", "numeric"), ("m2", "command"), ("c0", "command"), ("z", "numeric")],
            r"m2 \(numeric\) is missing, m2 \(command\) is unknown, z \(numeric\) is unknown$",
        ),
        ([(f"x{i}", "numeric") for i in range(19)], r"x1 \(numeric\) is unknown and 17 more$"),
    ],
)
def test_channels_that_are_not_the_models_are_named(channels: list[tuple[str, Any]], message: str) -> None:
    values = np.zeros((2, len(channels)), np.float32)
    series = [Series("P-1", np.arange(2), values, None)]
    with pytest.raises(UsageError, match=message):
        fit_dataset(Dataset([Channel(*channel) for channel in channels], 1000, series), MODEL)
