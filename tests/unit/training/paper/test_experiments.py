"""Every experiment on a tiny scale: what it is made of, and what it leaves behind."""

import json

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from stream.errors import UsageError
from tests.unit.training.paper.made_up import TINY, lab, write_family
from training.baselines.smoothing import smooth
from training.baselines.table import BASELINES
from training.paper.experiments import EXPERIMENTS, run, run_all
from training.paper.figure6 import figure6
from training.paper.lab import open_lab
from training.paper.outcome import render
from training.paper.published import TABLE4
from training.paper.scale import SCALES
from training.paper.table4 import table4
from training.presets import PRESETS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_family(folder, "SMAP", ("e-0", "P-2", "e-1"))
    write_family(folder, "MSL")
    write_family(folder, "SMD")
    return folder


@pytest.fixture
def given_distances(data):
    """A lab that finds the distances made."""
    made = lab(data, families=("MSL",))
    rng = np.random.default_rng(0)
    made._distances["MSL", True] = [
        rng.random(len(truth)) * 3**i + 9 * truth for i, truth in enumerate(made.labels("MSL"))
    ]
    return made


def test_full_scale_is_the_papers_preset_unchanged():
    full = SCALES["full"]
    assert full.detector == full.cascade == PRESETS["paper"]
    assert (full.layers, full.rows, full.cascade_steps) == ((6, 12, 18, 24), {}, None)


def test_data_are_those_that_are_announced(data):
    made = lab(data)
    assert [series.entity for series in made.test("SMAP").series] == ["e-0", "e-1"]
    sizes = [len(series.slots) for part in (made.train("SMD"), made.test("SMD")) for series in part.series]
    assert sizes == [300, 300, 200, 200]
    assert made.test("SMD").series[0].slots[-1] == made.test("MSL").series[0].slots[-1]


def test_what_can_not_be_run_is_refused(data, tmp_path):
    for options in ({"scale": "huge"}, {"families": "MSL,ESA"}, {"families": "MSL,"}):
        with pytest.raises(UsageError, match="got"):
            open_lab(
                data, **{"scale": "quick", "families": "MSL", "train_steps": None, "seed": 0, "device": "cpu"} | options
            )
    (tmp_path / "MSL_test.parquet").symlink_to(data / "MSL_train.parquet")
    with pytest.raises(UsageError, match="label"):
        lab(tmp_path).test("MSL")


def test_adjusting_never_costs_overlap(given_distances):
    rows = table4(given_distances).figures
    assert {(row.smoothing, row.size) for row in rows} == set(TABLE4)
    assert {row.frame_rows for row in rows} == {100, TINY.detector.geometry.length}
    for row in rows:
        assert 0 <= row.random_iou <= row.adjusted_random_iou <= 1
        assert row.random_iou < row.iou <= row.adjusted_iou <= 1  # the labelled stretches lie far off


def test_one_maximum_changes_no_rank_and_one_of_each_entity_takes_its_units_away(given_distances):
    made, labels = given_distances, given_distances.labels("MSL")
    (row,) = figure6(made).figures
    smoothed = [smooth(scores, 25) for scores in made.distances("MSL")]
    assert row.pooled == pytest.approx(roc_auc_score(np.concatenate(labels), np.concatenate(smoothed)))
    assert row.entity_mean == pytest.approx(
        np.mean([roc_auc_score(*pair) for pair in zip(labels, smoothed, strict=True)])
    )
    made._distances["MSL", True][1] = made._distances["MSL", True][1] * 100
    (other,) = figure6(made).figures
    assert other.pooled_by_entity == pytest.approx(row.pooled_by_entity)
    assert other.pooled != pytest.approx(row.pooled)


@pytest.fixture(scope="module")
def everything(data, tmp_path_factory):
    """Run all experiments; return the folder of their records, the outcomes and what was worked on."""
    worked, folder = [], tmp_path_factory.mktemp("results") / "new"
    made = lab(data, families=("SMAP", "MSL"), on_work=worked.append)
    return folder, list(run_all(made, folder, "telltale paper all")), worked


def test_all_of_them_share_what_they_train_and_leave_records(everything):
    folder, outcomes, worked = everything
    assert [outcome.experiment for outcome in outcomes] == list(EXPERIMENTS)
    assert len(worked) == len(set(worked))
    for outcome in outcomes:
        record = json.loads((folder / f"{outcome.experiment}.json").read_text())
        assert (record["seed"], record["command"]) == (0, "telltale paper all")
        assert len(record["figures"]) == len(outcome.figures) > 0
        assert (folder / f"{outcome.experiment}.svg").exists() == (outcome.svg is not None)
        assert render(outcome)
    table3 = next(outcome for outcome in outcomes if outcome.experiment == "table3")
    assert [(row.family, row.method) for row in table3.figures] == [
        (family, method) for family in ("SMAP", "MSL") for method in BASELINES
    ]
    assert {outcome.experiment for outcome in outcomes if outcome.svg} == {"figure5", "figure6"}


def test_rows_stand_beside_the_papers_in_order(everything):
    rows = next(outcome for outcome in everything[1] if outcome.experiment == "table6").figures
    assert [(row.layer, row.layers, row.paper_layers) for row in rows] == [
        (layer, layers, 6 * layers) for layer in ("s4", "res") for layers in (1, 2, 3, 4)
    ]
    assert all(row.reached[0] is not None and row.reached[-1] is None for row in rows)


def test_a_record_holds_the_whole_scale(given_distances):
    _, record = run("figure6", given_distances, "telltale paper figure6")
    assert msgspec.convert(msgspec.to_builtins(record.scale), type(TINY)) == TINY
