"""One suite for every window store: the dictionary that unit tests use, and the real thing."""

import threading
import time

import numpy as np
import pytest
import redis

from stream.errors import FencedError, TransientError, UsageError
from stream.ring import Layout
from stream.settings import RedisSettings
from stream.window_store import RingRef, RingWrite, WindowRequest, connect
from tests.fakes import FIRST_SLOT, InMemoryWindowStore

LAYOUT = Layout(12, 2)
HOUR_MS = 3_600_000
RING = RingRef("e1", FIRST_SLOT, LAYOUT)


@pytest.fixture(params=["memory", "redis"])
def store(request):
    if request.param == "memory":
        yield InMemoryWindowStore()
        return
    url, prefix = (request.getfixturevalue(name) for name in ("redis_url", "redis_prefix"))
    store = connect(RedisSettings(url=url, prefix=prefix.strip(":")))
    yield store
    store.close()


@pytest.fixture
def epoch(store):
    return store.acquire(0)


def rows(*slots, ref=RING, ttl_ms=HOUR_MS, value=None):
    """Return a write of rows whose values and offset tell their slot."""
    numbers = [slot if value is None else value for slot in slots]
    values = np.array([(n, -n) for n in numbers], np.float32).reshape(len(slots), 2)
    at = np.array(slots, np.int64) + FIRST_SLOT
    return write(ref, at, np.array(numbers, np.int64), values, ttl_ms)


def write(ref, slots, offsets, values, ttl_ms=HOUR_MS):
    """Return a write of rows of one ring."""
    return RingWrite(ref.layout, ttl_ms, [ref], ref.layout.encode(np.zeros_like(slots), slots, offsets, values))


def window(store, end=11, length=12, *, ref=RING, partition=0):
    return store.read_windows([WindowRequest(partition, ref, FIRST_SLOT + end, length)])[0]


def seen(store, end=11, length=12, **more):
    """Return the slots that hold a row, by the value of their first channel."""
    values = window(store, end, length, **more).values[0]
    return [int(value) for value in values[~np.isnan(values)]]


def test_what_is_written_is_read_and_the_rest_is_missing(store, epoch):
    store.write_rows(0, epoch, [rows(0, 1, 2, 5)])
    values, count = window(store, end=6, length=4)
    np.testing.assert_array_equal(values, np.array([[np.nan, np.nan, 5, np.nan], [np.nan, np.nan, -5, np.nan]]))
    assert (values.dtype, count) == (np.float32, 1)
    assert seen(store) == [0, 1, 2, 5]


def test_windows_are_read_in_the_order_they_were_asked_for(store, epoch):
    other = RingRef("e2", FIRST_SLOT, LAYOUT)
    store.write_rows(0, epoch, [rows(0, 1), rows(0, 1, 2, ref=other)])
    requests = [WindowRequest(0, ref, FIRST_SLOT + 3, 4) for ref in (other, RING, other)]
    assert [found.rows for found in store.read_windows(requests)] == [3, 2, 3]
    assert store.read_windows([]) == []
    assert store.read_indexes(0, []) == []


def test_missing_values_are_kept_and_their_row_counts(store, epoch):
    slots = np.array([FIRST_SLOT + 3])
    values = np.array([[np.nan, 1e-42]], np.float32)
    store.write_rows(0, epoch, [write(RING, slots, slots, values)])
    values, count = window(store, end=3, length=2)
    assert count == 1
    np.testing.assert_array_equal(values[:, 1], np.array([np.nan, 1e-42], np.float32))


def test_a_stale_lap_is_missing(store, epoch):
    """rows      0 1 2 3 . . . . . . . . | 12 13 . . in the places of 0 1 2 3"""
    store.write_rows(0, epoch, [rows(0, 1, 2, 3)])
    store.write_rows(0, epoch, [rows(12, 13)])
    assert seen(store, end=15) == [12, 13]
    assert seen(store, end=11) == [2, 3]
    assert window(store, end=1, length=2).rows == 0


def test_a_window_may_wrap(store, epoch):
    store.write_rows(0, epoch, [rows(*range(6, 18))])
    for end in range(6, 18):
        assert seen(store, end=end, length=5) == [slot for slot in range(end - 4, end + 1) if slot >= 6]


def test_writing_rows_again_changes_nothing(store, epoch):
    for _ in range(2):
        store.write_rows(0, epoch, [rows(0, 1, 2)])
        assert seen(store) == [0, 1, 2]
        assert [part.tolist() for part in store.read_indexes(0, [RING])[0]] == [
            [FIRST_SLOT, FIRST_SLOT + 1, FIRST_SLOT + 2],
            [0, 1, 2],
        ]


def test_the_last_of_two_rows_with_one_slot_counts(store, epoch):
    store.write_rows(0, epoch, [rows(3)])
    store.write_rows(0, epoch, [rows(3, value=7)])
    assert seen(store) == [7]
    assert store.read_indexes(0, [RING])[0][1].tolist() == [7]


def test_rings_of_other_lives_entities_and_partitions_are_apart(store, epoch):
    others = [RING._replace(ring=FIRST_SLOT + 1), RING._replace(entity="e1:"), RING._replace(entity="e2")]
    store.write_rows(0, epoch, [rows(0), *(rows(n, ref=ref) for n, ref in enumerate(others, 1))])
    store.write_rows(1, store.acquire(1), [rows(9)])
    assert seen(store) == [0]
    assert [seen(store, ref=ref) for ref in others] == [[1], [2], [3]]
    assert seen(store, partition=1) == [9]
    assert [len(slots) for slots, _ in store.read_indexes(0, [RING, *others])] == [1, 1, 1, 1]


def test_a_ring_that_is_gone_or_never_was_has_no_rows(store):
    values, count = window(store)
    assert (count, values.shape) == (0, (2, 12))
    assert np.isnan(values).all()
    slots, offsets = store.read_indexes(0, [RING])[0]
    assert (len(slots), len(offsets)) == (0, 0)


def test_a_new_partition_has_no_snapshot(store):
    assert store.load(0) == (None, {})


def test_a_snapshot_keeps_changed_heads_and_the_next_offset(store, epoch):
    store.save_heads(0, epoch, 5, {"e1": b"\x00\xff", "e2": b"b"})
    store.save_heads(0, epoch, 9, {"e2": b"c"})
    assert store.load(0) == (9, {"e1": b"\x00\xff", "e2": b"c"})
    store.save_heads(0, epoch, 12, {})
    assert store.load(0) == (12, {"e1": b"\x00\xff", "e2": b"c"})
    assert store.load(1) == (None, {})


def test_a_newer_owner_fences_an_older_one_as_a_whole(store, epoch):
    """Nothing of what a zombie sends is stored, and the new owner is not disturbed."""
    store.write_rows(0, epoch, [rows(0)])
    store.save_heads(0, epoch, 1, {"e1": b"a"})
    newer = store.acquire(0)
    assert newer > epoch
    with pytest.raises(FencedError, match="partition 0"):
        store.write_rows(0, epoch, [rows(1), rows(2, ref=RING._replace(entity="e2"))])
    with pytest.raises(FencedError, match="partition 0"):
        store.save_heads(0, epoch, 2, {"e1": b"b"})
    assert seen(store) == [0]
    assert window(store, ref=RING._replace(entity="e2")).rows == 0
    assert store.load(0) == (1, {"e1": b"a"})
    store.write_rows(0, newer, [rows(1)])
    store.save_heads(0, newer, 2, {})
    assert seen(store) == [0, 1]


def test_nobody_writes_who_never_took_over(store):
    for write in (lambda: store.write_rows(0, 1, [rows(0)]), lambda: store.save_heads(0, 1, 1, {})):
        with pytest.raises(FencedError):
            write()
    assert store.load(0).next_offset is None


def test_owning_one_partition_gives_no_right_to_another(store, epoch):
    other = store.acquire(1)
    store.acquire(1)
    assert store.acquire(0) > epoch
    with pytest.raises(FencedError):
        store.write_rows(1, other, [rows(0)])


def test_of_many_owners_at_once_only_the_last_may_write(store):
    epochs = in_threads(8, lambda _: store.acquire(0))
    assert len(set(epochs)) == 8
    for epoch in sorted(epochs)[:-1]:
        with pytest.raises(FencedError):
            store.save_heads(0, epoch, 1, {})
    store.save_heads(0, max(epochs), 1, {})


def test_a_reader_never_sees_heads_without_their_offset(store, epoch):
    """A successor that loads while its predecessor still saves gets one snapshot, not halves of two."""
    store.save_heads(0, epoch, 0, {"e1": b"0", "e2": b"0"})

    def work(number):
        if number == 0:
            for offset in range(1, 200):
                store.save_heads(0, epoch, offset, {"e1": b"%d" % offset, "e2": b"%d" % offset})
            return set()
        return {(s.next_offset, int(s.heads["e1"]), int(s.heads["e2"])) for s in (store.load(0) for _ in range(200))}

    for found in in_threads(3, work):
        assert all(offset == one == two for offset, one, two in found)


def in_threads(count, work):
    results = [None] * count

    def run(number):
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def real(redis_url, redis_prefix):
    store = connect(RedisSettings(url=redis_url, prefix=redis_prefix.strip(":")))
    yield store
    store.close()


def test_the_dictionary_does_what_redis_does(real):
    """The same random work on both: batches of rows out of order over many laps, read back everywhere."""
    generator = np.random.default_rng(0)
    stores = [InMemoryWindowStore(), real]
    epochs = [store.acquire(0) for store in stores]
    newest = 0
    for batch in range(60):
        slots = newest + generator.integers(-11, 4, generator.integers(1, 9))
        slots = slots[slots >= 0]
        newest = max([newest, *slots.tolist()])
        if len(slots):
            for store, epoch in zip(stores, epochs, strict=True):
                store.write_rows(0, epoch, [rows(*slots.tolist(), value=batch)])
        length = int(generator.integers(1, 13))
        one, other = (window(store, end=newest, length=length) for store in stores)
        np.testing.assert_array_equal(one.values, other.values)
        assert one.rows == other.rows
        for mine, theirs in zip(*(store.read_indexes(0, [RING])[0] for store in stores), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_an_idle_ring_is_forgotten_and_every_row_keeps_it(real, redis_url):
    epoch = real.acquire(0)
    real.write_rows(0, epoch, [rows(0, ttl_ms=HOUR_MS)])
    client = redis.Redis.from_url(redis_url)
    (key,) = real._ring_keys(0, [RING])
    assert 0 < client.pttl(key) <= HOUR_MS
    real.write_rows(0, epoch, [rows(1, ttl_ms=2 * HOUR_MS)])
    assert client.pttl(key) > HOUR_MS
    assert client.strlen(key) == LAYOUT.size
    real.write_rows(0, epoch, [rows(2, ttl_ms=1)])
    while client.exists(key):
        time.sleep(0.01)
    assert window(real).rows == 0
    client.close()


def test_a_ring_takes_little_more_memory_than_its_bytes(real, redis_url):
    """Whatever of it is written first: a string that grew would be given twice as much."""
    ref = RingRef("large", FIRST_SLOT, Layout(1000, 20))
    values = np.ones((3, 20), np.float32)
    slots = FIRST_SLOT + np.arange(3)
    real.write_rows(0, real.acquire(0), [write(ref, slots, slots, values)])
    client = redis.Redis.from_url(redis_url)
    assert client.memory_usage(real._ring_keys(0, [ref])[0]) < 1.3 * ref.layout.size
    client.close()


def test_all_keys_of_a_partition_are_in_one_slot_of_a_cluster_and_under_the_prefix(real, redis_url, redis_prefix):
    real.write_rows(3, real.acquire(3), [rows(0), rows(0, ref=RING._replace(entity="e/2"))])
    real.save_heads(3, real.acquire(3), 1, {"e1": b"x"})
    client = redis.Redis.from_url(redis_url)
    keys = [key.decode() for key in client.scan_iter(f"*{redis_prefix.strip(':')}*")]
    client.close()
    assert len(keys) == 5
    assert all(key.startswith(f"{{{redis_prefix.strip(':')}:3}}:") for key in keys)


def test_a_server_that_is_away_is_worth_a_retry():
    store = connect(RedisSettings(url="redis://:hunter2@127.0.0.1:1/0", timeout_s=0.5))
    for call in (lambda: store.acquire(0), lambda: store.load(0), lambda: window(store), store.check):
        with pytest.raises(TransientError, match="Redis did not answer") as caught:
            call()
        assert "hunter2" not in str(caught.value)
    store.close()


@pytest.mark.parametrize("url", ["", "host:6379", "http://:hunter2@host", "redis://:hunt/er2@host:x"])
def test_an_address_that_is_none_is_bad_usage_and_stays_secret(url):
    with pytest.raises(UsageError, match="TELLTALE_REDIS__URL") as caught:
        connect(RedisSettings(url=url))
    assert "hunt" not in str(caught.value)


@pytest.fixture(scope="module")
def private_url(fault_stack):
    return fault_stack.start_redis()


@pytest.fixture
def private(private_url):
    """A store on a server of this module's own, which may be flushed and misconfigured."""
    client = redis.Redis.from_url(private_url)
    client.flushall()
    store = connect(RedisSettings(url=private_url))
    yield store, client
    store.close()
    client.close()


def test_after_everything_is_lost_old_epochs_are_still_old(private):
    store, client = private
    epochs = [store.acquire(0), store.acquire(0)]
    store.write_rows(0, epochs[-1], [rows(0)])
    client.flushall()
    assert window(store).rows == 0
    assert store.load(0) == (None, {})
    with pytest.raises(FencedError):
        store.write_rows(0, epochs[-1], [rows(1)])
    assert store.acquire(0) > max(epochs)
    with pytest.raises(FencedError):
        store.save_heads(0, epochs[-1], 1, {})


def test_scripts_that_were_forgotten_are_sent_again(private):
    store, client = private
    epoch = store.acquire(0)
    client.script_flush()
    store.write_rows(0, epoch, [rows(0)])
    client.script_flush()
    store.save_heads(0, epoch, 1, {"e1": b"a"})
    assert (seen(store), store.load(0).next_offset) == ([0], 1)


def test_a_server_that_may_drop_windows_by_itself_is_refused(private):
    store, client = private
    store.check()
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(UsageError, match="wants maxmemory-policy noeviction, got allkeys-lru"):
            store.check()
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_a_full_server_is_worth_a_retry_and_keeps_what_it_has(private):
    store, client = private
    epoch = store.acquire(0)
    store.write_rows(0, epoch, [rows(0)])
    store.save_heads(0, epoch, 1, {"e1": b"a"})
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(TransientError, match="Redis refused write_rows"):
            store.write_rows(0, epoch, [rows(1)])
        with pytest.raises(TransientError, match="Redis refused save_heads"):
            store.save_heads(0, epoch, 2, {"e1": b"b"})
    finally:
        client.config_set("maxmemory", 0)
    assert (seen(store), store.load(0)) == ([0], (1, {"e1": b"a"}))
    store.write_rows(0, epoch, [rows(1)])
    assert seen(store) == [0, 1]
