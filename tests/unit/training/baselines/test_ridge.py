import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.linear_model import Ridge

from training.baselines.ridge import fit_regression


def autoregressive(rows: int, sigma: float, seed: int = 0) -> np.ndarray:
    """x_t = 1.2 x_(t-1) - 0.5 x_(t-2) + noise."""
    noise = sigma * np.random.default_rng(seed).standard_normal(rows)
    x = np.zeros(rows)
    for t in range(2, rows):
        x[t] = 1.2 * x[t - 1] - 0.5 * x[t - 2] + noise[t]
    return x


def test_the_residual_variance_of_an_autoregressive_process_is_its_noise() -> None:
    model = fit_regression(autoregressive(20_000, 0.1), 60)
    unseen = autoregressive(20_000, 0.1, seed=1)
    assert np.var(unseen - model.predict(unseen)) == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(model.coefficients[60][-2:], [-0.5, 1.2], atol=0.03)


def test_a_long_history_is_plain_ridge_regression_and_a_short_one_ridge_on_fewer_lags() -> None:
    x = autoregressive(500, 0.1) + 0.3
    model = fit_regression(x, 12)
    past, target = sliding_window_view(x, 12)[:-1], x[12:]
    predicted = model.predict(x)
    for history in (1, 5, 12):
        reference = Ridge(model.penalty).fit(past[:, -history:], target)
        assert predicted[history] == pytest.approx(reference.predict(x[None, :history])[0], rel=1e-9)
    reference = Ridge(model.penalty).fit(past, target)
    np.testing.assert_allclose(predicted[12:], reference.predict(past), rtol=1e-9)


def test_before_any_history_the_mean_is_expected() -> None:
    x = autoregressive(500, 0.1) + 0.3
    assert fit_regression(x, 12).predict(x)[0] == pytest.approx(x[12:].mean())


def test_noise_is_penalised_more_than_signal() -> None:
    noise = np.random.default_rng(0).standard_normal(300)
    assert fit_regression(noise, 60).penalty > fit_regression(np.sin(np.arange(300) / 3), 60).penalty
