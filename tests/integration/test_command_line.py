"""The command line: what each verb does, how it ends, and what it says when it can't."""

import json
import subprocess
import sys
import tomllib

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer

from deploy.replay import samples
from stream.archive import Archive
from stream.archiver import Archiver
from stream.metrics import Metrics
from stream.settings import Settings
from telltale import app
from tests.builders import untrained
from tests.commands import CommandLine
from tests.fakes import record
from tests.faults.recorded import GEOMETRY
from tests.pipeline import publish
from training.datasets import read_dataset

FIRST_MS = 1_767_225_600_000
FAMILY = """
[[families]]
name = "{name}"
entities = "*-*"
numeric = {numeric}
commands = {commands}
length = 64
hop = 8
lateness = 2
final_delay = 20
slack = 64
"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def telltale(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture
def registry(tmp_path):
    """Return a registry with two versions of a family, the newer one champion, and their names."""
    folder = tmp_path / "registry"
    versions = [publish(folder, *untrained(geometry=GEOMETRY, seed=seed)).manifest.version for seed in (0, 1)]
    return folder, versions


def telemetry(rows=200, entities=("a-1", "b-1"), numeric=("m0", "m1"), commands=("c0",), seed=0):
    """Make a table of waves with missing values and a stretch that is labelled anomalous."""
    generator = np.random.default_rng(seed)
    t = np.tile(np.arange(rows), len(entities))
    columns = {"entity": np.repeat(entities, rows), "t": t}
    for i, name in enumerate(numeric):
        wave = np.sin(t / 7 + i) + 0.1 * generator.normal(size=len(t))
        columns[name] = np.where(generator.random(len(t)) < 0.03, np.nan, wave).astype(np.float32)
    columns |= dict.fromkeys(commands, t // 20 % 2 == 1)
    columns["label"] = ((t > 120) & (t < 130)).astype(np.uint8)
    return pa.table(columns)


def timed(table, distances_ms=1000, *, stamps=False):
    """Replace the row numbers by times; `stamps` by time stamps of Arrow's own type."""
    ts = FIRST_MS + table["t"].to_numpy() * distances_ms
    column = pa.array(ts.astype("datetime64[ms]")) if stamps else pa.array(ts)
    return table.set_column(table.schema.get_field_index("t"), "ts", column)


def sharing_slots(table):
    """Move every tenth row next to the one before it, into the same slot."""
    ts = timed(table)["ts"].to_numpy().copy()
    ts[10::10] = ts[9:-1:10] + 200
    return timed(table).set_column(1, "ts", pa.array(ts))


def declare(folder, name, numeric=("m0", "m1"), commands=("c0",)):
    text = FAMILY.format(name=name, numeric=json.dumps(numeric), commands=json.dumps(commands))
    (folder / "telltale.toml").write_text(text)


def archive(folder, table):
    """Put a data set into an archive as the settings in the folder declare it."""
    pq.write_table(table, folder / "data.parquet")
    families = tomllib.loads((folder / "telltale.toml").read_text())["families"]
    settings = Settings(families=families)
    stage = Archiver(settings, Archive(folder / "archive"), lambda: "0" * 8, Metrics(), stopping=lambda: True)
    stage.restore(0, 0, 0)
    sent = samples(read_dataset(folder / "data.parquet"))
    stage.process([record(msgspec.json.encode(one), n, key=one.entity.encode()) for n, one in enumerate(sent)])


def commands_of(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        yield from commands_of(command, (*path, name)) if hasattr(command, "commands") else ()


def test_every_verb_explains_itself(telltale):
    verbs = list(commands_of(typer.main.get_command(app)))
    assert {("train",), ("models", "promote"), ("worker",)} <= {path for path, _ in verbs}
    for path, command in verbs:
        outcome = telltale(" ".join(path), "--help")
        assert (outcome.code, outcome.err) == (0, "")
        assert command.help.split(":")[0] in " ".join(outcome.out.split())
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert all(option in outcome.out for option in options)


def test_it_runs_as_a_module_and_an_unknown_verb_is_bad_usage(tmp_path):
    for arguments, code in (["--help"], 0), (["nonsense"], 2), ([], 2):
        done = subprocess.run([sys.executable, "-m", "telltale", *arguments], capture_output=True, text=True)
        assert done.returncode == code
        assert "telltale" in done.stdout + done.stderr


def test_config_shows_what_is_in_force_without_secrets(telltale, tmp_path):
    declare(tmp_path, "waves")
    url = "redis://operator:pa55word@example.org:1/0"
    outcome = telltale("config show", TELLTALE_REDIS__URL=url, TELLTALE_TOPICS__PARTITIONS="7")
    shown = json.loads(outcome.out)
    assert (shown["topics"]["partitions"], shown["families"][0]["name"]) == (7, "waves")
    assert "pa55word" not in outcome.out + outcome.err


def test_all_wrong_settings_are_told_at_once(telltale):
    wrong = {
        "TELLTALE_KAFKA__RECONNECT_DEADLINE_S": "-3",
        "TELLTALE_WORKER__DEVICE": "tpu",
        "TELLTALE_TOPICS__PARTITIONS": "many",
        "TELLTALE_METRICS__PORT": "70000",
    }
    for verb in ("windower", "worker", "doctor", "replay --data x", "config show"):
        (telltale.folder / "x").touch()
        outcome = telltale(verb, **wrong)
        assert outcome.code == 2
        for name in wrong:
            assert name.removeprefix("TELLTALE_").replace("__", ".").lower() in outcome.err


def test_a_service_without_families_or_addresses_says_what_to_do(telltale, tmp_path):
    away = {"TELLTALE_STATE_DIR": str(tmp_path / "state")}
    for verb in ("windower", "worker", "alerts", "doctor"):
        outcome = telltale(verb, **away)
        assert outcome.code == 2
        assert "telltale up" in outcome.complaint()
    given = {"TELLTALE_KAFKA__BOOTSTRAP": "127.0.0.1:1", "TELLTALE_REDIS__URL": "redis://127.0.0.1:1/0"}
    assert "[[families]]" in telltale("windower", **given).complaint()


def test_models_are_listed_shown_promoted_and_rolled_back(telltale, registry):
    folder, (old, new) = registry
    where = ("--registry", folder)
    listed = telltale("models list", *where).out
    assert [version in line for version in (old, new) for line in listed.splitlines() if "v20" in line] == [1, 0, 0, 1]
    assert "champion" in next(line for line in listed.splitlines() if new in line)

    assert json.loads(telltale("models show test", *where).out)["version"] == new
    assert json.loads(telltale(f"models show test@{old}", *where).out)["version"] == old
    assert telltale(f"models promote test@{old}", *where).code == 0
    assert json.loads(telltale("models show test@champion", *where).out)["version"] == old
    assert telltale("models rollback test", *where).code == 0
    assert json.loads(telltale("models show test", *where).out)["version"] == new


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("models show other", "there are: test"),
        ("models show test@v1", "there are: v20"),
        ("models promote test@v1", "wants a name like v2026"),
        ("models promote test", "no challenger"),
        ("models promote test@v20200101T000000000-aaaaaa", "there are: v20"),
    ],
)
def test_what_the_registry_lacks_is_named_with_what_there_is(telltale, registry, command, message):
    outcome = telltale(command, "--registry", registry[0])
    assert outcome.code == 2
    assert message in outcome.complaint()


def test_a_damaged_version_is_listed_but_neither_promoted_nor_scored_with(telltale, registry, tmp_path):
    folder, (old, new) = registry
    for version, file in ((old, "weights.safetensors"), (new, "manifest.json")):
        path = folder / "test" / version / file
        path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in next(
        line for line in telltale("models list", "--registry", folder).out.splitlines() if new in line
    )
    pq.write_table(telemetry(), tmp_path / "data.parquet")
    for version in (old, new):
        promoted = telltale(f"models promote test@{version}", "--registry", folder)
        scored = telltale("score --data data.parquet --out s.parquet", "--model", f"{folder}/test@{version}")
        assert (promoted.code, scored.code) == (1, 1)
        assert version in promoted.complaint()
        assert version in scored.complaint()
    assert not (tmp_path / "s.parquet").exists()


UNIVARIATE = {"entities": ("all",), "numeric": ("m0",), "commands": ()}
DATASETS = {
    "several entities, commands, row numbers": (telemetry(), {}),
    "one channel, no entity, no command": (telemetry(**UNIVARIATE).drop(["entity"]), UNIVARIATE),
    "milliseconds, rows that share slots": (sharing_slots(telemetry()), {}),
    "time stamps, in no order": (timed(telemetry(), stamps=True).take(np.random.default_rng(0).permutation(400)), {}),
    "constant channels": (telemetry().set_column(2, "m0", pa.array(np.full(400, 3.0))), {}),
}


@pytest.mark.parametrize("what", DATASETS)
def test_train_score_and_evaluate_go_round_with_a_score_for_every_row(telltale, tmp_path, what):
    table, shape = DATASETS[what]
    declare(tmp_path, "waves", shape.get("numeric", ("m0", "m1")), shape.get("commands", ("c0",)))
    pq.write_table(table, tmp_path / "data.parquet")
    trained = telltale("train --data data.parquet --registry models --name waves --minutes 0.02 --json t.json")
    assert trained.code == 0, trained.err
    version = json.loads((tmp_path / "t.json").read_text())["version"]
    assert f"waves@{version} is now champion" in trained.out
    shown = json.loads(telltale("models show waves", "--registry", "models").out)
    assert shown["geometry"]["length"] == 64

    scored = telltale("score --data data.parquet --model models/waves --out s.parquet")
    assert (scored.code, version in scored.out) == (0, True), scored.err
    scores = pq.read_table(tmp_path / "s.parquet")
    keys = [name for name in ("entity", "t", "ts") if name in table.column_names]
    assert scores.select(keys).to_pylist() == table.select(keys).to_pylist()
    assert_a_score_where_there_is_a_value(scores, table)

    evaluated = telltale("evaluate --scores s.parquet --labels data.parquet --json e.json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads((tmp_path / "e.json").read_text())["rows"] == len(table)


def test_an_archive_trains_the_model_that_the_same_rows_in_a_file_train(telltale, tmp_path):
    declare(tmp_path, "waves")
    archive(tmp_path, telemetry())
    prints = []
    for options in ("--data data.parquet --name waves", "--data archive --family waves --json t.json"):
        outcome = telltale(f"train --registry models --minutes 0.02 {options}")
        assert (outcome.code, "is now champion" in outcome.out) == (0, True), outcome.err
        prints.append(json.loads(telltale("models show waves --registry models").out)["training"]["data_sha256"])
    assert prints[0] == prints[1]
    assert json.loads((tmp_path / "t.json").read_text())["name"] == "waves"


def assert_a_score_where_there_is_a_value(scores, table):
    """Rows of one slot share their score, which is that of the last of them."""
    slots = table["ts"].to_numpy().astype("int64") // 1000 if "ts" in table.column_names else table["t"].to_numpy()
    entities = table["entity"].to_pylist() if "entity" in table.column_names else [""] * len(table)
    missing = np.all([np.isnan(table[m].to_numpy()) for m in ("m0", "m1") if m in table.column_names], axis=0)
    wanted = dict(zip(zip(entities, slots.tolist(), strict=True), missing.tolist(), strict=True))
    found = {}
    for key, score in zip(zip(entities, slots.tolist(), strict=True), scores["score"].to_pylist(), strict=True):
        assert found.setdefault(key, score) == score
        assert (score is None) == wanted[key]
        assert score is None or np.isfinite(score)


BAD_DATA = {
    "no numeric column": (telemetry(numeric=()), "at least one numeric channel"),
    "one row": (telemetry().slice(0, 1), "at least 2 rows, got 1"),
    "no row": (telemetry().slice(0, 0), "at least 2 rows, got 0"),
    "a time twice": (pa.concat_tables([telemetry(), telemetry(seed=1).slice(3, 1)]), "rows 3 and 400 have the same"),
    "no time": (telemetry().drop(["t"]), "wants a time column"),
    "text": (telemetry().append_column("x", pa.array(["a"] * 400)), "column x is string"),
    "whole numbers": (telemetry().append_column("x", pa.array([1] * 400)), "column x is int64"),
    "no entity's name": (telemetry().set_column(0, "entity", pa.nulls(400, pa.string())), "a name in every row"),
    "an odd entity": (telemetry(entities=("a b",)), "entity wants letters"),
    "seconds": (
        timed(telemetry()).set_column(1, "ts", telemetry()["t"]),
        "wants milliseconds since 1970 between 2000 and 2100",
    ),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_cant_be_used_is_refused_in_one_sentence(telltale, tmp_path, what):
    table, message = BAD_DATA[what]
    pq.write_table(table, tmp_path / "data.parquet")
    outcome = telltale("train --data data.parquet --registry models --name waves --minutes 0.02")
    assert outcome.code == 2
    assert message in outcome.complaint()
    assert "data.parquet" in outcome.complaint()
    assert not (tmp_path / "models").exists()


def test_a_file_that_is_no_parquet_is_refused(telltale, tmp_path):
    (tmp_path / "data.parquet").write_text("a,b\n1,2\n")
    outcome = telltale("train --data data.parquet --registry models --name waves")
    assert outcome.code == 2
    assert "can't be read as Parquet" in outcome.complaint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--name bad+name", "family wants"),
        ("--name waves --preset huge", "preset wants one of small, paper"),
        ("--name waves --interval fast", "--interval wants a duration"),
        ("--name waves --minutes 0", "minutes"),
        ("--name waves --json nowhere/t.json", "no folder nowhere"),
        ("--name other", "differ in channels: m1 (numeric), m7 (numeric)"),
        ("--name other --interval 2s", "differ in channels"),
        ("", "--name or --family is wanted"),
        ("--data nowhere.parquet --name waves", "there is no nowhere.parquet"),
        ("--data models2 --name waves", "there is no models2"),
        ("--data . --name waves", "no file of family waves; known are none"),
        ("--name declared --interval 2s", "interval_ms 1000, the data 2000"),
    ],
)
def test_training_that_cant_end_well_does_not_begin(telltale, tmp_path, options, message):
    declare(tmp_path, "other", numeric=("m0", "m7"))
    with (tmp_path / "telltale.toml").open("a") as settings:
        settings.write(FAMILY.format(name="declared", numeric='["m0", "m1"]', commands='["c0"]'))
    pq.write_table(telemetry(), tmp_path / "data.parquet")
    outcome = telltale(f"train --data data.parquet --registry models {options}")
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data data.parquet --model registry/none --out s.parquet", "no family none in"),
        ("--data data.parquet --model registry/test@v1 --out s.parquet", "has no version v1; there are: v20"),
        ("--data data.parquet --model test --out s.parquet", "--model wants REGISTRY/NAME"),
        ("--data data.parquet --model registry/test --out nowhere/s.parquet", "no folder nowhere"),
        ("--data none.parquet --model registry/test --out s.parquet", "does not exist"),
        ("--data data.parquet --model registry/test --out s.parquet", "differ in channels: c1 (command)"),
    ],
)
def test_scoring_that_cant_be_done_is_refused(telltale, tmp_path, registry, options, message):
    pq.write_table(telemetry(), tmp_path / "data.parquet")
    outcome = telltale(f"score {options}")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_evaluating_asks_for_scores_and_labels_of_the_same_rows(telltale, tmp_path):
    table = telemetry()
    pq.write_table(table, tmp_path / "data.parquet")
    pq.write_table(table.select(["entity", "t"]).append_column("score", table["m0"]), tmp_path / "unjudged.parquet")
    for files, message in (
        ("--scores data.parquet --labels data.parquet", "wants a column score"),
        ("--scores unjudged.parquet --labels data.parquet", "wants a column pred"),
    ):
        outcome = telltale(f"evaluate {files}")
        assert outcome.code == 2
        assert message in outcome.complaint()
