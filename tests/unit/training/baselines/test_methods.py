"""What single methods promise beyond the common laws, against known values and independent computations."""

import numpy as np
import pytest

from tests.unit.training.baselines.made_up import noisy, single, single_channel, training
from training.baselines.cluster_balance import cluster_balance
from training.baselines.kernel_methods import KernelPCA, kernel_width
from training.baselines.localised_proximity import AverageLocalisedProximity
from training.baselines.scaled_rows import SCALE_FLOOR, fit_scaler
from training.baselines.simple import MedianDeviation, NearestNeighbour, PCAError
from training.baselines.windows import WindowPlan, centred_windows


def test_average_localised_proximity_as_computed_by_hand() -> None:
    """Points 0, 1, 3, tested at 4, k = l = 2.

    Neighbours 3 and 1 at d = (1, 3); their own distances (2, 3) and (1, 2) weigh 2/3 and 1/3: D = (5/3, 8/3).
    Proximities 5/8 and 8/17, the greater weighing 2/3: 39/68.
    """
    proximity = AverageLocalisedProximity(np.array([[0.0], [1.0], [3.0]]), k=2, l=2)
    assert proximity(np.array([[4.0]]))[0] == pytest.approx(39 / 68)


def test_proximity_is_half_where_tested_and_training_points_are_all_alike() -> None:
    proximity = AverageLocalisedProximity(np.zeros((5, 2)), k=2, l=3)
    np.testing.assert_array_equal(proximity(np.array([[0.0, 0.0], [1.0, 0.0]])), [0.5, 0.0])


def test_cluster_balance_counts_the_windows_around_a_row() -> None:
    balance = cluster_balance(np.array([0, 0, 1, 1], np.int32), clusters=2, stretch=3)
    np.testing.assert_allclose(balance, np.array([[3, 0], [2, 1], [1, 2], [0, 3]]) / 3)


def test_a_whole_kernel_subspace_holds_its_training_windows() -> None:
    own = training()
    scorer = KernelPCA(components=400, plan=WindowPlan(most=None)).fit(own)
    assert scorer(own.series[0]).max() < 1e-6
    assert scorer(noisy("e-0", 100, 7)).min() > 1e-6


def test_the_kernel_error_of_a_training_window_is_what_the_components_left_out_hold() -> None:
    windows = np.random.default_rng(0).standard_normal((60, 3))
    similarity = np.exp(-kernel_width(windows) * np.square(windows[:, None] - windows).sum(-1))
    centring = np.eye(60) - 1 / 60
    values, vectors = np.linalg.eigh(centring @ similarity @ centring)  # ascending
    left_out = np.square(vectors[:, :-5]) @ values[:-5]
    np.testing.assert_allclose(KernelPCA(components=5)._fit(windows, 0)(windows), left_out, rtol=1e-3)


def test_a_known_window_has_its_nearest_neighbour_at_no_distance() -> None:
    own = training()
    assert NearestNeighbour().fit(own)(own.series[0]).max() == pytest.approx(0, abs=1e-6)


def test_what_stays_in_the_principal_subspace_is_no_error() -> None:
    """Windows of one frequency fill a plane; those of another leave it."""
    t = np.arange(1200)
    scorer = PCAError(WindowPlan(most=None, longest=20)).fit(single_channel(np.sin(t / 3)))
    inner = slice(20, -20)
    assert scorer(single(2 * np.sin(t / 3 + 1)))[inner].max() < 1
    assert scorer(single(2 * np.sin(t / 2)))[inner].min() > 2


def test_deviation_from_the_median_counts_in_units_of_the_usual_one() -> None:
    scorer = MedianDeviation().fit(single_channel([-1.0, 0.0, 1.0] * 10))
    usual = 2 / 3 + np.sqrt(2 / 9) + SCALE_FLOOR
    np.testing.assert_allclose(scorer(single([0.0, 0.5, -3.0])), np.array([0, 0.5, 3]) / usual, rtol=1e-6)


def test_gaps_take_the_value_before_them_or_the_median() -> None:
    scaler = fit_scaler(single_channel([-1.0, 1.0, 1.0, 1.0]))
    rows = scaler(single([np.nan, 0.5, np.nan, np.inf, -0.5]))
    np.testing.assert_array_equal(rows.filled[:, 0], [1, 0.5, 0.5, 0.5, -0.5])
    np.testing.assert_array_equal(np.isnan(rows.numeric[:, 0]), [True, False, True, True, False])


def test_windows_lie_around_their_row() -> None:
    windows = centred_windows(np.arange(4.0)[:, None], 3)
    np.testing.assert_array_equal(windows, [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]])


def test_commands_count_as_their_mean_over_a_window() -> None:
    own = training()
    rows = fit_scaler(own)(own.series[0])
    plain, more = (WindowPlan(most=None, longest=5, use_commands=use).windows(rows) for use in (False, True))
    np.testing.assert_array_equal(more[:, :-1], plain)
    np.testing.assert_allclose(more[38:43, -1], [-1.0 + 2 * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
