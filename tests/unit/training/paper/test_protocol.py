"""The protocol of Table 3 and the IOU of Table 4."""

import msgspec
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from training.paper.table3 import measure
from training.paper.table4 import _elsewhere, mean_iou


def labelled(seed, rows=400):
    generator = np.random.default_rng(seed)
    labels = np.zeros(rows, bool)
    labels[100:160] = labels[300:310] = True
    return labels, generator.random(rows) + 0.8 * labels


def figures(row):
    return {n: v for n, v in msgspec.structs.asdict(row).items() if isinstance(v, float)}


def of(pairs):
    return measure([labels for labels, _ in pairs], [scores for _, scores in pairs], family="MSL", method="m")


def test_figures_are_means_over_entities():
    pairs = [labelled(seed) for seed in range(3)]
    alone = [figures(of([pair])) for pair in pairs]
    together = figures(of(pairs))
    del together["adjusted_f1_of_means"]
    for name, mean in together.items():
        assert mean == pytest.approx(np.mean([figure[name] for figure in alone])), name


def test_an_entity_without_anomalies_has_no_figures():
    nominal = np.zeros(400, bool), np.random.default_rng(9).random(400)
    assert figures(of([labelled(0), nominal])) == figures(of([labelled(0)]))


def test_units_of_the_score_do_not_matter():
    labels, scores = labelled(0)
    other = figures(of([(labels, 7.0 * scores + 3)]))
    assert other == pytest.approx(figures(of([(labels, scores)])))


def test_unsmoothed_parts_agree_with_sklearn():
    """A score that is constant over long stretches is what its smoothing is, away from the edges."""
    labels = np.zeros(1200, bool)
    labels[400:800] = True
    scores = np.repeat([1.0, 5.0, 1.0], 400)
    scores[600:610] = 30.0  # flagged by three sigma, and it alone
    row = of([(labels, scores)])
    smoothed = np.convolve(np.pad(scores, 12, "edge"), np.hanning(25) / np.hanning(25).sum(), "valid")
    pred = smoothed > smoothed.mean() + 3 * smoothed.std()
    assert 0 < pred.sum() < 40
    assert row.three_sigma_f1 == pytest.approx(precision_recall_fscore_support(labels, pred, average="binary")[2])
    assert row.roc_auc == pytest.approx(roc_auc_score(labels, smoothed), abs=0.01)
    assert (row.adjusted_precision, row.adjusted_recall, row.adjusted_f1) == (1, 1, 1)


def test_adjustment_never_costs_and_gives_a_random_score_much():
    labels = np.zeros(4000, bool)
    labels[1000:1400] = True
    row = of([(labels, np.random.default_rng(1).random(4000))])
    assert row.roc_auc == pytest.approx(0.5, abs=0.1)
    assert row.adjusted_best_f1 > 2 * row.best_f1
    assert row.adjusted_f1 >= row.three_sigma_f1


def test_iou_counts_frames():
    labels, pred = np.zeros(100, bool), np.zeros(100, bool)
    labels[5:25] = True  # frames 0, 1, 2 of ten rows
    pred[12] = pred[95] = True  # frames 1 and 9
    assert mean_iou([labels], [pred], 10) == pytest.approx(1 / 4)
    assert mean_iou([labels, labels], [pred, labels], 10) == pytest.approx((1 / 4 + 1) / 2)
    assert mean_iou([labels], [pred], 100) == 1


def test_moved_alarms_are_as_many_and_as_long():
    pred = np.zeros(50, bool)
    pred[3:9] = pred[20:22] = True
    (moved,) = _elsewhere([pred], np.random.default_rng(0))
    assert bytes(pred) in bytes(moved) * 2
    assert (moved != pred).any()
