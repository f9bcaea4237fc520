import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from detector.companions import PREFIX, STILL, Companions, activity, fill_gaps
from detector.manifest import CompanionConfig
from tests.unit.training.made_up import waves
from training.baselines.ridge import fit_regression
from training.baselines.windows import centred_windows
from training.companions import companions_for, fit_companions
from training.scaling import measure_scaling, scale

CONFIG = CompanionConfig(lags=12, window=9, windows=300)
DATASET = waves((600, 500), gap=False)
SCALING = measure_scaling(DATASET)


@pytest.fixture(scope="module")
def companions() -> Companions:
    return loaded(fit_companions(CONFIG, DATASET, SCALING, seed=0))


def loaded(tensors: dict[str, torch.Tensor]) -> Companions:
    companions = Companions(CONFIG, 2, 2)
    companions.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    return companions


def rows(index: int) -> np.ndarray:
    return scale(DATASET.series[index].values[:, DATASET.numeric], SCALING.minimum[index], SCALING.maximum[index])


def window(index: int, first: int, length: int = 64) -> torch.Tensor:
    return torch.from_numpy(rows(index)[first : first + length].T.copy())[None]


def present(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def test_gaps_are_filled_with_the_last_present_value_or_the_first_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 20, generator=generator)
    valid = torch.rand(3, 2, 20, generator=generator) > 0.6
    valid[0, 0] = False
    filled = fill_gaps(x.where(valid, 0), valid)
    for b, c in np.ndindex(3, 2):
        known = [j for j in range(20) if valid[b, c, j]]
        for j in range(20):
            before = [k for k in known if k <= j]
            wanted = x[b, c, before[-1] if before else known[0]] if known else 0.0
            assert filled[b, c, j] == wanted


@pytest.mark.parametrize("index", [0, 1])
def test_predictions_are_those_of_the_baseline_behind_the_first_lags(companions: Companions, index: int) -> None:
    x = window(index, 200)
    _, expected = companions(x, present(x), torch.tensor([index + 1]))
    for channel in range(2):
        series = rows(index)[:, channel].astype(np.float64)
        wanted = fit_regression(series, CONFIG.lags).predict(series)[200:264]
        np.testing.assert_allclose(expected[0, 0, channel, CONFIG.lags :], wanted[CONFIG.lags :], atol=1e-4)


def test_the_nearest_window_is_the_one_that_an_exhaustive_search_finds(companions: Companions) -> None:
    x = window(0, 100)
    residual, _ = companions(x, present(x), torch.tensor([1]))
    known = companions.windows[1].flatten(1).numpy()
    queries = centred_windows(x[0].T.numpy(), CONFIG.window)
    distance = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known).kneighbors(queries)[0][:, 0]
    found = residual[1, 0].square().sum(0).sqrt() * CONFIG.window**0.5
    np.testing.assert_allclose(found, distance, atol=1e-3)


def test_a_kept_training_window_is_its_own_nearest_unless_its_slots_are_named(companions: Companions) -> None:
    series = DATASET.series[0]
    at = int(np.searchsorted(series.slots, int(companions.window_slots[1, 100])))
    x, slots = window(0, at - 32), torch.from_numpy(series.slots[at - 32 : at + 32])[None]
    row = torch.tensor([1])
    remembered, _ = companions(x, present(x), row)
    honest, _ = companions(x, present(x), row, slots)
    assert remembered[1, 0, :, 32].max() < 1e-6
    assert honest[1, 0, :, 32].max() > 1e-3
    torch.testing.assert_close(remembered[0], honest[0])


def test_an_entity_never_seen_is_compared_with_windows_of_all(companions: Companions) -> None:
    for index in (0, 1):
        x = window(index, len(rows(index)) - 64)
        residual, _ = companions(x, present(x), torch.tensor([0]))
        assert residual[1].median() < 0.1


def test_equal_seeds_keep_equal_windows() -> None:
    first, again, other = (fit_companions(CONFIG, DATASET, SCALING, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[f"{PREFIX}windows"], other[f"{PREFIX}windows"])


def test_a_series_shorter_than_the_lags_is_fitted_too() -> None:
    dataset = waves((8, 5), gap=False)
    tensors = fit_companions(CONFIG, dataset, measure_scaling(dataset), seed=0)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(("numeric", "rows"), [(1, 25), (4, 25), (6, 21), (38, 3), (500, 1)])
def test_windows_are_shorter_where_there_are_many_channels(numeric: int, rows: int) -> None:
    assert companions_for(CompanionConfig(), numeric).window == rows


def test_activity_is_the_logarithm_of_the_deviation_around_each_slot() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 40, generator=generator)
    valid = torch.rand(2, 3, 40, generator=generator) > 0.3
    log_deviation, mean = activity(x.where(valid, 0), valid, 9)
    for b, c, j in np.ndindex(2, 3, 40):
        around = slice(max(0, j - 4), j + 5)
        known = x[b, c, around][valid[b, c, around]].clamp(-3, 3).double().numpy()
        if len(known):
            assert mean[b, c, j] == pytest.approx(known.mean(), abs=1e-5)
            assert log_deviation[b, c, j] == pytest.approx(np.log(known.std() + STILL), abs=1e-3)


def test_a_channel_that_stands_still_is_odd_though_every_value_is_normal(companions: Companions) -> None:
    x = window(0, 100)
    stuck = x.clone()
    stuck[0, 0, 20:] = x[0, 0, 20]
    moving, still = (companions(v, present(v), torch.tensor([1]))[0][2, 0, 0, 40:50] for v in (x, stuck))
    assert still.min() > 2 * moving.max()
