"""Telemetry records of one partition as arrays: rows by family and entity. Knows no window.

Equal by law to decoding record by record and looking at each row by itself; the arrays are there for speed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, pairwise
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


class DecodedRecords(NamedTuple):
    """What records hold. refused: by index of the record, why it broke its contract."""

    families: list[FamilyRows]
    refused: dict[int, ContractError]


class _Found(msgspec.Struct):
    """The rows of one entity as they come out of its records.

    records, ts_ms: of each row. values: of rows that came alone. blocks: of those that came together, with the
    number of rows before them.
    """

    reader: Reader
    records: list[int] = []
    ts_ms: list[int] = []
    values: list[tuple[float | bool | None, ...]] = []
    blocks: list[tuple[int, NDArray[np.float32]]] = []

    def take_block(self, index: int, ts_ms: list[int], values: NDArray[np.float32]) -> None:
        """Take the rows of a record that holds many."""
        self.blocks.append((len(self.records), values))
        self.records += [index] * len(ts_ms)
        self.ts_ms += ts_ms


def decode_records(decoder: SampleDecoder, records: Sequence[Record]) -> DecodedRecords:
    """Decode records of one partition; none of them raises anything."""
    found: dict[bytes | None, _Found] = {}
    refused: dict[int, ContractError] = {}
    for index, record in enumerate(records):
        try:
            value = decoder.check(record.value)
            content_type = record.header("content-type") if record.headers else None
            one = found.get(record.key)
            if one is None:
                one = found[record.key] = _Found(decoder.reader(record.key, value, content_type))
            if content_type == COLUMNS:
                one.take_block(index, *one.reader.read_columns(value))
                continue
            ts_ms, values = one.reader.read(value, content_type)
        except ContractError as error:
            refused[index] = error
        else:
            one.records.append(index)
            one.ts_ms.append(ts_ms)
            one.values.append(values)
    offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
    families = [_fitting(of_family, offsets, refused) for of_family in _by_family(found.values())]
    return DecodedRecords(families, refused)


def _by_family(found: Iterable[_Found]) -> Iterator[list[_Found]]:
    families: dict[str, list[_Found]] = {}
    for one in found:
        if one.records:
            families.setdefault(one.reader.family.name, []).append(one)
    yield from families.values()


def _fitting(found: Sequence[_Found], offsets: NDArray[np.int64], refused: dict[int, ContractError]) -> FamilyRows:
    """Stack the rows of a family whose time stamps and values are in range, and say why the others are not."""
    family = found[0].reader.family
    ts_ms = [*chain.from_iterable(one.ts_ms for one in found)]
    records = np.fromiter(chain.from_iterable(one.records for one in found), np.int64, len(ts_ms))
    slots, dated = slots_of(ts_ms, family.interval_ms)
    values, fits = _values(found, len(family.channels))
    entities = [one.reader.entity for one in found]
    bounds = np.cumsum([0, *(len(one.records) for one in found)])
    keep = dated & fits
    if not keep.all():
        for at in np.flatnonzero(~keep).tolist():
            refused[int(records[at])] = _out_of_range(ts_ms[at], family)
        records, slots, values = records[keep], slots[keep], values[keep]
        ts_ms = [*compress(ts_ms, keep)]
        bounds = np.cumsum([0, *keep])[bounds]
        entities = [entity for entity, (first, end) in zip(entities, pairwise(bounds), strict=True) if first < end]
        bounds = np.unique(bounds)
    return FamilyRows(family, entities, bounds.tolist(), records, slots, offsets[records], values, ts_ms)


def _values(found: Sequence[_Found], width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the values of all rows (n, width), and which of them fit; those that came together do."""
    single, fit = to_float32([*chain.from_iterable(one.values for one in found)], width)
    if not any(one.blocks for one in found):
        return single, fit
    together = np.concatenate([_together(one) for one in found])
    values, fits = np.empty((len(together), width), np.float32), np.ones(len(together), np.bool_)
    values[together] = np.concatenate([block for one in found for _, block in one.blocks])
    values[~together], fits[~together] = single, fit
    return values, fits


def _together(one: _Found) -> NDArray[np.bool_]:
    """Say which of an entity's rows came in a record with others."""
    mask = np.zeros(len(one.records), np.bool_)
    for at, block in one.blocks:
        mask[at : at + len(block)] = True
    return mask


def _out_of_range(ts_ms: int, family: FamilySettings) -> ContractError:
    try:
        slot_of(ts_ms, family.interval_ms)
    except ContractError as error:
        return error
    return ContractError("range", "values want finite numbers within float32")
