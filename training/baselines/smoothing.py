"""From raw scores to smoothed ones and to the paper's predictions. Knows no method."""

import numpy as np

from detector.scoring import SMOOTHING
from training.metrics import Flags, Scores


def smooth(scores: Scores, size: int, smoothing: str = "hanning", *, causal: bool = False) -> Scores:
    """Average scores (n,) by a smoothing kernel around each row (eq. 5); size 1 changes nothing.

    With `causal`, only the half of the kernel that looks back is used. Rows without a score (NaN) keep none and weigh
    nothing; at the ends, the kernel's weights that are left count in full.
    """
    reach = size // 2
    kernel = SMOOTHING[smoothing](2 * reach + 1)
    if causal:
        kernel = np.where(np.arange(2 * reach + 1) < reach, 0, kernel)
    present = ~np.isnan(scores)
    total = _convolve(np.where(present, scores, 0), kernel)
    weight = _convolve(present.astype(np.float64), kernel)
    return np.divide(total, weight, out=np.full_like(scores, np.nan), where=present)


def three_sigma(scores: Scores, sigmas: float = 3.0) -> Flags:
    """Flag scores above mean + `sigmas` deviations of the scored series itself, NaN left out.

    This is how we read the paper's "mean and variance of convolution distance". It is not causal: the threshold
    knows the whole series.
    """
    known = scores[~np.isnan(scores)]
    if not len(known):
        return np.zeros(len(scores), dtype=np.bool_)
    flags: Flags = scores > known.mean() + sigmas * known.std()
    return flags


def _convolve(values: Scores, kernel: Scores) -> Scores:
    """Convolve so that the kernel's middle lies on each value, also where the kernel is longer than the values."""
    reach = len(kernel) // 2
    return np.convolve(values, kernel)[reach : reach + len(values)]
