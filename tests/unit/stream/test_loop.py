from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream.errors import TransientError
from stream.kafka import Outgoing
from stream.loop import LoopConfig, Progress, TransactionalLoop
from stream.metrics import Health, Metrics
from stream.settings import KafkaSettings

CONFIG = LoopConfig("telemetry", "group", "group-0", 10, 0.2)


class Broker:
    """A topic, its group's committed offsets, and everything that the clients were asked to do."""

    def __init__(self, *partitions):
        self.ends = dict.fromkeys(partitions, 10)
        self.low = dict.fromkeys(partitions, 0)
        self.committed = {}
        self.sent = []
        self.calls = []
        self.fail = {}  # operation -> error code, once
        self.queue = []  # batches of (partition, offset), or functions of the consumer
        self.consumers = self.producers = 0

    def enter(self, operation):
        self.calls.append(operation)
        if operation in self.fail:
            raise KafkaException(KafkaError(self.fail.pop(operation)))


def message(partition, offset):
    return SimpleNamespace(
        error=lambda: None,
        topic=lambda: "telemetry",
        partition=lambda: partition,
        offset=lambda: offset,
        key=lambda: b"e1",
        value=lambda: b"%d" % offset,
        timestamp=lambda: (1, offset),
        headers=lambda: None,
    )


class Consumer:
    """Delivers what the broker has queued, of partitions that are assigned and not paused."""

    def __init__(self, broker):
        self.broker = broker
        self.paused = set()
        self.positions = {}
        broker.consumers += 1

    def subscribe(self, topics, on_assign, on_revoke):
        assert topics == ["telemetry"]
        self.on_assign, self.on_revoke = on_assign, on_revoke
        self.assign(*self.broker.ends)

    def assign(self, *partitions):
        self.on_assign(self, [TopicPartition("telemetry", p) for p in partitions])

    def revoke(self, *partitions):
        self.on_revoke(self, [TopicPartition("telemetry", p) for p in partitions])

    def incremental_assign(self, places):
        self.positions |= {place.partition: place.offset for place in places}

    def incremental_unassign(self, places):
        for place in places:
            del self.positions[place.partition]

    def committed(self, places, timeout):
        self.broker.enter("committed")
        place = places[0]
        return [TopicPartition(place.topic, place.partition, self.broker.committed.get(place.partition, -1001))]

    def get_watermark_offsets(self, place, timeout=None, cached=False):
        return self.broker.low[place.partition], self.broker.ends[place.partition]

    def consume(self, count, timeout):
        self.broker.enter("consume")
        wanted = self.broker.queue.pop(0) if self.broker.queue else []
        if callable(wanted):
            return [message(p, o) for p, o in wanted(self) or []]
        return [message(p, o) for p, o in wanted if p in self.positions and p not in self.paused]

    def pause(self, places):
        self.paused |= {place.partition for place in places}

    def resume(self, places):
        self.paused -= {place.partition for place in places}

    def consumer_group_metadata(self):
        return "metadata"

    def close(self):
        self.broker.enter("close")


class Producer:
    """Publishes at the commit and not before."""

    def __init__(self, broker):
        self.broker = broker
        self.open, self.offsets = [], []
        broker.producers += 1

    def init_transactions(self, timeout):
        self.broker.enter("init")

    def begin_transaction(self):
        self.broker.enter("begin")

    def produce(self, topic, on_delivery, **message):
        self.broker.enter("produce")
        self.open.append((topic, message, on_delivery))

    def poll(self, timeout):
        pass

    def send_offsets_to_transaction(self, offsets, metadata, timeout):
        assert metadata == "metadata"
        self.broker.enter("offsets")
        self.offsets = offsets

    def commit_transaction(self, timeout):
        self.broker.enter("commit")
        for topic, sent, on_delivery in self.open:
            place = len(self.broker.sent)
            self.broker.sent.append((topic, sent["value"]))
            on_delivery(None, SimpleNamespace(offset=lambda place=place: place))
        self.broker.committed |= {place.partition: place.offset for place in self.offsets}
        self.open, self.offsets = [], []

    def abort_transaction(self, timeout):
        self.broker.enter("abort")
        self.open, self.offsets = [], []


class Echo:
    """A stage that publishes every record, counts how often each was worked on, and holds what it is told to."""

    def __init__(self):
        self.restored, self.replayed, self.worked, self.done, self.dropped = [], [], [], [], []
        self.owned = set()
        self.start_at = {}
        self.hold = set()
        self.raising = []

    def restore(self, partition, committed, low):
        self.restored.append((partition, committed, low))
        self.owned.add(partition)
        return self.start_at.get(partition, committed)

    def replay(self, partition, records):
        self.replayed += [(partition, r.offset) for r in records]

    def process(self, records):
        assert {r.partition for r in records} <= self.owned
        if self.raising:
            raise self.raising.pop()
        done, held = [], []
        for record in records:
            holding = (
                any(h.partition == record.partition for h in held) or (record.partition, record.offset) in self.hold
            )
            (held if holding else done).append(record)
        self.worked += [(r.partition, r.offset) for r in done]
        outgoing = [Outgoing("scores", r.partition, r.key, b"%d/%d" % (r.partition, r.offset)) for r in done]
        return Progress(outgoing, {r.partition: r.offset + 1 for r in done}, held)

    def committed(self, delivered):
        self.done.append([(message.value, offset) for message, offset in delivered])

    def check(self):
        pass

    def drop(self, partitions):
        self.dropped += partitions
        self.owned -= set(partitions)


@pytest.fixture
def world(monkeypatch):
    """A broker with two partitions, the stage and the loop between them; no call waits."""
    broker, stage = Broker(0, 1), Echo()
    monkeypatch.setattr("stream.loop.make_consumer", lambda config: Consumer(broker))
    monkeypatch.setattr("stream.loop.make_producer", lambda config: Producer(broker))
    monkeypatch.setattr("stream.loop.wait_for_broker", lambda settings, **_: broker.enter("wait"))
    monkeypatch.setattr("stream.loop.time.sleep", lambda seconds: broker.calls.append("sleep"))
    metrics, health = Metrics(), Health(30.0)
    kafka = KafkaSettings(bootstrap="nowhere:1", reconnect_deadline_s=0.2)
    loop = TransactionalLoop(kafka, CONFIG, stage, metrics, health)
    return SimpleNamespace(broker=broker, stage=stage, loop=loop, metrics=metrics, health=health, idle=0)


def run(world, *, turns=1):
    """Loop until the queue has been empty for some turns."""

    def stopping():
        world.idle = 0 if world.broker.queue else world.idle + 1
        return world.idle > turns

    world.loop.run(stopping)


def sample(world, name, **labels):
    return world.metrics.registry.get_sample_value(f"telltale_{name}", labels)


def test_what_was_produced_and_how_far_it_got_are_one_transaction(world):
    """The order of the five steps is the guarantee; the stage learns of it only afterwards."""
    world.broker.queue = [[(0, 0), (0, 1), (1, 0)]]
    run(world)
    calls = [c for c in world.broker.calls if c not in ("consume", "committed", "wait", "init", "close")]
    assert calls == ["begin", "produce", "produce", "produce", "offsets", "commit"]
    assert world.broker.sent == [("scores", b"0/0"), ("scores", b"0/1"), ("scores", b"1/0")]
    assert world.broker.committed == {0: 2, 1: 1}
    assert world.stage.done == [[(b"0/0", 0), (b"0/1", 1), (b"1/0", 2)]]


@pytest.mark.parametrize("step", ["begin", "produce", "offsets", "commit"])
def test_a_transaction_that_fails_is_aborted_forgotten_and_done_again(world, step):
    world.broker.fail = {step: KafkaError._TIMED_OUT}
    world.broker.queue = [[(0, 0)], [(0, 0)]]
    run(world)
    assert "abort" in world.broker.calls
    assert world.broker.producers == world.broker.consumers == 2
    assert world.stage.worked == [(0, 0), (0, 0)]
    assert world.stage.done == [[(b"0/0", 0)]]
    assert world.broker.sent == [("scores", b"0/0")]
    assert sorted(world.stage.dropped[:2]) == [0, 1]
    assert sample(world, "txn_aborts_total") == 1


def test_an_abort_that_fails_too_changes_nothing(world):
    world.broker.fail = {"commit": KafkaError._TIMED_OUT, "abort": KafkaError._STATE}
    world.broker.queue = [[(0, 0)], [(0, 0)]]
    run(world)
    assert world.broker.sent == [("scores", b"0/0")]


def test_a_stage_that_cannot_work_now_joins_again_and_starts_at_what_is_committed(world):
    world.broker.queue = [
        [(0, 0)],
        lambda _: world.stage.raising.append(TransientError("Redis is away")),
        [(0, 1)],
        [(0, 1)],
    ]
    run(world)
    assert world.broker.sent == [("scores", b"0/0"), ("scores", b"0/1")]
    assert world.stage.restored == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 0)]


def test_a_bug_ends_the_loop_at_once_and_commits_nothing(world):
    world.stage.raising = [ZeroDivisionError("bug")]
    world.broker.queue = [[(0, 0)], [(0, 0)]]
    with pytest.raises(ZeroDivisionError):
        run(world)
    assert (world.broker.committed, world.broker.sent) == ({}, [])
    assert world.broker.calls[-1] == "close"
    assert world.stage.owned == set()


def test_a_failure_that_lasts_ends_the_loop(world, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("stream.loop.time.monotonic", lambda: next(clock) * 0.01)
    world.stage.process = lambda records: (_ for _ in ()).throw(TransientError("Redis is away"))
    world.broker.queue = [[(0, 0)]] * 100
    with pytest.raises(TransientError, match="Redis is away"):
        run(world)
    assert world.broker.consumers > 1


def test_failures_between_which_something_is_committed_never_end_the_loop(world, monkeypatch):
    """As when a member is thrown out of its group again and again: the deadline is for times in which nothing works."""
    clock = iter(range(100_000))
    monkeypatch.setattr("stream.loop.time.monotonic", lambda: next(clock) * 0.01)
    for number in range(100):
        fail = lambda _: world.stage.raising.append(TransientError("Redis is away"))  # noqa: E731
        world.broker.queue += [[(0, number)], fail, [(0, number + 1)]]
    run(world)
    assert world.broker.committed == {0: 100}
    assert world.broker.consumers > 50


def away(consumer):
    raise TransientError("Redis is away")


def test_failures_between_which_records_are_replayed_never_end_the_loop(world, monkeypatch):
    """As when a long rebuild is interrupted again and again."""
    clock = iter(range(100_000))
    monkeypatch.setattr("stream.loop.time.monotonic", lambda: next(clock) * 0.01)
    world.broker.committed, world.broker.ends[0], world.stage.start_at = {0: 100}, 100, {0: 0}
    for number in range(100):
        world.broker.queue += [[(0, number)], away]
    run(world)
    assert world.stage.replayed == [(0, number) for number in range(100)]


def test_failures_between_which_records_wait_for_room_never_end_the_loop(world, monkeypatch):
    """As when the worker is slow: a windower that waits for it works."""
    clock = iter(range(100_000))
    monkeypatch.setattr("stream.loop.time.monotonic", lambda: next(clock) * 0.01)
    world.stage.hold = {(0, 0)}
    for _ in range(100):
        world.broker.queue += [[(0, 0)], away]
    run(world)
    assert world.broker.consumers > 50


def test_records_below_the_committed_offset_are_replayed_silently(world):
    """start 3 | committed 5: 3 and 4 have been published, 5 has not"""
    world.broker.committed = {0: 5}
    world.broker.ends[0] = 6
    world.stage.start_at = {0: 3}
    world.broker.queue = [[(0, 3)], [(0, 4), (0, 5), (1, 0)]]
    run(world)
    assert world.stage.replayed == [(0, 3), (0, 4)]
    assert world.broker.sent == [("scores", b"0/5"), ("scores", b"1/0")]
    assert world.broker.committed == {0: 6, 1: 1}


def test_held_records_come_again_first_and_their_partition_is_paused_until_they_are_done(world):
    paused = []

    def look(consumer):
        paused.append(set(consumer.paused))

    def free(consumer):
        look(consumer)
        world.stage.hold = set()

    world.stage.hold = {(0, 1)}
    world.broker.queue = [[(0, 0), (0, 1), (0, 2), (1, 0)], look, [(0, 9), (1, 1)], free, look, [(0, 3)]]
    run(world)
    assert [o for p, o in world.stage.worked if p == 0] == [0, 1, 2, 3]
    assert [o for p, o in world.stage.worked if p == 1] == [0, 1]
    assert paused == [{0}, {0}, set()]
    assert world.broker.committed == {0: 4, 1: 2}
    assert sample(world, "paused_partitions") == 0


def test_waiting_for_others_commits_nothing_and_keeps_the_loop_live(world):
    world.stage.hold = {(0, 0)}
    world.broker.queue = [[(0, 0)], [], []]
    run(world)
    assert "begin" not in world.broker.calls
    assert "sleep" in world.broker.calls
    assert world.health.live()[0]


def test_large_records_are_taken_fewer_at_a_time(world, monkeypatch):
    """One batch late, since how large they are is known when they have come."""
    world.loop._config = CONFIG._replace(batch_s=1e9)
    monkeypatch.setattr("stream.loop._BATCH_BYTES", 12)
    asked = []
    consume = Consumer.consume
    monkeypatch.setattr(Consumer, "consume", lambda self, n, timeout: asked.append(n) or consume(self, n, timeout))
    world.broker.queue = [[(0, 0), (0, 1)], [(0, 2), (0, 1000)], [(0, 123456789012345)], []]
    run(world)
    assert asked[:4] == [1, 10, 4, 1]


def test_what_was_held_of_a_revoked_partition_is_somebody_elses_work(world):
    world.stage.hold = {(0, 0)}
    world.broker.queue = [[(0, 0)], lambda consumer: consumer.revoke(0), [(1, 0)]]
    run(world)
    assert world.stage.worked == [(1, 0)]
    assert world.stage.dropped[0] == 0


def test_a_partition_that_left_while_it_was_paused_is_read_when_it_comes_back(world):
    """A pause belongs to the client, not to the assignment."""
    world.stage.hold = {(0, 0)}

    def come_back(consumer):
        assert consumer.paused == {0}
        world.stage.hold = set()
        consumer.assign(0)

    world.broker.queue = [[(0, 0)], lambda consumer: consumer.revoke(0), come_back, [(0, 0)]]
    run(world)
    assert world.stage.worked == [(0, 0)]
    assert world.broker.committed == {0: 1}


def test_records_of_a_partition_that_is_not_ours_any_more_are_left_alone(world):
    world.broker.queue = [lambda consumer: consumer.revoke(0) or [(0, 0), (1, 0)]]
    run(world)
    assert world.stage.worked == [(1, 0)]
    assert world.broker.committed == {1: 1}


@pytest.mark.parametrize(
    ("known", "low", "end", "start", "rebuilds"),
    [
        (None, 3, 9, 3, None),  # a new group begins at the oldest record
        (5, 3, 9, 5, None),
        (9, 3, 9, 9, None),
        (3, 3, 9, 3, None),
        (2, 3, 9, 3, 1),  # retention went past us
        (10, 0, 4, 0, 1),  # the topic was made anew
    ],
)
def test_where_a_partition_starts(world, known, low, end, start, rebuilds):
    world.broker.low[0], world.broker.ends[0] = low, end
    if known is not None:
        world.broker.committed[0] = known
    run(world)
    assert world.stage.restored[0] == (0, start, low)
    assert sample(world, "window_rebuilds_total", cause="offset_gone") == rebuilds


def test_a_loop_that_is_told_to_stop_finishes_its_batch_and_leaves_the_group(world):
    asked = iter([False, False, True, True])
    world.broker.queue = [[(0, 0)], [(0, 1)]]
    world.loop.run(lambda: next(asked))
    assert world.broker.committed == {0: 1}
    assert world.broker.calls[-1] == "close"
    assert world.stage.owned == set()


def test_a_service_is_ready_while_it_has_its_partitions(world):
    seen = []
    world.broker.queue = [lambda _: seen.append(world.health.ready()[0]), [(0, 0)]]
    world.broker.fail = {"commit": KafkaError._TIMED_OUT}
    rejoining = world.broker.enter

    def enter(operation):
        if operation == "wait" and world.broker.consumers:
            seen.append(world.health.ready()[0])
        rejoining(operation)

    world.broker.enter = enter
    run(world)
    assert seen == [True, False]
    assert world.health.ready()[0]


def test_a_partition_that_went_to_another_process_has_its_lag_told_there(world):
    world.broker.ends = {0: 7, 1: 0}
    world.stage.hold = {(0, 0)}
    world.broker.queue = [[(0, 0)], lambda consumer: consumer.revoke(0)]
    run(world, turns=0)
    assert sample(world, "consumer_lag_records", partition="0") is None
    assert sample(world, "paused_partitions") == 0


def test_lag_is_what_is_behind_the_committed_offset(world):
    world.broker.ends = {0: 7, 1: 0}
    world.broker.committed = {0: 4}
    lags = []
    world.broker.queue = [
        [],
        lambda _: lags.extend(sample(world, "consumer_lag_records", partition=partition) for partition in "01"),
    ]
    run(world)
    assert lags == [3, 0]


class Keeper(Echo):
    """A stage that keeps records and does them when it is given none."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def process(self, records):
        if records:
            self.kept += records
            return Progress([], {}, [])
        kept, self.kept = self.kept, []
        return super().process(kept)


@pytest.fixture
def keeping(world):
    """The same world with a stage that keeps records."""
    world.stage = Keeper()
    config = CONFIG._replace(keeps_records=True)
    world.loop = TransactionalLoop(
        KafkaSettings(bootstrap="nowhere:1"), config, world.stage, world.metrics, world.health
    )
    return world


def test_a_stage_that_keeps_records_does_them_at_the_end(keeping):
    keeping.broker.queue = [[], [(0, 0), (1, 0)], [(0, 1)]]
    run(keeping)
    assert keeping.broker.committed == {0: 2, 1: 1}
    assert keeping.broker.calls[-1] == "close"
    assert keeping.broker.producers == 1


def test_a_stage_that_keeps_records_may_do_them_once_a_second_while_none_come(keeping, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("stream.loop.time.monotonic", lambda: float(next(clock)))
    committed = []
    keeping.broker.queue = [[(0, 0)], [], lambda _: committed.append(dict(keeping.broker.committed)), [(0, 1)]]
    run(keeping)
    assert committed == [{0: 1}]
    assert keeping.broker.committed == {0: 2}


def test_what_a_stage_kept_of_a_partition_that_left_is_not_committed(keeping):
    def leave(consumer):
        consumer.revoke(0)
        keeping.stage.kept = [one for one in keeping.stage.kept if one.partition != 0]

    keeping.broker.queue = [[(0, 0), (1, 0)], leave]
    run(keeping)
    assert keeping.broker.committed == {1: 1}


def test_other_stages_are_never_given_an_empty_batch(world):
    worked = []
    process = world.stage.process
    world.stage.process = lambda records: worked.append(len(records)) or process(records)
    world.broker.queue = [[], [(0, 0)], []]
    run(world)
    assert worked == [1]
