import numpy as np
import pytest
import torch

from detector import scoring
from detector.manifest import ScoringConfig
from training.baselines.smoothing import smooth, three_sigma

SCORES = np.random.default_rng(0).random(80)
GAPPY = np.where(np.arange(80) % 7 == 3, np.nan, SCORES)


def test_size_one_changes_nothing() -> None:
    np.testing.assert_array_equal(smooth(GAPPY, 1), GAPPY)
    np.testing.assert_array_equal(smooth(GAPPY, 1, causal=True), GAPPY)


@pytest.mark.parametrize("smoothing", ["hanning", "hamming", "bartlett"])
@pytest.mark.parametrize(("causal", "lookahead"), [(False, 80), (True, 0)])
@pytest.mark.parametrize("size", [9, 25, 301])
def test_smoothing_is_the_detectors(smoothing: str, causal: bool, lookahead: int, size: int) -> None:
    config = ScoringConfig(smoothing=smoothing, smoothing_size=size)  # type: ignore[arg-type]
    weights = scoring.smoothing_weights(config, 80, lookahead).double()
    present = torch.from_numpy(~np.isnan(GAPPY))
    residual = torch.from_numpy(np.where(np.isnan(GAPPY), 0, GAPPY))[None]
    expected = _smooth_double(residual, present[None], weights)
    np.testing.assert_allclose(smooth(GAPPY, size, smoothing, causal=causal), expected, rtol=1e-5)


def _smooth_double(residual: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    return scoring.smooth(residual.float(), present, weights.float())[0].double().numpy()


def test_a_constant_stays_and_a_causal_kernel_knows_no_later_score() -> None:
    np.testing.assert_allclose(smooth(np.full(50, 0.3), 25), 0.3)
    later = np.where(np.arange(80) < 40, SCORES, 9.0)
    np.testing.assert_array_equal(smooth(later, 25, causal=True)[:40], smooth(SCORES, 25, causal=True)[:40])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -1 / 3])
@pytest.mark.parametrize("rows", [1, 3, 1001])
def test_three_sigma_flags_nothing_where_all_scores_are_equal(value: float, rows: int) -> None:
    assert not three_sigma(np.full(rows, value)).any()


def test_three_sigma_flags_what_lies_three_deviations_above_the_mean() -> None:
    scores = np.append(np.tile([0.0, 2.0], 50), [np.nan, 4.0])  # mean 1.03, deviation 1.04
    np.testing.assert_array_equal(np.flatnonzero(three_sigma(scores)), [])
    np.testing.assert_array_equal(np.flatnonzero(three_sigma(scores, sigmas=2.5)), [101])


def test_three_sigma_of_no_scores_flags_nothing() -> None:
    assert not three_sigma(np.full(3, np.nan)).any()
