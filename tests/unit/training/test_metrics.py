"""Laws of the detection metrics: invariances, order between them, known scores, and agreement with brute force."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from training import metrics


@st.composite
def labelled(draw, min_rows=2):
    """Draw labels of both classes and a score with many ties."""
    rows = draw(st.integers(min_rows, 40))
    labels = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    assume(metrics.has_both_classes(labels))
    score = np.array(draw(st.lists(st.integers(-5, 5), min_size=rows, max_size=rows)), dtype=float)
    return labels, score


@st.composite
def predicted(draw):
    """Draw labels and predictions of any class."""
    rows = draw(st.integers(1, 40))
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    return np.array(draw(flags)), np.array(draw(flags))


def stretches(flags):
    """List the flagged stretches as sets of rows, one row at a time."""
    found, current = [], set()
    for row, flag in enumerate(flags):
        if flag:
            current.add(row)
        elif current:
            found.append(current)
            current = set()
    return found + [current] * bool(current)


def adjust_slowly(labels, pred):
    adjusted = pred.copy()
    for event in stretches(labels):
        if any(pred[row] for row in event):
            adjusted[list(event)] = True
    return adjusted


RANKING = [
    metrics.roc_auc,
    metrics.average_precision,
    lambda labels, score: metrics.best_f1(labels, score).f1,
    lambda labels, score: metrics.best_f1(labels, metrics.point_adjust_score(labels, score)).f1,
]


@pytest.mark.parametrize("figure", RANKING)
@given(labelled())
def test_ranking_figures_see_only_the_order_of_scores(figure, data):
    labels, score = data
    assert figure(labels, np.exp(score) - 3) == pytest.approx(figure(labels, score), abs=1e-12)


@given(labelled())
def test_inverting_the_score_inverts_roc_auc(data):
    labels, score = data
    assert metrics.roc_auc(labels, -score) == pytest.approx(1 - metrics.roc_auc(labels, score))
    assert metrics.roc_auc(~labels, score) == pytest.approx(1 - metrics.roc_auc(labels, score))


@given(labelled())
def test_the_labels_are_a_perfect_score_and_a_constant_says_nothing(data):
    labels, _ = data
    base_rate = labels.mean()
    assert [figure(labels, labels.astype(float)) for figure in RANKING] == [1.0] * 4
    constant = np.full(len(labels), 3.0)
    assert metrics.roc_auc(labels, constant) == 0.5
    assert metrics.average_precision(labels, constant) == pytest.approx(base_rate)
    assert metrics.best_f1(labels, constant).f1 == pytest.approx(2 * base_rate / (1 + base_rate))


def test_a_random_score_is_worth_the_base_rate():
    generator = np.random.default_rng(0)
    labels = generator.random(200_000) < 0.1
    score = generator.random(200_000)
    assert metrics.roc_auc(labels, score) == pytest.approx(0.5, abs=0.01)
    assert metrics.average_precision(labels, score) == pytest.approx(0.1, abs=0.01)
    assert metrics.best_f1(labels, score).f1 == pytest.approx(0.2 / 1.1, abs=0.01)
    assert metrics.nominal_in_alarm(labels, score > 0.7) == pytest.approx(0.3, abs=0.01)


def test_point_adjustment_makes_a_random_score_look_good_when_events_are_long():
    """Why point-adjusted figures stand only beside those of a random score (Kim et al. 2022)."""
    labels = np.zeros(50_000, bool)
    labels[10_000:12_000] = labels[30_000:33_000] = True
    score = np.random.default_rng(0).random(len(labels))
    assert metrics.best_f1(labels, score).f1 < 0.2
    assert metrics.best_f1(labels, metrics.point_adjust_score(labels, score)).f1 > 0.95


@given(labelled())
def test_best_f1_is_the_best_of_all_thresholds(data):
    labels, score = data
    best = metrics.best_f1(labels, score)
    every = [metrics.detection(labels, score >= threshold).f1 for threshold in np.unique(score)]
    assert best.f1 == pytest.approx(max(every))
    assert best[:3] == pytest.approx(metrics.detection(labels, score >= best.threshold))


@given(predicted())
def test_detection_agrees_with_scikit_learn(data):
    labels, pred = data
    wanted = precision_recall_fscore_support(labels, pred, average="binary", zero_division=0)[:3]
    assert metrics.detection(labels, pred) == pytest.approx(wanted)


@given(predicted())
def test_adjusted_predictions_agree_with_brute_force_and_only_add_hits(data):
    labels, pred = data
    adjusted = metrics.point_adjust_pred(labels, pred)
    np.testing.assert_array_equal(adjusted, adjust_slowly(labels, pred))
    np.testing.assert_array_equal(adjusted & ~labels, pred & ~labels)
    assert metrics.detection(labels, adjusted).f1 >= metrics.detection(labels, pred).f1
    np.testing.assert_array_equal(metrics.point_adjust_pred(labels, adjusted), adjusted)


@given(labelled(), st.integers(-6, 6))
def test_adjusting_scores_is_adjusting_predictions_at_every_threshold(data, threshold):
    labels, score = data
    adjusted = metrics.point_adjust_score(labels, score)
    np.testing.assert_array_equal(adjusted >= threshold, adjust_slowly(labels, score >= threshold))
    assert metrics.best_f1(labels, adjusted).f1 >= metrics.best_f1(labels, score).f1


@given(predicted())
def test_runs_are_the_stretches(data):
    starts, ends = metrics.runs(data[0])
    assert [set(range(start, end)) for start, end in zip(starts, ends, strict=True)] == stretches(data[0])


def alarms_slowly(pred, merge_gap):
    """Join stretches with at most merge_gap rows between them, one after the other; keep only flagged rows."""
    alarms = []
    for stretch in stretches(pred):
        if alarms and min(stretch) - max(alarms[-1]) - 1 <= merge_gap:
            alarms[-1] |= stretch
        else:
            alarms.append(set(stretch))
    return alarms


@given(predicted(), st.integers(0, 8))
def test_event_counts_agree_with_brute_force(data, merge_gap):
    labels, pred = data
    events, alarms = stretches(labels), alarms_slowly(pred, merge_gap)
    found = sum(any(event & alarm for alarm in alarms) for event in events)
    false_alarms = sum(not any(event & alarm for event in events) for alarm in alarms)
    assert metrics.event_counts(labels, pred, merge_gap) == (found, len(events) - found, false_alarms)


@given(predicted())
def test_merging_alarms_finds_no_event_more_and_never_adds_false_alarms(data):
    labels, pred = data
    counts = [metrics.event_counts(labels, pred, gap) for gap in (0, 1, 5, 50)]
    assert len({c.found for c in counts}) == 1
    assert [c.false_alarms for c in counts] == sorted((c.false_alarms for c in counts), reverse=True)


def flags(text):
    return np.array([mark != "." for mark in text])


@pytest.mark.parametrize(
    ("labels", "pred", "gap", "counts"),
    [
        ("..###...##..", "............", 0, (0, 2, 0)),
        ("..###...##..", "..x.x....x..", 0, (2, 0, 0)),
        ("..###...##..", "xxxxxxxxxxxx", 0, (2, 0, 0)),
        ("..###.......", "x....x..x..x", 0, (0, 1, 4)),
        ("..###.......", "x....x..x..x", 2, (0, 1, 2)),
        ("..###.......", "....x...x..x", 3, (1, 0, 0)),
        ("............", ".x.......x..", 0, (0, 0, 2)),
    ],
)
def test_event_counts_of_drawn_time_lines(labels, pred, gap, counts):
    assert metrics.event_counts(flags(labels), flags(pred), gap) == counts


@given(predicted())
def test_perfect_predictions_find_every_event_without_false_alarms(data):
    labels, _ = data
    assume(metrics.has_both_classes(labels))
    counts = metrics.event_counts(labels, labels)
    assert metrics.event_detection(counts) == (1.0, 1.0, 1.0)
    assert metrics.corrected_event_f05(counts, 0.0) == 1.0


@given(predicted())
def test_an_alarm_that_never_ends_finds_everything_and_is_worth_nothing(data):
    labels, _ = data
    assume(metrics.has_both_classes(labels))
    always = np.ones_like(labels)
    counts = metrics.event_counts(labels, always)
    assert metrics.event_detection(counts).f1 == 1.0
    assert metrics.nominal_in_alarm(labels, always) == 1.0
    assert metrics.corrected_event_f05(counts, 1.0) == 0.0


@given(predicted(), st.floats(0, 1))
def test_the_correction_only_lowers_and_prefers_precision(data, share):
    counts = metrics.event_counts(*data)
    corrected = metrics.corrected_event_f05(counts, share)
    precision, recall, _ = metrics.event_detection(counts)
    assert corrected <= metrics.corrected_event_f05(counts, 0.0) + 1e-12
    if precision and recall:
        assert metrics.corrected_event_f05(counts, 0.0) == pytest.approx(1.25 / (1 / precision + 0.25 / recall))


def test_the_mean_leaves_out_and_counts_entities_without_the_figure():
    assert metrics.entity_mean([0.5, None, 1.0]) == (0.75, 2, 1)
    assert metrics.entity_mean([None]) == (None, 0, 1)
    assert metrics.entity_mean([]) == (None, 0, 0)


@pytest.mark.parametrize("figure", [metrics.roc_auc, metrics.average_precision, metrics.best_f1])
def test_ranking_figures_refuse_what_has_no_ranking(figure):
    labels = np.array([True, False])
    for flat in (labels | True, labels & False):
        with pytest.raises(ValueError, match="both nominal and anomalous"):
            figure(flat, np.array([0.0, 1.0]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            figure(labels, np.array([0.0, bad]))
    with pytest.raises(ValueError, match="boolean"):
        figure(labels, np.array([0.0]))
    with pytest.raises(ValueError, match="boolean"):
        figure(labels.astype(int), np.array([0.0, 1.0]))


def test_the_share_of_nominal_time_wants_nominal_time():
    with pytest.raises(ValueError, match="nominal row"):
        metrics.nominal_in_alarm(np.array([True]), np.array([True]))
