"""Telemetry records to rows: one typed decoder a family. Knows no Kafka consumer and no window.

A record that breaks the contract raises ContractError, which says what was wanted and what came. `SampleDecoder.decode`
reads one record; `stream.rows` reads those of a poll into arrays.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import starmap
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.columns import COLUMNS, ColumnReader
from stream.contracts import Sample, SampleColumns, check_entity
from stream.errors import ContractError
from stream.settings import FamilySettings, Settings

MSGPACK = "application/msgpack"
# A flood of entity names must not grow the memory of which family they belong to.
_MAX_KNOWN = 200_000
# What the decoders raise for a value that is none, or not of its type (ValidationError is a DecodeError).
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Row(NamedTuple):
    """One decoded sample: its values are in the order of the family's channels, None where missing."""

    family: FamilySettings
    entity: str
    ts_ms: int
    values: tuple[float | bool | None, ...]


class Reader(NamedTuple):
    """Reads the records of one entity, whose family is known."""

    family: FamilySettings
    entity: str
    json: Callable[[bytes], Any]
    msgpack: Callable[[bytes], Any]
    columns: ColumnReader

    def read(self, value: bytes, content_type: str | None) -> tuple[int, tuple[float | bool | None, ...]]:
        """Return time stamp and values of a record of this entity; raise ContractError as `SampleDecoder.decode`."""
        sample = self._checked(self.msgpack if content_type == MSGPACK else self.json, value)
        values = msgspec.structs.astuple(sample.values)
        # JSON has no NaN; what msgpack has is refused too, since only null means missing.
        if content_type == MSGPACK and any(value != value for value in values):
            raise ContractError("range", "values want numbers or null, got NaN")
        return sample.ts, values

    def read_columns(self, value: bytes) -> tuple[list[int], NDArray[np.float32]]:
        """Return time stamps and values (n, C) of a record of many rows; raise ContractError as `ColumnReader.read`."""
        return self.columns.read(self._checked(_COLUMNS.decode, value))

    def _checked(self, decode: Callable[[bytes], Any], value: bytes) -> Any:
        try:
            sample = decode(value)
        except _BROKEN as error:
            raise _refusal(error) from None
        if sample.entity != self.entity:
            raise ContractError("key", f"the key wants to be the entity {sample.entity!r}, got {self.entity!r}")
        return sample


class SampleDecoder:
    """Decode telemetry of all declared families; remembers which entity belongs to which."""

    def __init__(self, settings: Settings) -> None:
        """Compile one decoder a family and encoding."""
        self._settings = settings
        self._max_bytes = settings.limits.max_record_bytes
        self._json = {family.name: _compile(family, msgspec.json.Decoder) for family in settings.families}
        self._msgpack = {family.name: _compile(family, msgspec.msgpack.Decoder) for family in settings.families}
        self._columns = {family.name: ColumnReader(family) for family in settings.families}
        self._reader_by_key: dict[bytes, Reader] = {}

    def decode(self, key: bytes | None, value: bytes | None, content_type: str | None = None) -> Row:
        """Decode a record of one row; raise ContractError with the reason if it breaks the contract."""
        checked = self.check(value)
        reader = self.reader(key, checked, content_type)
        return Row(reader.family, reader.entity, *reader.read(checked, content_type))

    def check(self, value: bytes | None) -> bytes:
        """Return a record's value if there is one and it is not too large to be looked into."""
        if value is None:
            raise ContractError("empty", "a telemetry record wants a value, got none")
        if len(value) > self._max_bytes:
            raise ContractError("size", f"a record wants at most {self._max_bytes} bytes, got {len(value)}")
        return value

    def family_name(self, key: bytes | None) -> str:
        """Return the family that a refused record belongs to by its key, `none` if there is no telling."""
        known = self._reader_by_key.get(key or b"")
        family = known.family if known else self._settings.family_of((key or b"").decode(errors="replace"))
        return family.name if family else "none"

    def reader(self, key: bytes | None, value: bytes, content_type: str | None) -> Reader:
        """Return what reads the records of this key; of a new one, the record's own entity must fit it."""
        if key is not None and (known := self._reader_by_key.get(key)):
            return known
        try:
            plain: Any = _ANY.get(content_type, _ANY_JSON).decode(value)
        except _BROKEN as error:
            raise _refusal(error) from None
        entity = check_entity(plain.entity)
        if key != entity.encode():
            raise ContractError("key", f"the key wants to be the entity {entity!r}, got {key!r}")
        family = self._settings.family_of(entity)
        if family is None:
            names = ", ".join(f.name for f in self._settings.families) or "none"
            raise ContractError("family", f"no declared family matches entity {entity!r} (declared: {names})")
        if len(self._reader_by_key) >= _MAX_KNOWN:
            self._reader_by_key.clear()
        name = family.name
        reader = Reader(family, entity, self._json[name], self._msgpack[name], self._columns[name])
        self._reader_by_key[key] = reader
        return reader


def to_float32(
    rows: Sequence[Sequence[float | bool | None]], width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stack rows of values into (n, width) float32, NaN where missing, and say which rows fit into float32.

    Returns (values, fits); a row with an infinite number or one beyond float32 does not fit.
    """
    wide = _to_float64(rows, width)
    beyond = np.abs(wide) > _FLOAT32_MAX  # False for NaN
    if not beyond.any():
        return wide.astype(np.float32), np.ones(len(wide), dtype=np.bool_)
    fits = np.logical_not(beyond.any(axis=1))
    return np.where(fits[:, None], wide, np.nan).astype(np.float32), fits


def _to_float64(rows: Sequence[Sequence[float | bool | None]], width: int) -> NDArray[np.float64]:
    try:
        packed = b"".join(starmap(_packer(width), rows))
    except struct.error:  # None, which numpy takes for NaN, at three times the price
        return np.array(rows, dtype=np.float64)
    return np.frombuffer(packed, dtype=np.float64).reshape(len(rows), width)


@lru_cache
def _packer(width: int) -> Callable[..., bytes]:
    return struct.Struct(f"={width}d").pack


def _compile(family: FamilySettings, decoder: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    names = {f"channel_{i}": channel for i, channel in enumerate(family.channels)}
    fields = [(field, float | bool | None, None) for field in names]
    # Numbers and text only: nothing for the garbage collector to follow.
    values = msgspec.defstruct("values", fields, rename=names, forbid_unknown_fields=True, gc=False)
    sample = msgspec.defstruct("Sample", [("entity", str), ("ts", int), ("values", values)], gc=False)
    decode: Callable[[bytes], Any] = decoder(sample).decode
    return decode


def _refusal(error: Exception) -> ContractError:
    return ContractError("schema" if isinstance(error, msgspec.ValidationError) else "malformed", str(error))


_COLUMNS = msgspec.msgpack.Decoder(SampleColumns)
_ANY_JSON = msgspec.json.Decoder(Sample)
_ANY: dict[str | None, Any] = {MSGPACK: msgspec.msgpack.Decoder(Sample), COLUMNS: _COLUMNS}
