"""Telemetry records of one partition as arrays: rows by family and entity. Knows no window.

Equal by law to decoding record by record and looking at each row by itself; the arrays are there for speed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.columns import COLUMNS
from stream.decoding import Reader, SampleDecoder, to_float32
from stream.errors import ContractError
from stream.grid import slot_of, slots_of
from stream.kafka import Record
from stream.settings import FamilySettings


class FamilyRows(NamedTuple):
    """Rows of one family, entity by entity, each entity's in order of arrival.

    bounds: rows of entity i stand from bounds[i] up to, not including, bounds[i + 1]; there is at least one.
    records: (n,) index of the record that a row came in; slots of one record ascend. slots, offsets: (n,).
    values: (n, C), NaN where missing. ts_ms: of each row, a list because it is one already and most readers want slots.
    """

    family: FamilySettings
    entities: list[str]
    bounds: list[int]
    records: NDArray[np.int64]
    slots: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32]
    ts_ms: list[int]

    def spans(self) -> "Spans":
        """Return where each entity's rows begin and end."""
        first, last = np.array(self.bounds[:-1], np.int64), np.array(self.bounds[1:], np.int64) - 1
        steps = np.concatenate([[0], np.cumsum(np.diff(self.slots) != 1)])
        ends = self.slots[first], self.slots[last], self.offsets[first], self.offsets[last]
        return Spans((steps[first] == steps[last]).tolist(), *(end.tolist() for end in ends))


class Spans(NamedTuple):
    """Of each entity's rows, in order of arrival, the first and the last one.

    gapless: whether each row's slot is the one after that of the row before.
    """

    gapless: list[bool]
    first_slots: list[int]
    last_slots: list[int]
    first_offsets: list[int]
    last_offsets: list[int]


class DecodedRecords(NamedTuple):
    """What records hold. refused: by index of the record, why it broke its contract."""

    families: list[FamilyRows]
    refused: dict[int, ContractError]


class _Found(msgspec.Struct):
    """The rows of one family as they come out of their records.

    entities: names, numbered by first sight. owners, records, ts_ms: of each row. values: of rows that came alone.
    blocks: of those that came together, with the number of rows before them.
    """

    family: FamilySettings
    entities: list[str] = []
    owners: list[int] = []
    records: list[int] = []
    ts_ms: list[int] = []
    values: list[tuple[float | bool | None, ...]] = []
    blocks: list[tuple[int, NDArray[np.float32]]] = []

    def take_block(self, owner: int, index: int, ts_ms: list[int], values: NDArray[np.float32]) -> None:
        """Take the rows of a record that holds many."""
        self.blocks.append((len(self.records), values))
        self.owners += [owner] * len(ts_ms)
        self.records += [index] * len(ts_ms)
        self.ts_ms += ts_ms


# What reads the records of one key, the rows of its family, and its entity's number among them.
_Source = tuple[Reader, _Found, int]


def decode_records(decoder: SampleDecoder, records: Sequence[Record]) -> DecodedRecords:
    """Decode records of one partition; none of them raises anything."""
    families: dict[str, _Found] = {}
    sources: dict[bytes | None, _Source] = {}
    refused: dict[int, ContractError] = {}
    for index, (_, _, _, key, encoded, _, headers) in enumerate(records):
        try:
            value = decoder.check(encoded)
            content_type = records[index].header("content-type") if headers else None
            source = sources.get(key)
            if source is None:
                source = sources[key] = _source(families, decoder.reader(key, value, content_type))
            reader, found, owner = source
            if content_type == COLUMNS:
                found.take_block(owner, index, *reader.read_columns(value))
                continue
            ts_ms, values = reader.read(value, content_type)
        except ContractError as error:
            refused[index] = error
        else:
            found.owners.append(owner)
            found.records.append(index)
            found.ts_ms.append(ts_ms)
            found.values.append(values)
    offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
    return DecodedRecords([_fitting(found, offsets, refused) for found in families.values() if found.records], refused)


def _source(families: dict[str, _Found], reader: Reader) -> _Source:
    found = families.get(reader.family.name)
    if found is None:
        found = families[reader.family.name] = _Found(reader.family)
    found.entities.append(reader.entity)
    return reader, found, len(found.entities) - 1


def _fitting(found: _Found, offsets: NDArray[np.int64], refused: dict[int, ContractError]) -> FamilyRows:
    """Stack the rows of a family whose time stamps and values are in range, and say why the others are not."""
    family = found.family
    owners = np.array(found.owners, np.int32)
    records = np.array(found.records, np.int64)
    slots, dated = slots_of(found.ts_ms, family.interval_ms)
    values, fits = _values(found, len(family.channels))
    keep = dated & fits
    for at in np.flatnonzero(~keep).tolist():
        refused[found.records[at]] = _out_of_range(found.ts_ms[at], family)
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(owners[kept], kind="stable")]
    owners = owners[order]
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    entities = [found.entities[owner] for owner in owners[first].tolist()]
    bounds, records, ts_ms = [*first.tolist(), len(order)], records[order], [found.ts_ms[at] for at in order.tolist()]
    return FamilyRows(family, entities, bounds, records, slots[order], offsets[records], values[order], ts_ms)


def _values(found: _Found, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the values of all rows (n, width), and which of them fit; those that came together do."""
    single, fit = to_float32(found.values, width)
    if not found.blocks:
        return single, fit
    together = np.zeros(len(found.records), np.bool_)
    for at, block in found.blocks:
        together[at : at + len(block)] = True
    values, fits = np.empty((len(together), width), np.float32), np.ones(len(together), np.bool_)
    values[together] = np.concatenate([block for _, block in found.blocks])
    values[~together], fits[~together] = single, fit
    return values, fits


def _out_of_range(ts_ms: int, family: FamilySettings) -> ContractError:
    try:
        slot_of(ts_ms, family.interval_ms)
    except ContractError as error:
        return error
    return ContractError("range", "values want finite numbers within float32")
