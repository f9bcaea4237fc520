import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from stream.errors import UsageError
from stream.metrics import Health, Metrics, MetricsServer
from stream.settings import MetricsSettings


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def metrics_of(metrics):
    return {name: m for name, m in vars(metrics).items() if isinstance(m, Counter | Gauge | Histogram)}


def get(port, path):
    # Only our own loopback address is opened.
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(30.0, clock)


@pytest.fixture
def port(health):
    with MetricsServer(MetricsSettings(port=0), Metrics(), health) as server:
        yield server.port


def test_every_metric_has_a_name_of_its_own_our_prefix_and_a_description():
    metrics = Metrics()
    families = list(metrics.registry.collect())
    names = [family.name for family in families]
    assert len(set(names)) == len(names) == len(metrics_of(metrics)) > 0
    for family in families:
        assert family.name.startswith("telltale_")
        assert family.documentation.strip()
    for attribute, metric in metrics_of(metrics).items():
        assert metric._name in (
            f"telltale_{attribute}",
            f"telltale_{attribute}_seconds",
            f"telltale_{attribute}_windows",
        )


def test_entities_are_no_labels():
    """Their number is not bounded by us."""
    labels = {label for metric in metrics_of(Metrics()).values() for label in metric._labelnames}
    assert labels == {"reason", "severity", "state", "partition", "op", "family", "version", "result", "cause", "kind"}


def test_two_services_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.records_consumed.inc(3)
    assert other.registry.get_sample_value("telltale_records_consumed_total") == 0


def test_a_redis_round_trip_is_measured_by_its_name():
    metrics = Metrics()
    with metrics.time_redis("load"):
        pass
    assert metrics.registry.get_sample_value("telltale_redis_op_seconds_count", {"op": "load"}) == 1


def test_the_loop_is_live_as_long_as_it_ticks(health, clock):
    """tick . . . . 30 s | too old . . . | tick"""
    for advance, live in ((0, True), (30, True), (0.1, False), (1000, False)):
        clock.now += advance
        assert health.live()[0] is live
    health.tick()
    assert health.live() == (True, "last loop 0.0 s ago, 30 s allowed")


def test_a_service_is_ready_when_nothing_is_missing(health):
    assert health.ready() == (False, "waiting for assignment")
    health.set_ready("redis", ready=False)
    health.set_ready("assignment", ready=True)
    assert health.ready() == (False, "waiting for redis")
    health.set_ready("redis", ready=True)
    health.set_ready("redis", ready=True)
    assert health.ready() == (True, "ready")
    health.set_ready("assignment", ready=False)
    assert health.ready()[0] is False


def test_probes_answer_as_orchestrators_want(port, health, clock):
    assert get(port, "/livez")[0] == 200
    assert get(port, "/readyz")[:2] == (503, "waiting for assignment\n")
    health.set_ready("assignment", ready=True)
    clock.now += 31
    assert get(port, "/readyz?verbose")[:2] == (200, "ready\n")
    assert get(port, "/livez")[:2] == (503, "last loop 31.0 s ago, 30 s allowed\n")


def test_the_endpoint_shows_what_was_counted(health):
    metrics = Metrics()
    metrics.dead_letters.labels("schema").inc(2)
    with MetricsServer(MetricsSettings(port=0), metrics, health) as server:
        status, body, headers = get(server.port, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    samples = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(body) for s in f.samples}
    assert samples["telltale_dead_letters_total", "schema"] == 2


def test_an_unknown_page_says_what_there_is(port):
    assert get(port, "/")[:2] == (404, "try /metrics, /livez or /readyz\n")


def test_a_port_that_is_taken_is_bad_usage(health):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{taken}: .*; set metrics.port"):
            MetricsServer(MetricsSettings(port=taken), Metrics(), health)


def test_the_port_is_free_again_afterwards(health):
    with MetricsServer(MetricsSettings(port=0), Metrics(), health) as server:
        again = server.port
    with MetricsServer(MetricsSettings(port=again), Metrics(), health) as server:
        assert server.port == again


def test_without_being_told_otherwise_only_this_machine_is_answered(health):
    """On Linux all of 127/8 is this machine, and what listens at every address answers at 127.0.0.2 too."""
    with MetricsServer(MetricsSettings(port=0), Metrics(), health) as server:
        assert get(server.port, "/livez")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), 5).close()
    with MetricsServer(MetricsSettings(host="0.0.0.0", port=0), Metrics(), health) as server:  # noqa: S104 told otherwise
        socket.create_connection(("127.0.0.2", server.port), 5).close()
