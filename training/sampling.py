"""Training windows, with the gaps and the unseen entities that the detector will meet.

They are random cuts of training rows, or the paper's frames: blocks of L slots that overlap (section 4.1).
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.denoiser import UNSEEN_ENTITY
from detector.entity_table import INPUT_LIMIT
from stream.grid import Geometry
from training.datasets import Dataset, Series
from training.scaling import Scaling, scale

# Share of each series, its end, that weights are never fitted to; and the rows below which a series isn't split.
VALIDATION_SHARE = 0.05
SHORTEST_SPLIT = 400

_GAP_CHANCE = 0.1
_UNSEEN_CHANCE = 0.1


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Windows in the network's terms: x, valid, noise (B, C, L), commands (B, K, L), entity, timestep (B,).

    context: (B, 2 C + K, L), x, valid and commands of another stretch of the same entity; empty where none is drawn.
    """

    x: Tensor
    valid: Tensor
    commands: Tensor
    entity: Tensor
    timestep: Tensor
    noise: Tensor
    context: Tensor = field(default_factory=lambda: torch.empty(0))

    def to(self, device: str) -> "TrainingBatch":
        """Move every tensor to a device."""
        return TrainingBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def part(self, windows: slice) -> "TrainingBatch":
        """Return some of the windows."""
        return TrainingBatch(*(getattr(self, field.name)[windows] for field in fields(self)))

    def present(self) -> float:
        """Count the present values, at least 1."""
        return max(self.valid.sum().item(), 1.0)


@dataclass(frozen=True, eq=False)
class _Rows:
    """One series in the network's terms: numeric (C, n), NaN = missing; commands (K, n), -1, 0 = missing or 1."""

    slots: NDArray[np.int64]
    numeric: NDArray[np.float32]
    commands: NDArray[np.float32]


class WindowSampler:
    """Draws batches of windows; what it draws depends on the generator alone."""

    def __init__(
        self, dataset: Dataset, scaling: Scaling, geometry: Geometry, timesteps: int, *, contexts: bool = False
    ) -> None:
        """Scale the rows once. contexts: draw one for every window too."""
        self._contexts = contexts
        self.length = geometry.length
        self._timesteps = timesteps
        self._series = [_network_rows(dataset, scaling, index) for index in range(len(dataset.series))]
        self._split = np.array([split_row(series) for series in dataset.series])
        self._sizes = np.array([len(series.slots) for series in dataset.series])
        self.rows = int(self._split.sum())
        self.series = len(self._split)

    def training(self, generator: np.random.Generator, batch: int) -> TrainingBatch:
        """Draw windows that end in the fitted part of a series, an entity as often as it has rows."""
        chosen = generator.choice(len(self._split), batch, p=self._split / self.rows)
        return self._training(generator, chosen, self._slots(chosen, generator.integers(0, self._split[chosen])))

    def frames(self, hop_ratio: float) -> NDArray[np.int64]:
        """Return all training frames, (F, 2): index of the series and end slot.

        Blocks end `hop_ratio` * L slots apart, the last one of a series with its fitted part, and are padded as
        missing before the series' beginning. Those without a row of their own are left out.
        """
        hop = max(1, round(hop_ratio * self.length))
        found = []
        for index, (series, split) in enumerate(zip(self._series, self._split, strict=True)):
            slots = series.slots[:split]
            ends = np.arange(slots[0] + hop - 1, slots[-1] + hop, hop).clip(max=slots[-1])
            ends = ends[np.unique(np.searchsorted(ends, slots))]
            found.append(np.stack([np.full_like(ends, index), ends], -1))
        return np.concatenate(found)

    def framed(self, generator: np.random.Generator, frames: NDArray[np.int64]) -> TrainingBatch:
        """Cut these frames, (B, 2) as `frames` returns them."""
        return self._training(generator, frames[:, 0], frames[:, 1])

    def validation(self, generator: np.random.Generator, batch: int) -> TrainingBatch | None:
        """Draw windows that end in the held-out part of a series, timesteps evenly spread; None if there is none."""
        held_out = self._sizes - self._split
        if not held_out.any():
            return None
        chosen = generator.choice(len(held_out), batch, p=held_out / held_out.sum())
        last = generator.integers(self._split[chosen], self._sizes[chosen])
        numeric, commands = self._cut(chosen, self._slots(chosen, last))
        timestep = np.linspace(1, self._timesteps, batch).round().astype(np.int64)
        held_out_windows = _batch(generator, numeric, commands, chosen + 1, timestep)
        return self._with_context(generator, held_out_windows, chosen, self._slots(chosen, last), lossy=False)

    def stretches(self, index: int, most: int) -> Tensor:
        """Cut stretches evenly spread over the fitted part of a series, as contexts, (S <= most, 2 C + K, L)."""
        slots = self._series[index].slots[: self._split[index]]
        rows = np.unique(np.linspace(self._first_whole(index), len(slots) - 1, most).round().astype(np.int64))
        return _context(*self._cut(np.full(len(rows), index), slots[rows]))

    def _training(
        self, generator: np.random.Generator, chosen: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> TrainingBatch:
        """Make training windows of these series that end at these slots."""
        batch = len(chosen)
        numeric, commands = self._cut(chosen, ends)
        _lose_data(generator, numeric, commands)
        entity = np.where(generator.random(batch) < _UNSEEN_CHANCE, UNSEEN_ENTITY, chosen + 1)
        windows = _batch(generator, numeric, commands, entity, generator.integers(1, self._timesteps + 1, batch))
        return self._with_context(generator, windows, chosen, ends, lossy=True)

    def _with_context(
        self,
        generator: np.random.Generator,
        windows: TrainingBatch,
        chosen: NDArray[np.int64],
        ends: NDArray[np.int64],
        *,
        lossy: bool,
    ) -> TrainingBatch:
        """Add a stretch of the same series to every window that ends at these slots, where contexts are wanted."""
        if not self._contexts:
            return windows
        elsewhere = [self._elsewhere(generator, index, end) for index, end in zip(chosen, ends, strict=True)]
        numeric, commands = self._cut(chosen, np.array(elsewhere))
        if lossy:
            _lose_data(generator, numeric, commands)
        return replace(windows, context=_context(numeric, commands))

    def _elsewhere(self, generator: np.random.Generator, index: int, end: np.int64) -> int:
        """Draw where a stretch of fitted rows ends, L slots or more away from `end` if the series is long enough."""
        slots, first = self._series[index].slots[: self._split[index]], self._first_whole(index)
        before, after = np.searchsorted(slots, [end - self.length + 1, end + self.length]).clip(min=first)
        count = before - first + len(slots) - after
        if not count:
            before = after = len(slots)
            count = before - first
        row = first + generator.integers(count)
        return int(slots[row if row < before else row - before + after])

    def _first_whole(self, index: int) -> int:
        """Return the first row at which a stretch may end that doesn't begin before its series does."""
        return int(min(self.length, self._split[index])) - 1

    def _slots(self, chosen: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self._series[index].slots[row] for index, row in zip(chosen, rows, strict=True)])

    def _cut(
        self, chosen: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cut the windows that end at these slots: numeric (B, C, L) and commands (B, K, L)."""
        shape = self._series[0].numeric.shape[0], self._series[0].commands.shape[0]
        numeric = np.full((len(chosen), shape[0], self.length), np.nan, np.float32)
        commands = np.zeros((len(chosen), shape[1], self.length), np.float32)
        for window, (index, end) in enumerate(zip(chosen, ends, strict=True)):
            series = self._series[index]
            first_slot = end - self.length + 1
            rows = slice(*np.searchsorted(series.slots, [first_slot, end + 1]))
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


def _context(numeric: NDArray[np.float32], commands: NDArray[np.float32]) -> Tensor:
    """Join x, valid and commands, (B, 2 C + K, L)."""
    valid = ~np.isnan(numeric)
    x = np.where(valid, numeric, np.float32(0)).clip(-INPUT_LIMIT, INPUT_LIMIT)
    return torch.from_numpy(np.concatenate([x, valid.astype(np.float32), commands], 1))


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
