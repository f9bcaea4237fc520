"""From reconstruction to score: residuals over scale, channels combined, smoothed by eq. 5. Knows no network.

Scaled units are the entity's training range mapped to [-1, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.manifest import ScoringConfig

SMOOTHING: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "hanning": np.hanning,
    "hamming": np.hamming,
    "bartlett": np.bartlett,
}


def top_channels(residual: Tensor, valid: Tensor, count: int) -> Tensor:
    """Average the `count` largest residuals of a slot's present channels, or all where fewer are present.

    residual: (..., B, C, L). valid: (B, C, L), boolean. Returns (..., B, L), 0 where no channel is present.
    """
    if count >= residual.shape[-2]:
        return (residual * valid).sum(-2) / valid.sum(-2).clamp(min=1)
    largest = residual.where(valid, -1).transpose(-1, -2).topk(count, dim=-1, sorted=False).values  # (..., B, L, k)
    found = largest >= 0
    return (largest * found).sum(-1) / found.sum(-1).clamp(min=1)


def combine_views(smoothed: Tensor, levels: Tensor) -> Tensor:
    """Combine the views' smoothed scores (G, ...) into one (...): the mean of square roots, squared.

    levels: (G, ...), what counts as 1 in each. One view that is far off its level counts less than in a plain mean.
    """
    return (smoothed / levels).sqrt().mean(0).square()


def smoothing_weights(config: ScoringConfig, length: int, lookahead: int, size: int | None = None) -> Tensor:
    """Return the weight (L, L) of slot i's residual in slot j's score: c(i - j) of eq. 5, zero beyond `lookahead`.

    size: of the kernel, in slots, where it isn't the configured one. The smoothing kernel reaches half its size back.
    Hanning and Bartlett kernels are zero at their ends.
    """
    reach = (size or config.smoothing_size) // 2
    kernel = torch.from_numpy(SMOOTHING[config.smoothing](2 * reach + 1)).float()
    lag = torch.arange(length)[:, None] - torch.arange(length)
    inside = (lag >= -reach) & (lag <= min(reach, lookahead))
    return kernel[(lag + reach).clamp(0, 2 * reach)] * inside


def smooth(residual: Tensor, present: Tensor, weights: Tensor, power: int = 1) -> Tensor:
    """Average residuals (..., B, L) by weight over present slots (B, L); NaN where the slot itself is absent.

    weights: (L, n) for the scores of the newest n slots. power: of which the mean is taken; its root comes back.
    Residuals are scaled by the largest first, so that no power of them overflows.
    """
    largest = residual.amax(-1, keepdim=True).clamp(min=1)
    total = ((residual / largest) ** power * present) @ weights  # (..., B, n)
    mean = total / (present.float() @ weights)
    return (mean.clamp(min=0) ** (1 / power) * largest).where(present[..., -weights.shape[-1] :], torch.nan)
