"""The ring of one entity as bytes: layout, encoding of rows, decoding of windows. Knows no Redis.

A row of slot s lives at position s % capacity. Two areas follow each other: the index, slot and source offset of each
row (int64), and the values (float32 per channel). Slot 0 marks an empty position; time stamps before 2000 are refused,
so no row has it. A stale lap is seen as missing because its slot differs.
"""

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_INT = np.dtype("<i8")
_FLOAT = np.dtype("<f4")
# Part of the keys' names: a service that lays rings out in another way must not read these.
RING_FORMAT = 2
INDEX_BYTES = 2 * _INT.itemsize


class Write(NamedTuple):
    """Rows that follow each other in the ring, encoded, and the position of the first. slots: with their offsets."""

    position: int
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

    def encode(self, slots: NDArray[np.int64], offsets: NDArray[np.int64], values: NDArray[np.float32]) -> list[Write]:
        """Return the writes that put rows into the ring; of rows with one slot the last one stays.

        slots, offsets: (n,) in arrival order. values: (n, channels).
        """
        last = _last_of_each(slots)
        slots, offsets, values = slots[last], offsets[last], values[last]
        return PackedRows(self, slots, offsets, values).writes(0, len(slots))

    def put(self, ring: bytearray, write: Write) -> None:
        """Put rows into a ring in memory, as the window store does in Redis."""
        index_at, values_at = write.position * INDEX_BYTES, self.values_at + write.position * self.row_bytes
        ring[index_at : index_at + len(write.slots)] = write.slots
        ring[values_at : values_at + len(write.values)] = write.values

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


class PackedRows:
    """Rows of several rings of one layout as bytes; each ring's writes are cut out of them."""

    def __init__(
        self,
        layout: Layout,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> None:
        """Take rows as `Layout.encode` does; those of one ring stand together."""
        self._layout = layout
        self._row_bytes = layout.row_bytes
        self._arrays = slots, offsets, values
        self._slots = np.stack([slots, offsets], axis=1).astype(_INT).tobytes()
        self._values = values.astype(_FLOAT).tobytes()
        positions = slots % layout.capacity
        self._positions: list[int] = positions.tolist()
        self._breaks: list[int] = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
        self._descents: list[int] = (np.flatnonzero(np.diff(slots) <= 0) + 1).tolist()

    def writes(self, first: int, end: int) -> list[Write]:
        """Return the writes that put rows `first` to `end - 1` into their ring; of equal slots the last one stays."""
        if _within(self._descents, first, end):
            slots, offsets, values = self._arrays
            return self._layout.encode(slots[first:end], offsets[first:end], values[first:end])
        # Made for each entity of each batch: a named tuple's own constructor takes four times as long.
        return [
            tuple.__new__(
                Write,
                (
                    self._positions[a],
                    self._slots[a * INDEX_BYTES : b * INDEX_BYTES],
                    self._values[a * self._row_bytes : b * self._row_bytes],
                ),
            )
            for a, b in pairwise([first, *_within(self._breaks, first, end), end])
        ]


def _within(sorted_numbers: list[int], first: int, end: int) -> list[int]:
    return sorted_numbers[bisect_right(sorted_numbers, first) : bisect_left(sorted_numbers, end)]


def _last_of_each(slots: NDArray[np.int64]) -> NDArray[np.intp]:
    _, reversed_index = np.unique(slots[::-1], return_index=True)
    return len(slots) - 1 - reversed_index


def _padded(data: bytes, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    whole = data.ljust(count * dtype.itemsize, b"\0")
    return np.frombuffer(whole, dtype=dtype, count=count)
