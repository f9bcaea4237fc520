from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.columns import COLUMNS, to_columns
from stream.contracts import DeadLetter, DroppedLetters, WindowNotice
from stream.dead_letters import HEADER
from stream.errors import FencedError
from stream.metrics import Health, Metrics
from stream.settings import FamilySettings, LimitSettings, Settings
from stream.windower import Windower
from tests.fakes import FIRST_SLOT, Crash, FakeAcknowledgements, InMemoryWindowStore, record, request_of, sample_record

FAMILY = FamilySettings(
    name="rover",
    numeric=["a", "b"],
    commands=["c"],
    length=8,
    hop=4,
    lateness=1,
    final_delay=4,
    slack=16,
    max_jump=10_000,
    jump_rows=3,
)
SETTINGS = Settings(families=[FAMILY])
GEOMETRY = FAMILY.geometry
NOTICE = msgspec.json.Decoder(WindowNotice)
BASE = FIRST_SLOT // GEOMETRY.hop * GEOMETRY.hop


class World:
    """Kafka around a windower: one partition of telemetry, what is committed of it, and a worker moved by hand."""

    def __init__(self, telemetry, *, options=SETTINGS):
        self.telemetry = telemetry
        self.options = options
        self.metrics = Metrics()
        self.store, self.acks = InMemoryWindowStore(), FakeAcknowledgements()
        self.low = self.committed = 0
        self.published = []
        self.take_over()

    def take_over(self):
        """Start a process; one that was there before is dead or fenced."""
        self.windower = Windower(self.options, self.store, self.acks, self.metrics, Health(30.0))
        self.position = self.windower.restore(0, self.committed, self.low)
        assert self.low <= self.position <= self.committed
        self.held = []
        self.wiped = False

    def step(self, size, *, crash=None):
        """Run one batch, or die in it and take over."""
        try:
            self._batch(size, crash)
        except (Crash, FencedError):
            self.take_over()

    def _batch(self, size, crash):
        if crash in ("write_rows", "save_heads"):
            self.store.crash_before = crash
        if crash == "wipe":
            self.store.wipe()
            self.wiped = True  # the windower learns of it at its next write
        if crash == "zombie":
            self.store.acquire(0)
        records = self.held + self.telemetry[self.position : self.position + size]
        self.position = max([self.position, *(r.offset + 1 for r in records)])
        old = [r for r in records if r.offset < self.committed]
        if old:
            self.windower.replay(0, old)
        progress = self.windower.process(records[len(old) :])
        if crash == "commit":
            raise Crash(crash)
        self.held = progress.held
        self._commit(progress)
        if crash != "unsaved":  # the batch goes on to the next one before a second is over
            self.windower.check()

    def _commit(self, progress):
        delivered = []
        for message in progress.outgoing:
            offset = len(self.published)
            if message.topic == "windows":
                offset = self.acks.announce(0, NOTICE.decode(message.value))
            delivered.append((message, offset))
            self.published.append(message)
        self.committed = progress.next_offsets.get(0, self.committed)
        self.windower.committed(delivered)

    def finish(self):
        """Let everything run to the end of the telemetry."""
        while self.committed < len(self.telemetry):
            self.step(5)
            self.acks.score(0, 1000)
        return self

    @property
    def notices(self):
        return self.acks.log[0]

    @property
    def refused(self):
        headers = [dict(m.headers)[HEADER] for m in self.published if m.topic == "dead-letters"]
        return {letter.offset: letter.reason for letter in map(msgspec.json.Decoder(DeadLetter).decode, headers)}

    def window(self, notice):
        return self.store.read_windows([request_of(notice, FAMILY)])[0]

    def assert_the_worker_can_read_what_it_has_to(self):
        """Every window that is announced and not scored is there, whole, with the rows that it was cut with."""
        if self.wiped or self.position < self.committed:  # being rebuilt; the worker waits
            return
        for _, notice in self.acks.outstanding(0):
            window = self.window(notice)
            assert window.rows == notice.rows
            np.testing.assert_array_equal(window.values[0], self.rows_of(notice))

    def rows_of(self, notice):
        """Work out a window from the log: the last row of each slot that was taken before the window was cut."""
        values = np.full(notice.length, np.nan, np.float32)
        for one in self.telemetry[notice.source.first_offset : notice.trigger_ms + 1]:  # none of an earlier life
            if one.offset in self.refused or one.key.decode() != notice.entity:
                continue
            for slot in slots_in(one):
                position = slot - (notice.end_slot - notice.length + 1)
                if slot >= notice.first_slot and 0 <= position < notice.length:
                    values[position] = one.offset
        return values


def row(slot, offset, entity="e1"):
    return sample_record(entity, BASE + slot, {"a": offset, "c": offset % 2 == 0}, offset)


def block(slots, offset, entity="e1"):
    """Return a record of many rows."""
    ts_ms = (BASE + np.array(slots)) * 1000
    values = np.array([(offset, offset % 2 == 0)] * len(slots), np.float32)
    headers = [("content-type", COLUMNS.encode())]
    value = msgspec.msgpack.encode(to_columns(entity, ["a", "c"], ts_ms, values))
    return record(value, offset, key=entity.encode(), headers=headers)


def slots_in(one):
    if not one.headers:
        return [msgspec.json.decode(one.value)["ts"] // 1000]
    return (np.frombuffer(msgspec.msgpack.decode(one.value)["ts"], np.int64) // 1000).tolist()


def rows(*slots, entity="e1", first_offset=0):
    return [row(slot, first_offset + i, entity) for i, slot in enumerate(slots)]


def drawn(line):
    """Read a time line: numbers are rows in order of arrival, dots are slots without one."""
    return rows(*(int(slot) for slot in line.split() if slot != "."))


# Slots of a record's other rows, from its first one on.
FURTHER = st.sampled_from([()] * 6 + [(1,), (2,), (1, 2, 3), (1, 4), (GEOMETRY.hop,)])
STEPS = [1] * 8 + [0, -1, 2, -3, 5, GEOMETRY.max_gap, GEOMETRY.max_gap + 1, 60]


@st.composite
def telemetry(draw, *, repeats=True, jumps=True):
    """Draw a partition: two entities with gaps, late rows, new lives, repeated slots, clocks that jump, and junk.

    Records hold no row, one or many.
    """
    newest, seen, result = {}, set(), []
    steps, clocks = st.sampled_from(STEPS), st.sampled_from(([None] * 12 + [0, 0, 1, -1]) if jumps else [None])
    clock = {"e1": 0, "e2": 0}
    for offset in range(draw(st.integers(1, 70))):
        who = draw(st.sampled_from(["e1", "e1", "e2", "junk"]))
        if who == "junk":
            result.append(record(b"{", offset))
            continue
        moved = draw(clocks)
        clock[who] = clock[who] if moved is None else moved
        entity = who, clock[who]
        first = newest.setdefault(entity, clock[who] * 100_000) + draw(steps)
        further = draw(FURTHER)
        slots = [first, *(first + at for at in sorted(further))]
        while not repeats and seen & {(entity, slot) for slot in slots}:
            slots = [slot + 1 for slot in slots]
        seen |= {(entity, slot) for slot in slots}
        newest[entity] = max(newest[entity], slots[-1])
        result.append(block(slots, offset, who) if further else row(slots[0], offset, who))
    return result


FAULTS = [None] * 4 + ["unsaved"] * 4 + ["write_rows", "commit", "save_heads", "wipe", "zombie"]
PLANS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(FAULTS), st.integers(0, 2)), max_size=25)


def run(log, plan):
    world = World(log)
    for size, fault, scored in plan:
        world.step(size, crash=fault)
        world.assert_the_worker_can_read_what_it_has_to()
        world.acks.score(0, scored)
    return world.finish()


@given(telemetry(repeats=False), PLANS)
@settings(max_examples=200)
def test_whenever_a_windower_dies_its_successors_publish_what_it_would_have(log, plan):
    """Before the rows are written, before the commit, before the snapshot, with a wiped Redis, fenced by another."""
    assert run(log, plan).published == World(log).finish().published


@given(telemetry(), PLANS)
def test_slots_sent_twice_change_no_notice_but_the_offset_it_starts_at(log, plan):
    """A snapshot knows only the row that counts, so the span may begin at it instead of the one it replaced."""

    def told(world):
        sources = [(n.source.first_offset, n.source.last_offset) for n in world.notices]
        plain = [msgspec.structs.replace(n, source=None) for n in world.notices]
        return plain, [last for _, last in sources], world.refused

    assert told(run(log, plan)) == told(World(log).finish())


@given(telemetry(), st.lists(st.integers(1, 40), min_size=1))
def test_how_telemetry_is_batched_does_not_matter(log, sizes):
    world = World(log)
    for size in sizes:
        world.step(size)
        world.acks.score(0, 1000)
    assert world.finish().published == World(log).finish().published


CALM = [1] * 12 + [2, 0, -1, 3]


@st.composite
def calm_telemetry(draw):
    """Draw a partition of which most batches can be folded entity by entity: few gaps, few rows out of order."""
    newest, result = {"e1": 0, "e2": 7, "e3": 3}, []
    for offset in range(draw(st.integers(1, 90))):
        entity = draw(st.sampled_from(["e1", "e1", "e2", "e3"]))
        slot = newest[entity] + draw(st.sampled_from(CALM))
        newest[entity] = max(newest[entity], slot)
        result.append(row(slot, offset, entity))
    return result


def in_order(world, monkeypatch):
    """Let a world fold row by row, whatever comes."""
    step = world._batch

    def batch(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr("stream.windower._surely_fitting", lambda state, rows: None)
            step(*arguments)

    world._batch = batch
    return world


@given(telemetry() | calm_telemetry(), PLANS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_entity_by_entity_does_what_row_by_row_does(monkeypatch, log, plan):
    """The same messages in the same order, the same records held, the same rings and the same snapshot."""
    one, other = World(log), in_order(World(log), monkeypatch)
    for size, fault, scored in plan:
        for world in (one, other):
            world.step(size, crash=fault)
            world.acks.score(0, scored)
        assert (one.published, one.committed, one.held) == (other.published, other.committed, other.held)
        assert vars(one.store)["_rings"] == vars(other.store)["_rings"]
        assert one.store.load(0) == other.store.load(0)
    assert one.finish().published == other.finish().published


def test_a_window_that_is_cut_in_a_batch_limits_the_rest_of_it():
    """length 8, slack 16: no window is unscored when the batch comes, but window 3 is in the midst of it."""
    world = World(rows(*range(40)))
    world.step(2)
    world.step(100)
    assert (world.committed, [one.offset for one in world.held]) == (20, list(range(20, 40)))
    world.assert_the_worker_can_read_what_it_has_to()


def test_a_late_row_that_cuts_an_old_window_limits_the_rest_of_its_batch():
    """With slack 40, row 18 makes windows 19 and 23 matter long after row 43; then there is room up to slot 59.

    rows      0 . . . 8 . . . 43 | 18 70
    """
    family = FAMILY.model_copy(update={"slack": 40})
    world = World([*rows(*range(9)), *rows(43, 18, 70, first_offset=9)], options=Settings(families=[family]))
    world.step(2)
    world.step(8)
    world.acks.score(0, 1000)
    world.take_over()
    world.step(100)
    assert (world.committed, [one.offset for one in world.held]) == (11, [11])
    assert [n.end_slot - BASE for n in world.notices[-2:]] == [19, 23]


def test_most_batches_are_folded_entity_by_entity(monkeypatch):
    """Else the test above would compare row by row with itself."""
    log = [row(slot, 3 * slot + i, entity) for slot in range(40) for i, entity in enumerate(["e1", "e2", "e3"])]
    world, in_order = World(log), []
    monkeypatch.setattr(world.windower, "_fold_in_order", lambda *_, **__: in_order.append(1) or real(*_, **__))
    real = Windower._fold_in_order.__get__(world.windower)
    for _ in range(12):
        world.step(12)
        world.acks.score(0, 1000)
    assert world.committed == len(log)
    assert 1 <= len(in_order) <= 4  # of entities that nobody knew, or while the worker must be asked for room


@given(telemetry())
def test_every_record_is_in_a_window_or_a_dead_letter(log):
    """A row is kept when its slot's window is still to come; the end of a series is what no window covers yet."""
    world = World(log).finish()
    heads = world.windower._partitions[0].entities
    for one in log:
        if one.offset in world.refused:
            continue
        entity = one.key.decode()
        for slot in slots_in(one):
            covered = [
                n
                for n in world.notices
                if n.entity == entity
                and max(n.first_slot, n.end_slot - n.new_slots + 1) <= slot <= n.end_slot
                and n.source.first_offset <= one.offset <= n.source.last_offset  # and not of another life
            ]
            assert len(covered) == 1 or slot > heads[entity].head.emitted_end


@given(telemetry(jumps=False))
def test_rows_that_come_together_make_the_windows_they_make_alone(log):
    """Unless a record is refused: alone, only its late rows would be."""
    world = World(log).finish()
    alone = [
        row(slot - BASE, 0, one.key.decode()) if one.value != b"{" else one
        for one in log
        if one.offset not in world.refused or not one.headers
        for slot in (slots_in(one) if one.value != b"{" else [0])
    ]
    other = World([one._replace(offset=offset) for offset, one in enumerate(alone)]).finish()

    def told(world):
        return [msgspec.structs.replace(n, source=None, trigger_ms=0) for n in world.notices]

    assert told(world) == told(other)
    assert list(world.refused.values()).count("malformed") == list(other.refused.values()).count("malformed")


def test_a_record_of_many_rows_waits_until_there_is_room_for_all_of_them():
    """length 8, slack 16: while window 3 is unscored, there is room up to slot 19."""
    world = World([*rows(*range(18)), block([18, 19], 18), block([20, 22], 19), row(23, 20)])
    world.step(19)
    assert world.committed == 19
    world.step(100)
    assert (world.committed, [one.offset for one in world.held]) == (19, [19, 20])
    other = World([*rows(*range(18)), block([18, 20], 18)])
    other.step(100)
    assert (other.committed, [one.offset for one in other.held]) == (18, [18])
    world.acks.score(0, 1)
    world.step(0)
    assert world.committed == 21


def test_a_record_of_many_rows_of_which_the_first_is_late_is_refused_whole():
    log = [*rows(0, 1, 2, 3, 4), block([3, 5], 5), block([5, 6], 6), block([7, 8], 7)]
    world = World(log).finish()
    assert world.refused == {5: "late"}
    assert [n.rows for n in world.notices] == [4, 8]


@given(telemetry())
def test_refused_records_are_those_that_break_the_contract_or_come_late(log):
    world = World(log).finish()
    reasons = {one.offset: world.refused.get(one.offset) for one in log}
    assert all((reason == "malformed") == (log[offset].value == b"{") for offset, reason in reasons.items())
    assert set(reasons.values()) <= {None, "malformed", "late", "clock_jump"}


def test_a_windower_that_dies_between_write_and_commit_has_announced_nothing():
    world = World(drawn("0 1 2 3 4 5 6 7 8"))
    world.step(9, crash="commit")
    assert (world.committed, world.published) == (0, [])
    assert [n.end_slot - BASE for n in world.finish().notices] == [3, 7]


def test_a_windower_that_dies_before_its_snapshot_repeats_nothing():
    world = World(drawn("0 1 2 3 4 5 6 7 8"))
    world.step(6)
    world.step(3, crash="save_heads")
    assert world.position == 6 < world.committed == 9
    assert [n.end_slot - BASE for n in world.finish().notices] == [3, 7]


def test_what_a_dead_windower_wrote_does_not_count_before_its_turn():
    """Row 9 comes far too late, but is taken, since the window up to 11 had no news until then."""
    world = World(drawn("0 1 . . . . . . . . . . 12 13 9 14 15 16 17"))
    world.step(2)
    world.step(100, crash="commit")
    told = [(n.end_slot - BASE, n.trigger_ms) for n in world.finish().notices]
    assert told == [(3, 2), (7, 2), (11, 4), (15, 7)]
    assert not world.refused


def test_a_wiped_store_is_rebuilt_from_telemetry_and_counted():
    world = World(drawn("0 1 2 3 4 5 6 7 8 9 10 11 12"))
    world.step(7)
    world.step(3, crash="wipe")
    assert world.position == world.low
    assert world.metrics.registry.get_sample_value("telltale_window_rebuilds_total", {"cause": "no_snapshot"}) == 1
    world.step(100)
    world.assert_the_worker_can_read_what_it_has_to()
    assert [n.end_slot - BASE for n in world.finish().notices] == [3, 7, 11]


def test_a_wiped_store_is_noticed_although_no_telemetry_comes():
    """Else the worker would wait for ever for windows that nobody rebuilds."""
    world = World(rows(*range(9)))
    world.windower.check()
    world.step(5)
    before = world.store.load(0)
    world.windower.check()
    assert world.store.load(0) == before
    world.store.wipe()
    with pytest.raises(FencedError):
        world.windower.check()


def test_a_life_older_than_the_oldest_record_is_rebuilt_where_its_windows_are_looked_for():
    """rows      0 . . 5 | 6 . . . 19: retention took 0 to 5, the worker has still to read windows 15 and 19"""
    log = rows(*range(30))
    world, whole = World(log), World(log).finish()
    world.step(20)
    world.acks.score(0, 3)
    world.store.wipe()
    world.low = 6
    world.take_over()
    world.step(100)
    assert world.committed > 20
    world.assert_the_worker_can_read_what_it_has_to()
    assert world.finish().notices == whole.notices


def test_a_windower_waits_for_the_worker_and_goes_on_when_there_is_room():
    """length 8, slack 16: window 3 needs the places of slots -4 to 3, and 20 would take that of -4.

    rows      0 . . . 19 | 20 . . 24 | 25 . .
    worker               | 3         | 7
    """
    world = World(rows(*range(40)))
    for _ in range(3):
        world.step(100)
    assert [one.offset for one in world.held] == list(range(20, 40))
    assert world.committed == 20
    world.assert_the_worker_can_read_what_it_has_to()
    world.acks.score(0, 1)
    world.step(0)
    assert world.committed == 24
    world.acks.score(0, 1)
    world.step(0)
    assert world.committed == 28
    world.assert_the_worker_can_read_what_it_has_to()
    assert World(rows(*range(40))).finish().published == world.finish().published


def test_a_successor_knows_what_the_worker_has_still_to_score():
    world = World(rows(*range(40)))
    world.step(100)
    world.take_over()
    world.step(100)
    assert world.committed == 20
    world.assert_the_worker_can_read_what_it_has_to()


def test_one_entity_that_waits_holds_the_later_records_of_its_partition_and_no_earlier_ones():
    log = [*rows(*range(20)), row(3, 20, "e2"), row(20, 21), row(4, 22, "e2")]
    world = World(log)
    world.step(100)
    assert (world.committed, [one.offset for one in world.held]) == (21, [21, 22])


def test_nothing_is_committed_while_the_first_record_waits():
    world = World(rows(*range(40)))
    world.step(20)
    progress = world.windower.process(world.telemetry[20:22])
    assert (progress.outgoing, progress.next_offsets, len(progress.held)) == ([], {}, 2)


def test_after_a_long_silence_a_new_life_has_a_ring_of_its_own():
    """Its rows touch no window of the old life, scored or not, and the end of the old life becomes final."""
    world = World(drawn("0 1 2 3 4 5 " + ". " * 50 + "56 57 58 59 60"))
    world.step(100)
    world.acks.score(0, 1)
    world.step(0)
    world.assert_the_worker_can_read_what_it_has_to()
    told = [(n.end_slot - BASE, n.new_slots, n.ring - BASE, n.gap_slots) for n in world.notices]
    assert told == [(3, 8, 0, 0), (7, 4, 0, 0), (11, 4, 0, 0), (59, 8, 56, 44)]
    assert world.notices[-1].rows == 4


BOOT = -1_000_000
BOOTS = rows(*range(9), *range(BOOT, BOOT + 11), *range(20, 30), *range(BOOT, BOOT + 11, 2), *range(30, 45))


@given(PLANS)
def test_a_clock_that_is_reset_to_the_same_slot_again_never_meets_the_rows_of_the_time_before(plan):
    """rows      0 . . 8 | boot . . . . | 20 . . 29 | boot, every second slot | 30 . . 44

    Each of the first two rows of a jump is a dead letter, the third begins a life in a ring of its own.
    """
    world = run(BOOTS, plan)
    assert world.published == World(BOOTS).finish().published
    assert set(world.refused.values()) == {"clock_jump"}
    assert sorted(world.refused) == [9, 10, 20, 21, 30, 31, 36, 37]
    lives = [(n.ring, n.first_slot - BASE) for n in world.notices]
    assert {slot for _, slot in lives} == {0, BOOT + 2, 22, BOOT + 4, 32}
    assert len(set(lives)) == len({ring for ring, _ in lives})


def test_jumps_of_a_clock_are_counted_once():
    world = World(BOOTS)
    world.step(15)
    world.step(5, crash="save_heads")
    world.finish()
    assert world.metrics.registry.get_sample_value("telltale_clock_jumps_total") == 4


def test_a_notice_says_where_its_rows_stand_and_when_it_became_ready():
    log = [record(b"{", 0), *rows(0, 1, 3, 2, 4, first_offset=1)]
    world = World(log).finish()
    (notice,) = world.notices
    assert (notice.source.topic, notice.source.partition) == ("telemetry", 0)
    assert (notice.source.first_offset, notice.source.last_offset) == (1, 4)
    assert (notice.entity, notice.family, notice.interval_ms, notice.length) == ("e1", "rover", 1000, 8)
    assert notice.trigger_ms == log[-1].timestamp_ms
    assert [m.key for m in world.published] == [b"e1", b"e1"]


def test_channels_are_stored_in_the_familys_order_and_missing_ones_as_nan():
    world = World(rows(*range(5)))
    world.step(100)
    values = world.window(world.notices[0]).values
    np.testing.assert_array_equal(values[:, 4:], [[0, 1, 2, 3], [np.nan] * 4, [1, 0, 1, 0]])


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (b"junk", b"e1", "malformed"),
        (b"{}", b"e1", "schema"),
        (msgspec.json.encode({"entity": "e1", "ts": BASE, "values": {}}), b"e1", "timestamp"),
        (msgspec.json.encode({"entity": "e1", "ts": BASE * 1000, "values": {"a": 1e308}}), b"e1", "range"),
        (msgspec.json.encode({"entity": "e1", "ts": BASE * 1000, "values": {}}), b"e2", "key"),
        (None, b"e1", "empty"),
    ],
)
def test_a_bad_record_is_put_aside_and_the_next_one_taken(value, key, reason):
    log = [row(0, 0), record(value, 1, key=key), row(1, 2), row(2, 3), row(3, 4), row(4, 5)]
    world = World(log).finish()
    assert world.refused == {1: reason}
    assert world.notices[0].rows == 4
    sample = world.metrics.registry.get_sample_value
    assert sample("telltale_records_rejected_total", {"reason": reason}) == 1
    assert sample("telltale_dead_letters_total", {"reason": reason}) == 1


def test_a_late_row_is_told_apart():
    world = World(drawn("0 1 2 3 4 2 5")).finish()
    assert world.refused == {5: "late"}
    assert world.metrics.registry.get_sample_value("telltale_late_records_total") == 1


def test_entities_beyond_the_limit_are_refused_and_known_ones_stay():
    options = SETTINGS.model_copy(update={"limits": LimitSettings(max_entities_per_partition=2)})
    log = [row(0, 0, "e1"), row(0, 1, "e2"), row(0, 2, "e3"), row(1, 3, "e1")]
    world = World(log, options=options).finish()
    assert world.refused == {2: "entity_limit"}
    assert world.metrics.registry.get_sample_value("telltale_entities_active") == 2
    world.take_over()
    world.telemetry = [*log, row(1, 4, "e2"), row(0, 5, "e4")]
    assert world.finish().refused == {2: "entity_limit", 5: "entity_limit"}


NEWCOMERS = SETTINGS.model_copy(update={"limits": LimitSettings(new_entities_per_minute=2)})


@st.composite
def crowds(draw):
    """Draw rows of many entities over some minutes of the log's time, not quite in order of time."""
    slots = Counter()
    result = []
    for offset in range(draw(st.integers(1, 60))):
        entity = f"e{draw(st.integers(0, 11))}"
        slots[entity] += 1
        at = max(0, 8000 * offset + draw(st.integers(-30_000, 30_000)))
        result.append(row(slots[entity], offset, entity)._replace(timestamp_ms=at))
    return result


@given(crowds(), PLANS)
def test_a_replay_takes_the_same_newcomers(log, plan):
    world, whole = World(log, options=NEWCOMERS), World(log, options=NEWCOMERS).finish()
    for size, fault, scored in plan:
        world.step(size, crash=fault)
        world.acks.score(0, scored)
    assert world.finish().published == whole.published
    taken = {one.key: one.timestamp_ms // 60_000 for one in reversed(log) if one.offset not in whole.refused}
    assert set(whole.refused.values()) <= {"new_entities"}
    assert max(Counter(taken.values()).values()) <= 2


@given(crowds())
def test_a_minute_has_room_for_no_newcomer_that_it_refuses_and_always_for_those_known(log):
    refused = World(log, options=NEWCOMERS).finish().refused
    taken, known = Counter(), set()
    for one in log:
        minute = one.timestamp_ms // 60_000
        expected = one.key not in known and taken[minute] == 2
        assert (one.offset in refused) == expected
        if not expected and one.key not in known:
            known.add(one.key)
            taken[minute] += 1


def test_entities_that_only_look_new_because_the_log_lost_its_beginning_are_rebuilt():
    """rows      a b | c d e a b c d e: retention took the first two, each of the others came in a minute of its own"""
    names = "abcde"
    old = [row(0, i, name)._replace(timestamp_ms=i * 60_000) for i, name in enumerate(names)]
    log = old + [row(1, 5 + i, name)._replace(timestamp_ms=300_000) for i, name in enumerate(names)]
    world = World(log, options=NEWCOMERS).finish()
    world.store.wipe()
    world.low = 5
    world.take_over()
    world.telemetry = [*log, row(2, 10, "a"), row(0, 11, "f")._replace(timestamp_ms=300_000)]
    world.step(100)
    assert set(world.windower._partitions[0].entities) == set(names)
    world.finish()
    assert world.refused == {11: "new_entities"}


def test_a_flood_of_refused_records_is_told_together_and_no_record_is_left_out():
    """Per reason: junk has used up its budget when a late row comes, which has its own letter."""
    options = SETTINGS.model_copy(update={"limits": LimitSettings(dead_letters_per_s=0.2)})
    junk = [record(b"{", 5 + i) for i in range(300)]
    log = [*rows(*range(5)), *junk, row(0, 305), *rows(*range(5, 9), first_offset=306)]
    world = World(log, options=options)
    world.step(1000)
    letters = [m for m in world.published if m.topic == "dead-letters"]
    headers = [msgspec.json.decode(dict(m.headers)[HEADER], type=DeadLetter) for m in letters]
    (summary,) = (m for m, h in zip(letters, headers, strict=True) if h.reason == "dropped")
    dropped = msgspec.json.decode(summary.value, type=DroppedLetters)
    own = Counter(h.reason for h in headers)
    assert own == {"malformed": 2, "late": 1, "dropped": 1}
    assert (dropped.reasons, dropped.first_offset, dropped.last_offset) == ({"malformed": 298}, 7, 304)
    sample = world.metrics.registry.get_sample_value
    assert sample("telltale_records_rejected_total", {"reason": "malformed"}) == 300
    assert sample("telltale_dead_letters_dropped_total", {"reason": "malformed"}) == 298
    assert world.notices == World(log).finish().notices


def test_entities_of_a_family_that_is_no_longer_declared_are_dropped():
    world = World(rows(0, 1, 2)).finish()
    other = FAMILY.model_copy(update={"name": "probe", "entities": "p-*"})
    world.options = Settings(families=[other])
    world.take_over()
    assert world.windower._partitions[0].entities == {}


def test_partitions_are_independent():
    store, acks = InMemoryWindowStore(), FakeAcknowledgements()
    windower = Windower(SETTINGS, store, acks, Metrics(), Health(30.0))
    for partition in (0, 1):
        windower.restore(partition, 0, 0)
    mixed = [r._replace(partition=p) for r in rows(*range(5)) for p in (1, 0)]
    progress = windower.process(mixed)
    assert progress.next_offsets == {0: 5, 1: 5}
    assert Counter(message.partition for message in progress.outgoing) == {0: 1, 1: 1}
    windower.committed([(message, 0) for message in progress.outgoing])
    windower.drop([0])
    assert set(windower._partitions) == {1}
    assert windower.process([r._replace(partition=1) for r in rows(5, first_offset=5)]).next_offsets == {1: 6}


def test_a_fenced_windower_stores_nothing():
    world = World(rows(*range(9)))
    world.step(5)
    world.store.acquire(0)
    before = world.store.load(0)
    with pytest.raises(FencedError):
        world.windower.process(world.telemetry[5:9])
    assert world.store.load(0) == before
    assert world.window(world.notices[0]).rows == 4


def test_a_snapshot_from_the_future_or_from_before_the_oldest_record_is_not_used():
    """The first: somebody set the group's offsets back. The second: retention went past a windower that stood still."""
    world = World(rows(*range(9)))
    world.step(9)
    world.committed = 3
    world.take_over()
    assert world.position == 0
    world = World(rows(*range(9)))
    world.step(5)
    world.low = world.committed = 7
    world.take_over()
    assert world.position == 7
