import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.manifest import ScoringConfig
from detector.scoring import SMOOTHING, smooth, smoothing_weights, top_channels


def brute_force(residual: np.ndarray, present: np.ndarray, kernel: np.ndarray, lookahead: int) -> np.ndarray:
    """Eq. 5 slot by slot, normalised over present slots."""
    reach = len(kernel) // 2
    scores = np.full(len(residual), np.nan)
    for slot in np.flatnonzero(present):
        inside = [i for i in range(slot - reach, slot + min(reach, lookahead) + 1) if 0 <= i < len(residual)]
        weights = np.array([kernel[i - slot + reach] * present[i] for i in inside])
        scores[slot] = weights @ residual[inside] / weights.sum()
    return scores


@pytest.mark.parametrize("smoothing", ["hanning", "hamming", "bartlett"])
@pytest.mark.parametrize("lookahead", [0, 4, 100])
@pytest.mark.parametrize("size", [1, 3, 15, 201])
def test_smoothing_is_eq_5(smoothing: str, lookahead: int, size: int) -> None:
    generator = np.random.default_rng(0)
    residual, present = generator.exponential(size=60), generator.random(60) > 0.3
    config = ScoringConfig(smoothing=smoothing, smoothing_size=size)  # type: ignore[arg-type]
    found = smooth(
        torch.tensor(residual[None], dtype=torch.float32),
        torch.tensor(present[None]),
        smoothing_weights(config, 60, lookahead),
    )
    expected = brute_force(residual, present, SMOOTHING[smoothing](size), lookahead)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@given(lookahead=st.integers(0, 60), seed=st.integers(0, 100))
def test_a_score_uses_nothing_beyond_its_lookahead(lookahead: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = smoothing_weights(ScoringConfig(smoothing_size=41), 80, lookahead)
    residual, present = torch.rand(1, 80, generator=generator), torch.ones(1, 80, dtype=torch.bool)
    changed = residual.clone()
    changed[:, 40:] += 1
    cut = max(40 - lookahead, 0)
    torch.testing.assert_close(smooth(residual, present, weights)[:, :cut], smooth(changed, present, weights)[:, :cut])


@given(level=st.floats(0, 1e6), missing=st.floats(0, 0.9))
def test_a_constant_residual_is_its_own_score_whatever_is_missing(level: float, missing: float) -> None:
    present = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) >= missing
    weights = smoothing_weights(ScoringConfig(smoothing_size=21), 50, 5)
    found = smooth(torch.full((3, 50), level), present, weights)
    torch.testing.assert_close(found[present], torch.full_like(found[present], level), rtol=1e-5, atol=0)
    assert found[~present].isnan().all()


@pytest.mark.parametrize("count", [1, 2, 5, 99])
def test_top_channels_is_the_mean_of_the_largest_present(count: int) -> None:
    generator = np.random.default_rng(0)
    residual, valid = generator.exponential(size=(2, 5, 30)), generator.random((2, 5, 30)) > 0.5
    found = top_channels(torch.tensor(residual), torch.tensor(valid), count)
    for window, slot in np.ndindex(2, 30):
        largest = np.sort(residual[window, valid[window, :, slot], slot])[::-1][:count]
        assert found[window, slot].item() == pytest.approx(largest.mean() if len(largest) else 0.0)
