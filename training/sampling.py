"""Training windows: random cuts of training rows, with the gaps and the unseen entities that the detector will meet."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.denoiser import UNSEEN_ENTITY
from detector.engine import INPUT_LIMIT
from stream.grid import Geometry
from training.datasets import Dataset, Series
from training.scaling import Scaling, scale

# Share of each series, its end, that weights are never fitted to; and the rows below which a series isn't split.
VALIDATION_SHARE = 0.15
SHORTEST_SPLIT = 400

_GAP_CHANCE = 0.1
_UNSEEN_CHANCE = 0.1


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Windows in the network's terms: x, valid, noise (B, C, L), commands (B, K, L), entity, timestep (B,)."""

    x: Tensor
    valid: Tensor
    commands: Tensor
    entity: Tensor
    timestep: Tensor
    noise: Tensor

    def to(self, device: str) -> "TrainingBatch":
        """Move every tensor to a device."""
        return TrainingBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, eq=False)
class _Rows:
    """One series in the network's terms: numeric (C, n), NaN = missing; commands (K, n), -1, 0 = missing or 1."""

    slots: NDArray[np.int64]
    numeric: NDArray[np.float32]
    commands: NDArray[np.float32]


class WindowSampler:
    """Draws batches of windows; what it draws depends on the generator alone."""

    def __init__(self, dataset: Dataset, scaling: Scaling, geometry: Geometry, timesteps: int) -> None:
        """Scale the rows once."""
        self._length = geometry.length
        self._timesteps = timesteps
        self._series = [_network_rows(dataset, scaling, index) for index in range(len(dataset.series))]
        self._split = np.array([split_row(series) for series in dataset.series])
        self._sizes = np.array([len(series.slots) for series in dataset.series])
        self.rows = int(self._split.sum())

    def training(self, generator: np.random.Generator, batch: int) -> TrainingBatch:
        """Draw windows that end in the fitted part of a series, an entity as often as it has rows."""
        chosen = generator.choice(len(self._split), batch, p=self._split / self.rows)
        numeric, commands = self._cut(chosen, generator.integers(0, self._split[chosen]))
        _lose_data(generator, numeric, commands)
        entity = np.where(generator.random(batch) < _UNSEEN_CHANCE, UNSEEN_ENTITY, chosen + 1)
        return _batch(generator, numeric, commands, entity, generator.integers(1, self._timesteps + 1, batch))

    def validation(self, generator: np.random.Generator, batch: int) -> TrainingBatch | None:
        """Draw windows that end in the held-out part of a series, timesteps evenly spread; None if there is none."""
        held_out = self._sizes - self._split
        if not held_out.any():
            return None
        chosen = generator.choice(len(held_out), batch, p=held_out / held_out.sum())
        numeric, commands = self._cut(chosen, generator.integers(self._split[chosen], self._sizes[chosen]))
        timestep = np.linspace(1, self._timesteps, batch).round().astype(np.int64)
        return _batch(generator, numeric, commands, chosen + 1, timestep)

    def _cut(
        self, chosen: NDArray[np.int64], last: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cut the windows that end with these rows: numeric (B, C, L) and commands (B, K, L)."""
        shape = self._series[0].numeric.shape[0], self._series[0].commands.shape[0]
        numeric = np.full((len(chosen), shape[0], self._length), np.nan, np.float32)
        commands = np.zeros((len(chosen), shape[1], self._length), np.float32)
        for window, (index, row) in enumerate(zip(chosen, last, strict=True)):
            series = self._series[index]
            first_slot = series.slots[row] - self._length + 1
            rows = slice(int(np.searchsorted(series.slots, first_slot)), int(row) + 1)
            at = series.slots[rows] - first_slot
            numeric[window][:, at] = series.numeric[:, rows]
            commands[window][:, at] = series.commands[:, rows]
        return numeric, commands


def split_row(series: Series) -> int:
    """Return the first held-out row of a series, its length if it is too short to hold any out."""
    rows = len(series.slots)
    return rows if rows < SHORTEST_SPLIT else round(rows * (1 - VALIDATION_SHARE))


def _network_rows(dataset: Dataset, scaling: Scaling, index: int) -> _Rows:
    series = dataset.series[index]
    numeric = scale(series.values[:, dataset.numeric], scaling.minimum[index], scaling.maximum[index])
    commands = (2 * series.values[:, dataset.commands] - 1).clip(-1, 1)
    commands[np.isnan(commands)] = 0
    return _Rows(series.slots, np.ascontiguousarray(numeric.T), np.ascontiguousarray(commands.T))


def _batch(
    generator: np.random.Generator,
    numeric: NDArray[np.float32],
    commands: NDArray[np.float32],
    entity: NDArray[np.int64],
    timestep: NDArray[np.int64],
) -> TrainingBatch:
    valid = ~np.isnan(numeric)
    return TrainingBatch(
        torch.from_numpy(np.where(valid, numeric, np.float32(0)).clip(-INPUT_LIMIT, INPUT_LIMIT)),
        torch.from_numpy(valid.astype(np.float32)),
        torch.from_numpy(commands),
        torch.from_numpy(entity),
        torch.from_numpy(timestep),
        torch.from_numpy(generator.standard_normal(numeric.shape, dtype=np.float32)),
    )


def _lose_data(generator: np.random.Generator, numeric: NDArray[np.float32], commands: NDArray[np.float32]) -> None:
    """Lose data as live telemetry does, in a window here and there: its beginning, rows, channels."""
    batch, channels, length = numeric.shape
    for window in np.flatnonzero(generator.random(batch) < _GAP_CHANCE):
        _lose(numeric[window], commands[window], slice(0, int(generator.integers(0, length))))
    for window in np.flatnonzero(generator.random(batch) < _GAP_CHANCE):
        _lose(numeric[window], commands[window], np.less(generator.random(length), generator.uniform(0, 0.5)))
    for window in np.flatnonzero(generator.random(batch) < _GAP_CHANCE):
        share = generator.uniform(0, 0.5)
        numeric[window, generator.random(channels) < share] = np.nan
        commands[window, generator.random(commands.shape[1]) < share] = 0


def _lose(numeric: NDArray[np.float32], commands: NDArray[np.float32], slots: slice | NDArray[np.bool_]) -> None:
    numeric[:, slots] = np.nan
    commands[:, slots] = 0
