"""The paper's frames (section 4.1): blocks of L slots that lie alpha * L slots apart."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.grid import Geometry
from tests.unit.training.made_up import TINY, waves
from training.datasets import Dataset, Series
from training.fit import Fit
from training.parallel import ALONE
from training.sampling import TrainingBatch, WindowSampler, split_row
from training.scaling import measure_scaling
from training.trainer import train

GEOMETRY = Geometry(length=48, hop=16, final_delay=20, slack=64)
FRAMED = msgspec.structs.replace(TINY, hop_ratio=0.5, geometry=GEOMETRY)


class RecordingSampler(WindowSampler):
    """Remembers which frames were cut."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, measure_scaling(dataset), GEOMETRY, timesteps=200)
        self.cut: list[tuple[int, int]] = []

    def framed(self, generator: np.random.Generator, frames: NDArray[np.int64]) -> TrainingBatch:
        self.cut.extend((int(index), int(end)) for index, end in frames)
        return super().framed(generator, frames)


def counting(slots: list[int]) -> Dataset:
    """Return a series whose channel counts its rows."""
    rows = np.arange(len(slots), dtype=np.float32)[:, None]
    return Dataset(waves().channels[:1], 1000, [Series("e", np.array(slots) + 10**6, rows, None)])


def frames_of(dataset: Dataset, ratio: float) -> list[tuple[int, int]]:
    return [(int(index), int(end)) for index, end in RecordingSampler(dataset).frames(ratio)]


@given(steps=st.lists(st.sampled_from([1, 1, 1, 2, 60, 200]), min_size=1, max_size=500), ratio=st.floats(0.01, 1))
def test_frames_show_every_fitted_row_and_no_held_out_one(steps: list[int], ratio: float) -> None:
    dataset = counting(np.cumsum(steps).tolist())
    slots, split = dataset.series[0].slots, split_row(dataset.series[0])
    ends = np.array([end for _, end in frames_of(dataset, ratio)])
    shown = {int(row) for end in ends for row in np.flatnonzero((slots > end - 48) & (slots <= end))}
    assert shown == set(range(split))
    assert len(set(ends.tolist())) == len(ends)


@pytest.mark.parametrize(("ratio", "hop"), [(0.5, 24), (0.25, 12), (1, 48)])
def test_frames_lie_a_hop_apart(ratio: float, hop: int) -> None:
    ends = [end for _, end in frames_of(counting(list(range(300))), ratio)]
    assert ends[0] == 10**6 + hop - 1
    assert set(np.diff(ends[:-1])) == {hop}
    assert ends[-1] == 10**6 + 299


def test_a_short_series_is_one_padded_frame() -> None:
    dataset = counting(list(range(10)))
    sampler = RecordingSampler(dataset)
    batches = [sampler.framed(np.random.default_rng(seed), sampler.frames(0.5)) for seed in range(20)]
    intact = [batch for batch in batches if batch.valid.sum() == 10]
    assert len(intact) > 10
    for batch in intact:
        assert batch.valid[0, 0].tolist() == [0] * 38 + [1] * 10
        assert (batch.x[batch.valid == 0] == 0).all()


def test_an_epoch_shows_every_frame_once_and_fills_the_last_batch_up() -> None:
    dataset = waves(rows=(630, 500))
    sampler = RecordingSampler(dataset)
    fit = Fit(FRAMED.denoiser(2, 1, 2, GEOMETRY.length), FRAMED, sampler, 0, ALONE, "cpu")
    every, steps = frames_of(dataset, 0.5), int(fit.epoch_steps)
    assert steps == math.ceil(len(every) / FRAMED.batch)
    assert len(every) % FRAMED.batch != 0
    orders = []
    for epoch in range(2):
        sampler.cut.clear()
        for number in range(1, steps + 1):
            fit.train_step(epoch * steps + number, 2 * steps)
        assert sorted(sampler.cut[: len(every)]) == sorted(every)
        assert sampler.cut[len(every) :] == sampler.cut[: steps * FRAMED.batch - len(every)]
        orders.append(list(sampler.cut))
    assert orders[0] != orders[1]


def test_epochs_are_the_number_of_passes() -> None:
    dataset = waves()
    framed = msgspec.structs.replace(FRAMED, epochs=3)
    steps = math.ceil(len(frames_of(dataset, 0.5)) / framed.batch)
    assert train(dataset, name="test", preset=framed).training.train_steps == 3 * steps


@pytest.mark.parametrize("length", [48, 96])
def test_epochs_of_random_cuts_show_as_many_slots_as_there_are_rows(length: int) -> None:
    dataset = waves()
    preset = msgspec.structs.replace(TINY, epochs=4)
    geometry = Geometry(length=length, hop=16, final_delay=20, slack=64)
    fitted = sum(split_row(series) for series in dataset.series)
    record = train(dataset, name="test", preset=preset, geometry=geometry).training
    assert record.train_steps == round(4 * fitted / (preset.batch * length))
