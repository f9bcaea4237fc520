"""Redis and the broker lost while the pipeline runs: it waits or rebuilds, and says what it would have said."""

import threading

import pytest
import redis
from confluent_kafka import Producer

from detector.worker import run_worker
from stream import loop
from stream.topics import WINDOWS
from stream.windower import run_windower
from tests.faults.conftest import small_batches
from tests.faults.live import sending
from tests.faults.recorded import answer_of, assert_is_offline, recordings, telemetry, wait_for_rows
from tests.pipeline import blocks, make_settings, read_all, running, wait_for


@pytest.fixture
def settings(model, tmp_path, fault_stack, topic_prefix):
    """Declare the model's family on servers of this module's own."""
    stack = fault_stack.start()
    kafka = {"bootstrap": stack.bootstrap, "transaction_timeout_ms": 2500}
    registry = tmp_path / "registry"
    more = {**small_batches(), "kafka": kafka}
    return make_settings(model.manifest, registry, stack.bootstrap, stack.redis_url, topic_prefix, **more)


def flush(stack):
    with redis.Redis.from_url(stack.start_redis()) as client:
        client.flushall()


def restart_empty(stack):
    stack.kill_redis()
    stack.start_redis()


def test_windows_lost_with_redis_are_rebuilt_from_telemetry(model, settings, fault_stack):
    series = recordings(model, 300)
    answer = answer_of(model, settings, series)
    with running(settings):
        with sending(settings, telemetry(model, series), rows_per_s=300):
            for scored, lose in ((20, flush), (60, restart_empty), (90, flush)):
                wait_for(lambda scored=scored: len(blocks(settings)) >= scored, f"{scored} blocks")
                lose(fault_stack)
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_lost_windows_are_rebuilt_while_the_windower_waits_for_the_worker(model, settings, fault_stack):
    """Neither new telemetry nor room for it tells the windower that its rings are gone, and the worker needs them."""
    series = recordings(model, 300)
    answer = answer_of(model, settings, series)
    with sending(settings, telemetry(model, series), rows_per_s=100_000):
        pass
    with running(settings, run_windower):
        wait_for(lambda: len(read_all(settings, WINDOWS)) >= 10, "announced windows")
        flush(fault_stack)
        with running(settings, run_worker):
            wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_a_killed_broker_pauses_the_pipeline_and_nothing_more(model, settings, fault_stack):
    series = recordings(model, 300)
    answer = answer_of(model, settings, series)
    with running(settings):
        with sending(settings, telemetry(model, series), rows_per_s=300):
            wait_for(lambda: len(blocks(settings)) >= 20, "20 blocks")
            fault_stack.kill_kafka()
            fault_stack.start_kafka()
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_a_client_call_that_never_returns_costs_one_transaction(model, settings, monkeypatch):
    """As librdkafka's does for the offsets when the coordinator it remembers is gone (its issues 5456 and 5511)."""
    calls = iter(range(1, 1_000_000))
    forever = threading.Event()  # its threads are abandoned, as they would be

    class Hanging(Producer):
        def send_offsets_to_transaction(self, *arguments):
            if next(calls) == 5:
                forever.wait()
            return super().send_offsets_to_transaction(*arguments)

    monkeypatch.setattr(loop, "make_producer", Hanging)
    series = recordings(model, 200)
    answer = answer_of(model, settings, series)
    with running(settings), sending(settings, telemetry(model, series), rows_per_s=300):
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def test_windows_lost_with_a_redis_that_falls_back_to_older_data_are_written_again(model, settings):
    """As after a failover: its clients reconnect and notice nothing; only the snapshot is not the one they left."""
    series = recordings(model, 300)
    answer = answer_of(model, settings, series)
    with running(settings), redis.Redis.from_url(settings.redis.url.get_secret_value()) as client:
        with sending(settings, telemetry(model, series), rows_per_s=300):
            wait_for(lambda: len(blocks(settings)) >= 20, "20 blocks")
            old = {key: client.dump(key) for key in client.scan_iter(f"{{{settings.redis.prefix}:*")}
            wait_for(lambda: len(blocks(settings)) >= 60, "60 blocks")
            with client.pipeline(transaction=True) as fall_back:
                for key, value in old.items():
                    fall_back.restore(key, 0, value, replace=True)
                fall_back.execute()
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)
