from pathlib import Path

import msgspec
import pytest
import torch

from stream.errors import UsageError
from stream.grid import Geometry
from tests.unit.training.made_up import TINY, waves
from training.presets import PRESETS, Preset
from training.trainer import Progress, TrainedModel, learning_rate_share, train


class PowerCutError(Exception):
    """The power is cut."""


def fit(**changes: object) -> TrainedModel:
    settings = {"name": "test", "preset": TINY, "train_steps": 60} | changes
    return train(waves(), **settings)  # type: ignore[arg-type]


def assert_same_weights(one: TrainedModel, other: TrainedModel) -> None:
    assert one.weights.keys() == other.weights.keys()
    for name, weights in one.weights.items():
        torch.testing.assert_close(weights, other.weights[name], rtol=0, atol=0, msg=name)


def test_training_fits_the_noise() -> None:
    """The noise has variance 1, which is the loss of knowing nothing."""
    seen: list[Progress] = []
    model = fit(train_steps=200, on_progress=seen.append)
    assert seen[0].loss > 0.8
    assert model.training.metrics["validation"] < 0.85
    assert model.training.metrics["loss"] == seen[-1].loss
    assert (seen[-1].train_step, seen[-1].train_steps, model.training.train_steps) == (200, 200, 200)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    model = fit(train_steps=5)
    torch.manual_seed(1234)
    assert_same_weights(model, fit(train_steps=5))
    assert not torch.equal(model.weights["head.weight"], fit(train_steps=5, seed=1).weights["head.weight"])


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    fit(train_steps=1)
    torch.testing.assert_close(torch.rand(3), wanted)


@pytest.mark.parametrize("stop", [1, 20, 59])
def test_an_interrupted_and_resumed_run_is_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.train_step > stop:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        fit(state_folder=tmp_path, on_progress=interrupt)
    steps: list[int] = []
    resumed = fit(state_folder=tmp_path, on_progress=lambda progress: steps.append(progress.train_step))
    assert steps[0] == stop + 1
    assert_same_weights(resumed, fit())


def test_a_finished_run_is_only_read_back(tmp_path: Path) -> None:
    finished = fit(state_folder=tmp_path)
    steps: list[int] = []
    assert_same_weights(fit(state_folder=tmp_path, on_progress=lambda p: steps.append(p.train_step)), finished)
    assert steps == []


@pytest.mark.parametrize("changes", [{"seed": 1}, {"preset": msgspec.structs.replace(TINY, learning_rate=1e-4)}])
def test_another_runs_state_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    fit(train_steps=2, state_folder=tmp_path)
    with pytest.raises(UsageError, match="belongs to a run"):
        fit(train_steps=2, state_folder=tmp_path, **changes)


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(FloatingPointError, match="loss is nan at train step"):
        fit(preset=msgspec.structs.replace(TINY, learning_rate=1e30))


def test_the_time_budget_decides_the_number_of_train_steps() -> None:
    short, long = (fit(train_steps=None, minutes=minutes).training.train_steps for minutes in (0.001, 0.05))
    assert 1 <= short < long


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UsageError, match="preset wants one of small, paper, got 'large'"):
        fit(preset="large")


def test_the_learning_rate_peaks_after_a_quarter_and_ends_at_nothing() -> None:
    shares = [learning_rate_share(number, 400) for number in range(1, 401)]
    assert max(shares) == shares[99] == 1
    assert shares[:100] == sorted(shares[:100])
    assert shares[99:] == sorted(shares[99:], reverse=True)
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert learning_rate_share(1, 1) == 1


@pytest.mark.parametrize(("length", "patch"), [(512, 4), (126, 3), (127, 1), (10, 2)])
def test_the_patch_divides_the_window(length: int, patch: int) -> None:
    preset: Preset = msgspec.structs.replace(PRESETS["small"], patch=4)
    assert preset.denoiser(1, 0, 1, length).patch == patch


def test_the_papers_preset_is_its_table_2() -> None:
    paper = PRESETS["paper"]
    assert (paper.layers, paper.width, paper.timesteps, paper.geometry.length) == (18, 512, 200, 2000)
    assert (paper.batch, paper.epochs, paper.learning_rate, paper.patch) == (32, 800, 1e-3, 1)


@pytest.mark.parametrize("geometry", [Geometry(length=24, hop=1, final_delay=4, slack=64), Geometry(length=1024)])
def test_other_geometries_train_too(geometry: Geometry) -> None:
    assert fit(train_steps=1, geometry=geometry).geometry == geometry
