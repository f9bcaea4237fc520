import numpy as np
import pytest

from detector.engine import Detector
from detector.models import Model
from stream.errors import UsageError
from tests.unit.training.made_up import TINY, waves
from training.calibration import calibrate
from training.datasets import Dataset
from training.gates import Figures
from training.knobs import half_range
from training.trainer import train
from training.trial import measure, split, spread


def test_a_split_keeps_every_row_once_and_the_newest_for_judging() -> None:
    data = waves((600, 500, 40))
    old, new = split(data, 0.2, 100)
    assert [series.entity for series in old.series] == [series.entity for series in new] == ["e-0", "e-1"]
    for whole, before, after in zip(data.series, old.series, new, strict=False):
        np.testing.assert_array_equal(np.concatenate([before.slots, after.slots]), whole.slots)
        np.testing.assert_array_equal(np.concatenate([before.values, after.values]), whole.values)
        assert len(after.slots) == pytest.approx(0.2 * len(whole.slots), abs=1)


@pytest.mark.parametrize("rows", [(99, 50), ()])
def test_too_little_data_says_so(rows: tuple[int, ...]) -> None:
    data = waves(rows) if rows else Dataset(waves().channels, 1000, [])
    with pytest.raises(UsageError, match="too little data: an entity wants 100 rows"):
        split(data, 0.2, 100)


def test_a_trained_model_reconstructs_better_than_one_that_has_just_begun() -> None:
    old, new = split(waves((1500, 1500), gap=False), 0.4, 100)

    def measured(train_steps: int) -> Figures:
        trained = train(old, name="test", preset=TINY, train_steps=train_steps)
        manifest = calibrate(trained)
        model = Model(Detector(manifest, trained.weights), np.arange(3))
        return measure(model, old.series, new, [half_range(entity) for entity in manifest.entities], 0)

    good, bad = measured(150), measured(1)
    assert good.error < bad.error
    assert np.isfinite([*good, *bad]).all()


def test_entities_are_spread_over_the_family() -> None:
    assert spread(3, 16) == [0, 1, 2]
    assert spread(100, 3) == [0, 50, 99]
    assert spread(1, 1) == [0]
