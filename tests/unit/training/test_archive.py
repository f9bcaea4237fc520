"""What is read from an archive is what was sent, whatever became of the files in between."""

import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from detector.manifest import Channel
from stream.archive_rows import LEAST_ROWS
from stream.archive_upkeep import SETTLED_S, Upkeep
from stream.archiver import Archiver
from stream.errors import UsageError
from stream.metrics import Metrics
from tests.unit.training.archives import (
    DAY_MS,
    HOST,
    PROBE,
    SETTINGS,
    TS,
    Crash,
    Interrupted,
    broken_record,
    family_of,
    make_record,
    read_rows,
)
from training.archive import read_archive
from training.datasets import fingerprint

PARTITIONS = (0, 1)
ENTITIES = ("p-1", "p-2", "h-1")
# In its day, at its end, a year before, and when no clock of ours was there.
TIMES = st.sampled_from([0, 1000, 1400, 63_000, DAY_MS - 1, -365 * DAY_MS, 20_000 * DAY_MS])
STEPS = st.integers(0, 9)
ROWS = st.sampled_from([1, 1, 2, 3, 0])
COUNTS = st.integers(0, 5)
SENT = st.lists(st.tuples(st.sampled_from(PARTITIONS), st.sampled_from(ENTITIES), TIMES, ROWS), min_size=2)
EVENTS = ("", "crash", "merge", "zombie")


class Instance:
    """One archiver process with the partitions that it thinks are its own."""

    def __init__(self, world: "ArchiveMachine", generation: int) -> None:
        self.world, self.generation, self.ending = world, generation, False
        self.stage = Archiver(SETTINGS, world.archive, lambda: world.log, Metrics(), stopping=lambda: self.ending)
        self.position = {p: self.stage.restore(p, world.committed[p], 0) for p in PARTITIONS}

    def consume(self, partition: int, count: int) -> None:
        records = self.world.records[partition][self.position[partition] :][:count]
        if records:
            self.position[partition] += len(records)
            self.done(self.stage.process(records).next_offsets)

    def flush(self) -> None:
        """Write what is kept and commit: a zombie's commit is refused, and it forgets everything."""
        self.ending = True
        self.done(self.stage.process([]).next_offsets)
        self.ending = False

    def done(self, next_offsets: dict[int, int]) -> None:
        if next_offsets and self.generation == self.world.generation:
            self.world.committed |= next_offsets
        elif next_offsets:
            self.world.zombie = None


class ArchiveMachine(RuleBasedStateMachine):
    """Two partitions, one archiver, perhaps a zombie of it, and whoever merges files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.archive = Interrupted(self.folder)
        self.logs = 0
        self.sent: list = []
        self.zombie: Instance | None = None
        self.generation = 0
        self.begin_log()

    def begin_log(self) -> None:
        self.logs += 1
        self.log = f"{self.logs:08x}"
        self.records: dict[int, list] = {p: [] for p in PARTITIONS}
        self.committed = dict.fromkeys(PARTITIONS, 0)
        self.start()

    def start(self) -> None:
        self.generation += 1
        self.owner = Instance(self, self.generation)

    def teardown(self) -> None:
        try:
            self.drain()
            assert self.read() == sorted(self.sent)
        finally:
            shutil.rmtree(self.folder)

    @rule(sent=SENT, count=COUNTS, at=STEPS, event=st.sampled_from(EVENTS))
    def send_and_flush(self, sent, count, at, event):
        """Send records, take some of them, write and commit; something else may come in between."""
        for partition, entity, ts_ms, rows in sent:
            times = [TS + ts_ms + i * family_of(entity).interval_ms for i in range(rows)]
            one, held = make_record(self.log, partition, len(self.records[partition]), entity, times)
            self.records[partition].append(one if rows else broken_record(partition, one.offset))
            self.sent += held
        self.consume(self.owner, count)
        self.during(self.owner.flush, event, at)

    @rule(count=COUNTS)
    def die_before_the_commit(self, count):
        self.consume(self.owner, count)
        self.generation += 1  # so that its commit is refused
        self.owner.flush()
        self.start()

    @rule(count=COUNTS)
    def become_a_zombie(self, count):
        self.consume(self.owner, count)
        self.zombie = self.owner
        self.start()

    @precondition(lambda self: self.zombie is not None)
    @rule(count=COUNTS)
    def the_zombie_flushes(self, count):
        self.consume(self.zombie, count)
        self.zombie.flush()

    @rule(at=STEPS, event=st.sampled_from(EVENTS))
    def merge(self, at, event):
        self.during(self.upkeep, event, at)

    @rule()
    def make_the_topic_anew(self):
        self.drain()
        self.zombie = None
        self.begin_log()

    @invariant()
    def nothing_committed_is_missing_and_nothing_is_there_twice(self):
        read = self.read()
        assert len({row[:4] for row in read}) == len(read)
        assert set(read) <= set(self.sent)
        committed = {r for r in self.sent if r.log != self.log or r.offset < self.committed[r.partition]}
        assert committed <= set(read)

    def drain(self):
        self.consume(self.owner, 1000)
        self.owner.flush()

    def read(self):
        return sorted([*read_rows(self.archive, PROBE), *read_rows(self.archive, HOST)])

    def consume(self, instance, count):
        for partition in PARTITIONS:
            instance.consume(partition, count)

    def during(self, do, event, at):
        events = {"": lambda: None, "crash": self.crash, "merge": self.upkeep, "zombie": self.zombie_flushes}
        try:
            with self.archive.interrupt(at, events[event]):
                do()
        except Crash:
            self.start()

    def zombie_flushes(self):
        if self.zombie is not None:
            self.zombie.flush()

    def crash(self):
        folder = self.folder / "family=probe" / "day=2026-01-01"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".x.parquet.0a0a0a0a.partial").write_bytes(b"PAR1")
        raise Crash

    def upkeep(self):
        upkeep = Upkeep(self.archive, SETTINGS.archive, Metrics())
        upkeep.plan(PARTITIONS, time.time() + 2 * SETTLED_S)
        while upkeep.step():
            pass


ArchiveMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestTheArchive = ArchiveMachine.TestCase


def archive_of(folder: Path, records: list, splits: list[int], settings=SETTINGS) -> Interrupted:
    """Archive records of partition 0, flushed after these of them, and at the end."""
    archive, ending = Interrupted(folder), []
    stage = Archiver(settings, archive, lambda: "0" * 8, Metrics(), stopping=lambda: bool(ending))
    stage.restore(0, 0, 0)
    bounds = sorted({0, *(min(split, len(records)) for split in splits), len(records)})
    for first, end in pairwise(bounds):
        stage.process(records[first:end])
        ending.append(True)
        stage.process([])
        ending.clear()
    return archive


def slots_by_hand(rows, start_ms, end_ms, exclude):
    """Return values by entity and slot: the row of the highest offset that counts."""
    kept = {}
    for row in sorted(rows):
        out = any(first <= row.ts_ms < end for first, end in exclude.get(row.entity, ()))
        if start_ms <= row.ts_ms < end_ms and not out:
            interval_ms = family_of(row.entity).interval_ms
            kept[row.entity, (2 * row.ts_ms + interval_ms) // (2 * interval_ms)] = row.values
    return kept


def slots_of_dataset(dataset):
    return {
        (series.entity, slot): tuple(None if np.isnan(v) else float(v) for v in values)
        for series in dataset.series
        for slot, values in zip(series.slots.tolist(), series.values, strict=True)
    }


@st.composite
def telemetry(draw):
    """Draw records of the probes, some with slots that were there before, with the rows that they hold."""
    records, rows = [], []
    for offset in range(draw(st.integers(3, 20))):
        begin = TS + draw(st.integers(-20, 40)) * 700 + draw(st.sampled_from([0, 0, DAY_MS, -365 * DAY_MS]))
        times = [begin + 1000 * i for i in range(draw(st.integers(1, 3)))]
        one, held = make_record("0" * 8, 0, offset, draw(st.sampled_from(["p-1", "p-2", "p-3"])), times)
        records.append(one)
        rows += held
    return records, rows


intervals = st.dictionaries(
    st.sampled_from(["p-1", "p-2", "p-9"]),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)).map(lambda t: (TS + 1000 * t[0], TS + 1000 * sum(t)))),
)


@given(telemetry(), st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)), intervals, st.integers(-20, 20))
@settings(max_examples=40)
def test_a_data_set_is_what_the_windower_would_hold_of_the_rows_that_count(sent, one, other, exclude, start):
    records, rows = sent
    start_ms, end_ms = TS + 1000 * start, TS + 2 * DAY_MS
    wanted = slots_by_hand(rows, start_ms, end_ms, exclude)
    prints = set()
    for splits in (one, other):
        with tempfile.TemporaryDirectory() as folder:
            archive = archive_of(Path(folder), records, splits)
            if len(wanted) < 2 or all(v is None for values in wanted.values() for v in values[:2]):
                with pytest.raises(UsageError):
                    read_archive(archive, PROBE, start_ms, end_ms, exclude)
                continue
            dataset = read_archive(archive, PROBE, start_ms, end_ms, exclude)
            assert slots_of_dataset(dataset) == wanted
            assert dataset.channels == [*(Channel(c, "numeric") for c in PROBE.numeric), Channel("heater", "command")]
            assert all((np.diff(series.slots) > 0).all() for series in dataset.series)
            prints.add(fingerprint(dataset))
    assert len(prints) <= 1


@given(telemetry(), st.lists(st.integers(0, 20)), st.integers(2, 30))
@settings(max_examples=40)
def test_a_cap_takes_the_newest_rows_and_reads_no_more_days_than_it_takes(sent, splits, most):
    records, rows = sent
    everything = slots_by_hand(rows, 0, 2**62, {})
    with tempfile.TemporaryDirectory() as folder:
        archive = archive_of(Path(folder), records, splits)
        try:
            dataset = read_archive(archive, PROBE, most_rows=most)
        except UsageError:
            return  # nothing but missing values
        kept = slots_of_dataset(dataset)
        assert kept.items() <= everything.items()
        assert len(kept) == min(most, len(everything))
        left = everything.keys() - kept.keys()
        assert max((slot for _, slot in left), default=0) <= min(slot for _, slot in kept)


def test_with_a_cap_old_days_are_left_alone(tmp_path, monkeypatch):
    old = [many("p-1", offset, TS - 30 * DAY_MS + 64_000 * offset) for offset in range(20)]
    new = [many("p-1", offset, TS + 64_000 * offset) for offset in range(20, 40)]
    archive = archive_of(tmp_path, [*old, *new], [])
    assert sorted({file.day for file in archive.files()}) == ["2025-12-02", "2026-01-01"]
    read = []
    monkeypatch.setattr(
        Interrupted, "read", lambda self, file, names: read.append(file.day) or super_read(self, file, names)
    )
    dataset = read_archive(archive, PROBE, most_rows=500)
    assert dataset.rows == 500
    assert set(read) == {"2026-01-01"}


def super_read(archive, file, names):
    return super(Interrupted, archive).read(file, names)


def many(entity: str, offset: int, first_ms: int):
    """Return a record of a hop of rows."""
    return make_record("0" * 8, 0, offset, entity, [first_ms + 1000 * i for i in range(64)])[0]


def test_entities_with_few_rows_are_left_out(tmp_path):
    records = [many("p-1", 0, TS), make_record("0" * 8, 0, 1, "p-2", [TS])[0]]
    archive = archive_of(tmp_path, records, [])
    assert [series.entity for series in read_archive(archive, PROBE, least_rows=2).series] == ["p-1"]
    with pytest.raises(UsageError, match="at least 2 rows"):
        read_archive(archive, PROBE, least_rows=65)


def test_gaps_stay_gaps(tmp_path):
    archive = archive_of(tmp_path, [many("p-1", 0, TS), many("p-1", 1, TS + 1_000_000)], [])
    (series,) = read_archive(archive, PROBE).series
    assert (np.flatnonzero(np.diff(series.slots) != 1)).tolist() == [63]
    assert len(series.slots) == 128


def test_channels_that_a_family_gained_or_lost_are_missing_in_older_rows_or_left_out(tmp_path):
    archive = archive_of(tmp_path, [many("p-1", 0, TS)], [])
    later = PROBE.model_copy(update={"numeric": ["voltage", "pressure"], "commands": []})
    dataset = read_archive(archive, later)
    assert dataset.channels == [Channel("voltage", "numeric"), Channel("pressure", "numeric")]
    assert np.isnan(dataset.series[0].values[:, 1]).all()
    assert not np.isnan(dataset.series[0].values[:, 0]).all()


def test_a_family_that_nobody_declares_any_more_is_read_as_its_newest_file_says(tmp_path):
    archive = archive_of(tmp_path, [make_record("0" * 8, 0, i, "h-1", [TS + 500 * i])[0] for i in range(4)], [2])
    dataset = read_archive(archive, "host")
    assert (dataset.interval_ms, dataset.channels) == (500, [Channel("load", "numeric")])
    assert fingerprint(dataset) == fingerprint(read_archive(archive, HOST))


def test_what_is_not_there_is_said(tmp_path):
    archive = archive_of(tmp_path, [many("p-1", 0, TS)], [])
    with pytest.raises(UsageError, match="no file of family host; known are probe"):
        read_archive(archive, "host")
    with pytest.raises(UsageError, match="no rows of family probe in this time"):
        read_archive(archive, PROBE, TS + 9 * DAY_MS)


def test_a_file_that_is_damaged_is_named(tmp_path):
    archive = archive_of(tmp_path, [many("p-1", 0, TS)], [])
    (file,) = archive.files()
    Path(file.path).write_bytes(b"PAR1 nothing else PAR1")
    with pytest.raises(UsageError, match="damaged, move it away"):
        read_archive(archive, PROBE)


def test_files_that_are_merged_while_they_are_read_are_looked_for_again(tmp_path):
    archive = archive_of(tmp_path, [many("p-1", i, TS + 64_000 * i) for i in range(4)], [1, 2, 3])
    listed = archive.files()

    def files(family=None):
        found = listed if len(calls) == 0 else Interrupted(tmp_path).files(family)
        calls.append(family)
        return found

    calls: list = []
    upkeep = Upkeep(archive, SETTINGS.archive, Metrics())
    upkeep.plan(PARTITIONS, time.time() + 2 * SETTLED_S)
    while upkeep.step():
        pass
    archive.files = files  # type: ignore[method-assign]
    assert read_archive(archive, PROBE).rows == 256
    assert len(calls) == 2


def test_wild_clocks_make_no_folders_and_their_rows_are_still_read(tmp_path):
    wild = [make_record("0" * 8, 0, i, "p-1", [946_684_800_000 + 7 * DAY_MS * i])[0] for i in range(2000)]
    live = [make_record("0" * 8, 0, i, "p-1", [TS + 1000 * i])[0] for i in range(2000, 2100)]
    backfill = [many("p-2", i, TS - 300 * DAY_MS + 64_000 * i) for i in range(2100, 2120)]
    assert 64 * len(backfill) >= LEAST_ROWS
    archive = archive_of(tmp_path, [*wild, *live, *backfill], [])
    days = {file.day for file in archive.files()}
    assert len(days) <= 5
    assert "unknown" in days
    assert len(read_rows(archive, PROBE)) == 2000 + 100 + 64 * 20
    year = read_archive(archive, PROBE, 946_684_800_000, 946_684_800_000 + 365 * DAY_MS)
    assert year.rows == 53
