from dataclasses import fields

import numpy as np
import torch

from stream.frames import frame
from stream.grid import Geometry
from tests.unit.training.made_up import waves
from training.datasets import Dataset, Series
from training.sampling import SHORTEST_SPLIT, TrainingBatch, WindowSampler, split_row
from training.scaling import measure_scaling, scale

GEOMETRY = Geometry(length=48, hop=16, final_delay=20, slack=64)


def sampler(dataset: Dataset) -> WindowSampler:
    return WindowSampler(dataset, measure_scaling(dataset), GEOMETRY, timesteps=200)


def draw(dataset: Dataset, seed: int = 0, batch: int = 64) -> TrainingBatch:
    return sampler(dataset).training(np.random.default_rng(seed), batch)


def every_window(dataset: Dataset, index: int) -> np.ndarray:
    """Cut the window of every row, scaled, numeric channels only; 9 = missing."""
    scaling, series = measure_scaling(dataset), dataset.series[index]
    values = scale(series.values[:, dataset.numeric], scaling.minimum[index], scaling.maximum[index])
    windows = frame(series.slots, values, series.slots, GEOMETRY.length)
    return np.where(np.isnan(windows), 9, windows)


def test_draws_depend_on_the_generator_alone() -> None:
    one, same, other = draw(waves(), 3), draw(waves(), 3), draw(waves(), 4)
    for field in fields(TrainingBatch):
        assert torch.equal(getattr(one, field.name), getattr(same, field.name))
    assert not torch.equal(one.x, other.x)


def test_training_windows_are_live_windows_of_fitted_rows_with_some_data_lost() -> None:
    dataset = waves()
    batch = draw(dataset, batch=200)
    shown = np.where(batch.valid > 0, batch.x, 9)
    intact = 0
    for window in range(200):
        found = False
        for index, series in enumerate(dataset.series):
            candidates = every_window(dataset, index)[: split_row(series)]
            lost = shown[window] == 9
            same = (np.where(lost, 9, candidates) == shown[window]).all((1, 2))
            found |= bool(same.any())
            intact += int((candidates == shown[window]).all((1, 2)).any())
        assert found, window
    assert 100 < intact < 200


def test_every_fitted_row_is_drawn_in_time_and_no_held_out_one_ever() -> None:
    """A channel that counts its rows shows which rows are drawn."""
    rows = np.arange(500, dtype=np.float32)
    series = Series("e", rows.astype(np.int64) + 10**6, rows[:, None], None)
    dataset = Dataset(waves().channels[:1], 1000, [series])
    batches = sampler(dataset)
    drawn = set()
    for seed in range(60):
        batch = batches.training(np.random.default_rng(seed), 64)
        drawn |= set(((batch.x[batch.valid > 0] + 1) / 2 * 499).round().int().tolist())
    assert drawn == set(range(split_row(series)))
    held_out = batches.validation(np.random.default_rng(0), 64)
    assert held_out is not None
    last = ((held_out.x[:, 0, -1] + 1) / 2 * 499).round()
    assert last.min() >= split_row(series)


def test_some_windows_come_without_their_entity() -> None:
    entity = draw(waves(), batch=2000).entity
    assert 0.05 < (entity == 0).float().mean() < 0.15
    assert set(entity.tolist()) == {0, 1, 2}


def test_timesteps_cover_the_schedule() -> None:
    timestep = draw(waves(), batch=4000).timestep
    assert (int(timestep.min()), int(timestep.max())) == (1, 200)


def test_missing_values_are_zero_and_marked() -> None:
    dataset = waves()
    dataset.series[0].values[::3] = np.nan
    batch = draw(dataset)
    assert (batch.x[batch.valid == 0] == 0).all()
    assert torch.isfinite(batch.x).all()
    assert set(batch.commands.unique().tolist()) == {-1, 0, 1}


def test_short_series_hold_nothing_out() -> None:
    dataset = waves((SHORTEST_SPLIT - 1, 100))
    assert sampler(dataset).validation(np.random.default_rng(0), 8) is None
    assert sampler(dataset).rows == dataset.rows
