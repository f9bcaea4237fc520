from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.unit.training.made_up import TINY, waves
from training.calibration import calibrate
from training.injection import KINDS
from training.knobs import Figures, compare, compare_budgets, injected
from training.trainer import TrainedModel, train


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return train(waves((600, 500)), name="test", preset=TINY, train_steps=40)


def test_each_series_is_shown_once_with_each_kind_and_the_same_ones_to_every_candidate(trained: TrainedModel) -> None:
    manifest = calibrate(trained)
    shown = injected(manifest, trained, 1, seed=0)
    assert len(shown) == len(KINDS)
    for (series, first_row), (again, _) in zip(shown, injected(manifest, trained, 1, seed=0), strict=True):
        np.testing.assert_array_equal(series.values, again.values)
        assert series.labels is not None
        assert series.labels[first_row:].any()
        assert not series.labels[:first_row].any()
        assert len(series.slots) - first_row == 250


def test_the_same_candidate_gets_the_same_figures_and_another_one_others(trained: TrainedModel) -> None:
    wider = msgspec.structs.replace(trained.scoring, smoothing_size=61)
    seen: list[str] = []
    found = compare(
        trained,
        {"one": trained.scoring, "same": trained.scoring, "wider": wider},
        on_figures=lambda name, figures: seen.append(name),
    )
    assert found["one"] == found["same"] != found["wider"]
    assert seen == ["one", "same", "wider"]
    assert all(0 <= figure <= 1 for figures in found.values() for figure in Figures(*figures))


def test_a_budget_that_allows_nothing_takes_alarms_away_and_one_that_allows_all_changes_nothing(
    trained: TrainedModel,
) -> None:
    """Behind the rows trained on the waves go on, with a level that they had never had."""
    rest = [
        replace(series, slots=series.slots[-1] + 1 + np.arange(400), values=series.values[-400:].copy())
        for series in trained.dataset.series
    ]
    for series in rest:
        series.values[200:230] += 3
    seen: list[str] = []
    budgets = {"sigmas": None, "all": 1e9, "next to nothing": 1e-9}
    found = compare_budgets(trained, rest, budgets, on_figures=lambda name, figures: seen.append(name))
    assert seen == list(budgets)
    assert found["all"] == found["sigmas"]
    assert found["sigmas"].false_alarms_per_week > found["next to nothing"].false_alarms_per_week
    assert found["sigmas"].nominal_in_alarm > found["next to nothing"].nominal_in_alarm
    assert all(0 <= figures.event_f1 <= 1 and 0 <= figures.corrected_event_f05 <= 1 for figures in found.values())
