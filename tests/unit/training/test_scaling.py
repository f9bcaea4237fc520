import numpy as np

from detector.manifest import Channel
from tests.unit.training.made_up import waves
from training.datasets import Dataset, Series
from training.scaling import measure_scaling, scale


def dataset_of(*entities: list[list[float]]) -> Dataset:
    """Make a data set from each entity's channels."""
    series = [
        Series(f"e-{i}", np.arange(len(channels[0])), np.array(channels, np.float32).T, None)
        for i, channels in enumerate(entities)
    ]
    return Dataset([Channel(f"m{i}", "numeric") for i in range(len(entities[0]))], 1000, series)


def test_training_rows_fill_the_range() -> None:
    dataset = waves()
    scaling = measure_scaling(dataset)
    for index, series in enumerate(dataset.series):
        scaled = scale(series.values[:, dataset.numeric], scaling.minimum[index], scaling.maximum[index])
        assert np.abs(scaled).max() <= 1 + 1e-5
        np.testing.assert_allclose([scaled[:, 0].min(), scaled[:, 0].max()], [-1, 1], atol=1e-5)


def test_a_constant_channel_gets_the_range_that_is_usual_for_it() -> None:
    scaling = measure_scaling(dataset_of([[0, 4]], [[10, 16]], [[7, 7]]))
    np.testing.assert_allclose(scaling.maximum[2] - scaling.minimum[2], 5)
    np.testing.assert_allclose(scaling.maximum[2] + scaling.minimum[2], 14)


def test_a_channel_that_is_constant_everywhere_gets_the_size_of_its_values() -> None:
    scaling = measure_scaling(dataset_of([[50, 50], [0, 0]], [[40, 40], [0, 0]]))
    np.testing.assert_allclose(scaling.maximum - scaling.minimum, [[100, 2], [100, 2]])
    assert (scaling.pooled_maximum > scaling.pooled_minimum).all()


def test_missing_and_infinite_values_measure_nothing() -> None:
    nan = np.nan
    scaling = measure_scaling(dataset_of([[0, nan, 4, np.inf], [nan] * 4], [[nan] * 4, [nan] * 4]))
    np.testing.assert_allclose(scaling.minimum, [[0, -1], [0, -1]])
    np.testing.assert_allclose(scaling.maximum, [[4, 1], [4, 1]])


def test_the_pooled_range_holds_every_entity() -> None:
    scaling = measure_scaling(dataset_of([[0, 4]], [[10, 16]], [[7, 7]]))
    assert (scaling.pooled_minimum.tolist(), scaling.pooled_maximum.tolist()) == ([0], [16])
