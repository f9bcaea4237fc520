import msgspec
import numpy as np
import pytest

from detector.engine import Detector
from stream.grid import Geometry
from tests.builders import random_windows, untrained
from tests.unit.training.made_up import TINY, waves
from training.presets import PRESETS, Preset
from training.trainer import train


@pytest.mark.parametrize(("length", "patch"), [(512, 4), (126, 3), (127, 1), (10, 2)])
def test_the_patch_divides_the_window(length: int, patch: int) -> None:
    preset: Preset = msgspec.structs.replace(PRESETS["small"], patch=4)
    assert preset.denoiser(1, 0, 1, length).patch == patch


def test_the_papers_preset_is_its_table_2() -> None:
    paper = PRESETS["paper"]
    assert (paper.layers, paper.width, paper.timesteps, paper.geometry.length) == (18, 512, 200, 2000)
    assert (paper.batch, paper.epochs, paper.learning_rate, paper.patch) == (32, 800, 1e-3, 1)
    assert (paper.layer, paper.learning_rate_course) == ("s4", "warm_up")


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5])
def test_frames_that_leave_rows_out_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="hop_ratio wants more than 0 and at most 1"):
        Preset(**(msgspec.structs.asdict(TINY) | {"hop_ratio": ratio}))


def test_the_papers_network_is_trained_and_scores() -> None:
    """In full but for what only takes time: window, batch, train steps, and N, which the paper doesn't tell."""
    geometry = Geometry(length=64, hop=32, final_delay=12, slack=96)
    preset = msgspec.structs.replace(PRESETS["paper"], batch=1, state=8)
    model = train(waves(rows=(90, 80)), name="test", preset=preset, geometry=geometry, train_steps=1)
    assert (model.denoiser.layers, model.denoiser.width, model.denoiser.layer) == (18, 512, "s4")
    assert model.weights["output.weight"].abs().max() > 0
    scoring = msgspec.structs.replace(model.scoring, sampler_steps=1)
    manifest, _ = untrained(numeric=2, commands=1, geometry=geometry, denoiser=model.denoiser, scoring=scoring)
    detector = Detector(manifest, model.weights)
    windows = random_windows(manifest, ["P-1"])
    scores, plainly = detector.score(windows), detector.score_plainly(windows)
    np.testing.assert_allclose(scores.final, plainly.final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["s4d", "s4", "res"])
def test_fast_engine_is_the_plain_one_for_every_layer(layer: str) -> None:
    preset: Preset = msgspec.structs.replace(TINY, layer=layer)
    manifest, weights = untrained(numeric=2, commands=1, denoiser=preset.denoiser(2, 1, 2, 96))
    detector = Detector(manifest, weights)
    windows = random_windows(manifest, ["P-1", "M-6", "never-seen"])
    scores, plainly = detector.score(windows), detector.score_plainly(windows)
    np.testing.assert_allclose(scores.final, plainly.final, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.expected, plainly.expected, rtol=1e-5, atol=1e-5)
