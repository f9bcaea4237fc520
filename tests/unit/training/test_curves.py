"""Laws of the curves: the area below is the figure, whole and averaged."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve
from sklearn.metrics import roc_curve as every_point

from training import metrics
from training.curves import mean_curve, pr_curve, roc_curve


@st.composite
def labelled(draw):
    rows = draw(st.integers(2, 40))
    labels = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    assume(metrics.has_both_classes(labels))
    return labels, np.array(draw(st.lists(st.integers(-5, 5), min_size=rows, max_size=rows)), dtype=float)


@given(labelled())
def test_the_roc_curve_joins_the_thresholds_with_lines(data):
    fpr, tpr, _ = every_point(*data)
    curve = roc_curve(*data)
    at = dict(zip(curve.x, curve.y, strict=True))
    for x in [0.0, 0.01, 0.3, 0.5, 0.99, 1.0]:
        left = max(point for point in zip(fpr, tpr, strict=True) if point[0] <= x)
        right = min((point for point in zip(fpr, tpr, strict=True) if point[0] > x), default=(2.0, 1.0))
        share = (x - left[0]) / (right[0] - left[0])
        assert at[x] == pytest.approx(left[1] + share * (right[1] - left[1]))


@given(labelled())
def test_precision_is_that_of_the_highest_threshold_that_reaches_the_recall(data):
    precision, recall, _ = precision_recall_curve(*data)
    curve = pr_curve(*data)
    reached = [precision[np.flatnonzero(recall >= x)[-1]] if x else None for x in curve.x]
    np.testing.assert_allclose(curve.y[1:], reached[1:], atol=1e-12)


def test_the_areas_below_are_the_figures_also_of_a_mean():
    generator = np.random.default_rng(0)
    series = []
    for shift in (0.5, 1.5):
        labels = generator.random(5000) < 0.2
        series.append((labels, generator.normal(size=5000) + shift * labels))
    roc, pr = mean_curve([roc_curve(*s) for s in series]), mean_curve([pr_curve(*s) for s in series])
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(np.mean([metrics.roc_auc(*s) for s in series]), abs=2e-3)
    wanted = np.mean([metrics.average_precision(*s) for s in series])
    assert np.trapezoid(pr.y, pr.x) == pytest.approx(wanted, abs=5e-3)
