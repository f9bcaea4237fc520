"""The telemetry archive as a data set. Owns which rows count; knows no model and no file's layout.

Whatever flushes, kills and merges made of the files: the same records give the same data set, and its
`training.datasets.fingerprint`.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from numpy.typing import NDArray

from detector.manifest import Channel
from stream.archive import (
    ENTITY,
    KEYS,
    OFFSET,
    RECEIVED,
    ROW,
    TS,
    UNKNOWN_DAY,
    Archive,
    ArchivedFamily,
    ArchiveFile,
    archived_family,
    concat,
    described,
    entity_ranks,
    order_of_rows,
)
from stream.errors import TransientError, UsageError
from stream.grid import MAX_TS_MS, MIN_TS_MS, slot_of, slots_of
from stream.settings import FamilySettings
from training.datasets import Dataset, read_dataset, to_dataset

_DAY_MS = 86_400_000
# Files that are merged while they are read are looked for again, so often.
_TRIES = 5

_log = structlog.get_logger(__name__)

# From when to when (exclusive) an entity's rows do not count, in milliseconds since 1970.
Intervals = Sequence[tuple[int, int]]


class _OfLog(NamedTuple):
    """Rows of one partition of one making of the topic."""

    log: str
    partition: int
    table: pa.Table


class _Cut(msgspec.Struct, frozen=True):
    """Which rows count. start_ms is inclusive, end_ms is not."""

    start_ms: int
    end_ms: int
    exclude: Mapping[str, Intervals]
    most_rows: int | None


def read_archive(
    url: str | Path | Archive,
    family: str | FamilySettings,
    start_ms: int | None = None,
    end_ms: int | None = None,
    exclude: Mapping[str, Intervals] | None = None,
    *,
    least_rows: int = 1,
    most_rows: int | None = None,
) -> Dataset:
    """Read rows of a family from `start_ms` up to, not including, `end_ms`.

    Channels and interval are those that the family's settings declare; by its name alone, those of its newest file.
    exclude: by entity, times that don't count, as those of open incidents; they become missing rows, like every gap.
    least_rows: entities with fewer are left out. most_rows: the newest so many rows of all entities, and no other.
    Of rows of an entity with one slot the one sent last counts. Raises UsageError if too few rows are left,
    TransientError if the storage can't be reached.
    """
    archive = url if isinstance(url, Archive) else Archive(url)
    name = family if isinstance(family, str) else family.name
    cut = _Cut(
        MIN_TS_MS if start_ms is None else start_ms, MAX_TS_MS if end_ms is None else end_ms, exclude or {}, most_rows
    )
    known = archived_family(family) if isinstance(family, FamilySettings) else _newest(archive, name)
    channels = [Channel(channel.name, channel.kind) for channel in known.channels]
    table = _read_again(archive, name, known, cut)
    rows = _of_many(_newest_rows(table, cut.most_rows), least_rows)
    return to_dataset(_by_entity(rows), f"archive of {name}", channels, interval_ms=known.interval_ms)


def read_any(data: str, family: str | FamilySettings, *, interval_ms: int | None = None) -> Dataset:
    """Read a Parquet file or, where `data` names a folder or a URL, a family's rows out of an archive.

    interval_ms: of a file only: an archive's rows have their family's. Errors as `read_dataset` or `read_archive`.
    """
    if "://" not in data and not Path(data).is_dir():
        declared_ms = family.interval_ms if isinstance(family, FamilySettings) else None
        return read_dataset(data, interval_ms=interval_ms or declared_ms)
    dataset = read_archive(data, family)
    if interval_ms not in (None, dataset.interval_ms):
        raise UsageError(f"{data}: the family's interval is {dataset.interval_ms} ms, not {interval_ms}")
    return dataset


def sent_rows(archive: Archive, family: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return every row of a family as it was sent, once, with its log. columns: channels; all of them if left out."""
    files = archive.files(family)
    if not files:
        raise UsageError(f"archive {archive.root}: no file of family {family}")
    tables = []
    for (log, _), group in _by_log(files):
        table = _once(archive, list(group), columns)
        tables.append(table.append_column("log", pa.array([log] * table.num_rows, pa.string())))
    return concat(tables)


def _newest(archive: Archive, family: str) -> ArchivedFamily:
    files = archive.files(family)
    if not files:
        raise UsageError(f"archive {archive.root}: no file of family {family}; known are {_families(archive)}")
    newest = max(files, key=attrgetter("modified_s", "path"))
    return described(archive.read(newest, []).schema, newest.path)


def _families(archive: Archive) -> str:
    return ", ".join(sorted({file.family for file in archive.files()})) or "none"


def _read_again(archive: Archive, family: str, known: ArchivedFamily, cut: _Cut) -> pa.Table:
    for _ in range(_TRIES):
        try:
            return _read(archive, family, known, cut)
        except FileNotFoundError:
            continue
    raise TransientError(f"archive: files of family {family} were merged all the time while they were read")


def _read(archive: Archive, family: str, known: ArchivedFamily, cut: _Cut) -> pa.Table:
    """Return the rows that count, each slot of an entity once; with `most_rows` as few days as hold so many."""
    files = [file for file in archive.files(family) if _overlaps(file, cut)]
    if not files:
        raise UsageError(f"archive: no rows of family {family} in this time; known are {_families(archive)}")
    days = sorted((file for file in files if file.day != UNKNOWN_DAY), key=attrgetter("day"), reverse=True)
    read = _read_files(archive, [file for file in files if file.day == UNKNOWN_DAY], known, cut)
    for day, group in groupby(days, attrgetter("day")):
        read += _read_files(archive, list(group), known, cut)
        if cut.most_rows is not None:
            # Rows of earlier days are older, but one may share a slot with the first ones of this day.
            slots = _slots(_last_of_slots(read, known.interval_ms), known.interval_ms)
            if np.count_nonzero(slots > slot_of(_day_ms(day), known.interval_ms)) >= cut.most_rows:
                break
    return _last_of_slots(read, known.interval_ms)


def _overlaps(file: ArchiveFile, cut: _Cut) -> bool:
    if file.day == UNKNOWN_DAY:
        return True
    return _day_ms(file.day) < cut.end_ms and _day_ms(file.day) + _DAY_MS > cut.start_ms


def _day_ms(day: str) -> int:
    return int(np.datetime64(day, "ms").astype(np.int64))


def _by_log(files: Sequence[ArchiveFile]) -> Iterator[tuple[tuple[str, int], Iterator[ArchiveFile]]]:
    return groupby(sorted(files, key=attrgetter("log", "partition", "first")), attrgetter("log", "partition"))


def _read_files(archive: Archive, files: Sequence[ArchiveFile], known: ArchivedFamily, cut: _Cut) -> list[_OfLog]:
    """Return the rows that count, a table for each log and partition."""
    names = [channel.name for channel in known.channels]
    read = []
    for (log, partition), group in _by_log(files):
        table = _once(archive, list(group), names)
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.float32()))
        read.append(_OfLog(log, partition, table.filter(_counts(table, cut)).select([*KEYS, *names])))
    return read


def _once(archive: Archive, files: Sequence[ArchiveFile], columns: Sequence[str] | None) -> pa.Table:
    """Return the rows of files of one log and partition, each once."""
    names = None if columns is None else [*KEYS, *columns]
    together = concat([archive.read(file, names) for file in files])
    return together.take(order_of_rows(together))


def _counts(table: pa.Table, cut: _Cut) -> NDArray[np.bool_]:
    ts_ms = _times(table)
    counts = (ts_ms >= cut.start_ms) & (ts_ms < cut.end_ms)
    for entity, intervals in cut.exclude.items():
        own = pc.equal(table[ENTITY].cast(pa.string()), pa.scalar(entity)).to_numpy()
        for first, end in intervals:
            counts &= ~(own & (ts_ms >= first) & (ts_ms < end))
    return np.asarray(counts)


def _times(table: pa.Table) -> NDArray[np.int64]:
    return np.asarray(table[TS].cast(pa.int64()).to_numpy())


def _slots(table: pa.Table, interval_ms: int) -> NDArray[np.int64]:
    return slots_of(_times(table), interval_ms)[0]


def _last_of_slots(read: Sequence[_OfLog], interval_ms: int) -> pa.Table:
    """Return the rows of several days and logs by entity and slot, of each slot the row sent last.

    Within a partition that is the one of the highest offset, as in the windower; of two makings of the topic, or two
    partitions, the one that was heard of last.
    """
    heard: dict[tuple[str, int], int] = {}
    for one in read:
        key = one.log, one.partition
        heard[key] = int(one.table[RECEIVED].cast(pa.int64()).to_numpy().max(initial=heard.get(key, 0)))
    ranks = {key: rank for rank, key in enumerate(sorted(heard, key=lambda key: (heard[key], key)))}
    age = np.repeat([ranks[one.log, one.partition] for one in read], [one.table.num_rows for one in read])
    table = pa.concat_tables([one.table for one in read]).unify_dictionaries()
    codes, slots = entity_ranks(table[ENTITY]), _slots(table, interval_ms)
    order = np.lexsort((table[ROW].to_numpy(), table[OFFSET].to_numpy(), age, slots, codes))
    codes, slots = codes[order], slots[order]
    last = np.append((np.diff(codes) != 0) | (np.diff(slots) != 0), True)[: len(order)]
    return table.take(order[last])


def _newest_rows(table: pa.Table, most: int | None) -> pa.Table:
    if most is None or table.num_rows <= most:
        return table
    newest = np.lexsort((entity_ranks(table[ENTITY]), _times(table)))[table.num_rows - most :]
    _log.info("older rows are left out", rows=table.num_rows, most_rows=most)
    return table.take(np.sort(newest))


def _of_many(table: pa.Table, least: int) -> pa.Table:
    codes = entity_ranks(table[ENTITY])
    counts = np.bincount(codes) if len(codes) else np.zeros(0, np.int64)
    few = np.flatnonzero((counts > 0) & (counts < least))
    if not len(few):
        return table
    _log.warning("entities_with_few_rows_are_left_out", entities=len(few), least_rows=least)
    return table.filter(~np.isin(codes, few))


def _by_entity(table: pa.Table) -> pa.Table:
    """Return rows entity by entity, in time order, that entity first whose first row is the oldest."""
    codes, ts_ms = entity_ranks(table[ENTITY]), _times(table)
    first = np.full(int(codes.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, ts_ms)
    return table.take(np.lexsort((ts_ms, codes, first[codes])))
