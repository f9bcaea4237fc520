"""`telltale models enrol`: a new version that knows new entities, or one sentence why not."""

import json

import pyarrow.parquet as pq
import pytest

from detector.registry import Registry
from tests.builders import untrained
from tests.commands import CommandLine
from tests.faults.recorded import GEOMETRY
from tests.integration.test_command_line import telemetry
from tests.pipeline import publish

COMMANDS = ("c0", "c1", "c2")


@pytest.fixture
def telltale(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture
def first(tmp_path):
    """Publish a champion that knows P-1 and M-6; return its version."""
    return publish(tmp_path / "registry", *untrained(geometry=GEOMETRY)).manifest.version


def test_enrolling_publishes_a_version_that_is_promoted_on_demand(telltale, tmp_path, first):
    registry = Registry(tmp_path / "registry")
    pq.write_table(telemetry(commands=COMMANDS, entities=("a-1", "b-1")), tmp_path / "data.parquet")
    done = telltale("models enrol --data data.parquet --model registry/test")
    assert done.code == 0, done.err
    _, new = registry.versions("test")
    assert done.out.split() == f"test@{new}, with 2 new entities".split()
    assert registry.alias("test", "champion") == first
    shown = json.loads(telltale(f"models show test@{new} --registry registry").out)
    assert [entity["name"] for entity in shown["entities"]] == ["P-1", "M-6", "a-1", "b-1"]

    pq.write_table(telemetry(commands=COMMANDS, entities=("c-1",)), tmp_path / "more.parquet")
    done = telltale(f"models enrol --data more.parquet --model registry/test@{new} --promote")
    assert done.code == 0, done.err
    newest = registry.versions("test")[-1]
    assert f"test@{newest} is now champion, with 1 new entity" in done.out
    assert registry.alias("test", "champion") == newest
    scored = telltale("score --data more.parquet --model registry/test --out s.parquet")
    assert (scored.code, newest in scored.out) == (0, True), scored.err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (telemetry(commands=COMMANDS, entities=("P-1", "a-1")), "test knows P-1 already"),
        (telemetry(commands=COMMANDS[:2]), "c2 (command) is missing"),
        (telemetry(rows=20, commands=COMMANDS), "enrolment wants at least"),
        (telemetry(commands=COMMANDS).drop(["t"]), "wants a time column"),
    ],
)
def test_what_can_not_be_enrolled_is_refused_in_one_sentence(telltale, tmp_path, first, table, message):
    pq.write_table(table, tmp_path / "data.parquet")
    outcome = telltale("models enrol --data data.parquet --model registry/test")
    assert outcome.code == 2
    assert message in outcome.complaint()
    assert Registry(tmp_path / "registry").versions("test") == [first]
