import pytest
import torch
from torch import Tensor

from detector.denoiser import UNSEEN_ENTITY, Denoiser
from detector.manifest import DenoiserConfig

each_layer = pytest.mark.parametrize("layer", ["s4d", "s4", "res"])


def config(**changes: object) -> DenoiserConfig:
    fields = {"numeric": 2, "commands": 3, "entities": 4, "layers": 3, "width": 8, "state": 8} | changes
    return DenoiserConfig(**fields)  # type: ignore[arg-type]


def network(**changes: object) -> Denoiser:
    """Build a network whose output is not zero."""
    torch.manual_seed(0)
    denoiser = Denoiser(config(**changes))
    torch.nn.init.normal_(denoiser.output.weight)
    return denoiser.eval()


def windows(batch: int = 5, length: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    valid = (torch.rand(batch, 2, length, generator=generator) > 0.2).float()
    x_t = torch.randn(batch, 2, length, generator=generator) * valid
    commands = torch.randint(-1, 2, (batch, 3, length), generator=generator).float()
    return x_t, valid, torch.arange(1, batch + 1), commands, torch.arange(batch) % 5


def predict(
    denoiser: Denoiser, x_t: Tensor, valid: Tensor, timestep: Tensor, commands: Tensor, entity: Tensor
) -> Tensor:
    with torch.no_grad():
        return denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity))


def test_the_untrained_network_predicts_zero() -> None:
    torch.manual_seed(0)
    assert predict(Denoiser(config()), *windows()).abs().max() == 0


@each_layer
def test_a_batch_is_its_windows_one_by_one(layer: str) -> None:
    denoiser, inputs = network(layer=layer), windows()
    together = predict(denoiser, *inputs)
    apart = torch.cat([predict(denoiser, *(tensor[i : i + 1] for tensor in inputs)) for i in range(5)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_starts_stacked_on_the_batch_axis_are_starts_one_by_one() -> None:
    denoiser = network()
    x_t, valid, _, commands, entity = windows()
    condition = denoiser.encode_condition(commands, entity)
    starts = [torch.full((5,), start) for start in (5, 20, 60)]
    stacked = denoiser(x_t.repeat(3, 1, 1), valid.repeat(3, 1, 1), torch.cat(starts), condition)
    apart = torch.cat([denoiser(x_t, valid, start, condition) for start in starts])
    torch.testing.assert_close(stacked, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", ["x_t", "valid", "timestep", "commands", "entity"])
def test_every_input_matters(changed: str) -> None:
    denoiser, inputs = network(), windows()
    index = ["x_t", "valid", "timestep", "commands", "entity"].index(changed)
    other = list(inputs)
    other[index] = (inputs[index] + 1) % 5 if changed == "entity" else inputs[index] + 1
    assert (predict(denoiser, *inputs) - predict(denoiser, *other)).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("changes", [{"use_commands": False}, {"commands": 0}])
def test_commands_switched_off_do_not_matter(changes: dict[str, object]) -> None:
    denoiser, (x_t, valid, timestep, commands, entity) = network(**changes), windows()
    torch.testing.assert_close(
        predict(denoiser, x_t, valid, timestep, commands, entity),
        predict(denoiser, x_t, valid, timestep, -commands, entity),
    )


def test_the_entity_switched_off_is_the_unseen_one() -> None:
    denoiser, (x_t, valid, timestep, commands, entity) = network(use_entity=False), windows()
    torch.testing.assert_close(
        predict(denoiser, x_t, valid, timestep, commands, entity),
        predict(denoiser, x_t, valid, timestep, commands, torch.full_like(entity, UNSEEN_ENTITY)),
    )


@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize("patch", [1, 4])
def test_every_slot_sees_the_whole_window_both_ways(patch: int, layer: str) -> None:
    denoiser, (x_t, valid, timestep, commands, entity) = network(patch=patch, layer=layer), windows()
    x_t.requires_grad_()
    denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity))[..., 20].sum().backward()
    assert x_t.grad is not None
    assert (x_t.grad.abs().sum((0, 1)) > 0).all()


def test_a_slot_sees_as_far_as_dilated_convolutions_reach() -> None:
    """Three layers with dilations 1, 2, 4, two convolutions of size 3 in each: 2 (1 + 2 + 4) slots to either side."""
    denoiser, (x_t, valid, timestep, commands, entity) = network(layer="res"), windows()
    x_t.requires_grad_()
    denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity))[..., 20].sum().backward()
    assert x_t.grad is not None
    seen = torch.arange(40)[x_t.grad.abs().sum((0, 1)) > 0]
    assert (int(seen.min()), int(seen.max())) == (20 - 14, 20 + 14)


@pytest.mark.parametrize("patch", [1, 2, 8])
def test_a_patch_moves_with_the_window(patch: int) -> None:
    """In the middle of long windows, telemetry that comes `patch` slots later is reconstructed `patch` slots later."""
    denoiser, (x_t, valid, timestep, commands, entity) = network(patch=patch), windows(length=1600)
    for layer in denoiser.layers:
        for kernel in (layer.s4.past, layer.s4.future):
            torch.nn.init.constant_(kernel.log_dt, -1.0)
    moved = predict(
        denoiser, *(tensor.roll(patch, -1) for tensor in (x_t, valid)), timestep, commands.roll(patch, -1), entity
    )
    still = predict(denoiser, x_t, valid, timestep, commands, entity)
    torch.testing.assert_close(moved[..., 800:816], still.roll(patch, -1)[..., 800:816], atol=1e-4, rtol=1e-4)


@each_layer
@pytest.mark.parametrize("patch", [1, 4])
def test_prepared_network_is_the_plain_one(patch: int, layer: str) -> None:
    denoiser, inputs = network(patch=patch, layer=layer), windows()
    plain = predict(denoiser, *inputs)
    denoiser.prepare(40)
    torch.testing.assert_close(predict(denoiser, *inputs), plain, atol=0, rtol=0)


def gradients(denoiser: Denoiser) -> dict[str, Tensor | None]:
    denoiser.zero_grad()
    x_t, valid, timestep, commands, entity = windows()
    denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity)).square().sum().backward()
    return {name: parameter.grad for name, parameter in denoiser.named_parameters()}


@each_layer
def test_every_parameter_is_trained(layer: str) -> None:
    assert [name for name, grad in gradients(network(layer=layer).train()).items() if grad is None] == []


def kept_values(denoiser: Denoiser) -> int:
    """Count the values that a forward pass keeps for the backward pass."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x_t, valid, timestep, commands, entity = windows()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(x_t, valid, timestep, denoiser.encode_condition(commands, entity))
    return sum(kept)


@each_layer
def test_activations_computed_again_give_the_same_gradients(layer: str) -> None:
    denoiser = network(layer=layer).train()
    kept = gradients(denoiser)
    denoiser.recompute = True
    again = gradients(denoiser)
    for name, grad in kept.items():
        torch.testing.assert_close(again[name], grad, atol=0, rtol=0, msg=name)


def test_recomputing_keeps_fewer_activations() -> None:
    denoiser = network(layers=6).train()
    kept = kept_values(denoiser)
    denoiser.recompute = True
    assert kept_values(denoiser) < kept / 3


@each_layer
def test_weights_of_another_layer_do_not_fit(layer: str) -> None:
    for other in {"s4d", "s4", "res"} - {layer}:
        with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
            network(layer=layer).load_state_dict(network(layer=other).state_dict())
