"""Services asked to end while they wait for something that does not come: they end in time all the same."""

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, reduce
from typing import Any

import pytest

from tests.faults.conftest import small_batches
from tests.faults.live import Processes, processes, sending
from tests.faults.recorded import recordings, telemetry
from tests.pipeline import make_settings, wait_for

REACHED = "the place where it is to be found"
# Long enough to freeze what it is about to ask.
_LINGER_S = 2.0
DEADLINE_S = 8.0
# Of a busy machine, beyond the deadline.
_PATIENCE_S = 20.0


@pytest.fixture
def settings(model, tmp_path, fault_stack, topic_prefix):
    """Declare the model's family on servers of this module's own."""
    stack = fault_stack.start()
    registry = tmp_path / "registry"
    more = {**small_batches(), "stop_deadline_s": DEADLINE_S}
    return make_settings(model.manifest, registry, stack.bootstrap, stack.redis_url, topic_prefix, **more)


def replace(place: str, make: Callable[[Any], Any]) -> None:
    """Put something else in place of `module:name.name`."""
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, make(getattr(owner, name)))


def linger_at(place: str) -> None:
    """Tell when a call is reached, and wait before it is made."""

    def lingering(call: Any) -> Any:
        def linger(*arguments: Any, **named: Any) -> Any:
            os.write(1, REACHED.encode())
            time.sleep(_LINGER_S)
            return call(*arguments, **named)

        return linger

    replace(place, lingering)


def never_return_from(place: str) -> None:
    """Tell when a call is reached, which then hangs, as on a file system that is away."""

    def hanging(_: Any) -> Any:
        def hang(*_: Any, **__: Any) -> Any:
            os.write(1, REACHED.encode())
            threading.Event().wait()

        return hang

    replace(place, hanging)


def signal_in_the_log() -> None:
    """Be asked to end while a line is written to the log, which holds the lock of the log."""

    class Interrupted:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def write(self, text: str) -> int:
            if "took over" in text:
                signal.raise_signal(signal.SIGTERM)
            return int(self._stream.write(text))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    sys.stderr = Interrupted(sys.stderr)  # type: ignore[assignment]


def write_to_nobody() -> None:
    """Have a log that nobody reads, as when what collects it hangs: its pipe is full, so every write waits."""
    _, end = os.pipe()
    os.set_blocking(end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(end, b"x")
    os.set_blocking(end, True)
    os.write(1, REACHED.encode())
    os.dup2(end, 2)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Keep a server's connections open and let it answer nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_ends_when_found(services: Processes, service: str) -> None:
    services.signal(service)
    assert services.wait_for_end(service, DEADLINE_S + _PATIENCE_S) is not None, services.log(service)


KAFKA_PLACES = {
    "topics looked for": ("windower", "stream.service:ensure_topics"),
    "transactions begun": ("worker", "stream.loop:make_producer"),
    "states read": ("worker", "detector.worker:Worker.restore"),
    "offsets added": ("worker", "stream.loop:_add_offsets"),
}


@pytest.mark.parametrize("case", KAFKA_PLACES)
def test_a_service_ends_in_time_while_the_broker_is_silent(case, model, settings, fault_stack, tmp_path):
    service, place = KAFKA_PLACES[case]
    pid = fault_stack.status().kafka.pid
    with processes(settings, tmp_path, partial(linger_at, place)) as services:
        if place.endswith("_add_offsets"):
            services.start("windower")
            rows = telemetry(model, recordings(model, 300))
            with sending(settings, rows, rows_per_s=100_000):
                pass
        services.start(service)
        wait_for(lambda: REACHED in services.log(service), "the place")
        with frozen(pid):
            assert_ends_when_found(services, service)


def test_a_service_ends_in_time_while_redis_is_silent(model, settings, fault_stack, tmp_path):
    pid, service = fault_stack.status().redis.pid, "windower"
    with processes(settings, tmp_path) as services:
        services.start(service)
        with sending(settings, telemetry(model, recordings(model, 300)), rows_per_s=200):
            wait_for(lambda: "took over" in services.log(service), "partitions")
            with frozen(pid):
                assert_ends_when_found(services, service)


def test_a_worker_ends_in_time_while_the_registry_hangs(settings, tmp_path):
    with processes(settings, tmp_path, partial(never_return_from, "detector.registry:Registry.read")) as services:
        services.start("worker")
        wait_for(lambda: REACHED in services.log("worker"), "the registry to be asked")
        assert_ends_when_found(services, "worker")


def test_a_service_that_is_signalled_while_it_logs_ends_in_good_order(settings, tmp_path):
    with processes(settings, tmp_path, signal_in_the_log) as services:
        services.start("worker")
        assert services.wait_for_end("worker", DEADLINE_S + _PATIENCE_S) == 0


def test_a_service_whose_log_nobody_reads_ends_in_time(settings, tmp_path):
    with processes(settings, tmp_path, write_to_nobody) as services:
        services.start("windower")
        wait_for(lambda: REACHED in services.log("windower"), "the service to begin")
        time.sleep(_LINGER_S)
        assert_ends_when_found(services, "windower")
