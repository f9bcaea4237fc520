"""Merges small files of the archive and removes old ones. Knows no consumer.

A merge writes the merged file and only then removes those it was made of; whoever dies in between, or does the same at
the same time, leaves rows twice, never none. Readers count them once.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import structlog

from stream.archive import Archive, ArchiveFile, concat, file_name, order_of_rows
from stream.errors import UsageError
from stream.metrics import Metrics
from stream.settings import ArchiveSettings

_log = structlog.get_logger()

# Files of about one size are merged when there are so many, so a row is written again log8 of a day's files times.
FAN_IN = 8
# A day's files are all merged once nothing has come for so long.
SETTLED_S = 3600.0
# A write that has not ended after so long never will.
_LEFTOVER_S = 3600.0


class Upkeep:
    """Keeps an archive in few files and within its bounds."""

    def __init__(self, archive: Archive, settings: ArchiveSettings, metrics: Metrics) -> None:
        """Touch nothing yet."""
        self._archive = archive
        self._settings = settings
        self._metrics = metrics
        self._weights: dict[str, int] = {}  # by path
        self._due: list[list[ArchiveFile]] = []

    def plan(self, partitions: Collection[int], now_s: float) -> None:
        """Look at all files: remember what to merge of these partitions, and remove what is too old.

        partitions: those of this process; the owner of partition 0 removes for all, so that nobody does twice.
        """
        files = self._archive.files()
        self._metrics.archive_size_bytes.set(sum(file.size for file in files))
        if 0 in partitions:
            self._expire(files, now_s)
            self._archive.remove(self._archive.leftovers(now_s - _LEFTOVER_S))
        self._weights = {file.path: self._weights[file.path] for file in files if file.path in self._weights}
        own = [file for file in files if file.partition in partitions]
        self._due = [*self._mergeable(own, now_s)]

    def step(self) -> bool:
        """Do one merge of those that were planned; return False if there is none."""
        if not self._due:
            return False
        files = self._due.pop()
        try:
            self._merge(files)
        except FileNotFoundError as error:
            _log.info("files to be merged are gone, so somebody else did it", detail=str(error))
        except UsageError as error:
            _log.error("files can't be merged", error=str(error))
        return True

    def _mergeable(self, files: Iterable[ArchiveFile], now_s: float) -> Iterator[list[ArchiveFile]]:
        groups: dict[tuple[str, str, str, int], list[ArchiveFile]] = defaultdict(list)
        for file in files:
            groups[file.family, file.day, file.log, file.partition].append(file)
        for group in groups.values():
            settled = now_s - max(file.modified_s for file in group) > SETTLED_S
            if len(group) >= (2 if settled else FAN_IN):
                try:
                    yield from self._choose(group, settled=settled)
                except FileNotFoundError:
                    continue
                except UsageError as error:
                    _log.error("files can't be merged", error=str(error))

    def _choose(self, group: list[ArchiveFile], *, settled: bool) -> Iterator[list[ArchiveFile]]:
        limit = self._settings.file_mib * 2**20
        tiers: dict[int, list[ArchiveFile]] = defaultdict(list)
        for file in sorted(group, key=attrgetter("first", "last")):
            weight = self._weight(file)
            if 2 * weight < limit:
                tiers[0 if settled else int(math.log(weight, FAN_IN))].append(file)
        for files in tiers.values():
            if len(files) >= (2 if settled else FAN_IN):
                chosen, total = list[ArchiveFile](), 0
                for file in files:
                    total += self._weight(file)
                    if total > limit:
                        break
                    chosen.append(file)
                yield chosen

    def _weight(self, file: ArchiveFile) -> int:
        """Return how many bytes a file's rows take in memory, at least 1."""
        if file.path not in self._weights:
            self._weights[file.path] = max(1, self._archive.weigh(file))
        return self._weights[file.path]

    def _merge(self, files: Sequence[ArchiveFile]) -> None:
        together = concat([self._archive.read(file) for file in files])
        merged = together.take(order_of_rows(together))
        one = files[0]
        first, last = min(file.first for file in files), max(file.last for file in files)
        # Of what it was made says the name, since files of one name must have the same rows.
        made_of = hashlib.blake2b("\n".join(sorted(file.path for file in files)).encode(), digest_size=4).hexdigest()
        name = file_name(one.log, one.partition, first, last, made_of)
        size = self._archive.write(one.family, one.day, name, merged)
        self._archive.remove(file.path for file in files)
        self._metrics.archive_written_bytes.labels("merge").inc(size)
        self._metrics.archive_removed_bytes.labels("merge").inc(sum(file.size for file in files))

    def _expire(self, files: list[ArchiveFile], now_s: float) -> None:
        old = expired(files, self._settings, now_s)
        if not old:
            return
        self._archive.remove(file.path for file in old)
        for folder in {(file.family, file.day): file for file in old}.values():
            self._archive.remove_empty_folder(folder)
        size = sum(file.size for file in old)
        self._metrics.archive_removed_bytes.labels("retention").inc(size)
        days = sorted({file.day for file in old})
        _log.info("removed old telemetry", files=len(old), bytes=size, first_day=days[0], last_day=days[-1])


def expired(files: Iterable[ArchiveFile], settings: ArchiveSettings, now_s: float) -> list[ArchiveFile]:
    """Return the files that are to go, oldest day first: those before `keep_days`, and those above `keep_gib`."""
    ordered = sorted(files, key=attrgetter("date", "modified_s", "path"))
    excess = sum(file.size for file in ordered) - settings.keep_gib * 2**30 if settings.keep_gib else 0
    oldest = datetime.fromtimestamp(now_s, UTC).date() - timedelta(days=settings.keep_days)
    gone = list[ArchiveFile]()
    for file in ordered:
        if not (excess > 0 or (settings.keep_days and file.date < oldest)):
            break
        excess -= file.size
        gone.append(file)
    return gone
