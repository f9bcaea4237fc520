"""What we rely on a real broker for: reading up to an end that is certain, and outputs that come with their offsets."""

import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic

from stream.dead_letters import HEADER, dead_letter
from stream.errors import ContractError, TransientError
from stream.kafka import (
    Outgoing,
    consumer_config,
    make_admin,
    make_consumer,
    make_producer,
    producer_config,
    read_to_end,
)
from stream.loop import LoopConfig, Progress, TransactionalLoop
from stream.metrics import Health, Metrics
from stream.settings import KafkaSettings

WAIT_S = 60.0
PARTITIONS = 2


class Bench:
    """Two topics of one test, and clients for them."""

    def __init__(self, bootstrap, prefix):
        self.kafka = KafkaSettings(bootstrap=bootstrap, reconnect_deadline_s=30)
        self.prefix = prefix
        self.source, self.target = f"{prefix}in", f"{prefix}out"
        self.admin = make_admin(self.kafka)
        made = self.admin.create_topics([NewTopic(t, PARTITIONS, 1) for t in (self.source, self.target)])
        for future in made.values():
            future.result(30)

    def transaction(self, name, *values, topic=None, partition=0):
        """Return a producer with these records in an open transaction, delivered to the broker."""
        producer = make_producer(producer_config(self.kafka, f"{self.prefix}{name}"))
        producer.init_transactions(30)
        producer.begin_transaction()
        for value in values:
            producer.produce(topic or self.source, value, partition=partition)
        assert producer.flush(30) == 0
        return producer

    def send(self, *values, partition=0, **more):
        producer = make_producer(producer_config(self.kafka))
        for value in values:
            producer.produce(self.source, value, partition=partition, **more)
        assert producer.flush(30) == 0

    def read(self, topic=None, partition=0, **more):
        return [r.value for r in read_to_end(self.kafka, topic or self.source, partition, **more)]

    def outputs(self):
        return [value for p in range(PARTITIONS) for value in self.read(self.target, p)]

    def committed(self, partition=0):
        consumer = make_consumer(consumer_config(self.kafka, f"{self.prefix}group"))
        try:
            return consumer.committed([TopicPartition(self.source, partition)], timeout=30)[0].offset
        finally:
            consumer.close()


@pytest.fixture
def bench(kafka_bootstrap, topic_prefix):
    return Bench(kafka_bootstrap, topic_prefix)


def test_an_empty_partition_has_an_end(bench):
    assert bench.read() == []


def test_reading_ends_although_the_last_offset_is_never_delivered(bench):
    """Commit markers take offsets of their own: 0 a, 1 marker, 2 b, 3 c, 4 marker."""
    bench.transaction("p", b"a").commit_transaction(30)
    bench.transaction("p", b"b", b"c").commit_transaction(30)
    assert bench.read() == [b"a", b"b", b"c"]


def test_what_was_aborted_is_never_seen_at_the_end_or_anywhere_else(bench):
    bench.transaction("p", b"lost").abort_transaction(30)
    assert bench.read() == []
    bench.transaction("p", b"a").commit_transaction(30)
    bench.transaction("p", b"lost").abort_transaction(30)
    bench.transaction("q", b"b").commit_transaction(30)
    bench.transaction("p", b"lost", b"lost").abort_transaction(30)
    assert bench.read() == [b"a", b"b"]


def test_reading_starts_where_it_is_told_to(bench):
    bench.send(b"0", b"1", b"2", b"3")
    assert bench.read(first=2) == [b"2", b"3"]
    assert bench.read(first=4) == []
    assert bench.read(first=99) == []
    bench.admin.delete_records([TopicPartition(bench.source, 0, 3)])[TopicPartition(bench.source, 0)].result(30)
    assert bench.read() == [b"3"]
    assert bench.read(first=1) == [b"3"]


def test_partitions_have_ends_of_their_own(bench):
    bench.send(b"a", partition=1)
    assert (bench.read(partition=0), bench.read(partition=1)) == ([], [b"a"])


def test_what_others_committed_behind_an_open_transaction_is_waited_for(bench):
    """offsets      0 open ... | 1 committed | 2 marker: whoever reads must not stop at 0"""
    hanging = bench.transaction("p", b"open")
    bench.transaction("q", b"committed").commit_transaction(30)
    with pytest.raises(TransientError, match="was not read to offset 3"):
        bench.read(timeout_s=2)
    hanging.commit_transaction(30)
    assert bench.read() == [b"open", b"committed"]


def test_a_transaction_that_is_open_at_the_start_and_ends_meanwhile_is_read(bench):
    hanging = bench.transaction("p", b"open")
    bench.transaction("q", b"committed").commit_transaction(30)
    ending = threading.Timer(1, hanging.abort_transaction, [30])
    ending.start()
    assert bench.read() == [b"committed"]
    ending.join()


def test_a_topic_that_is_not_there_is_worth_a_retry(bench):
    with pytest.raises(TransientError):
        bench.read(f"{bench.prefix}nowhere", timeout_s=2)


def test_a_record_comes_as_it_was_sent(bench):
    bench.send(b"v", key=b"\xff", headers=[("content-type", None), ("content-type", b"\xffx"), ("n", b"")], timestamp=7)
    bench.send(None)
    one, other = read_to_end(bench.kafka, bench.source, 0)
    assert (one.topic, one.partition, one.offset, one.key, one.timestamp_ms) == (bench.source, 0, 0, b"\xff", 7)
    assert one.headers == [("content-type", None), ("content-type", b"\xffx"), ("n", b"")]
    assert (one.header("content-type"), one.header("n"), one.header("none")) == ("\ufffdx", "", None)
    assert (other.key, other.value, other.headers) == (None, None, ())


def test_the_largest_record_that_can_come_in_can_be_put_aside(bench):
    """Else it would be read, refused and failed with for ever."""
    big = 990_000
    for key, headers, value in [(b"\0" * big, [], b""), (b"", [("h", b"\0" * big)], b""), (b"", [], b"\0" * big)]:
        bench.send(value, key=key, headers=headers)
    for record in read_to_end(bench.kafka, bench.source, 0):
        letter = dead_letter(bench.target, record, ContractError("key", f"got {record.key!r}"))
        producer = bench.transaction("letters")
        producer.produce(letter.topic, letter.value, letter.key, letter.partition, headers=list(letter.headers))
        producer.commit_transaction(30)
    assert [dict(r.headers)[HEADER] is not None for r in read_to_end(bench.kafka, bench.target, 0)] == [True] * 3


class Echo:
    """A stage that publishes each record's value, and fails where it is told to."""

    def __init__(self, topic):
        self.topic = topic
        self.failures = {}  # number of the call of process or committed -> what to do instead
        self.calls = Counter()
        self.started = []

    def restore(self, partition, committed, low):
        self.started.append((partition, committed))
        return committed

    def replay(self, partition, records):
        raise AssertionError("nothing lies below the committed offset")

    def process(self, records):
        outgoing = [Outgoing(self.topic, r.partition, r.key, r.value) for r in records]
        outgoing += self._fail("process") or []
        return Progress(outgoing, {r.partition: r.offset + 1 for r in records}, [])

    def committed(self, delivered):
        assert all(offset >= 0 for _, offset in delivered)
        self._fail("committed")

    def check(self):
        pass

    def drop(self, partitions):
        pass

    def _fail(self, name):
        self.calls[name] += 1
        return self.failures.pop((name, self.calls[name]), lambda: None)()


def away():
    raise TransientError("Redis is away")


def bug():
    raise ZeroDivisionError("bug")


@contextmanager
def running(bench, *stages, health=None, first=0):
    """Run a loop a stage, as members of one group, until the block ends."""
    stop, threads, failures = threading.Event(), [], []

    def run(number, stage):
        config = LoopConfig(bench.source, f"{bench.prefix}group", f"{bench.prefix}loop-{number}", 3, 0.2)
        try:
            TransactionalLoop(bench.kafka, config, stage, Metrics(), health or Health(30)).run(stop.is_set)
        except ZeroDivisionError as error:
            failures.append(error)

    for number, stage in enumerate(stages, start=first):
        threads.append(threading.Thread(target=run, args=(number, stage)))
        threads[-1].start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


def wait_for(condition, what):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_S:.0f} s for {what}"
        time.sleep(0.1)


def values(count):
    return [b"%d" % number for number in range(count)]


def test_every_record_leads_to_one_output_in_order(bench):
    bench.send(*values(20))
    bench.send(*values(5), partition=1)
    with running(bench, Echo(bench.target)):
        wait_for(lambda: len(bench.outputs()) >= 25, "all outputs")
    assert bench.read(bench.target, 0) == values(20)
    assert bench.read(bench.target, 1) == values(5)
    assert (bench.committed(0), bench.committed(1)) == (20, 5)


def test_a_stage_that_fails_for_now_loses_and_repeats_nothing(bench):
    """Before its work, in the middle of a transaction, and after the commit: the loop joins again each time."""
    bench.send(*values(20))
    stage = Echo(bench.target)
    too_large = Outgoing(bench.target, 0, b"", b"\0" * 2_000_000)
    stage.failures = {
        ("process", 1): away,
        ("process", 3): lambda: [too_large],
        ("committed", 2): away,
        ("process", 6): away,
    }
    with running(bench, stage):
        wait_for(lambda: len(bench.read(bench.target)) >= 20, "all outputs")
    assert not stage.failures
    assert bench.read(bench.target) == values(20)
    assert bench.committed() == 20
    assert len(stage.started) == 5 * PARTITIONS


def test_outputs_are_visible_exactly_as_far_as_their_offsets_are_committed(bench):
    bench.send(*values(20))
    stage = Echo(bench.target)
    stage.failures = {("process", 4): bug}
    with running(bench, stage) as failures:
        wait_for(lambda: failures, "the bug")
    assert 0 < bench.committed() < 20
    assert bench.read(bench.target) == values(bench.committed())
    with running(bench, Echo(bench.target)):
        wait_for(lambda: len(bench.read(bench.target)) >= 20, "the rest")
    assert bench.read(bench.target) == values(20)


def test_a_successor_ends_what_its_predecessor_left_open(bench):
    """Readers need not wait for the transaction's timeout, and never see what was in it."""
    bench.transaction("loop-0", b"of a dead process", topic=bench.target)
    bench.send(*values(4))
    with running(bench, Echo(bench.target)):
        wait_for(lambda: bench.committed() == 4, "the commit")
    assert bench.read(bench.target) == values(4)


def test_members_that_come_and_go_lose_and_repeat_nothing(bench):
    with running(bench, Echo(bench.target)):
        bench.send(*values(10))
        bench.send(*values(10), partition=1)
        wait_for(lambda: bench.outputs(), "first outputs")
        # The second pair of members has other transactional ids than the first one's.
        both = [Echo(bench.target), Echo(bench.target), Echo(bench.target)]
        with running(bench, *both[1:]):
            bench.send(*values(10))
            bench.send(*values(10), partition=1)
            wait_for(lambda: len(bench.outputs()) >= 40, "all outputs")
    for partition in range(PARTITIONS):
        assert bench.read(bench.target, partition) == values(10) * 2


def test_records_that_retention_took_are_passed_over(bench):
    bench.send(*values(4))
    with running(bench, Echo(bench.target)):
        wait_for(lambda: bench.committed() == 4, "the commit")
    bench.send(*values(6))
    place = TopicPartition(bench.source, 0, 8)
    bench.admin.delete_records([place])[place].result(30)
    with running(bench, Echo(bench.target)):
        wait_for(lambda: bench.committed() == 10, "the commit")
    assert bench.read(bench.target) == [*values(4), b"4", b"5"]


def test_a_loop_that_stands_still_before_an_open_transaction_says_so_until_it_ends(bench, monkeypatch):
    """Nobody else would: consuming gives no record and no error."""
    monkeypatch.setattr("stream.stable_offsets.MARGIN_S", 0.5)
    bench.kafka = bench.kafka.model_copy(update={"transaction_timeout_ms": 1500})
    health, held_back = Health(30), "waiting for transactions that hold records back to end"
    with running(bench, Echo(bench.target), health=health):
        bench.send(*values(3))
        wait_for(lambda: bench.committed() == 3, "what lies before the transaction")
        patient = bench.kafka.model_copy(update={"transaction_timeout_ms": 60_000})
        hanging = make_producer(producer_config(patient, f"{bench.prefix}hanging"))
        hanging.init_transactions(30)
        hanging.begin_transaction()
        hanging.produce(bench.source, b"never to be seen", partition=0)
        assert hanging.flush(30) == 0
        assert health.ready()[0]
        bench.send(*values(2))
        wait_for(lambda: health.ready()[1] == held_back, "the loop to say so")
        assert health.live()[0]
        hanging.abort_transaction(30)
        wait_for(lambda: health.ready()[0], "the loop to go on")
        wait_for(lambda: len(bench.read(bench.target)) == 5, "what came after the transaction")
    assert bench.read(bench.target) == values(3) + values(2)


class Waiting(Echo):
    """A stage that holds every record until it is told to go on."""

    def __init__(self, topic):
        super().__init__(topic)
        self.waits = True

    def process(self, records):
        return Progress([], {}, list(records)) if self.waits else super().process(records)


def test_a_partition_that_left_while_it_was_paused_is_read_again_when_it_comes_back(bench):
    """The client remembers the pause beyond the assignment; left so, the partition would be owned and never be read."""
    stage = Waiting(bench.target)
    with running(bench, stage):
        for partition in range(PARTITIONS):
            bench.send(*values(10), partition=partition)
        wait_for(lambda: len(stage.started) == PARTITIONS, "the first assignment")
        time.sleep(1.0)  # it has records of both in hand, and both are paused
        other = Waiting(bench.target)
        with running(bench, other, first=1):
            wait_for(lambda: other.started, "the other member's assignment")
        wait_for(lambda: len(stage.started) > PARTITIONS, "a partition to come back")
        stage.waits = False
        wait_for(lambda: len(bench.outputs()) >= 10 * PARTITIONS, "all outputs")
    for partition in range(PARTITIONS):
        assert bench.read(bench.target, partition) == values(10)
