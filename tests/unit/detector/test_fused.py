from typing import Any

import pytest
import torch

from detector.denoiser import Denoiser
from detector.engine import Detector
from detector.fused import FusedDenoiser, can_fuse
from detector.manifest import DenoiserConfig
from detector.s4 import BidirectionalS4, convolve
from tests.builders import random_weights, random_windows, untrained

B, L = 5, 48


def network(**config: Any) -> Denoiser:
    settings = {"numeric": 2, "commands": 3, "entities": 2, "layers": 5, "width": 8, "state": 8} | config
    chosen = DenoiserConfig(**settings)
    denoiser = Denoiser(chosen).eval()
    denoiser.load_state_dict(random_weights(chosen))
    denoiser.output.weight.data *= 20  # a noise of the size of noise
    return denoiser


def runs(config: DenoiserConfig, timesteps: list[int]) -> tuple[torch.Tensor, ...]:
    """Draw what both networks take: x_t, valid, timestep of all runs, commands and entity of the windows."""
    generator = torch.Generator().manual_seed(0)
    valid = (torch.rand(B, config.numeric, L, generator=generator) > 0.2).float().repeat(len(timesteps), 1, 1)
    x_t = torch.randn(valid.shape, generator=generator) * valid
    commands = torch.randint(-1, 2, (B, config.commands, L), generator=generator).float()
    timestep = torch.tensor(timesteps).repeat_interleave(B)
    return x_t, valid, timestep, commands, torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"patch": 4},
        {"patch": 3, "numeric": 1},
        {"layer": "s4"},
        {"layers": 1},
        {"kernel_size": 5, "dilation_cycle": 3},
        {"commands": 0},
        {"use_commands": False},
        {"use_entity": False},
        {"entity_source": "context"},
    ],
    ids=str,
)
@pytest.mark.parametrize("timesteps", [[20], [5, 200, 60]])
@torch.inference_mode()
def test_the_fused_network_is_the_network(config: dict[str, Any], timesteps: list[int]) -> None:
    denoiser = network(**config)
    x_t, valid, timestep, commands, entity = runs(denoiser.config, timesteps)
    fused = FusedDenoiser(denoiser, L)
    wanted = denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity))
    found = fused(x_t, valid, timestep, fused.encode_condition(commands, entity))
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_bfloat16_is_near_and_not_the_same() -> None:
    denoiser = network(patch=4)
    x_t, valid, timestep, commands, entity = runs(denoiser.config, [20, 60])
    exact, rough = FusedDenoiser(denoiser, L), FusedDenoiser(denoiser, L, "bfloat16")
    wanted = exact(x_t, valid, timestep, exact.encode_condition(commands, entity))
    found = rough(x_t, valid, timestep, rough.encode_condition(commands, entity))
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().mean() < 0.02 * wanted.std()


@pytest.mark.parametrize("kind", ["s4d", "s4"])
@pytest.mark.parametrize("length", [1, 7, 32])
@torch.no_grad()
def test_a_layers_matrix_is_its_convolution(kind: Any, length: int) -> None:
    torch.manual_seed(0)
    layer, u = BidirectionalS4(kind, 4, 8), torch.randn(3, 4, length)
    wanted = convolve(u, layer.transform(length))
    torch.testing.assert_close((layer.matrix(length) @ u[..., None])[..., 0], wanted, rtol=1e-4, atol=1e-5)


def test_only_networks_of_state_spaces_on_short_windows_are_fused() -> None:
    assert can_fuse(network(), 128)
    assert not can_fuse(network(), 129)
    assert can_fuse(network(), 129, "bfloat16")
    assert can_fuse(network(patch=4), 512)
    assert not can_fuse(network(layer="res"), 128)
    with pytest.raises(ValueError, match="only networks of state spaces"):
        FusedDenoiser(network(layer="res"), 128)


@pytest.mark.parametrize("layer", ["s4d", "res"])
def test_a_detector_of_lower_precision_scores_nearly_the_same(layer: Any) -> None:
    config = DenoiserConfig(numeric=2, commands=3, entities=2, layers=2, width=8, state=8, layer=layer)
    manifest, weights = untrained(denoiser=config)
    windows = random_windows(manifest, ["P-1", "M-6", "never-seen"], missing=0)
    exact, rough = Detector(manifest, weights), Detector(manifest, weights, precision="bfloat16")
    wanted, found = exact.score(windows).final, rough.score(windows).final
    assert 0 < abs(found / wanted - 1).max() < 0.02
