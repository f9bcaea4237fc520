"""Many rows of one entity in one record: the encoding for normalisers, replays and backfills. Knows no window.

A record of this kind is taken or refused as a whole. What it may hold is bounded so that there is room for all of it as
soon as there is room for its first row: from its first to its last slot are at most `hop` slots.
"""

import numpy as np
from numpy.typing import NDArray

from stream.contracts import SampleColumns
from stream.errors import ContractError
from stream.grid import slot_of, slots_of
from stream.settings import FamilySettings

COLUMNS = "application/vnd.telltale.columns+msgpack"
_TS = np.dtype("<i8")
_VALUE = np.dtype("<f4")
# Orders of channels that are remembered; producers have one or two.
_MAX_ORDERS = 100


def to_columns(
    entity: str, channels: list[str], ts_ms: NDArray[np.int64], values: NDArray[np.float32]
) -> SampleColumns:
    """Pack rows of an entity. ts_ms: (n,) ascending. values: (n, C), NaN where missing."""
    return SampleColumns(entity, channels, ts_ms.astype(_TS).tobytes(), values.astype(_VALUE).tobytes())


class ColumnReader:
    """Reads the rows out of records of one family."""

    def __init__(self, family: FamilySettings) -> None:
        """Know the family's channels."""
        self._family = family
        self._columns: dict[tuple[str, ...], list[int]] = {}

    def read(self, sample: SampleColumns) -> tuple[list[int], NDArray[np.float32]]:
        """Return time stamps and values (n, C) in the order of the family's channels, NaN where missing.

        Raises ContractError as for a single row, or if rows are not in order or too far apart.
        """
        columns = self._columns_of(tuple(sample.channels))
        count, rest = divmod(len(sample.ts), _TS.itemsize)
        if rest or not count or len(sample.values) != count * len(columns) * _VALUE.itemsize:
            raise ContractError(
                "schema",
                f"{len(columns)} channels want ts of 8 n bytes and values of {4 * len(columns)} n bytes, n at least 1, "
                f"got {len(sample.ts)} and {len(sample.values)}",
            )
        ts_ms = np.frombuffer(sample.ts, _TS)
        self._check_times(ts_ms)
        values = np.frombuffer(sample.values, _VALUE).reshape(count, len(columns))
        if np.isinf(values).any():
            raise ContractError("range", "values want finite numbers, or NaN where missing")
        if columns != [*range(len(self._family.channels))]:
            own, values = values, np.full((count, len(self._family.channels)), np.nan, np.float32)
            values[:, columns] = own
        return ts_ms.tolist(), values

    def _check_times(self, ts_ms: NDArray[np.int64]) -> None:
        slots, dated = slots_of(ts_ms, self._family.interval_ms)
        if not dated.all():
            slot_of(int(ts_ms[np.argmin(dated)]), self._family.interval_ms)  # raises, with the reason
        steps = np.diff(slots)
        if (steps <= 0).any():
            at = int(np.argmax(steps <= 0))
            raise ContractError(
                "order", f"rows of a record want ascending slots, got {slots[at + 1]} after {slots[at]}"
            )
        if (span := int(slots[-1] - slots[0])) > self._family.hop:
            raise ContractError(
                "span", f"from the first to the last row of a record are at most {self._family.hop} slots, got {span}"
            )

    def _columns_of(self, channels: tuple[str, ...]) -> list[int]:
        """Return where each channel stands in the family's order."""
        if (known := self._columns.get(channels)) is not None:
            return known
        own = self._family.channels
        unknown = sorted(set(channels) - set(own))
        if unknown or len(set(channels)) < len(channels):
            raise ContractError("schema", f"channels want to be declared ones, each once, got {unknown or [*channels]}")
        if len(self._columns) >= _MAX_ORDERS:
            self._columns.clear()
        columns = self._columns[channels] = [own.index(channel) for channel in channels]
        return columns
