"""Networks that reconstruct windows of all entities: how they are trained for a while and how residuals become scores.

Knows no architecture. Commands go in beside the numeric channels; only those come out.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.entity_table import INPUT_LIMIT
from training.baselines.protocol import Scorer
from training.baselines.scaled_rows import (
    Matrix,
    ScaledRows,
    fit_scaler,
    mean_over_channels,
    residual_scale,
    where_present,
)
from training.datasets import Dataset, Series
from training.metrics import Scores

LENGTH = 64
BATCH = 32

_SCORED = 256


class Network(Protocol):
    """A network with its optimisers."""

    def train_step(self, windows: Tensor) -> None:
        """Learn from windows (B, L, C + K), numeric channels first."""

    def reconstruct(self, windows: Tensor) -> Tensor:
        """Return the numeric channels (B, L, C) as they should be, without gradients."""


# Makes a network for C + K input and C output channels, its weights drawn from torch's global generator.
Build = Callable[[int, int], Network]


def fit_reconstruction(dataset: Dataset, build: Build, *, seed: int, minutes: float, train_steps: int | None) -> Scorer:
    """Train one network on all entities; a row's score is its residual over the entity's usual one.

    With `train_steps`, equal seeds give equal networks; otherwise `minutes` end the training.
    """
    scaler = fit_scaler(dataset)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(len(dataset.channels), len(dataset.numeric))
    rows = [scaler(series) for series in dataset.series]
    _train(network, [_inputs(each) for each in rows], seed, minutes, train_steps)
    usual = {
        series.entity: residual_scale(_residual(network, own)) for series, own in zip(dataset.series, rows, strict=True)
    }

    def score(series: Series) -> Scores:
        rows = scaler(series)
        return where_present(rows, mean_over_channels(_residual(network, rows) / usual[series.entity]))

    return score


def _train(
    network: Network, inputs: Sequence[NDArray[np.float32]], seed: int, minutes: float, train_steps: int | None
) -> None:
    """Show random windows, an entity as often as it has rows."""
    generator = np.random.default_rng(seed)
    sizes = np.array([len(each) for each in inputs])
    end, done = time.monotonic() + 60 * minutes, 0
    while done < train_steps if train_steps is not None else time.monotonic() < end:
        chosen = generator.choice(len(inputs), BATCH, p=sizes / sizes.sum())
        first = generator.integers(0, np.maximum(sizes[chosen] - LENGTH, 0) + 1)
        windows = [_cut(inputs[index], start) for index, start in zip(chosen, first, strict=True)]
        network.train_step(torch.from_numpy(np.stack(windows)))
        done += 1


def _inputs(rows: ScaledRows) -> NDArray[np.float32]:
    return np.hstack([rows.filled.clip(-INPUT_LIMIT, INPUT_LIMIT), rows.commands]).astype(np.float32)


def _cut(inputs: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    """Return LENGTH rows from `first` on; the last one is repeated where the series ends."""
    return inputs[np.minimum(np.arange(first, first + LENGTH), len(inputs) - 1)]


def _residual(network: Network, rows: ScaledRows) -> Matrix:
    """Return |x - x_hat| (n, C), x_hat averaged over the windows, half overlapping, that a row lies in."""
    inputs = _inputs(rows)
    count, hop = len(inputs), LENGTH // 2
    starts = np.arange(0, max(1, count - hop), hop)
    total, times = np.zeros_like(rows.numeric), np.zeros((count, 1))
    for begin in range(0, len(starts), _SCORED):
        part = starts[begin : begin + _SCORED]
        expected = network.reconstruct(torch.from_numpy(np.stack([_cut(inputs, start) for start in part]))).numpy()
        for start, window in zip(part, expected, strict=True):
            inside = min(LENGTH, count - start)
            total[start : start + inside] += window[:inside]
            times[start : start + inside] += 1
    residual: Matrix = np.abs(rows.numeric - total / times)
    return residual
