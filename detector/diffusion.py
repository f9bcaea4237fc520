"""The noise schedule and the samplers. Knows neither network nor data: both are passed in, and so is all noise.

Timesteps are the paper's: 1 is the least noisy, T the noisiest, 0 the clean window. The paper writes alpha_t as a sum
and drops the bar in its algorithms; these are the corrected forms of Ho et al. 2020.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Predicts the noise in x_t (B, C, L) at the timesteps (B,).
Denoise = Callable[[Tensor, Tensor], Tensor]


class NoiseSchedule(nn.Module):
    """Linear beta from timestep 1 to T. Buffers beta and alpha_bar are indexed by timestep, 0 is clean."""

    beta: Tensor
    alpha_bar: Tensor

    def __init__(self, timesteps: int, beta_first: float, beta_last: float) -> None:
        """Lay out T timesteps; the products are taken in double precision."""
        super().__init__()
        beta = torch.cat([torch.zeros(1).double(), torch.linspace(beta_first, beta_last, timesteps).double()])
        self.timesteps = timesteps
        self.register_buffer("beta", beta.float(), persistent=False)  # (T + 1,)
        self.register_buffer("alpha_bar", (1 - beta).cumprod(0).float(), persistent=False)  # (T + 1,)

    def q_sample(self, x0: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Diffuse clean windows to the given timesteps (Ho et al. 2020, Eq. 4; paper, under Eq. 1).

        x0, noise: (B, C, L). timestep: (B,) int64 in 1..T. Raises ValueError if x0 and noise differ in shape.
        """
        if x0.shape != noise.shape:
            raise ValueError(f"noise wants the shape of x0 {tuple(x0.shape)}, got {tuple(noise.shape)}")
        alpha_bar = self.alpha_bar[timestep][:, None, None]
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def predict_x0(self, x_t: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Undo `q_sample` given the noise, predicted or true."""
        alpha_bar = self.alpha_bar[timestep][:, None, None]
        return (x_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def ddim(schedule: NoiseSchedule, denoise: Denoise, x_t: Tensor, start: Tensor, steps: int) -> Tensor:
    """Return x0 by `steps` deterministic network calls (Song et al. 2021, Eq. 12 with eta = 0).

    start: (B,) int64, every window may start from a timestep of its own. With one call it is the direct prediction of
    x0 from the start timestep.
    """
    for remaining in range(steps, 0, -1):
        timestep, following = (_rounded_up(start * left, steps) for left in (remaining, remaining - 1))
        noise = denoise(x_t, timestep)
        x_t = schedule.q_sample(schedule.predict_x0(x_t, timestep, noise), following, noise)
    return x_t


def ancestral(schedule: NoiseSchedule, denoise: Denoise, x_t: Tensor, start: int, noise: Tensor) -> Tensor:
    """Return x0 by the paper's Algorithm 2, corrected (Ho et al. 2020, Algorithm 2 with sigma_t^2 = beta_t).

    noise: (start - 1, B, C, L), one draw a timestep from `start` down to 2; the last one adds none.
    """
    for current in range(start, 0, -1):
        timestep = torch.full((len(x_t),), current, device=x_t.device)
        beta, alpha_bar = schedule.beta[current], schedule.alpha_bar[current]
        x_t = (x_t - beta / (1 - alpha_bar).sqrt() * denoise(x_t, timestep)) / (1 - beta).sqrt()
        if current > 1:
            x_t = x_t + beta.sqrt() * noise[start - current]
    return x_t


def _rounded_up(dividend: Tensor, divisor: int) -> Tensor:
    return (dividend + divisor - 1) // divisor
