"""Laws of delays, alarms and frames: agreement with brute force, drawn time lines, and what may not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.alarms import FrameCounts, alarm_count, detection_delays, frame_counts, frame_iou
from training.metrics import event_counts


@st.composite
def predicted(draw):
    """Draw labels and predictions of any class."""
    rows = draw(st.integers(1, 40))
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    return np.array(draw(flags)), np.array(draw(flags))


def flags(text):
    return np.array([mark != "." for mark in text])


@pytest.mark.parametrize(
    ("labels", "pred", "delays"),
    [
        ("..###...###", "...........", []),
        ("..###...###", "..x....x..x", [0, 2]),
        ("..###...###", ".x...xxx...", []),
        ("###........", "..x........", [2]),
        ("..###...###", "xxxxxxxxxxx", [0, 0]),
    ],
)
def test_delays_of_drawn_time_lines(labels, pred, delays):
    assert detection_delays(flags(labels), flags(pred)).tolist() == delays


@given(predicted())
def test_there_is_a_delay_for_every_found_event_and_more_alarms_never_lengthen_it(data):
    labels, pred = data
    delays = detection_delays(labels, pred)
    assert len(delays) == event_counts(labels, pred).found
    assert detection_delays(labels, labels).tolist() == [0] * event_counts(labels, labels).found
    both = detection_delays(labels, pred | np.roll(pred, 1))
    assert len(both) >= len(delays)
    assert both.sum() <= delays.sum() + (len(both) - len(delays)) * len(labels)


@given(predicted(), st.integers(1, 1000))
def test_delays_in_time_are_delays_in_rows_where_rows_are_evenly_apart(data, interval):
    labels, pred = data
    times = 10**12 + interval * np.arange(len(labels))
    np.testing.assert_array_equal(detection_delays(labels, pred, times), interval * detection_delays(labels, pred))


def test_a_gap_in_time_counts_as_time():
    times = np.array([0, 1, 2, 100, 101])
    assert detection_delays(flags(".####"), flags("...x."), times).tolist() == [99]


@given(predicted(), st.integers(0, 8))
def test_alarms_are_the_false_ones_where_nothing_is_labelled(data, merge_gap):
    _, pred = data
    assert alarm_count(pred, merge_gap) == event_counts(np.zeros_like(pred), pred, merge_gap).false_alarms


@given(predicted(), st.integers(1, 45))
def test_frames_agree_with_brute_force(data, frame_rows):
    labels, pred = data
    rows = range(len(labels))
    real, found = ({row // frame_rows for row in rows if series[row]} for series in (labels, pred))
    counts = frame_counts(labels, pred, frame_rows)
    assert counts == (len(real & found), len(real | found))
    assert frame_iou(counts) == (len(real & found) / len(real | found) if real | found else None)


@given(predicted())
def test_frames_of_one_row_are_rows_and_one_frame_forgives_everything(data):
    labels, pred = data
    assert frame_counts(labels, pred, 1) == ((labels & pred).sum(), (labels | pred).sum())
    if labels.any() and pred.any():
        assert frame_iou(frame_counts(labels, pred, len(labels))) == 1.0


def test_there_is_no_iou_of_nothing():
    assert frame_iou(FrameCounts(0, 0)) is None
