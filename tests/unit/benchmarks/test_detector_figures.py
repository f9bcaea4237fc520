import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detector_figures import WIDTHS, DetectorFigures, Drawn, finite, quality, smoothed_figures
from benchmarks.measure import Timing
from detector.manifest import Channel
from training.baselines.smoothing import smooth
from training.datasets import Dataset, Series

ANY = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=20).map(np.array)


def drawn(*labels: np.ndarray) -> Drawn:
    every = [
        Series(f"E-{k}", np.arange(len(flags)), np.zeros((len(flags), 1), np.float32), flags)
        for k, flags in enumerate(labels)
    ]
    dataset = Dataset([Channel("v", "numeric")], 1000, every)
    return Drawn(dataset, dataset)


def flags(rows: int, first: int, last: int) -> np.ndarray:
    found = np.zeros(rows, np.uint8)
    found[first:last] = 1
    return found


@given(ANY)
def test_scores_made_finite_keep_their_order_and_rows_without_one_rank_lowest(scores: np.ndarray) -> None:
    found = finite(scores)
    assert np.isfinite(found).all()
    known = ~np.isnan(scores)
    order = np.argsort(scores[known], kind="stable")
    assert (np.diff(found[known][order]) >= 0).all()
    assert (found[~known] == found.min()).all()


def test_quality_is_a_mean_over_entities_whatever_their_length() -> None:
    both = drawn(flags(50, 10, 20), flags(500, 100, 200))
    perfect, inverted = [np.asarray(series.labels, float) for series in both.test.series], None
    assert quality(both.test, perfect) == (1, 1)
    inverted = [perfect[0], 1 - perfect[1]]
    assert quality(both.test, inverted)[0] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_opponents_get_the_best_width_for_each_figure(seed: int) -> None:
    data = drawn(flags(400, 50, 120), flags(300, 200, 230))
    generator = np.random.default_rng(seed)
    raw = [generator.random(len(series.slots)) + 0.4 * (series.labels > 0) for series in data.test.series]  # type: ignore[operator]
    found = smoothed_figures("some", "library", "row", Timing(2, 1), [Timing(7, 3.5)] * 2, data, raw)
    by_width = {width: quality(data.test, [smooth(one, width) for one in raw]) for width in WIDTHS}
    assert isinstance(found, DetectorFigures)
    assert found.roc_auc == round(max(roc for roc, _ in by_width.values()), 4)
    assert found.average_precision == round(max(precision for _, precision in by_width.values()), 4)
    assert found.roc_auc == round(by_width[found.roc_auc_width][0], 4)  # type: ignore[index]
    assert (found.rows_per_s.median, found.rows_per_s_per_core.median) == (100, 200)
