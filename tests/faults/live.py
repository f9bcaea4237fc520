"""Services as real child processes that die anywhere: killed from outside, or by themselves at a chosen point.

The processes are forked from one that has torch loaded already, so that a restart takes no longer than a rebalance.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from deploy.replay import send
from stream.contracts import Sample
from stream.kafka import make_admin
from stream.settings import Settings
from stream.topics import group_name
from tests.pipeline import WAIT_S

# The session time-out of the groups here.
SESSION_S = 2.0

Point = Literal["before the transaction", "inside the transaction", "after the commit"]


class Crash(NamedTuple):
    """Where a service kills itself (SIGKILL): at which point of which batch that has something to say, from 1."""

    point: Point
    batch: int


class Processes:
    """The services of one pipeline, each with a log file."""

    def __init__(self, settings: Settings, folder: Path, prepare: Callable[[], None] | None = None) -> None:
        """Write the settings file; start nothing yet. prepare: called in every process before it begins."""
        self._prepare = prepare
        self._folder = folder
        self._settings_file = folder / "telltale.toml"
        self._settings_file.write_bytes(msgspec.toml.encode(_plain(settings)))
        self._running: dict[str, ForkServerProcess] = {}

    def start(self, name: str, crash: Crash | None = None) -> None:
        """Run `telltale SERVICE`, which dies at the crash point if there is one.

        name: the service, or `SERVICE-INSTANCE` for a second one beside instance 0.
        """
        service, _, instance = name.partition("-")
        environment = {"TELLTALE_CONFIG": str(self._settings_file), "TELLTALE_INSTANCE": instance or "0"}
        arguments = (service, environment, str(self._log(name)), crash, self._prepare)
        process = self._running[name] = forked()(target=_serve, args=arguments, name=name)
        process.start()

    def pause(self, service: str) -> None:
        """Stop a service in the middle of whatever it does (SIGSTOP); for the broker it is soon as good as dead."""
        self.check()
        os.kill(self.pid(service), signal.SIGSTOP)

    def resume(self, service: str) -> None:
        """Let a paused service go on as if nothing had happened."""
        os.kill(self.pid(service), signal.SIGCONT)

    def kill(self, service: str) -> None:
        """Kill a service without a warning (SIGKILL)."""
        process = self._running.pop(service)
        assert process.is_alive(), f"{service} had ended by itself:\n{self.log(service)}"
        process.kill()
        process.join()

    def wait_for_crash(self, service: str) -> None:
        """Wait until a service has reached its crash point."""
        process = self._running.pop(service)
        process.join(WAIT_S)
        assert process.exitcode == -signal.SIGKILL, f"{service} did not crash:\n{self.log(service)}"

    def crashed(self, service: str, timeout_s: float) -> bool:
        """Say whether a service reaches its crash point in time."""
        self._running[service].join(timeout_s)
        if self._running[service].is_alive():
            return False
        self.wait_for_crash(service)
        return True

    def wait_for_end(self, service: str, timeout_s: float = WAIT_S) -> int | None:
        """Return the exit code of a service that is to end by itself, None if it goes on."""
        process = self._running[service]
        process.join(timeout_s)
        if process.exitcode is None:
            self._show_stacks(process)
        else:
            del self._running[service]
        return process.exitcode

    def signal(self, service: str) -> None:
        """Ask a service to end (SIGTERM)."""
        self._running[service].terminate()

    def terminate(self, service: str, grace_s: float = 20.0) -> None:
        """Ask a service to end (SIGTERM); it must do so by itself, with success."""
        process = self._running.pop(service)
        process.terminate()
        process.join(grace_s)
        code = process.exitcode
        if code is None:
            self._show_stacks(process)
        process.kill()
        process.join()
        # One that had not begun yet has no handler for the signal.
        expected = (0,) if '"started"' in self.log(service) else (0, -signal.SIGTERM)
        assert code in expected, f"{service} ended with {code} in {grace_s:.0f} s:\n{self.log(service)}"

    def check(self) -> None:
        """Fail if a service has ended by itself."""
        for name, process in self._running.items():
            assert process.is_alive(), f"{name} ended by itself with {process.exitcode}:\n{self.log(name)[-4000:]}"

    def revive(self) -> int:
        """Start again what has ended by itself, as an orchestrator would; return how many services that were."""
        ended = [name for name, process in self._running.items() if not process.is_alive()]
        for name in ended:
            self.start(name)
        return len(ended)

    def stop(self) -> None:
        """End all services by SIGTERM."""
        for service in list(self._running):
            self.terminate(service)

    def log(self, service: str) -> str:
        """Return what the service has logged so far."""
        return self._log(service).read_text() if self._log(service).exists() else ""

    def kill_all(self) -> None:
        """Leave no process behind, whatever happened."""
        for process in self._running.values():
            process.kill()
            process.join()

    def pid(self, service: str) -> int:
        """Return the process id of a service."""
        pid = self._running[service].pid
        assert pid is not None
        return pid

    def _show_stacks(self, process: ForkServerProcess) -> None:
        """Let a process that does not end write into its log where its threads are."""
        assert process.pid is not None
        os.kill(process.pid, signal.SIGUSR1)
        process.join(1.0)

    def _log(self, service: str) -> Path:
        return self._folder / f"{service}.log"


def metric(port: int, line: str) -> float:
    """Return a metric by the name and labels it is shown with, 0 if it is not there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        shown = dict(entry.rsplit(" ", 1) for entry in answer.read().decode().splitlines())
    return float(shown.get(line, 0))


@contextmanager
def processes(settings: Settings, folder: Path, prepare: Callable[[], None] | None = None) -> Iterator[Processes]:
    """Give the services of a pipeline; those still running at the end are ended in good order."""
    _shorten_sessions(settings)
    services = Processes(settings, folder, prepare)
    try:
        yield services
        services.stop()
    finally:
        services.kill_all()


@contextmanager
def sending(settings: Settings, samples: Sequence[Sample], rows_per_s: float) -> Iterator[None]:
    """Send telemetry from a thread while the block runs; at its end all of it has been sent."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            send(settings, samples, rows_per_s=rows_per_s, stop=threading.Event())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@cache
def forked() -> Callable[..., ForkServerProcess]:
    """Return how processes are made; the first call starts to load what they need."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["telltale", "detector.worker", "stream.windower", "stream.archiver", "torch._dynamo"]
    )
    ensure_running()
    return context.Process


def _plain(settings: Settings) -> dict[str, Any]:
    plain = settings.model_dump(mode="json", exclude_none=True)
    plain["redis"]["url"] = settings.redis.url.get_secret_value()
    return plain


def _shorten_sessions(settings: Settings) -> None:
    """Let the broker notice sooner that a member is dead: it hears nothing else of a killed process."""
    entries = [
        ConfigEntry(f"consumer.{name}.ms", value, incremental_operation=AlterConfigOpType.SET)
        for name, value in (("session.timeout", str(int(1000 * SESSION_S))), ("heartbeat.interval", "400"))
    ]
    groups = [group_name(settings.topics, service) for service in ("windower", "worker", "archiver")]
    resources = [ConfigResource(ResourceType.GROUP, group, incremental_configs=entries) for group in groups]
    admin = make_admin(settings.kafka)  # kept while its answers are waited for
    for done in admin.incremental_alter_configs(resources).values():
        done.result(WAIT_S)


def _serve(
    service: str, environment: dict[str, str], log: str, crash: Crash | None, prepare: Callable[[], None] | None
) -> None:
    """Be the command line in a fresh process."""
    from telltale import main

    for name in [name for name in os.environ if name.startswith("TELLTALE_")]:
        del os.environ[name]
    os.environ.update(environment)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    faulthandler.register(signal.SIGUSR1)
    if crash is not None:
        _arm(crash)
    if prepare is not None:
        prepare()
    sys.argv = ["telltale", service]
    main()


def _arm(crash: Crash) -> None:
    from detector.worker import Worker
    from stream import loop
    from stream.windower import Windower

    batches = iter(range(1, 1_000_000))

    def die_if_due(said: Sequence[Any]) -> None:
        if said and next(batches) == crash.batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(loop_: Any, consumer: Any, producer: Any, progress: loop.Progress) -> None:
        die_if_due(progress.outgoing)
        commit(loop_, consumer, producer, progress)

    def inside(producer: Any, outgoing: Sequence[Any], delivered: list[Any]) -> None:
        produce(producer, outgoing, delivered)
        producer.flush()
        die_if_due(outgoing)

    def after(stage: Any, delivered: Sequence[Any]) -> None:
        die_if_due(delivered)
        told[type(stage)](stage, delivered)

    commit, produce = loop.TransactionalLoop._commit, loop._produce
    told = {stage: stage.committed for stage in (Worker, Windower)}
    match crash.point:
        case "before the transaction":
            loop.TransactionalLoop._commit = before
        case "inside the transaction":
            loop._produce = inside
        case "after the commit":
            Worker.committed = Windower.committed = after
