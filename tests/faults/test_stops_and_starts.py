"""Services asked to end under load, and services that can't begin."""

from pydantic import SecretStr

from deploy.processes import free_port
from stream.settings import KafkaSettings, RedisSettings
from tests.faults.live import Processes, processes, sending
from tests.faults.recorded import answer_of, assert_is_offline, recordings, telemetry, wait_for_rows
from tests.pipeline import WAIT_S, blocks, wait_for


def test_services_end_in_good_order_under_load_and_their_successors_go_on(model, settings, tmp_path):
    series = recordings(model, 600)
    answer = answer_of(model, settings, series)
    with processes(settings, tmp_path) as services:
        services.start("windower")
        services.start("worker")
        with sending(settings, telemetry(model, series), rows_per_s=400):
            for scored, service in ((20, "worker"), (60, "windower"), (100, "worker")):
                wait_for(lambda scored=scored: len(blocks(settings)) >= scored, f"{scored} blocks")
                services.terminate(service)
                services.start(service)
        wait_for_rows(settings, answer.final_rows())
    assert_is_offline(settings, answer)


def end_without(settings, folder, **sections):
    """Run both services with settings that lead nowhere, and return what they say when they give up."""
    services = Processes(settings.model_copy(update=sections), folder)
    services.start("windower")
    services.start("worker")
    assert services.wait_for_end("windower") == 1
    assert services.wait_for_end("worker") == 1
    return services.log("windower"), services.log("worker")


def test_a_missing_broker_is_waited_for_and_then_named(settings, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    for log in end_without(settings, tmp_path, kafka=KafkaSettings(bootstrap=address, reconnect_deadline_s=3.5)):
        assert "waiting for a Kafka broker" in log
        assert f"telltale: no Kafka broker answered at {address} within 4 s" in log
        assert "Traceback" not in log


def test_a_service_that_waits_for_a_broker_still_ends_when_asked(settings, tmp_path):
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}", reconnect_deadline_s=10 * WAIT_S)
    services = Processes(settings.model_copy(update={"kafka": kafka}), tmp_path)
    services.start("windower")
    wait_for(lambda: "waiting for a Kafka broker" in services.log("windower"), "the windower to wait")
    services.signal("windower")
    assert services.wait_for_end("windower") == 1
    assert "telltale: asked to stop while waiting for a Kafka broker" in services.log("windower")


def test_a_missing_redis_is_waited_for_and_then_named(settings, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    kafka = KafkaSettings(bootstrap=settings.kafka.bootstrap, reconnect_deadline_s=1.0)
    redis = RedisSettings(url=SecretStr(f"redis://user:secret@{address}/0"))
    for log in end_without(settings, tmp_path, kafka=kafka, redis=redis):
        assert '"waiting"' in log
        assert "telltale: Redis did not answer" in log
        assert address.partition(":")[2] in log
        assert "secret" not in log
        assert "Traceback" not in log
