import msgspec
import numpy as np
import pytest
import torch

from detector.denoiser import UNSEEN_ENTITY, Denoiser
from stream.grid import Geometry
from tests.unit.training.made_up import TINY, waves
from training.context import ENTITY_VECTORS
from training.datasets import Dataset, Series
from training.fit import Fit
from training.parallel import ALONE
from training.sampling import WindowSampler, split_row
from training.scaling import measure_scaling
from training.trainer import train

GEOMETRY = Geometry(length=48, hop=16, final_delay=20, slack=64)
CONTEXT = msgspec.structs.replace(TINY, entity_source="context", companions=None)


def counting(*rows: int) -> tuple[Dataset, WindowSampler]:
    """Return entities whose channel counts their rows, so that a stretch shows where it was cut, and their sampler."""
    series = [
        Series(f"e-{n}", 1000 + np.arange(count), np.arange(count, dtype=np.float32)[:, None], None)
        for n, count in enumerate(rows)
    ]
    dataset = Dataset(waves().channels[:1], 1000, series)
    return dataset, WindowSampler(dataset, measure_scaling(dataset), GEOMETRY, timesteps=200, contexts=True)


def shown_rows(stretches: torch.Tensor, last: int) -> np.ndarray:
    """Return which rows are in stretches of x and valid (B, 2, L), NaN = none."""
    x, valid = stretches[:, 0], stretches[:, 1]
    return ((x + 1) / 2 * last).round().where(valid > 0, torch.nan).numpy()


def test_a_context_is_another_stretch_of_the_same_entitys_fitted_rows() -> None:
    dataset, sampler = counting(1000)
    split, seen = split_row(dataset.series[0]), set[int]()
    for number in range(120):
        batch = sampler.training(np.random.default_rng(number), 32)
        window = shown_rows(torch.stack([batch.x[:, 0], batch.valid[:, 0]], 1), 999)
        stretch = shown_rows(batch.context, 999)
        for own, other in zip(window, stretch, strict=True):
            assert not set(own[~np.isnan(own)]) & set(other[~np.isnan(other)])
        seen |= set(stretch[~np.isnan(stretch)].astype(int).tolist())
    assert seen == set(range(split))


def test_contexts_are_told_apart_by_entity_and_exist_for_the_shortest_series() -> None:
    _, sampler = counting(1, 30, 70)
    batch = sampler.training(np.random.default_rng(0), 300)
    longest = batch.context[:, 1].sum(1)
    for entity, rows in ((1, 1), (2, 30), (3, 48)):
        assert longest[batch.entity == entity].max() == rows


def test_contexts_lose_data_as_windows_do() -> None:
    _, sampler = counting(1000)
    batch = sampler.training(np.random.default_rng(0), 1000)
    lost = [(valid == 0).any(-1).float().mean().item() for valid in (batch.valid[:, 0], batch.context[:, 1])]
    assert 0.1 < lost[1] <= lost[0]


def test_contexts_leave_what_else_is_drawn_as_it_was() -> None:
    dataset = waves()
    plain, more = (
        WindowSampler(dataset, measure_scaling(dataset), GEOMETRY, 200, contexts=contexts) for contexts in (False, True)
    )
    one, other = (sampler.training(np.random.default_rng(0), 16) for sampler in (plain, more))
    for name in ("x", "valid", "commands", "entity", "timestep", "noise"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.context.numel() == 0
    assert other.context.shape == (16, 2 * 2 + 1, 48)


def test_stretches_lie_in_the_fitted_rows_and_reach_both_ends() -> None:
    dataset, sampler = counting(1000)
    split = split_row(dataset.series[0])
    rows = shown_rows(sampler.stretches(0, 7), 999)
    assert rows.shape == (7, 48)
    assert (rows.min(), rows.max()) == (0, split - 1)


def test_the_gradient_reaches_the_encoder_and_the_unseen_vector() -> None:
    dataset, geometry = waves(), CONTEXT.geometry
    config = CONTEXT.denoiser(2, 1, 2, geometry.length)
    sampler = WindowSampler(dataset, measure_scaling(dataset), geometry, 200, contexts=True)
    fit = Fit(config, msgspec.structs.replace(CONTEXT, batch=64), sampler, 0, ALONE, "cpu")
    torch.nn.init.normal_(fit.denoiser.output.weight)
    fit.train_step(1, 10)
    encoder, table = fit.denoiser.condition.encoder, fit.denoiser.condition.entity.weight
    assert encoder is not None
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert table.grad is not None
    assert table.grad[UNSEEN_ENTITY].abs().max() > 0
    assert table.grad[1:].abs().max() == 0


def test_the_table_holds_what_the_encoder_says_of_every_entity() -> None:
    trained = train(waves(), name="test", preset=CONTEXT, train_steps=20)
    denoiser = Denoiser(trained.denoiser)
    denoiser.load_state_dict(trained.weights)
    sampler = WindowSampler(trained.dataset, trained.scaling, trained.geometry, 200)
    vectors = trained.weights[ENTITY_VECTORS]
    assert denoiser.condition.encoder is not None
    for index in range(2):
        alone = [denoiser.condition.encoder(one[None])[0] for one in sampler.stretches(index, 32)]
        torch.testing.assert_close(vectors[index + 1], torch.stack(alone).mean(0).detach(), atol=1e-5, rtol=1e-4)
    assert (vectors[1] - vectors[2]).norm() > 1e-3


@pytest.mark.parametrize("use_entity", [True, False])
def test_at_inference_no_context_is_wanted(use_entity: bool) -> None:
    config = msgspec.structs.replace(CONTEXT.denoiser(2, 1, 2, 64), use_entity=use_entity)
    torch.manual_seed(0)
    denoiser = Denoiser(config)
    commands, context = torch.zeros(2, 1, 64), torch.randn(2, 5, 64)
    known, unseen = torch.tensor([1, 2]), torch.tensor([0, 0])
    looked_up = denoiser.encode_condition(commands, known)
    assert torch.equal(
        denoiser.encode_condition(commands, unseen, context), denoiser.encode_condition(commands, unseen)
    )
    assert torch.equal(looked_up, denoiser.encode_condition(commands, known, context)) != use_entity
    assert (denoiser.condition.encoder is not None) == use_entity


def test_slots_without_data_do_not_matter_to_the_encoder_and_none_with_data_give_a_number() -> None:
    torch.manual_seed(0)
    encoder = Denoiser(CONTEXT.denoiser(2, 1, 2, 64)).condition.encoder
    assert encoder is not None
    context = torch.randn(3, 5, 320)
    context[:, 2:4] = 1
    context[..., 128:] = 0
    torch.testing.assert_close(encoder(context), encoder(context[..., :128]), atol=1e-5, rtol=1e-4)
    assert encoder(torch.zeros(3, 5, 64)).isfinite().all()


def test_conditions_from_contexts_are_those_of_windows_one_by_one() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(CONTEXT.denoiser(2, 1, 4, 64))
    commands, entity = torch.randint(-1, 2, (5, 1, 64)).float(), torch.arange(5)
    context = torch.randn(5, 5, 64)
    context[:, 2:4] = (torch.rand(5, 2, 64) > 0.3).float()
    together = denoiser.encode_condition(commands, entity, context)
    apart = [denoiser.encode_condition(commands[i : i + 1], entity[i : i + 1], context[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(apart, 1), atol=1e-5, rtol=1e-4)
    assert (together[:, 1] - denoiser.encode_condition(commands, entity, context.flip(0))[:, 1]).abs().max() > 1e-3


def test_an_entity_that_is_learned_heeds_no_context() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(TINY.denoiser(2, 1, 2, 64))
    commands, entity = torch.zeros(3, 1, 64), torch.arange(3)
    plain = denoiser.encode_condition(commands, entity)
    assert torch.equal(plain, denoiser.encode_condition(commands, entity, torch.randn(3, 5, 64)))
    assert not any("encoder" in name for name in denoiser.state_dict())
