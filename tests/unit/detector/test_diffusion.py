import pytest
import torch
from torch import Tensor

from detector.diffusion import Denoise, NoiseSchedule, ancestral, ddim


@pytest.fixture
def schedule() -> NoiseSchedule:
    torch.manual_seed(0)
    return NoiseSchedule(200, 1e-4, 0.02)


def oracle(schedule: NoiseSchedule, x0: Tensor) -> Denoise:
    """Know the clean window, so know the noise."""

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[timestep][:, None, None]
        return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    return denoise


def test_schedule_has_the_papers_noise_levels(schedule: NoiseSchedule) -> None:
    sigma = (1 - schedule.alpha_bar[[5, 10, 20, 50, 100]]).sqrt()
    torch.testing.assert_close(sigma, torch.tensor([0.039, 0.074, 0.144, 0.346, 0.630]), atol=6e-4, rtol=0)
    assert schedule.alpha_bar[200].item() == pytest.approx(0.132, abs=5e-4)
    assert schedule.alpha_bar[0] == 1


def test_q_sample_has_the_moments_of_the_chain(schedule: NoiseSchedule) -> None:
    """Mean and variance of x_t given x0 follow exactly from Eq. 1, one timestep after the other."""
    mean, variance = torch.ones(()).double(), torch.zeros(()).double()
    for timestep in range(1, 201):
        beta = schedule.beta[timestep].double()
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        at = torch.tensor([timestep])
        one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        assert schedule.q_sample(one, at, zero).item() == pytest.approx(mean.item(), rel=1e-5)
        assert schedule.q_sample(zero, at, one).item() ** 2 == pytest.approx(variance.item(), rel=1e-3)


def test_predict_x0_undoes_q_sample(schedule: NoiseSchedule) -> None:
    x0, noise = torch.randn(3, 2, 9), torch.randn(3, 2, 9)
    timestep = torch.tensor([1, 20, 200])
    x_t = schedule.q_sample(x0, timestep, noise)
    torch.testing.assert_close(schedule.predict_x0(x_t, timestep, noise), x0, atol=1e-5, rtol=1e-4)


def test_q_sample_refuses_noise_of_another_shape(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="noise wants the shape"):
        schedule.q_sample(torch.zeros(2, 1, 8), torch.tensor([1, 1]), torch.zeros(1, 1, 8))


@pytest.mark.parametrize("start", [1, 2, 20, 200])
@pytest.mark.parametrize("steps", [1, 4, 500])
def test_ddim_with_an_oracle_recovers_the_window(schedule: NoiseSchedule, start: int, steps: int) -> None:
    x0, noise = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    x_t = schedule.q_sample(x0, torch.full((2,), start), noise)
    torch.testing.assert_close(
        ddim(schedule, oracle(schedule, x0), x_t, torch.full((2,), start), steps), x0, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("start", "steps"), [(20, 1), (20, 4), (3, 10)])
def test_ddim_descends_from_start_in_as_many_calls_as_asked(schedule: NoiseSchedule, start: int, steps: int) -> None:
    seen: list[int] = []

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        seen.append(int(timestep[0]))
        return torch.zeros_like(x_t)

    ddim(schedule, denoise, torch.zeros(1, 1, 4), torch.tensor([start]), steps)
    assert len(seen) == steps
    assert seen[0] == start
    assert seen[-1] >= 1
    assert sorted(seen, reverse=True) == seen


def test_windows_may_start_from_timesteps_of_their_own(schedule: NoiseSchedule) -> None:
    x_t = torch.randn(3, 1, 8)

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        return 0.1 * x_t + 0.01 * timestep[:, None, None]

    starts = torch.tensor([5, 20, 60])
    together = ddim(schedule, denoise, x_t, starts, 4)
    apart = torch.cat([ddim(schedule, denoise, x_t[i : i + 1], starts[i : i + 1], 4) for i in range(3)])
    torch.testing.assert_close(together, apart)


def test_one_ddim_timestep_is_the_direct_prediction(schedule: NoiseSchedule) -> None:
    x_t, noise = torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    direct = schedule.predict_x0(x_t, torch.tensor([20, 20]), noise)
    torch.testing.assert_close(ddim(schedule, lambda *_: noise, x_t, torch.tensor([20, 20]), 1), direct)


@pytest.mark.parametrize("start", [1, 2, 20, 200])
def test_ancestral_with_an_oracle_recovers_the_window(schedule: NoiseSchedule, start: int) -> None:
    x0 = torch.randn(2, 3, 16)
    x_t = schedule.q_sample(x0, torch.full((2,), start), torch.randn(2, 3, 16))
    noise = torch.randn(start - 1, 2, 3, 16)
    found = ancestral(schedule, oracle(schedule, x0), x_t, start, noise)
    torch.testing.assert_close(found, x0, atol=1e-4, rtol=1e-4)


def test_ancestral_keeps_a_gaussian_a_gaussian(schedule: NoiseSchedule) -> None:
    """Data N(0, v): its exact denoiser is linear, and the chain from x_T must end near variance v again."""
    variance = 0.25

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[timestep][:, None, None]
        return (1 - alpha_bar).sqrt() / (alpha_bar * variance + 1 - alpha_bar) * x_t

    x_t = schedule.q_sample(torch.randn(1, 1, 20_000) * variance**0.5, torch.tensor([200]), torch.randn(1, 1, 20_000))
    found = ancestral(schedule, denoise, x_t, 200, torch.randn(199, 1, 1, 20_000))
    assert found.var().item() == pytest.approx(variance, rel=0.06)
