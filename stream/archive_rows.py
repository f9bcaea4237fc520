"""Rows on their way into the archive: collected by partition as arrays, cut into tables by family and day.

Knows no file and no broker. What a table holds follows from the records of its partition between two offsets alone.
"""

from collections.abc import Iterator
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream.archive import ENTITY, OFFSET, PARTITION, RECEIVED, ROW, TS, UNKNOWN_DAY, archived_family, make_table, ranks
from stream.rows import FamilyRows
from stream.settings import FamilySettings

_DAY_MS = 86_400_000
# A row this near to the time its record was sent has a clock to be trusted: it is live, or late by a ground pass.
NEAR_MS = 7 * _DAY_MS
# So many rows of another day in one flush are a replay or a backfill, and that day has a folder of its own too.
LEAST_ROWS = 1000


class _Chunk(msgspec.Struct, gc=False):
    """Rows of one family out of one batch, (n,) each, values (n, C). entities: index into the names."""

    entities: NDArray[np.int32]
    ts_ms: NDArray[np.int64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]
    received_ms: NDArray[np.int64]
    values: NDArray[np.float32]


class _FamilyBuffer:
    def __init__(self, family: FamilySettings) -> None:
        self.family = family
        self.names: dict[str, int] = {}
        self.chunks: list[_Chunk] = []

    def take(self, rows: FamilyRows, received_ms: NDArray[np.int64]) -> int:
        """Add rows; return how many bytes they take."""
        codes = [self.names.setdefault(name, len(self.names)) for name in rows.entities]
        counts = [end - first for first, end in pairwise(rows.bounds)]
        chunk = _Chunk(
            np.repeat(np.array(codes, np.int32), counts),
            np.array(rows.ts_ms, np.int64),
            rows.offsets,
            _numbers(rows.records),
            received_ms[rows.records],
            rows.values,
        )
        self.chunks.append(chunk)
        return sum(getattr(chunk, name).nbytes for name in _Chunk.__struct_fields__)

    def together(self) -> _Chunk:
        """Return all rows, those of an entity side by side and in order of arrival."""
        parts = {name: [getattr(chunk, name) for chunk in self.chunks] for name in _Chunk.__struct_fields__}
        entities = np.concatenate(parts["entities"])
        order = np.argsort(ranks(list(self.names))[entities], kind="stable")
        return _Chunk(**{name: np.concatenate(part)[order] for name, part in parts.items()})


class PartitionBuffer:
    """Rows of one partition that are in no file yet. first: the offset it begins at, `end` the one after its last."""

    def __init__(self, partition: int, first: int) -> None:
        """Hold nothing."""
        self.partition = partition
        self.first = self.end = first
        self.rows = self.bytes = 0
        self._families: dict[str, _FamilyBuffer] = {}

    def take(self, rows: FamilyRows, received_ms: NDArray[np.int64]) -> None:
        """Take rows of records that follow those before. received_ms: Kafka's time stamp of each of the records."""
        buffer = self._families.get(rows.family.name)
        if buffer is None:
            buffer = self._families[rows.family.name] = _FamilyBuffer(rows.family)
        self.bytes += buffer.take(rows, received_ms)
        self.rows += len(rows.slots)

    def tables(self) -> Iterator[tuple[str, str, pa.Table]]:
        """Yield family, day and rows of each file to be written."""
        for name, buffer in self._families.items():
            known, names = archived_family(buffer.family), pa.array(list(buffer.names), pa.string())
            rows = buffer.together()
            days = _days(rows.ts_ms, rows.received_ms)
            for day in np.unique(days):
                here = days == day
                if here.all():
                    here = slice(None)
                keys = {
                    ENTITY: pa.DictionaryArray.from_arrays(rows.entities[here], names),
                    TS: rows.ts_ms[here],
                    PARTITION: np.full(len(rows.ts_ms[here]), self.partition, np.int32),
                    OFFSET: rows.offsets[here],
                    ROW: rows.numbers[here],
                    RECEIVED: rows.received_ms[here],
                }
                yield name, _day_name(int(day)), make_table(known, keys, rows.values[here])


def _numbers(records: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of each row within its record, whose rows stand together."""
    begins = np.diff(records, prepend=-1) != 0
    at = np.arange(len(records))
    return (at - np.maximum.accumulate(np.where(begins, at, 0))).astype(np.int32)


def _days(ts_ms: NDArray[np.int64], received_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row's day since 1970, -1 where its clock is in doubt: neither near nor one of many of its day."""
    days = ts_ms // _DAY_MS
    _, which, counts = np.unique(days, return_inverse=True, return_counts=True)
    trusted = (np.abs(ts_ms - received_ms) <= NEAR_MS) | (counts[which] >= LEAST_ROWS)
    return np.where(trusted, days, -1)


def _day_name(day: int) -> str:
    return UNKNOWN_DAY if day < 0 else str(np.datetime64(day, "D"))
