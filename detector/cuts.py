"""Which windows of a recorded series the live windower cuts. Pure: no store, no clock, no values.

What `stream.heads.Head` says row by row, for all rows at once; a test compares the two.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.errors import ContractError
from stream.grid import Geometry
from stream.heads import Cut, Head


class Slots(Protocol):
    """Recorded rows of one entity. slots: (n,) ascending, each once."""

    @property
    def slots(self) -> NDArray[np.int64]:
        """Slots of the rows."""


def cut_series(geometry: Geometry, series: Slots, *, ended: bool = True) -> list[Cut]:
    """Return the windows that the live windower cuts; of a series that ended, one more for the rows behind them.

    After a silence of more than `max_jump` slots the first rows are in no window, as they are refused live.
    """
    if (np.diff(series.slots) > geometry.longest_step).any():
        return _cut_row_by_row(geometry, series, ended=ended)
    slots, cuts = series.slots, list[Cut]()
    begins = np.flatnonzero(np.diff(slots, prepend=slots[0]) > geometry.max_gap)
    begins, ends = np.append(0, begins), np.append(begins, len(slots))
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        newest = int(slots[end - 1])
        if end < len(slots):
            watermark = newest + geometry.hop + geometry.final_delay
        elif ended:
            watermark = newest + geometry.hop - 1
        else:
            watermark = newest - geometry.lateness
            watermark -= not np.isin(watermark, slots[begin:end])
        gap = int(slots[begin]) - 1 - cuts[-1].end_slot if cuts else 0
        cuts += _cut_life(geometry, slots[begin:end], watermark, begin, gap)
    return cuts


def _cut_life(geometry: Geometry, slots: NDArray[np.int64], watermark: int, offset: int, gap: int) -> list[Cut]:
    """Cut the windows of one life up to a watermark. offset: of its first row. gap: slots missing before it."""
    hop, first = geometry.hop, int(slots[0])
    before = geometry.last_boundary(first - 1 - geometry.lateness)
    ends = np.arange(before + hop, geometry.last_boundary(watermark) + 1, hop)
    after = np.searchsorted(slots, ends, side="right")
    concerned = np.searchsorted(slots, (ends - hop - geometry.final_delay + 1) // hop * hop)
    ends, after = ends[after > concerned], after[after > concerned]
    oldest = np.searchsorted(slots, ends - geometry.length + 1)
    news = np.diff(ends, prepend=before)
    return [
        Cut(
            end_slot=end,
            new_slots=new,
            rows=last - start,
            ring=first,
            first_slot=first,
            gap_slots=0 if number else gap,
            first_offset=offset + start if last > start else -1,
            last_offset=offset + last - 1 if last > start else -1,
        )
        for number, (end, new, start, last) in enumerate(
            zip(ends.tolist(), news.tolist(), oldest.tolist(), after.tolist(), strict=True)
        )
    ]


def _cut_row_by_row(geometry: Geometry, series: Slots, *, ended: bool) -> list[Cut]:
    head = Head(geometry, int(series.slots[0]))
    cuts: list[Cut] = []
    for index, slot in enumerate(series.slots.tolist()):
        try:
            cuts += head.add(slot, index)
        except ContractError as error:
            if error.reason != "clock_jump":
                raise
    return cuts + head.flush() if ended else cuts
