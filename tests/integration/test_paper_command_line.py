"""The verbs of the paper's experiments on data that are made up."""

import json

import pytest

from tests.commands import CommandLine
from tests.unit.training.paper.made_up import write_family


@pytest.fixture
def telltale(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_family(folder, "MSL", rows=700)
    return folder


def test_a_figure_is_told_drawn_and_written(telltale, data, tmp_path):
    options = f"--families MSL --train-steps 2 --seed 3 --json {tmp_path}/roc.json --plot {tmp_path}/roc.svg"
    command = f"paper figure6 --data {data} {options}"
    outcome = telltale(command)
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "roc.json").read_text())
    assert (record["command"], record["seed"], record["scale"]["name"]) == (f"telltale {command}", 3, "quick")
    (row,) = record["figures"]
    assert (row["family"], row["entities"]) == ("MSL", 2)
    for name in ("pooled", "entity_mean", "paper"):
        assert f"{row[name]:.4f}" in outcome.out
    assert "0.9214" in (tmp_path / "roc.svg").read_text()


def test_bad_usage_is_told_before_any_work(telltale, data):
    for options, told in (("--scale huge", "huge"), ("--families ESA", "ESA"), ("--families SMAP", "SMAP_train")):
        outcome = telltale(f"paper table4 --data {data} {options}")
        assert outcome.code == 2
        assert told in outcome.complaint()
