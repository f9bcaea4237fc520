"""The ring of one entity as bytes: layout, encoding of rows, decoding of windows. Knows no Redis.

A row of slot s lives at position s % capacity. Three areas follow each other: slots (int64), source offsets
(int64), values (float32 per channel). Slot 0 marks an empty position; time stamps before 2000 are refused,
so no row has it. A stale lap is seen as missing because its slot differs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_INT = np.dtype("<i8")
_FLOAT = np.dtype("<f4")


class Write(NamedTuple):
    """Bytes to put at a byte position of the ring."""

    position: int
    data: bytes


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
        return self._values_at + self.capacity * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.channels * _FLOAT.itemsize

    @property
    def _values_at(self) -> int:
        return 2 * self.capacity * _INT.itemsize

    def encode(self, slots: NDArray[np.int64], offsets: NDArray[np.int64], values: NDArray[np.float32]) -> list[Write]:
        """Return the writes that put rows into the ring; of rows with one slot the last one stays.

        slots, offsets: (n,) in arrival order. values: (n, channels).
        """
        last = _last_of_each(slots)
        slots, offsets, values = slots[last], offsets[last], values[last]
        positions = slots % self.capacity
        writes: list[Write] = []
        for run in np.split(np.arange(len(slots)), np.flatnonzero(np.diff(positions) != 1) + 1):
            at = int(positions[run[0]])
            writes += (
                Write(at * _INT.itemsize, slots[run].astype(_INT).tobytes()),
                Write((self.capacity + at) * _INT.itemsize, offsets[run].astype(_INT).tobytes()),
                Write(self._values_at + at * self._row_bytes, values[run].astype(_FLOAT).tobytes()),
            )
        return writes

    def window_ranges(self, end_slot: int, length: int) -> list[Range]:
        """Return the byte ranges that hold a window: of the slots first, then of the values, wrapped ones in two."""
        runs = self._runs(end_slot, length)
        slots = [Range(a * _INT.itemsize, b * _INT.itemsize - 1) for a, b in runs]
        values = [
            Range(self._values_at + a * self._row_bytes, self._values_at + b * self._row_bytes - 1) for a, b in runs
        ]
        return slots + values

    def decode_window(self, parts: list[bytes], end_slot: int, length: int) -> tuple[NDArray[np.float32], int]:
        """Decode what `window_ranges` asked for into (channels, length) values, NaN where missing, and the row count.

        Parts cut short (a ring that is gone) count as empty.
        """
        half = len(parts) // 2
        slots = _padded(b"".join(parts[:half]), length, _INT)
        values = _padded(b"".join(parts[half:]), length * self.channels, _FLOAT).reshape(length, self.channels)
        present = slots == np.arange(end_slot - length + 1, end_slot + 1)
        return np.where(present[:, None], values, np.float32(np.nan)).T, int(present.sum())

    def index_range(self) -> Range:
        """Return the byte range of the slots and offsets areas."""
        return Range(0, self._values_at - 1)

    def decode_index(self, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Decode slots and offsets of all rows present, in slot order."""
        both = _padded(data, 2 * self.capacity, _INT).reshape(2, self.capacity)
        order = np.argsort(both[0], kind="stable")
        present = order[both[0][order] != 0]
        return both[0][present], both[1][present]

    def _runs(self, end_slot: int, length: int) -> list[tuple[int, int]]:
        first = (end_slot - length + 1) % self.capacity
        if first + length <= self.capacity:
            return [(first, first + length)]
        return [(first, self.capacity), (0, first + length - self.capacity)]


def _last_of_each(slots: NDArray[np.int64]) -> NDArray[np.intp]:
    _, reversed_index = np.unique(slots[::-1], return_index=True)
    return len(slots) - 1 - reversed_index


def _padded(data: bytes, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    whole = data.ljust(count * dtype.itemsize, b"\0")
    return np.frombuffer(whole, dtype=dtype, count=count)
