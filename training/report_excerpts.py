"""Chooses what a report shows of the series: the longest events without alarm and alarms without event."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from training import metrics
from training.comparison import MERGE_GAP
from training.labelled_scores import LabelledSeries, Wide

# Rows shown on each side of an event: as many as it has, within these bounds.
LEAST_CONTEXT, MOST_CONTEXT = 150, 2000


class Excerpt(NamedTuple):
    """A stretch of a series, rows start to end (exclusive), and the rows around it that are shown."""

    series: LabelledSeries
    start: int
    end: int
    shown: slice

    @property
    def rows(self) -> int:
        """Rows of the stretch."""
        return self.end - self.start


def misses(series: Sequence[LabelledSeries]) -> list[Excerpt]:
    """Return the events that no alarm found, longest first."""
    return _longest_first(_without(s, s.labels, s.pred, 0) for s in series)


def false_alarms(series: Sequence[LabelledSeries]) -> list[Excerpt]:
    """Return the alarms that hit no event, longest first."""
    return _longest_first(_without(s, s.pred, s.labels, MERGE_GAP) for s in series)


def deviating_channel(excerpt: Excerpt) -> int | None:
    """Return which channel deviates most in the stretch: by residual, else by expectation, else the first one."""
    s, rows = excerpt.series, slice(excerpt.start, excerpt.end)
    if s.observed is None or not s.channels:
        return None
    if s.residual is not None:
        deviation = s.residual[rows]
    elif s.expected is not None:
        deviation = np.abs(s.observed[rows] - s.expected[rows]) / _spread(s.observed)
    else:
        return 0
    known = ~np.isnan(deviation)
    total = np.where(known, deviation, 0).sum(0) / np.maximum(known.sum(0), 1)
    return int(total.argmax())


def _without(series: LabelledSeries, stretches: metrics.Flags, other: metrics.Flags, merge_gap: int) -> list[Excerpt]:
    """Return the stretches, joined over gaps of merge_gap rows, none of whose own rows are flagged in the other."""
    starts, ends = metrics.runs(stretches)
    first = np.append(True, starts[1:] - ends[:-1] > merge_gap)[: len(starts)]
    last = np.append(first[1:], True)[: len(starts)]
    hits = np.append(0, np.cumsum(stretches & other))
    return [
        Excerpt(series, int(start), int(end), _shown(int(start), int(end), len(stretches)))
        for start, end in zip(starts[first], ends[last], strict=True)
        if hits[end] == hits[start]
    ]


def _longest_first(found: Iterable[list[Excerpt]]) -> list[Excerpt]:
    return sorted((excerpt for each in found for excerpt in each), key=lambda e: (-e.rows, e.series.entity, e.start))


def _shown(start: int, end: int, rows: int) -> slice:
    context = min(max(end - start, LEAST_CONTEXT), MOST_CONTEXT)
    return slice(max(start - context, 0), min(end + context, rows))


def _spread(observed: Wide) -> Wide:
    spread = np.nanstd(observed, axis=0) if not np.isnan(observed).all(0).any() else np.ones(observed.shape[1])
    return np.asarray(np.where(spread > 0, spread, 1), np.float32)
