"""What an operator gets from label-free predictions: how late, how often, over which frames. Chooses no threshold."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.metrics import Flags, check_shapes, runs

DAY_S = 86_400


class FrameCounts(NamedTuple):
    """Frames that are both labelled and flagged, and those that are at least one of the two."""

    both: int
    either: int


def detection_delays(labels: Flags, pred: Flags, times: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return for every found event the time from its first row to its first flagged one, in order of the events.

    times: (n,) in any unit, which is then the delays' unit; rows if left out. Missed events have no delay.
    """
    check_shapes(labels, pred)
    starts, ends = runs(labels)
    flagged = np.append(np.flatnonzero(pred), len(pred))
    first = flagged[np.searchsorted(flagged, starts)]
    found = first < ends
    times = np.arange(len(labels)) if times is None else times
    return np.asarray(times[first[found]] - times[starts[found]])


def alarm_count(pred: Flags, merge_gap: int = 0) -> int:
    """Count alarms: stretches of flagged rows, joined where at most merge_gap rows lie between them."""
    starts, ends = runs(pred)
    return int(len(starts) and 1 + (starts[1:] - ends[:-1] > merge_gap).sum())


def frame_counts(labels: Flags, pred: Flags, frame_rows: int) -> FrameCounts:
    """Count the frames that the labels and the predictions touch; the last frame may be shorter."""
    check_shapes(labels, pred)
    cuts = np.arange(0, len(labels), frame_rows)
    real, predicted = np.logical_or.reduceat(labels, cuts), np.logical_or.reduceat(pred, cuts)
    return FrameCounts(int((real & predicted).sum()), int((real | predicted).sum()))


def frame_iou(counts: FrameCounts) -> float | None:
    """Return intersection over union of labelled and flagged frames (DiffADT, Section 4.3, Table 4).

    The series is cut into consecutive frames of equal length; a frame is anomalous if one of its rows is. The paper
    names no length: the longer the frame, the more it forgives. None where no frame is labelled or flagged.
    """
    return counts.both / counts.either if counts.either else None
