"""The local stack: found again, hard to kill, gone when stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy import kafka_jars
from deploy.local_stack import LocalStack
from deploy.processes import is_alive
from stream.errors import TransientError, UsageError


def committed_values(bootstrap: str, topic: str) -> list[bytes]:
    """Read what a read_committed consumer finds in the topic up to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    try:
        for _ in range(600):
            message = consumer.poll(0.1)
            if message is not None and message.error():
                return values
            if message is not None:
                value = message.value()
                assert value is not None
                values.append(value)
    finally:
        consumer.close()
    raise AssertionError(f"no end of {topic} after 60 s")


def write_transaction(bootstrap: str, topic: str, values: list[bytes], *, commit: bool) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{topic}-writer"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    if commit:
        producer.commit_transaction(30)
    else:
        producer.flush(30)
        producer.abort_transaction(30)


def create_topic(bootstrap: str, name: str) -> str:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, 1)])[name].result(30)
    return name


def test_starting_again_finds_what_runs(fault_stack: LocalStack) -> None:
    first = fault_stack.start()
    pids = fault_stack.status().kafka.pid, fault_stack.status().redis.pid
    assert LocalStack(fault_stack.state_dir).start() == first
    assert (fault_stack.status().kafka.pid, fault_stack.status().redis.pid) == pids


def test_starting_at_once_from_several_places_starts_one_stack(tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def start(_: int) -> str:
        barrier.wait()
        return LocalStack(tmp_path).start_redis()

    try:
        with ThreadPoolExecutor(3) as pool:
            assert len(set(pool.map(start, range(3)))) == 1
        here = str((tmp_path / "redis").resolve())
        assert len([process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == here]) == 1
    finally:
        LocalStack(tmp_path).stop()


def test_only_committed_messages_are_read_and_a_killed_broker_keeps_them(
    fault_stack: LocalStack, topic_prefix: str
) -> None:
    bootstrap = fault_stack.start_kafka()
    topic = create_topic(bootstrap, f"{topic_prefix}kept")
    write_transaction(bootstrap, topic, [b"a", b"b"], commit=True)
    write_transaction(bootstrap, topic, [b"never"], commit=False)
    assert committed_values(bootstrap, topic) == [b"a", b"b"]

    fault_stack.kill_kafka()
    assert not fault_stack.status().kafka.running
    assert fault_stack.start_kafka() == bootstrap

    write_transaction(bootstrap, topic, [b"c"], commit=True)
    assert committed_values(bootstrap, topic) == [b"a", b"b", b"c"]


def test_fresh_start_drops_the_data(fault_stack: LocalStack, topic_prefix: str) -> None:
    create_topic(fault_stack.start_kafka(), f"{topic_prefix}dropped")
    bootstrap = fault_stack.start(fresh=True).bootstrap
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=30).topics
    assert f"{topic_prefix}dropped" not in topics


@pytest.mark.parametrize(("keep_data", "expected"), [(True, b"1"), (False, None)])
def test_redis_restarts_with_or_without_its_data(
    fault_stack: LocalStack, keep_data: bool, expected: bytes | None
) -> None:
    url = fault_stack.start_redis()
    with redis.Redis.from_url(url) as client:
        client.set("k", "1")
    assert fault_stack.restart_redis(keep_data=keep_data) == url
    with redis.Redis.from_url(url) as client:
        assert client.get("k") == expected


def test_redis_never_evicts(fault_stack: LocalStack) -> None:
    with redis.Redis.from_url(fault_stack.start_redis()) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    """Checked from outside too: the servers were started by a process that has ended."""
    script = f"from pathlib import Path; from deploy.local_stack import up; up(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    stack = LocalStack(tmp_path)
    try:
        status = stack.status()
        assert status.kafka.answering
        assert status.redis.answering
        processes = [psutil.Process(pid) for pid in (status.kafka.pid, status.redis.pid) if pid]
        assert len(processes) == 2
    finally:
        assert stack.stop()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not stack.stop()
    assert not stack.status().kafka.running


def test_servers_survive_ctrl_c_of_the_command_that_started_them(tmp_path: Path) -> None:
    script = (
        "import signal, time; from pathlib import Path; from deploy.local_stack import LocalStack; "
        "signal.signal(signal.SIGINT, signal.SIG_DFL); "
        f"LocalStack(Path({str(tmp_path)!r})).start_redis(); print('up', flush=True); time.sleep(60)"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], process_group=0
    )
    stack = LocalStack(tmp_path)
    try:
        with command:
            assert command.stdout is not None
            assert command.stdout.readline() == b"up\n"
            os.killpg(command.pid, signal.SIGINT)  # as the terminal does: the whole group
            assert command.wait(30) == -signal.SIGINT
        assert stack.status().redis.answering
    finally:
        command.kill()
        stack.stop()


def test_a_dead_server_is_replaced_and_a_reused_process_id_left_alone(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path)
    url = stack.start_redis()
    file = tmp_path / "stack.json"
    try:
        stack.kill_redis()
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
            record = json.loads(file.read_text())
            record["redis"]["process"] = {"pid": bystander.pid, "started_s": 1.0}
            file.write_text(json.dumps(record))
            assert stack.start_redis() == url
            assert bystander.poll() is None
            bystander.kill()
    finally:
        stack.stop()


def test_a_port_in_use_is_refused_by_name(fault_stack: LocalStack, tmp_path: Path) -> None:
    taken = int(fault_stack.start_redis().rpartition(":")[2].partition("/")[0])
    with pytest.raises(UsageError, match=str(taken)):
        LocalStack(tmp_path).start_redis(port=taken)
    with pytest.raises(UsageError, match="stop it first"):
        fault_stack.start_redis(port=taken + 1)


def test_a_server_that_dies_at_its_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path)
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "dump.rdb").write_bytes(b"not a dump at all, and longer than its header")
    with pytest.raises(TransientError, match=r"(?s)redis\.log.*(RDB|rdb|DB)"):
        stack.start_redis()
    assert not stack.status().redis.running


def test_a_jar_that_differs_from_its_pin_is_refused(fault_stack: LocalStack, tmp_path: Path) -> None:
    jars = kafka_jars.ensure_jars(kafka_jars.default_cache_dir())
    pins = kafka_jars.read_pins()
    path, digest = next(iter(pins.items()))
    copy = tmp_path / "jars" / path
    copy.parent.mkdir(parents=True)
    own_pins = tmp_path / "pins"
    own_pins.write_text(f"{digest}  {path}\n")
    content = next(jar for jar in jars if str(jar).endswith(path)).read_bytes()

    copy.write_bytes(content)
    assert kafka_jars.ensure_jars(tmp_path, pins=own_pins) == [copy]

    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(kafka_jars.ChecksumError, match=digest):
        kafka_jars.ensure_jars(tmp_path, pins=own_pins)


def test_stopping_waits_for_the_process_to_be_gone(tmp_path: Path) -> None:
    from deploy.processes import spawn, stop

    # It ignores the polite request, so only the kill ends it.
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = spawn([sys.executable, "-c", script], tmp_path / "log", {})
    time.sleep(0.5)
    assert is_alive(process)
    assert stop(process, grace_s=0.2)
    assert not is_alive(process)


def test_a_killed_server_is_gone_when_kill_returns(tmp_path: Path) -> None:
    """Its port is free at once, so that it comes back at the address its clients know."""
    stack = LocalStack(tmp_path)
    try:
        url = stack.start_redis()
        for _ in range(30):
            stack.kill_redis()
            assert stack.start_redis() == url
    finally:
        stack.stop()
