from pathlib import Path

import msgspec
import pytest
import torch

from stream.errors import UsageError
from stream.grid import Geometry
from tests.unit.training.made_up import TINY, waves
from training.fit import Fit, learning_rate_share
from training.parallel import ALONE
from training.presets import Preset
from training.sampling import WindowSampler
from training.scaling import measure_scaling
from training.trainer import Progress, TrainedModel, train

FRAMED = msgspec.structs.replace(TINY, hop_ratio=0.5)
LEAN = msgspec.structs.replace(TINY, precision="bfloat16", recompute=True, layer="s4", learning_rate_course="constant")


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


@pytest.mark.parametrize(
    ("stop", "train_steps", "preset"), [(1, 60, TINY), (59, 60, TINY), (11, 20, FRAMED), (3, 6, LEAN)]
)
def test_an_interrupted_and_resumed_run_is_an_uninterrupted_one(
    tmp_path: Path, stop: int, train_steps: int, preset: Preset
) -> None:
    settings = {"preset": preset, "train_steps": train_steps}
    saved: list[float] = []

    def interrupt(progress: Progress) -> None:
        if progress.train_step > stop:
            raise PowerCutError
        saved.extend(progress.losses)

    with pytest.raises(PowerCutError):
        fit(**settings, state_folder=tmp_path, on_progress=interrupt)
    seen: list[Progress] = []
    resumed = fit(**settings, state_folder=tmp_path, on_progress=seen.append)
    assert seen[0].train_step == stop + 1
    uninterrupted: list[float] = []
    assert_same_weights(resumed, fit(**settings, on_progress=lambda progress: uninterrupted.extend(progress.losses)))
    assert saved + [loss for progress in seen for loss in progress.losses] == uninterrupted


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


def test_reports_are_the_loss_curve() -> None:
    seen: list[Progress] = []
    fit(train_steps=75, on_progress=seen.append)
    ends = [progress.train_step for progress in seen]
    assert [len(progress.losses) for progress in seen] == [
        end - begin for begin, end in zip([0, *ends], ends, strict=False)
    ]
    assert ends[-1] == 75
    for progress in seen:
        assert progress.loss == pytest.approx(sum(progress.losses) / len(progress.losses))


def test_activations_computed_again_give_the_same_weights() -> None:
    again = fit(train_steps=3, preset=msgspec.structs.replace(TINY, recompute=True))
    assert_same_weights(again, fit(train_steps=3))


def test_lower_precision_of_activations_learns_the_same() -> None:
    full = fit(train_steps=40)
    lower = fit(train_steps=40, preset=msgspec.structs.replace(TINY, precision="bfloat16"))
    assert lower.training.metrics["validation"] == pytest.approx(full.training.metrics["validation"], abs=0.02)
    assert not torch.equal(lower.weights["head.weight"], full.weights["head.weight"])
    assert all(tensor.dtype != torch.bfloat16 for tensor in lower.weights.values())


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


@pytest.mark.parametrize(("course", "share"), [("warm_up", 1 / 25), ("constant", 1)])
def test_the_first_train_step_moves_by_the_learning_rate_of_its_course(course: str, share: float) -> None:
    """Adam's first train step moves a weight by the learning rate, whatever its gradient; the output begins at 0."""
    plan = msgspec.structs.replace(TINY, learning_rate_course=course, weight_decay=0)
    dataset = waves()
    batches = WindowSampler(dataset, measure_scaling(dataset), plan.geometry, plan.timesteps)
    fitted = Fit(plan.denoiser(2, 1, 2, plan.geometry.length), plan, batches, 0, ALONE, "cpu")
    fitted.train_step(1, 100)
    moved = fitted.denoiser.output.weight.abs().max()
    assert moved.item() == pytest.approx(share * plan.learning_rate, rel=1e-3)


def test_the_learning_rate_is_the_same_all_the_time_where_asked() -> None:
    assert {learning_rate_share(number, 400, "constant") for number in range(1, 401)} == {1}


@pytest.mark.parametrize("geometry", [Geometry(length=24, hop=1, final_delay=4, slack=64), Geometry(length=1024)])
def test_other_geometries_train_too(geometry: Geometry) -> None:
    assert fit(train_steps=1, geometry=geometry).geometry == geometry


def test_a_warm_start_is_taken_where_it_fits_better_and_only_by_a_network_like_it() -> None:
    earlier = {
        name: tensor for name, tensor in fit(train_steps=80).weights.items() if not name.startswith("companions")
    }
    begun, cold = fit(train_steps=1, warm=earlier), fit(train_steps=1)
    assert begun.training.metrics["validation"] < 0.9 < cold.training.metrics["validation"]
    wrong = {name: torch.full_like(tensor, 3.0) for name, tensor in earlier.items()}
    assert_same_weights(fit(train_steps=5, warm=wrong), fit(train_steps=5))
    assert_same_weights(fit(train_steps=5, warm=dict(list(earlier.items())[1:])), fit(train_steps=5))


def test_an_interrupted_warm_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    earlier = {
        name: tensor for name, tensor in fit(train_steps=12).weights.items() if not name.startswith("companions")
    }

    def interrupt(progress: Progress) -> None:
        if progress.train_step > 5:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        fit(train_steps=12, warm=earlier, state_folder=tmp_path, on_progress=interrupt)
    assert_same_weights(fit(train_steps=12, warm=earlier, state_folder=tmp_path), fit(train_steps=12, warm=earlier))
    with pytest.raises(UsageError, match="other data or with other settings"):
        fit(train_steps=12, state_folder=tmp_path)
