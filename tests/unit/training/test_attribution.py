"""Laws of attribution: perfect and random rankings, agreement with brute force, and whose rows count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import UsageError
from training.attribution import Segment, attribute, blame, random_blame, read_interpretation
from training.labelled_scores import LabelledSeries

CHANNELS = tuple(f"m{number}" for number in range(1, 7))


def series_of(labels, residual, entity="a", channels=CHANNELS):
    n = len(labels)
    return LabelledSeries(
        entity, labels, np.zeros(n), np.zeros(n, bool), None, 0, np.arange(n), channels=channels, residual=residual
    )


@st.composite
def rankings(draw):
    """Draw shares without ties and at least one guilty channel of at most eight."""
    channels = draw(st.integers(1, 8))
    order = draw(st.lists(st.permutations(range(channels)), min_size=1, max_size=4))
    guilty = np.array(draw(st.lists(st.booleans(), min_size=channels, max_size=channels)))
    guilty[draw(st.integers(0, channels - 1))] = True
    return np.array(order, np.float32) + 1, guilty


def blame_slowly(row, guilty, percent):
    count = int(guilty.sum())
    blamed = sorted(range(len(row)), key=lambda channel: -row[channel])[: math.floor(percent * count / 100)]
    gain = sum(1 / math.log2(place + 2) for place, channel in enumerate(blamed) if guilty[channel])
    return sum(guilty[channel] for channel in blamed) / count, gain / sum(1 / math.log2(i + 2) for i in range(count))


@given(rankings())
def test_figures_agree_with_brute_force(data):
    shares, guilty = data
    rows = [[blame_slowly(row, guilty, percent) for percent in (100, 150)] for row in shares]
    wanted = np.mean(rows, axis=0)  # (percent, figure)
    got = blame(shares, guilty)
    assert (got.hit_rate_100, got.hit_rate_150) == pytest.approx(wanted[:, 0])
    assert (got.ndcg_100, got.ndcg_150) == pytest.approx(wanted[:, 1])


@given(rankings())
def test_a_perfect_ranking_gives_one_and_no_shares_give_nothing(data):
    shares, guilty = data
    perfect = blame(shares + 100 * guilty, guilty)
    worst = blame(shares * 0, guilty)
    for figure in perfect.__struct_fields__:
        assert getattr(perfect, figure) == pytest.approx(1.0)
        assert getattr(worst, figure) == 0.0


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_the_opponent_is_what_random_rankings_get(channels, guilty, seed):
    guilty = min(guilty, channels)
    shares = np.random.default_rng(seed).random((20_000, channels), dtype=np.float32)
    got, wanted = blame(shares, np.arange(channels) < guilty), random_blame(channels, guilty)
    for figure in got.__struct_fields__:
        assert getattr(got, figure) == pytest.approx(getattr(wanted, figure), abs=0.02)


@pytest.fixture
def residual():
    """Twenty rows that blame m2 from row 5 on, and m5 from row 12 on."""
    shares = np.full((20, 6), 0.1, np.float32)
    shares[5:12, 1] = shares[12:, 4] = 0.5
    return shares


def test_numbers_count_from_one_and_names_decide_the_column(residual):
    labels = (np.arange(20) >= 5) & (np.arange(20) < 10)
    report = attribute([series_of(labels, residual)], {"a": [Segment(5, 10, [2])]}, CHANNELS)
    assert report.entity_mean.rows.hit_rate_100 == 1.0
    turned = series_of(labels, residual[:, ::-1].copy(), channels=CHANNELS[::-1])
    assert attribute([turned], {"a": [Segment(5, 10, [2])]}, CHANNELS) == report
    assert (report.per_entity[0].segments, report.per_entity[0].rows) == (1, 5)


def test_rows_weigh_by_rows_and_segments_by_segments(residual):
    labels = np.arange(20) >= 5
    report = attribute([series_of(labels, residual)], {"a": [Segment(5, 11, [2]), Segment(12, 19, [6])]}, CHANNELS)
    assert report.entity_mean.rows.hit_rate_100 == pytest.approx(7 / 15)
    assert report.entity_mean.segments.hit_rate_100 == 0.5


def test_a_row_without_shares_hits_nothing_and_does_not_spoil_its_segment(residual):
    labels = np.arange(20) >= 5
    residual[5:8] = np.nan
    figures = attribute([series_of(labels, residual)], {"a": [Segment(5, 11, [2])]}, CHANNELS).entity_mean
    assert figures.rows.hit_rate_100 == pytest.approx(4 / 7)
    assert figures.segments.hit_rate_100 == 1.0


def test_another_entity_changes_only_the_mean(residual):
    labels = np.arange(20) >= 5
    own, segments = series_of(labels, residual), [Segment(5, 11, [2])]
    alone = attribute([own], {"a": segments}, CHANNELS)
    other = series_of(labels, residual, entity="b")
    both = attribute([own, other], {"a": segments, "b": [Segment(5, 11, [3])]}, CHANNELS)
    assert both.per_entity[0] == alone.per_entity[0]
    assert both.entity_mean.rows.hit_rate_100 == 0.5
    assert attribute([own, other], {"a": segments}, CHANNELS) == alone


@pytest.mark.parametrize(
    ("segments", "cause"),
    [
        ({"b": [Segment(5, 9, [2])]}, "no entity"),
        ({"a": [Segment(5, 9, [7])]}, "blames channels"),
        ({"a": [Segment(5, 9, [0])]}, "blames channels"),
        ({"a": [Segment(5, 9, [])]}, "blames channels"),
        ({"a": [Segment(0, 3, [2])]}, "no labelled row from 0 to 3"),
    ],
)
def test_what_can_not_be_compared_is_refused(residual, segments, cause):
    with pytest.raises(UsageError, match=cause):
        attribute([series_of(np.arange(20) >= 5, residual)], segments, CHANNELS)


def test_scores_without_shares_are_refused():
    with pytest.raises(UsageError, match="no column residual"):
        attribute([series_of(np.arange(20) >= 5, None)], {"a": [Segment(5, 9, [2])]}, CHANNELS)


def test_an_interpretation_is_read_and_anything_else_refused(tmp_path):
    path = tmp_path / "interpretation.json"
    path.write_text('{"machine-1-2": [[4629, 4688, [9, 10]]]}')
    assert read_interpretation(path) == {"machine-1-2": [Segment(4629, 4688, [9, 10])]}
    for text in ("{", '{"a": [[1, 2]]}', '{"a": [["1", 2, [3]]]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="can't be read"):
            read_interpretation(path)
    with pytest.raises(UsageError, match="can't be read"):
        read_interpretation(tmp_path / "absent")
