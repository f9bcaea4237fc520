"""The telemetry archive: names, columns and durable writes of its Parquet files. Knows no consumer and no data set.

    family=NAME/day=2026-11-28/LOG-p0-1000-1999.parquet      rows of one flush
    family=NAME/day=2026-11-28/LOG-p0-0-9999-MERGE.parquet   rows of several files, which are removed afterwards
    family=NAME/day=unknown/...                              rows whose clock is in doubt

A row is the same row wherever it stands by its log (one making of the topic), partition, offset and number within the
record. Files may hold rows that others hold too, after a kill, under a zombie or while files are merged: readers count
each row once. A file never changes; one of the same name has the same rows.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from stream.errors import TransientError, UsageError
from stream.settings import FamilySettings
from stream.storage import is_leftover, local_path, make_folder, open_storage, reachable, replace_file

UNKNOWN_DAY = "unknown"
ENTITY, TS = "entity", "ts"
PARTITION, OFFSET, ROW, RECEIVED = "kafka.partition", "kafka.offset", "kafka.row", "kafka.timestamp"
KEYS = (ENTITY, TS, PARTITION, OFFSET, ROW, RECEIVED)
_KEY_TYPES: dict[str, pa.DataType] = {
    ENTITY: pa.dictionary(pa.int32(), pa.string()),
    TS: pa.timestamp("ms", "UTC"),
    PARTITION: pa.int32(),
    OFFSET: pa.int64(),
    ROW: pa.int32(),
    RECEIVED: pa.timestamp("ms", "UTC"),
}
_ROW_GROUP = 2**17
_METADATA = b"telltale"
_KEY_BYTES = 40  # of a row in memory, beside its values
_PATH = re.compile(
    r"family=(?P<family>[^/]+)/day=(?P<day>\d{4}-\d\d-\d\d|unknown)/"
    r"(?P<log>[0-9a-f]{8})-p(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)(?:-[0-9a-f]{8})?\.parquet"
)
# A listing is no snapshot: it counts once it comes out the same twice.
_LISTINGS = 20


class ArchivedChannel(msgspec.Struct, frozen=True):
    """A channel as its family declared it when a file was written."""

    name: str
    kind: Literal["numeric", "command"]


class ArchivedFamily(msgspec.Struct, frozen=True):
    """What a file says about its rows beside the rows."""

    interval_ms: int
    channels: list[ArchivedChannel]
    v: Literal[1] = 1


class ArchiveFile(NamedTuple):
    """One file by its name. first, last: the offsets between which its rows lie, both inclusive."""

    path: str
    family: str
    day: str
    log: str
    partition: int
    first: int
    last: int
    size: int
    modified_s: float

    @property
    def date(self) -> date:
        """Of the rows; of a file of doubtful clocks, when it was written."""
        if self.day == UNKNOWN_DAY:
            return datetime.fromtimestamp(self.modified_s, UTC).date()
        return date.fromisoformat(self.day)


class Archive:
    """The files under one folder or URL. Every method raises TransientError when the storage can't be reached."""

    def __init__(self, url: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        """Raise UsageError for a URL that no filesystem understands. filesystem: if given, `url` is a path in it."""
        self._filesystem, root = (filesystem, str(url)) if filesystem else open_storage(url, "archive")
        self._root = root.rstrip("/")

    @property
    def root(self) -> str:
        """The archive's path in its storage."""
        return self._root

    def make(self) -> None:
        """Make the archive's folder if it is not there."""
        try:
            with reachable("archive", self._root):
                make_folder(self._filesystem, self._root)
        except FileExistsError as error:
            raise UsageError(f"archive: {self._root} is no folder") from error

    def files(self, family: str | None = None) -> list[ArchiveFile]:
        """Return the files of a family, or of all, in order of their paths.

        Whoever reads them may find some gone: they were merged, and another listing has the merged one.
        """
        under = self._root if family is None else f"{self._root}/family={family}"
        before = self._list(under)
        for _ in range(_LISTINGS):
            found = self._list(under)
            if [info.path for info in before] == [info.path for info in found]:
                return [file for info in found if (file := self._parse(info)) is not None]
            before = found
        raise TransientError(f"archive: {under} changed all the time while it was listed")

    def leftovers(self, older_than_s: float) -> list[str]:
        """Return the paths of files that a killed process did not finish before a time."""
        infos = self._list(self._root)
        return [one.path for one in infos if is_leftover(one.base_name) and _modified_s(one) < older_than_s]

    def write(self, family: str, day: str, name: str, table: pa.Table) -> int:
        """Write a file, durably and whole or not at all; return its size in bytes."""
        data = _encode(table)
        folder = f"{self._root}/family={family}/day={day}"
        with reachable("archive", folder):
            make_folder(self._filesystem, folder)
            replace_file(self._filesystem, f"{folder}/{name}", data)
        return len(data)

    def read(self, file: ArchiveFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a file, or those of the columns that it has. Errors as `weigh`."""
        with self._opened(file) as opened:
            names = opened.schema_arrow.names
            return opened.read(columns=None if columns is None else [name for name in columns if name in names])

    def weigh(self, file: ArchiveFile) -> int:
        """Return how many bytes a file's rows take in memory, about.

        Raises FileNotFoundError if the file is gone, UsageError if it is no Parquet.
        """
        with self._opened(file) as opened:
            channels = len(opened.schema_arrow.names) - len(KEYS)
            return int(opened.metadata.num_rows) * (4 * channels + _KEY_BYTES)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already don't matter."""
        for path in paths:
            with reachable("archive", path):
                try:
                    self._filesystem.delete_file(path)
                except FileNotFoundError:
                    continue

    def remove_empty_folder(self, day_of: ArchiveFile) -> None:
        """Remove the folder of a day that holds nothing any more, where folders are more than a part of names."""
        local = local_path(self._filesystem, day_of.path)
        if local is not None and local.parent.is_dir() and not any(local.parent.iterdir()):
            with reachable("archive", str(local.parent)):
                local.parent.rmdir()

    @contextmanager
    def _opened(self, file: ArchiveFile) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(file.path, filesystem=self._filesystem) as opened:
                yield opened
        except FileNotFoundError:
            raise
        except pa.ArrowInvalid as error:
            raise UsageError(f"archive: {file.path} is damaged, move it away: {error}") from error
        except OSError as error:
            raise TransientError(f"archive: {file.path} can't be read now: {error}") from error

    def _list(self, under: str) -> list[fs.FileInfo]:
        with reachable("archive", under):
            found = self._filesystem.get_file_info(fs.FileSelector(under, allow_not_found=True, recursive=True))
        return sorted((info for info in found if info.type == fs.FileType.File), key=lambda info: info.path)

    def _parse(self, info: fs.FileInfo) -> ArchiveFile | None:
        match = _PATH.fullmatch(info.path.removeprefix(self._root).lstrip("/"))
        if match is None:
            return None
        partition, first, last = (int(match[name]) for name in ("partition", "first", "last"))
        return ArchiveFile(
            path=info.path,
            family=match["family"],
            day=match["day"],
            log=match["log"],
            partition=partition,
            first=first,
            last=last,
            size=info.size,
            modified_s=_modified_s(info),
        )


def _modified_s(info: fs.FileInfo) -> float:
    return (info.mtime_ns or 0) / 1e9


def file_name(log: str, partition: int, first: int, last: int, merge: str = "") -> str:
    """Return the name of a file of rows between two offsets. merge: tells files of merged rows apart."""
    return f"{log}-p{partition}-{first}-{last}{f'-{merge}' if merge else ''}.parquet"


def archived_family(family: FamilySettings) -> ArchivedFamily:
    """Return what files say about a family; raise UsageError for a channel whose name is a column of ours."""
    taken = sorted(set(family.channels) & set(KEYS))
    if taken:
        raise UsageError(f"family {family.name}: no channel may be named {taken[0]!r} in an archive")
    kinds: list[tuple[list[str], Literal["numeric", "command"]]] = [
        (family.numeric, "numeric"),
        (family.commands, "command"),
    ]
    return ArchivedFamily(family.interval_ms, [ArchivedChannel(name, kind) for names, kind in kinds for name in names])


def described(schema: pa.Schema, path: str) -> ArchivedFamily:
    """Return what a file says about its rows; raise UsageError for one that is not of an archive."""
    try:
        return msgspec.json.decode((schema.metadata or {}).get(_METADATA, b""), type=ArchivedFamily)
    except msgspec.DecodeError as error:
        raise UsageError(f"archive: {path} is no file of an archive: {error}") from error


def make_table(family: ArchivedFamily, keys: dict[str, Any], values: NDArray[np.float32]) -> pa.Table:
    """Return rows as a table. keys: an array for each of KEYS. values: (n, C), NaN where missing."""
    columns = [pa.array(keys[name]).cast(_KEY_TYPES[name]) for name in KEYS]
    columns += [pa.array(column, from_pandas=True) for column in np.ascontiguousarray(values.T)]  # (C, n)
    names = [*KEYS, *(channel.name for channel in family.channels)]
    return pa.table(columns, names=names).replace_schema_metadata({_METADATA: msgspec.json.encode(family)})


def order_of_rows(table: pa.Table) -> NDArray[np.int64]:
    """Return the indexes of rows of one log and partition by entity, offset and row, each row once."""
    codes = entity_ranks(table[ENTITY])
    offsets, rows = table[OFFSET].to_numpy(), table[ROW].to_numpy()
    order = np.lexsort((rows, offsets, codes))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(offsets[order]) != 0) | (np.diff(rows[order]) != 0)
    return order[first]


def entity_ranks(column: "pa.ChunkedArray[Any]") -> NDArray[np.int64]:
    """Return a number for each row that sorts as its entity's name does, (n,)."""
    encoded: Any = column.unify_dictionaries().combine_chunks()
    numbers: NDArray[np.int64] = ranks(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    return numbers


def ranks(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each name among all of them in order, (n,)."""
    return np.argsort(np.argsort(np.array(names, np.str_), kind="stable"), kind="stable")


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Put rows of one family together; a channel that some files do not have is missing in their rows."""
    newest = max(tables, key=lambda table: table[RECEIVED].cast(pa.int64()).to_numpy().max())
    together = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    return together.replace_schema_metadata(newest.schema.metadata)


def _encode(table: pa.Table) -> bytes:
    """Return a file's bytes: channels by dictionary, since what converters of few bits measured is few values."""
    counted = [TS, OFFSET, ROW, RECEIVED, PARTITION]
    others: Any = [name for name in table.column_names if name not in counted]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=_ROW_GROUP,
        use_dictionary=others,
        column_encoding=dict.fromkeys(counted, "DELTA_BINARY_PACKED"),
    )
    return sink.getvalue().to_pybytes()
