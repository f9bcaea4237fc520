"""Files of shapes that no setting declares: trained on, scored and evaluated by the command line, or refused by it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import CommandLine, Outcome

FIRST_MS = 1_780_000_000_000
TRAIN = "train --registry models --minutes 0.02 --data train.parquet --name"


def waves(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    return np.sin(np.arange(rows) / 7 + seed) + 0.1 * generator.normal(size=rows)


def labels(rows: int) -> np.ndarray[Any, Any]:
    return np.arange(rows) % 100 >= 92


def entity(name: str, rows: int, seed: int = 0, **changes: object) -> pa.Table:
    columns = {"entity": [name] * rows, "t": np.arange(rows), "x": waves(rows, seed), "y": waves(rows, seed + 1)}
    return pa.table(columns | {"on": np.arange(rows) % 40 > 20, "label": labels(rows)} | changes)


def many_channels(rows: int = 400) -> pa.Table:
    """Nineteen channels and nothing else than times: irregular, with a silence, in a zone and in no order."""
    generator = np.random.default_rng(0)
    ns = FIRST_MS * 10**6 + np.cumsum(generator.integers(8 * 10**8, 12 * 10**8, rows))
    ns[rows // 2 :] += 5 * 10**13
    columns: dict[str, Any] = {"ts": pa.array(ns, pa.timestamp("ns", "Europe/Berlin"))}
    columns |= {f"Sensor {i} [°C]": waves(rows, i).astype(np.float32) * 10.0**i for i in range(19)}
    return pa.table(columns | {"label": labels(rows).astype(np.int64)}).take(generator.permutation(rows))


def uneven() -> pa.Table:
    """Entities of all lengths, with values missing, infinite and constant, in types of other tools."""
    half = waves(300).astype(np.float16)
    half[[3, 50]] = np.inf, -np.inf
    half[::9] = np.nan
    still, never, off = np.full(300, 5.0), pa.nulls(300, pa.float64()), np.zeros(300, bool)
    long = entity("long", 300, x=half, y=still, on=off)
    absent = entity("absent", 300, x=half, y=never, on=off)
    brief, single = (
        table.set_column(0, "entity", pa.array([name] * len(table)))
        for name, table in (("brief", long.slice(0, 7)), ("single", long.slice(0, 1)))
    )
    table = pa.concat_tables([long, absent, brief, single])
    return table.set_column(0, "entity", table["entity"].cast(pa.large_string()).dictionary_encode())


@pytest.fixture(scope="module")
def telltale(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("any"))


@pytest.fixture(scope="module")
def plain(telltale: CommandLine) -> CommandLine:
    """Return a command line in whose folder there is a model `plain` of two channels and a command."""
    pq.write_table(pa.concat_tables([entity("a", 300), entity("b", 300, 5)]), telltale.folder / "train.parquet")
    trained = telltale(TRAIN, "plain")
    assert trained.code == 0, trained.err
    return telltale


def score(telltale: CommandLine, table: pa.Table, model: str) -> tuple[Outcome, Path]:
    pq.write_table(table, telltale.folder / "data.parquet")
    out = telltale.folder / "scores.parquet"
    out.unlink(missing_ok=True)
    return telltale(f"score --data data.parquet --out scores.parquet --explain --model models/{model}"), out


def keys(table: pa.Table) -> list[list[Any]]:
    """Return entities and times, nanoseconds as numbers."""
    types = {"entity": pa.string(), "ts": pa.int64(), "t": pa.int64()}
    return [table[name].cast(of).to_pylist() for name, of in types.items() if name in table.column_names]


def warnings_of(outcome: Outcome) -> set[str]:
    lines = [json.loads(line) for line in outcome.err.splitlines() if line.startswith("{")]
    return {line["event"] for line in lines if line["level"] == "warning"}


@pytest.mark.parametrize(
    ("name", "table", "warned"),
    [
        ("many", many_channels(), {"rows_sorted"}),
        ("uneven", uneven(), {"infinite_values_are_missing", "channels_never_change"}),
        ("tiny", pa.table({"t": range(5), "x": waves(5), "label": [False, True] * 2 + [False]}), set()),
    ],
    ids=["nineteen channels", "uneven entities", "five rows of one channel"],
)
def test_any_telemetry_goes_round(telltale: CommandLine, name: str, table: pa.Table, warned: set[str]) -> None:
    pq.write_table(table, telltale.folder / "train.parquet")
    trained = telltale(TRAIN, name)
    assert trained.code == 0, trained.err
    assert warned <= warnings_of(trained)

    scored, out = score(telltale, table, name)
    assert scored.code == 0, scored.err
    scores = pq.read_table(out)
    assert keys(scores) == keys(table)
    numeric = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    finite = np.stack([np.isfinite(table[column].cast(pa.float32()).to_numpy()) for column in numeric], 1)
    assert [value is not None for value in scores["score"].to_pylist()] == finite.any(1).tolist()
    assert [[value is not None for value in row] for row in scores["residual"].to_pylist()] == finite.tolist()

    evaluated = telltale("evaluate --scores scores.parquet --labels data.parquet --json e.json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads((telltale.folder / "e.json").read_text())["rows"] == len(table)


def test_new_entities_and_wild_values_are_scored(plain: CommandLine) -> None:
    wild = waves(300)
    wild[[20, 100]] = 1e38, -1e30
    tables = [entity("a", 300), entity("new", 300, x=wild), entity("newer", 1)]
    scored, out = score(plain, pa.concat_tables(tables), "plain")
    assert scored.code == 0, scored.err
    scores = pq.read_table(out)
    assert scores["score"].null_count == 0
    assert np.isfinite(scores["score"].to_numpy()).all()
    residual = np.array(scores["residual"].to_pylist())
    assert json.loads(scores.schema.metadata[b"channels"]) == ["x", "y"]
    assert (residual[[320, 400]].argmax(1) == 0).all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (entity("a", 50).drop(["y", "on"]), "on (command) is missing, y (numeric) is missing"),
        (entity("a", 50).append_column("z", pa.array(waves(50))), "z (numeric) is unknown"),
        (entity("a", 50, on=np.arange(50)), "column on is int64; cast it to a float (numeric channel) or bool"),
        (entity("a", 50, t=[str(i) for i in range(50)]), "column t wants integers, got string; cast it"),
        (pa.concat_tables([entity("a", 50), entity("a", 1, 3)]), "rows 0 and 50 have the same entity and time"),
        (entity("a", 50, x=pa.nulls(50, pa.float32()), y=[np.nan] * 50), "every numeric channel is missing"),
    ],
    ids=["fewer channels", "more channels", "whole numbers", "times in text", "one time, two rows", "nothing"],
)
def test_what_a_model_cant_score_is_refused_in_one_sentence(plain: CommandLine, table: pa.Table, message: str) -> None:
    outcome, out = score(plain, table, "plain")
    assert outcome.code == 2
    assert message in outcome.complaint()
    assert not out.exists()


@pytest.mark.parametrize("name", ["folder", "none", "empty", "text", "cut"])
def test_what_is_no_file_of_parquet_is_refused(telltale: CommandLine, name: str) -> None:
    folder = telltale.folder
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "empty").touch()
    (folder / "text").write_text("t,x\n1,2\n")
    pq.write_table(entity("a", 50), folder / "cut")
    (folder / "cut").write_bytes((folder / "cut").read_bytes()[:-20])
    outcome = telltale(f"train --data {name} --registry refused --name waves")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert name in outcome.err.splitlines()[-1]
    assert not (folder / "refused").exists()
