"""The ring of one entity as bytes: layout, encoding of rows, decoding of windows. Knows no Redis.

A row of slot s lives at position s % capacity. Two areas follow each other: the index, slot and source offset of each
row (int64), and the values (float32 per channel). Slot 0 marks an empty position; time stamps before 2000 are refused,
so no row has it. A stale lap is seen as missing because its slot differs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_INT = np.dtype("<i8")
_FLOAT = np.dtype("<f4")
# Part of the keys' names: a service that lays rings out in another way must not read these.
RING_FORMAT = 2
INDEX_BYTES = 2 * _INT.itemsize


class Runs(NamedTuple):
    """Rows of rings of one layout, encoded: runs of rows that follow each other in their ring.

    owners: which ring each run is of. positions: of each run's first row. counts: rows of each run. slots: of all runs
    one after the other, each with its offset. values: of the same rows.
    """

    owners: NDArray[np.int64]
    positions: NDArray[np.int64]
    counts: NDArray[np.int64]
    slots: bytes
    values: bytes


class Range(NamedTuple):
    """A byte range to read, both ends inclusive as in GETRANGE."""

    first: int
    last: int


class Layout(NamedTuple):
    """Where things stand in a ring of `capacity` rows with `channels` values each."""

    capacity: int
    channels: int

    @property
    def size(self) -> int:
        """Bytes of the whole ring."""
        return self.values_at + self.capacity * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's values."""
        return self.channels * _FLOAT.itemsize

    @property
    def values_at(self) -> int:
        """Byte at which the values begin."""
        return self.capacity * INDEX_BYTES

    def encode(
        self,
        owners: NDArray[np.int64],
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> Runs:
        """Return the runs that put rows into their rings; of a ring's rows with one slot the last one stays.

        owners: (n,) number of each row's ring, whose rows stand together. slots, offsets: (n,), a ring's in arrival
        order. values: (n, channels).
        """
        same_ring = np.diff(owners) == 0
        if (same_ring & (np.diff(slots) <= 0)).any():
            last = _last_of_each(owners, slots)
            owners, slots, offsets, values = owners[last], slots[last], offsets[last], values[last]
            same_ring = np.diff(owners) == 0
        positions = slots % self.capacity
        first = np.flatnonzero(np.concatenate([[True], ~same_ring | (np.diff(positions) != 1)]))
        return Runs(
            owners[first],
            positions[first],
            np.diff(first, append=len(slots)),
            np.stack([slots, offsets], axis=1).astype(_INT).tobytes(),
            values.astype(_FLOAT).tobytes(),
        )

    def put(self, rings: Sequence[bytearray], runs: Runs) -> None:
        """Put rows into rings in memory, as the window store does in Redis."""
        done = 0
        for owner, position, count in zip(runs.owners, runs.positions, runs.counts, strict=True):
            for begin, width, data in ((0, INDEX_BYTES, runs.slots), (self.values_at, self.row_bytes, runs.values)):
                at = begin + position * width
                rings[owner][at : at + count * width] = data[done * width : (done + count) * width]
            done += count

    def window_ranges(self, end_slot: int, length: int) -> list[Range]:
        """Return the byte ranges that hold a window: of the index first, then of the values, wrapped ones in two."""
        runs = self._runs(end_slot, length)
        index = [Range(a * INDEX_BYTES, b * INDEX_BYTES - 1) for a, b in runs]
        values = [Range(self.values_at + a * self.row_bytes, self.values_at + b * self.row_bytes - 1) for a, b in runs]
        return index + values

    def decode_window(self, parts: list[bytes], end_slot: int, length: int) -> tuple[NDArray[np.float32], int]:
        """Decode what `window_ranges` asked for into (channels, length) values, NaN where missing, and the row count.

        Parts cut short (a ring that is gone) count as empty.
        """
        half = len(parts) // 2
        slots = _padded(b"".join(parts[:half]), 2 * length, _INT)[::2]
        values = _padded(b"".join(parts[half:]), length * self.channels, _FLOAT).reshape(length, self.channels)
        present = slots == np.arange(end_slot - length + 1, end_slot + 1)
        return np.where(present[:, None], values, np.float32(np.nan)).T, int(present.sum())

    def index_range(self) -> Range:
        """Return the byte range of the index."""
        return Range(0, self.values_at - 1)

    def decode_index(self, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Decode slots and offsets of all rows present, in slot order."""
        slots, offsets = _padded(data, 2 * self.capacity, _INT).reshape(self.capacity, 2).T
        order = np.argsort(slots, kind="stable")
        present = order[slots[order] != 0]
        return slots[present], offsets[present]

    def _runs(self, end_slot: int, length: int) -> list[tuple[int, int]]:
        first = (end_slot - length + 1) % self.capacity
        if first + length <= self.capacity:
            return [(first, first + length)]
        return [(first, self.capacity), (0, first + length - self.capacity)]


def _last_of_each(owners: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where the last row of each owner and slot stands, the owners in their order, by slot."""
    ring = np.cumsum(np.diff(owners, prepend=owners[:1]) != 0)
    order = np.lexsort((slots, ring))
    last = (np.diff(slots[order], append=0) != 0) | (np.diff(ring[order], append=-1) != 0)
    kept: NDArray[np.intp] = order[last]
    return kept


def _padded(data: bytes, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    whole = data.ljust(count * dtype.itemsize, b"\0")
    return np.frombuffer(whole, dtype=dtype, count=count)
