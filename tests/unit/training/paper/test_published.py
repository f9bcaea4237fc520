"""What the paper prints, checked against itself, so that a slip of the copy shows."""

import pytest

from detector.scoring import SMOOTHING
from training.baselines.table import BASELINES
from training.paper.published import TABLE3, TABLE4, TABLE5_EPOCH, TABLE6
from training.paper.scale import FAMILIES
from training.paper.table3 import harmonic_mean

# Rows whose printed F1 is not that of the printed precision and recall.
ODD = {"SMAP": {"oc-alp", "oc-lcb", "lstm-ae"}, "MSL": {"oc-alp", "oc-lcb", "lstm-ae"}, "SMD": {"oc-alp", "oc-lcb"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_f1_is_that_of_mean_precision_and_mean_recall_but_for_known_rows(family):
    odd = {m for m, row in TABLE3[family].items() if abs(harmonic_mean(row.precision, row.recall) - row.f1) > 2e-3}
    assert odd == ODD[family]


def test_every_row_has_a_method_or_a_smoothing_of_ours():
    assert all(set(rows) <= set(BASELINES) for rows in TABLE3.values())
    assert {smoothing for smoothing, _ in TABLE4} == set(SMOOTHING)
    assert {layers for _, layers in TABLE6} == set(TABLE5_EPOCH)
