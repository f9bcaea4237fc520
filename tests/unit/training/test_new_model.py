"""One attempt at a new model, in this process: what it trains on, what it measures, how it goes on."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from detector.checkpoint import Bundle
from detector.registry import Registry
from stream.errors import UsageError
from stream.retraining_settings import RetrainingSettings
from stream.settings import FamilySettings
from tests.unit.training.made_up import TINY, waves
from training import new_model
from training.datasets import Dataset
from training.new_model import make_model, read_rows, warm_weights
from training.presets import PRESETS
from training.publish import publish_trained
from training.retrain_job import Job, run_guarded
from training.trainer import train

FAMILY = FamilySettings(
    name="waves",
    entities="e-*",
    numeric=["wave", "other"],
    commands=["on"],
    length=64,
    hop=32,
    final_delay=20,
    slack=96,
)


def recent_waves(*rows: int) -> Dataset:
    """Return waves of this year."""
    data = waves(rows, gap=False)
    series = [replace(one, slots=one.slots - one.slots[0] + 1_767_225_600) for one in data.series]
    return replace(data, series=series)


DATA = recent_waves(1600, 1500)
FIRST_MS = int(DATA.series[0].slots[0]) * 1000
AFTER_MS = FIRST_MS + 2_000_000


def write(path: Path, data: Dataset) -> Path:
    """Write a data set with its columns in another order than it has."""
    names = [channel.name for channel in data.channels]
    rows = [(s.entity, int(t) * 1000, *v) for s in data.series for t, v in zip(s.slots, s.values.tolist(), strict=True)]
    columns = dict(zip(["entity", "ts", *names], zip(*rows, strict=True), strict=True))
    types = {"entity": pa.string(), "ts": pa.int64(), "on": pa.bool_()}
    arrays = {}
    for name in ["entity", "ts", "other", "on", "wave"]:
        values = [bool(value) for value in columns[name]] if name == "on" else list(columns[name])
        arrays[name] = pa.array(values, types.get(name, pa.float32()))
    pq.write_table(pa.table(arrays), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "waves.parquet", DATA)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


def job(data: Path, registry: Path, champion: str | None = None, **changes: object) -> Job:
    settings = RetrainingSettings(data=str(data), preset="tiny", minutes=0.02, minimum_rows=500, history_days=10_000.0)
    fields = {
        "registry": str(registry),
        "family": FAMILY.model_dump(),
        "retraining": settings.model_dump(),
        "at_ms": AFTER_MS,
        "start_ms": 0,
        "exclude": {},
        "champion": champion,
        "device": "cpu",
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a registry with a champion that was trained on the same waves."""
    folder = tmp_path_factory.mktemp("registry")
    trained = train(DATA, name="waves", preset=TINY, train_steps=100, geometry=FAMILY.geometry)
    version = publish_trained(Registry(folder), trained).version
    Registry(folder).promote("waves", version)
    return folder, version


def test_a_new_model_is_published_and_measured_beside_the_champion(
    data: Path, champion: tuple[Path, str], tmp_path: Path
) -> None:
    folder, old = champion
    outcome = make_model(job(data, folder, old), tmp_path)
    registry = Registry(folder)
    assert outcome.version in registry.versions("waves")
    assert registry.alias("waves", "champion") == old
    gates = {gate.name: gate for gate in outcome.gates}
    assert gates["golden_windows"].passed
    assert gates["finite_loss"].passed
    compared = ("alarm_rate", "reconstruction_error", "injected_detection")
    assert all(gates[name].champion is not None and gates[name].value is not None for name in compared)
    assert outcome.version is not None
    manifest = registry.manifest("waves", outcome.version)
    assert manifest.training.data_sha256 == outcome.data_sha256
    assert manifest.training.rows == round(0.8 * 1600) + round(0.8 * 1500)
    again = make_model(job(data, folder, old, at_ms=AFTER_MS), tmp_path)
    assert again.version == outcome.version, "an attempt that was killed behind its publication publishes no second"


def test_without_a_champion_the_absolute_bounds_alone_hold(data: Path, tmp_path: Path) -> None:
    outcome = make_model(job(data, tmp_path / "registry"), tmp_path / "work")
    assert {gate.champion for gate in outcome.gates} == {None}


def test_rows_of_alarms_of_other_times_and_of_other_families_are_left_out(data: Path, tmp_path: Path) -> None:
    whole = read_rows(job(data, tmp_path))
    assert [len(one.slots) for one in whole.series] == [1600, 1500]
    gone = (FIRST_MS + 100_000, FIRST_MS + 200_000)
    part = read_rows(
        job(data, tmp_path, exclude={"e-0": [gone]}, start_ms=FIRST_MS + 50_000, at_ms=FIRST_MS + 1_000_000)
    )
    assert [len(one.slots) for one in part.series] == [1000 - 50 - 100, 1000 - 50]
    ts_ms = part.series[0].slots * 1000
    assert not ((ts_ms >= gone[0]) & (ts_ms < gone[1])).any()
    other = job(data, tmp_path, family=FAMILY.model_copy(update={"entities": "x*"}).model_dump())
    assert read_rows(other).series == []


def test_too_little_data_is_a_failure_that_says_so(data: Path, tmp_path: Path) -> None:
    settings = RetrainingSettings(data=str(data), minimum_rows=1601).model_dump()
    with pytest.raises(UsageError, match="too little data: an entity wants 1601 rows, the most that one has is 1600"):
        make_model(job(data, tmp_path, retraining=settings), tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FloatingPointError("loss is nan at train step 3"), "FloatingPointError: loss is nan"),
        (MemoryError("no memory"), "MemoryError: no memory"),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
        (KeyError("a bug"), "KeyError"),
    ],
)
def test_whatever_training_dies_of_is_its_outcome(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(new_model, "train", fail)
    outcome = run_guarded(job(data, tmp_path / "registry"), tmp_path)
    assert outcome.version is None
    assert outcome.failure.startswith(told.partition(".*")[0])
    assert Registry(tmp_path / "registry").versions("waves") == []


def test_a_run_that_was_kept_for_other_data_begins_anew(data: Path, tmp_path: Path) -> None:
    first = make_model(job(data, tmp_path / "registry"), tmp_path)
    assert first.version is not None
    shorter = job(data, tmp_path / "registry", start_ms=FIRST_MS + 300_000, at_ms=AFTER_MS)
    assert make_model(shorter, tmp_path).version not in (None, first.version)


def test_a_warm_start_takes_entities_by_their_names(champion: tuple[Path, str]) -> None:
    folder, version = champion
    bundle: Bundle = Registry(folder).read("waves", version)
    table = bundle.weights["condition.entity.weight"]
    mixed = warm_weights(bundle, ["e-1", "new", "e-0"])["condition.entity.weight"]
    np.testing.assert_array_equal(mixed, table[[0, 2, 0, 1]])
    assert not any(name.startswith("companions") for name in warm_weights(bundle, ["e-0"]))


def test_constant_series_make_a_model_and_finite_figures(tmp_path: Path) -> None:
    still = recent_waves(900, 900)
    for series in still.series:
        series.values[:] = 3.0
        series.values[:, 1] = 0.0
    path = write(tmp_path / "still.parquet", still)
    outcome = make_model(job(path, tmp_path / "registry"), tmp_path)
    assert all(gate.value is not None for gate in outcome.gates)
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=type(outcome)) == outcome


def test_an_archive_gives_the_rows_that_a_file_gives(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is told family, times and exclusions; what it leaves out is its own tests' affair."""
    asked: list[tuple[object, ...]] = []

    def archive(*arguments: object, most_rows: int) -> Dataset:
        asked.append((*arguments, most_rows))
        return DATA

    monkeypatch.setattr(new_model, "read_archive", archive)
    gone = {"e-0": [(FIRST_MS, FIRST_MS + 1000)]}
    settings = RetrainingSettings(data=str(tmp_path)).model_dump()
    assert read_rows(job(data, tmp_path, exclude=gone, start_ms=5, retraining=settings)) is DATA
    assert asked == [(str(tmp_path), FAMILY, 5, AFTER_MS, gone, 5_000_000)]
