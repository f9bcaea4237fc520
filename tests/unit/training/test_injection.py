import numpy as np
import pytest

from tests.unit.training.made_up import waves
from training.datasets import Series
from training.injection import KINDS, inject


def inject_wave(kind: str, seed: int = 0, first_row: int = 300) -> tuple[Series, Series]:
    dataset = waves()
    half_range = np.array([1.5, 10.0])
    before = dataset.series[1]
    after = inject(
        before, dataset.numeric, half_range, kind, np.random.default_rng(seed), first_row=first_row, longest=100
    )
    return before, after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_only_labelled_rows_of_numeric_channels_change(kind: str, seed: int) -> None:
    before, after = inject_wave(kind, seed)
    assert after.labels is not None
    changed = (after.values != before.values).any(1)
    assert changed.any()
    assert not changed[after.labels == 0].any()
    np.testing.assert_array_equal(after.values[:, 1], before.values[:, 1])
    rows = np.flatnonzero(after.labels)
    assert rows[0] >= 300
    assert len(rows) == rows[-1] - rows[0] + 1 <= 100
    assert before.labels is None


def test_the_generator_decides_the_anomaly() -> None:
    same, other = inject_wave("shift", 3)[1], inject_wave("shift", 4)[1]
    np.testing.assert_array_equal(inject_wave("shift", 3)[1].values, same.values)
    assert not np.array_equal(other.values, same.values)


def test_a_spike_is_short() -> None:
    assert {int(inject_wave("spike", seed)[1].labels.sum()) for seed in range(30)} == {1, 2, 3}  # type: ignore[union-attr]
