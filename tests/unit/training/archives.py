"""Archives for tests: records, the rows that they hold, and an archive that is interrupted on purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from stream.archive import Archive
from stream.columns import COLUMNS, to_columns
from stream.contracts import Sample
from stream.kafka import Record
from stream.settings import ArchiveSettings, FamilySettings, Settings
from training.archive import sent_rows

TS = 1_767_225_600_000
DAY_MS = 86_400_000
PROBE = FamilySettings(name="probe", entities="p-*", numeric=["temperature", "voltage"], commands=["heater"])
HOST = FamilySettings(name="host", entities="h-*", numeric=["load"], interval_ms=500)
SETTINGS = Settings(families=[PROBE, HOST], archive=ArchiveSettings(flush_s=1e9, file_mib=1))


class Row(NamedTuple):
    """One row as it was sent. values: by the order of the family's channels, None where missing."""

    log: str
    partition: int
    offset: int
    number: int
    entity: str
    ts_ms: int
    values: tuple[float | None, ...]


def family_of(entity: str) -> FamilySettings:
    """Return the family that an entity is of."""
    return PROBE if entity.startswith("p") else HOST


def values_of(entity: str, ts_ms: int, salt: int) -> tuple[float | None, ...]:
    """Make values up that tell rows apart; some are missing."""
    width = len(family_of(entity).channels)
    return tuple(None if (ts_ms // 1000 + i + salt) % 5 == 0 else float(salt * 8 + i) for i in range(width))


def make_record(log: str, partition: int, offset: int, entity: str, times: list[int]) -> tuple[Record, list[Row]]:
    """Return a record of rows at these times, in one of both encodings, with the rows that it holds."""
    family = family_of(entity)
    values = [values_of(entity, ts_ms, offset) for ts_ms in times]
    if len(times) == 1:
        named = dict(zip(family.channels, values[0], strict=True))
        value, headers = msgspec.json.encode(Sample(entity, times[0], named)), ()
    else:
        matrix = np.array([[np.nan if v is None else v for v in row] for row in values], np.float32)
        packed = to_columns(entity, list(family.channels), np.array(times), matrix)
        value, headers = msgspec.msgpack.encode(packed), (("content-type", COLUMNS.encode()),)
    rows = [Row(log, partition, offset, i, entity, *one) for i, one in enumerate(zip(times, values, strict=True))]
    return Record("telemetry", partition, offset, entity.encode(), value, TS + offset, headers), rows


def broken_record(partition: int, offset: int) -> Record:
    """Return a record that is refused."""
    return Record("telemetry", partition, offset, b"p-1", b"{", TS + offset)


def read_rows(archive: Archive, family: FamilySettings) -> list[Row]:
    """Return the rows of a family as the archive has them; none where it has no file."""
    if not archive.files(family.name):
        return []
    table = sent_rows(archive, family.name)
    columns = [table[channel].to_pylist() for channel in family.channels]
    names = ("log", "kafka.partition", "kafka.offset", "kafka.row", "entity")
    keys = [table[name].to_pylist() for name in names]
    times = table["ts"].cast("int64").to_pylist()
    return sorted(
        Row(*key, ts, values) for *key, ts, values in zip(*keys, times, zip(*columns, strict=True), strict=True)
    )


class Crash(Exception):  # noqa: N818 not an error of ours
    """The process died here."""


class Interrupted(Archive):
    """An archive that does something else in the midst of its writing: `do` before the step number `at`, once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._at = -1
        self._do: Callable[[], None] = lambda: None

    @contextmanager
    def interrupt(self, at: int, do: Callable[[], None]) -> Iterator[None]:
        """Do something else in between: a step is before or after a write, or before a removal."""
        self._at, self._do = at, do
        try:
            yield
        finally:
            self._at = -1

    def write(self, family, day, name, table):
        self._step()
        size = super().write(family, day, name, table)
        self._step()
        return size

    def remove(self, paths):
        for path in list(paths):
            self._step()
            super().remove([path])

    def _step(self) -> None:
        self._at -= 1
        if self._at == -1:
            self._do()
