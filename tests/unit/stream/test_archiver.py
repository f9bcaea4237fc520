"""When rows are written, what is committed, and what becomes of files afterwards."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.archive import Archive, ArchiveFile, archived_family
from stream.archive_upkeep import FAN_IN, SETTLED_S, Upkeep, expired
from stream.archiver import Archiver
from stream.errors import TransientError, UsageError
from stream.metrics import Metrics
from stream.settings import ArchiveSettings, FamilySettings, Settings
from tests.fakes import FIRST_SLOT, record, sample_record

FAMILY = FamilySettings(name="probe", entities="p-*", numeric=["a", "b"], commands=["on"])
NOW_S = 1_800_000_000.0


class Service:
    """An archiver of partition 0 with a clock moved by hand and a switch to end it."""

    def __init__(self, folder, **archive):
        self.now, self.ending = 100.0, False
        self.settings = Settings(families=[FAMILY], archive=ArchiveSettings(**archive))
        self.archive = Archive(folder)
        self.metrics = Metrics()
        self.stage = Archiver(
            self.settings,
            self.archive,
            lambda: "0" * 8,
            self.metrics,
            stopping=lambda: self.ending,
            clock=lambda: self.now,
        )
        self.stage.restore(0, 0, 0)

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"telltale_{name}", labels)


def rows(first, end):
    return [sample_record("p-1", FIRST_SLOT + i, {"a": 1.0 * i, "on": i % 2 == 0}, i) for i in range(first, end)]


def test_rows_wait_until_they_are_old_enough_and_only_then_their_offsets_are_done(tmp_path):
    service = Service(tmp_path, flush_s=10)
    assert service.stage.process(rows(0, 5)).next_offsets == {}
    service.now += 9.9
    assert service.stage.process(rows(5, 6)).next_offsets == {}
    assert service.archive.files() == []
    assert service.sample("archive_flush_age_seconds") == pytest.approx(9.9)
    service.now += 0.1
    assert service.stage.process([]).next_offsets == {0: 6}
    (file,) = service.archive.files()
    assert (file.first, file.last, file.partition) == (0, 5, 0)
    assert service.archive.read(file).num_rows == service.sample("archived_rows_total", family="probe") == 6
    assert service.sample("archive_flush_age_seconds") == service.sample("archive_buffer_bytes") == 0
    assert service.stage.process([]).next_offsets == {}


def test_rows_wait_no_longer_than_there_is_memory_for_them(tmp_path):
    service = Service(tmp_path, flush_s=1e9, buffer_mib=1)
    done, end = {}, 0
    while not done:
        done, end = service.stage.process(rows(end, end + 1000)).next_offsets, end + 1000
        assert service.sample("archive_buffer_bytes") <= 2**20
    assert done == {0: end}
    assert end * (4 * 3 + 36) == pytest.approx(2**20, rel=0.1)


def test_at_the_end_what_is_kept_is_written(tmp_path):
    service = Service(tmp_path, flush_s=1e9)
    service.stage.process(rows(0, 3))
    service.ending = True
    assert service.stage.process([]).next_offsets == {0: 3}
    assert len(service.archive.files()) == 1


def test_refused_records_are_counted_and_passed(tmp_path):
    """Refused as by the windower, whose dead letter they have."""
    service = Service(tmp_path)
    bad = [
        record(b"{", 0, key=b"p-1"),
        record(None, 1, key=b"p-1"),
        sample_record("p-1", FIRST_SLOT, {"c": 1.0}, 2),
        sample_record("x", FIRST_SLOT, {"a": 1.0}, 3),
        sample_record("p-1", 5, {"a": 1.0}, 4),
    ]
    service.ending = True
    assert service.stage.process(bad).next_offsets == {0: 5}
    assert service.archive.files() == []
    for reason in ("malformed", "empty", "schema", "family", "timestamp"):
        assert service.sample("records_rejected_total", reason=reason) == 1


def test_what_was_not_committed_is_forgotten_with_its_partition(tmp_path):
    service = Service(tmp_path, flush_s=10)
    service.stage.process(rows(0, 5))
    service.stage.drop([0])
    service.now += 100
    assert service.stage.process([]).next_offsets == {}
    service.stage.restore(0, 2, 0)
    service.ending = True
    assert service.stage.process(rows(2, 5)).next_offsets == {0: 5}
    assert [(file.first, file.last) for file in service.archive.files()] == [(2, 4)]


def test_storage_that_is_away_commits_nothing(tmp_path, monkeypatch):
    service = Service(tmp_path)
    monkeypatch.setattr("stream.archive.replace_file", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    service.ending = True
    with pytest.raises(TransientError, match="no space left"):
        service.stage.process(rows(0, 5))


def test_an_archive_that_cannot_be_looked_after_is_still_written(tmp_path, monkeypatch):
    service = Service(tmp_path)

    def away(*_):
        raise TransientError("away")

    monkeypatch.setattr(Archive, "files", away)
    service.stage.check()
    service.ending = True
    assert service.stage.process(rows(0, 5)).next_offsets == {0: 5}


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        Archive(tmp_path / "file").make()


def test_a_channel_may_not_have_the_name_of_a_column_of_ours():
    with pytest.raises(UsageError, match=r"no channel may be named 'kafka\.offset'"):
        archived_family(FAMILY.model_copy(update={"numeric": ["a", "kafka.offset"]}))


def test_small_files_are_merged_tier_by_tier_so_that_their_number_grows_with_the_logarithm(tmp_path):
    service = Service(tmp_path)
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    service.ending = True
    written = 0
    for number in range(FAN_IN**2 + 1):
        if number < FAN_IN**2:
            service.stage.process(rows(4 * number, 4 * number + 4))
        upkeep.plan([0], 0.0)  # long before the day is settled
        while upkeep.step():
            written += 1
        assert len(service.archive.files()) <= 2 * FAN_IN
    assert written == FAN_IN + 1
    (file,) = service.archive.files()
    assert service.archive.read(file)["kafka.offset"].to_pylist() == list(range(4 * FAN_IN**2))


def test_files_are_merged_up_to_a_size_and_then_left_alone(tmp_path):
    service = Service(tmp_path, file_mib=1)
    service.ending = True
    for number in range(10):
        service.stage.process(rows(4000 * number, 4000 * number + 4000))
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    for _ in range(10):
        upkeep.plan([0], NOW_S + 100 * SETTLED_S)
        while upkeep.step():
            pass
    files = service.archive.files()
    counts = [service.archive.read(file).num_rows for file in files]
    assert sum(counts) == 40_000
    assert all(count * (4 * 3 + 40) <= 2**20 for count in counts)
    assert len(files) <= 4


def test_somebody_elses_partitions_are_somebody_elses_work(tmp_path):
    service = Service(tmp_path)
    service.ending = True
    for number in range(3):
        service.stage.process(rows(4 * number, 4 * number + 4))
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    upkeep.plan([1], NOW_S * 2)
    assert not upkeep.step()


def test_what_a_killed_process_left_unfinished_is_removed_when_it_is_old(tmp_path):
    service = Service(tmp_path)
    service.ending = True
    service.stage.process(rows(0, 4))
    left = tmp_path / "family=probe" / "day=2026-01-01" / ".x.parquet.00000000.partial"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"PAR1")
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    upkeep.plan([0], left.stat().st_mtime + 60)
    assert left.exists()
    upkeep.plan([0], left.stat().st_mtime + 2 * SETTLED_S)
    assert not left.exists()


def test_a_damaged_file_keeps_nobody_from_working(tmp_path):
    service = Service(tmp_path)
    service.ending = True
    for number in range(3):
        service.stage.process(rows(4 * number, 4 * number + 4))
    damaged = service.archive.files()[1].path
    with open(damaged, "r+b") as file:
        file.write(b"nothing")
        file.truncate(9)
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    upkeep.plan([0], NOW_S * 2)
    assert not upkeep.step()
    assert len(service.archive.files()) == 3


def test_days_beyond_the_age_are_removed_with_their_folders(tmp_path):
    service = Service(tmp_path, keep_days=10)
    service.ending = True
    for day in range(3):
        records = [
            one._replace(timestamp_ms=1000 * slot)
            for slot in range(FIRST_SLOT + day * 86_400, FIRST_SLOT + day * 86_400 + 4)
            for one in [sample_record("p-1", slot, {"a": 1.0}, 4 * day + slot % 4)]
        ]
        service.stage.process(records)
    assert sorted(file.day for file in service.archive.files()) == ["2026-01-01", "2026-01-02", "2026-01-03"]
    upkeep = Upkeep(service.archive, service.settings.archive, service.metrics)
    upkeep.plan([1], FIRST_SLOT + 11 * 86_400 + 100)
    assert len(service.archive.files()) == 3  # whoever owns partition 0 does it
    upkeep.plan([0], FIRST_SLOT + 11 * 86_400 + 100)
    assert sorted(path.name for path in (tmp_path / "family=probe").iterdir()) == ["day=2026-01-02", "day=2026-01-03"]


files = st.lists(
    st.builds(
        lambda number, day, size: ArchiveFile(
            f"{number}", "f", day, "0" * 8, 0, number, number, size, NOW_S - 86_400 * (number % 5)
        ),
        st.integers(0, 10**6),
        st.sampled_from(["unknown", *(str(date(2026, 12, 1) + timedelta(days=n)) for n in range(60))]),
        st.integers(1, 2**30),
    ),
    max_size=30,
)


@given(files, st.integers(0, 60), st.sampled_from([0, 0.5, 1, 3, 100]))
def test_the_oldest_go_first_and_no_more_of_them_than_must(found, keep_days, keep_gib):
    settings = ArchiveSettings(keep_days=keep_days, keep_gib=keep_gib)
    gone = expired(found, settings, NOW_S)
    kept = [file for file in found if file not in gone]
    today = date(2027, 1, 15)
    if keep_gib:
        assert sum(file.size for file in kept) <= keep_gib * 2**30
    if keep_days:
        assert all(file.date >= today - timedelta(days=keep_days) for file in kept)
    assert max((file.date for file in gone), default=date.min) <= min((file.date for file in kept), default=date.max)
    if gone:
        last = gone[-1]
        too_old = bool(keep_days) and last.date < today - timedelta(days=keep_days)
        too_much = bool(keep_gib) and sum(file.size for file in [*kept, last]) > keep_gib * 2**30
        assert too_old or too_much
