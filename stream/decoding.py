"""Telemetry records to rows: one typed decoder a family. Knows no Kafka consumer and no window.

A record that breaks the contract raises ContractError, which says what was wanted and what came.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.contracts import Sample, check_entity
from stream.errors import ContractError
from stream.settings import FamilySettings, Settings

MSGPACK = "application/msgpack"
# A flood of entity names must not grow the memory of which family they belong to.
_MAX_KNOWN = 200_000
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Row(NamedTuple):
    """One decoded sample: its values are in the order of the family's channels, None where missing."""

    family: FamilySettings
    entity: str
    ts_ms: int
    values: tuple[float | bool | None, ...]


class SampleDecoder:
    """Decode telemetry of all declared families; remembers which entity belongs to which."""

    def __init__(self, settings: Settings) -> None:
        """Compile one decoder a family and encoding."""
        self._settings = settings
        self._max_bytes = settings.limits.max_record_bytes
        self._json = {family.name: _compile(family, msgspec.json.Decoder) for family in settings.families}
        self._msgpack = {family.name: _compile(family, msgspec.msgpack.Decoder) for family in settings.families}
        self._family_by_key: dict[bytes, tuple[FamilySettings, str]] = {}

    def decode(self, key: bytes | None, value: bytes | None, content_type: str | None = None) -> Row:
        """Decode one record; raise ContractError with the reason if it breaks the contract."""
        if value is None:
            raise ContractError("empty", "a telemetry record wants a value, got none")
        if len(value) > self._max_bytes:
            raise ContractError("size", f"a record wants at most {self._max_bytes} bytes, got {len(value)}")
        family, entity = self._known(key, value, content_type)
        decoders = self._msgpack if content_type == MSGPACK else self._json
        sample = _decoded(decoders[family.name].decode, value)
        if sample.entity != entity:
            raise ContractError("key", f"the key wants to be the entity {sample.entity!r}, got {entity!r}")
        values = msgspec.structs.astuple(sample.values)
        # JSON has no NaN; what msgpack has is refused too, since only null means missing.
        if content_type == MSGPACK and any(value != value for value in values):
            raise ContractError("range", "values want numbers or null, got NaN")
        return Row(family, entity, sample.ts, values)

    def family_name(self, key: bytes | None) -> str:
        """Return the family that a refused record belongs to by its key, `none` if there is no telling."""
        known = self._family_by_key.get(key or b"")
        family = known[0] if known else self._settings.family_of((key or b"").decode(errors="replace"))
        return family.name if family else "none"

    def _known(self, key: bytes | None, value: bytes, content_type: str | None) -> tuple[FamilySettings, str]:
        if key is not None and (known := self._family_by_key.get(key)):
            return known
        plain = _decoded((_ANY_MSGPACK if content_type == MSGPACK else _ANY_JSON).decode, value)
        entity = check_entity(plain.entity)
        if key != entity.encode():
            raise ContractError("key", f"the key wants to be the entity {entity!r}, got {key!r}")
        family = self._settings.family_of(entity)
        if family is None:
            names = ", ".join(f.name for f in self._settings.families) or "none"
            raise ContractError("family", f"no declared family matches entity {entity!r} (declared: {names})")
        if len(self._family_by_key) >= _MAX_KNOWN:
            self._family_by_key.clear()
        self._family_by_key[key] = (family, entity)
        return family, entity


def to_float32(
    rows: Sequence[Sequence[float | bool | None]], width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stack rows of values into (n, width) float32, NaN where missing, and say which rows fit into float32.

    Returns (values, fits); a row with an infinite number or one beyond float32 does not fit.
    """
    wide = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    missing = np.isnan(wide)
    fits: NDArray[np.bool_] = np.all(missing | (np.abs(wide) <= _FLOAT32_MAX), axis=1)
    wide[~fits] = np.nan
    return wide.astype(np.float32), fits


def _compile(family: FamilySettings, decoder: Callable[[Any], Any]) -> Any:
    names = {f"channel_{i}": channel for i, channel in enumerate(family.channels)}
    fields = [(field, float | bool | None, None) for field in names]
    values = msgspec.defstruct("values", fields, rename=names, forbid_unknown_fields=True)
    return decoder(msgspec.defstruct("Sample", [("entity", str), ("ts", int), ("values", values)]))


def _decoded(decode: Callable[[bytes], Any], value: bytes) -> Any:
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        raise ContractError("schema", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError("malformed", str(error)) from None


_ANY_JSON = msgspec.json.Decoder(Sample)
_ANY_MSGPACK = msgspec.msgpack.Decoder(Sample)
