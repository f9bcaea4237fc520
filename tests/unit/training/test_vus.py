"""Laws of the volumes: agreement with a plain reading of the definition and with the published code; invariances."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training import metrics
from training.vus import buffered_labels, volumes


@st.composite
def labelled(draw, max_rows=60):
    """Draw labels of both classes, in stretches, and a score with many ties."""
    rows = draw(st.integers(2, max_rows))
    labels = np.zeros(rows, bool)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, rows - 1))
        labels[start : start + draw(st.integers(1, 12))] = True
    assume(not labels.all())
    score = np.array(draw(st.lists(st.integers(-5, 5), min_size=rows, max_size=rows)), dtype=float)
    return labels, score


def events_of(labels):
    events = []
    for row, flag in enumerate(labels):
        if flag and row and labels[row - 1]:
            events[-1][1] = row
        elif flag:
            events.append([row, row])
    return events


def weight_of(row, events, window):
    """Add up what the row gets from every event: 1 inside, a falling weight in the buffer beside it."""
    weight = 0.0
    for first, last in events:
        distance = max(first - row, row - last, 0)
        weight += np.sqrt(1 - distance / window) if 0 < distance <= window // 2 else float(distance == 0)
    return min(weight, 1.0)


def merged(events, reach):
    groups = []
    for first, last in events:
        if groups and first - reach <= groups[-1][1]:
            groups[-1][1] = last + reach
        else:
            groups.append([first - reach, last + reach])
    return groups


def areas_slowly(labels, score, window, thresholds):
    """Read the definition threshold by threshold and row by row."""
    n, events = len(labels), events_of(labels)
    weights = [weight_of(row, events, window) for row in range(n)]
    groups = merged(events, window // 2)
    descending = sorted(score, reverse=True)
    points, precisions = [(0.0, 0.0)], []
    for place in np.linspace(0, n - 1, thresholds).astype(int):
        flagged = [row for row in range(n) if score[row] >= descending[place]]
        hits = sum(weights[row] for row in flagged)
        buffers = sum(weights[row] for row in flagged if not labels[row])
        positives = (sum(labels) + sum(labels) + buffers) / 2
        found = sum(any(first <= row <= last for row in flagged) for first, last in groups)
        points.append((min(hits / positives, 1) * found / len(groups), (len(flagged) - hits) / (n - positives)))
        precisions.append(hits / len(flagged))
    steps = list(pairwise(points))
    pr = sum((b[0] - a[0]) * precision for (a, b), precision in zip(steps, precisions, strict=True))
    steps.append((points[-1], (1.0, 1.0)))
    return sum((b[1] - a[1]) * (a[0] + b[0]) / 2 for a, b in steps), pr


@settings(max_examples=40, deadline=None)
@given(labelled(), st.integers(0, 9), st.integers(2, 12))
def test_volumes_agree_with_a_plain_reading_of_the_definition(data, window, thresholds):
    labels, score = data
    wanted = np.mean([areas_slowly(labels, score, w, thresholds) for w in range(window + 1)], axis=0)
    assert volumes(labels, score, window, thresholds) == pytest.approx(tuple(wanted), abs=1e-9)


# Computed with RangeAUC_volume_opt of the package TSB-AD 1.5, whose tables the figures are compared with.
PUBLISHED = [
    (0, False, 0.7982999054640032, 0.6783019888635102),
    (7, False, 0.8096607704197051, 0.6846353973167467),
    (100, False, 0.8890869996837464, 0.7632674693438213),
    (0, True, 0.7978793756185895, 0.6583091618949469),
    (7, True, 0.8092397077295652, 0.6650688486318077),
    (100, True, 0.8878217025609478, 0.7456174023745464),
]


@pytest.mark.parametrize(("window", "rounded", "roc", "pr"), PUBLISHED)
def test_volumes_are_those_of_the_published_code(window, rounded, roc, pr):
    t = np.arange(1200)
    labels = np.zeros(1200, bool)
    labels[100:160] = labels[200:203] = labels[700:820] = labels[1150:] = True
    score = np.sin(t * 0.37) * np.cos(t * 0.11) + 1.3 * labels * (np.sin(t * 0.05) > 0)
    assert volumes(labels, np.round(score, 1) if rounded else score, window) == pytest.approx((roc, pr), abs=1e-9)


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
def test_without_a_buffer_one_event_has_the_plain_areas(before, event, after, random):
    labels = np.array([False] * before + [True] * event + [False] * after)
    score = np.array([float(random.randint(0, 9)) for _ in labels])
    roc, pr = volumes(labels, score, window=0)
    assert roc == pytest.approx(metrics.roc_auc(labels, score))
    assert pr == pytest.approx(metrics.average_precision(labels, score))


@given(labelled(), st.integers(0, 20))
def test_volumes_see_only_the_order_of_scores(data, window):
    labels, score = data
    assert volumes(labels, np.exp(score) - 3, window) == volumes(labels, score, window)


@given(labelled(), st.integers(0, 20))
def test_the_labels_are_a_perfect_score_and_volumes_are_areas(data, window):
    labels, score = data
    assert volumes(labels, labels.astype(float), window) == pytest.approx((1.0, 1.0))
    assert all(0 <= volume <= 1 + 1e-12 for volume in volumes(labels, score, window))


def test_an_alarm_a_little_early_is_worth_more_than_one_far_away():
    labels = np.arange(1000) // 50 == 10
    early, far = (np.roll(labels, -shift).astype(float) for shift in (20, 300))
    assert metrics.average_precision(labels, early) < 0.5
    assert volumes(labels, early).pr > volumes(labels, far).pr + 0.3


def test_drawn_buffers():
    labels = np.array([mark == "#" for mark in "#....##.#...."])
    root = np.sqrt([0.75, 0.5])
    wanted = [1, *root, *root[::-1], 1, 1, 1, 1, *root, 0, 0]
    np.testing.assert_allclose(buffered_labels(labels, 4), wanted)


def test_volumes_refuse_what_has_no_ranking():
    for labels in (np.array([True, True]), np.array([False, False])):
        with pytest.raises(ValueError, match="both nominal and anomalous"):
            volumes(labels, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="finite"):
        volumes(np.array([True, False]), np.array([0.0, np.nan]))
