"""Runs one stage as a service process: metrics endpoint, signals, transactional loop. Knows no stage's work."""

import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import structlog

from stream.kafka import make_admin, wait_for_broker
from stream.loop import LoopConfig, Stage, TransactionalLoop
from stream.metrics import Health, Metrics, MetricsServer
from stream.settings import Settings
from stream.topics import Topic, ensure_topics, group_name, topic_name
from stream.waiting import wait_until

_log = structlog.get_logger()
_STOPPING = (signal.SIGTERM, signal.SIGINT)
# Of one try.
_TOPICS_S = 10.0
# Beyond the deadline.
_LAST_WORDS_S = 2.0
_GARBAGE_THRESHOLDS = (50_000, 20, 100)


class Service(NamedTuple):
    """A stage with what it reads. name: also its consumer group. The rest but health and metrics: see `LoopConfig`."""

    name: str
    topic: Topic
    batch_records: int
    batch_s: float
    stage: Stage
    metrics: Metrics
    health: Health
    keeps_records: bool = False


def run_service(settings: Settings, service: Service, stop: threading.Event) -> None:
    """Serve metrics and run the stage on a topic until `stop` is set.

    Raises UsageError for what can't work, TransientError when broker or Redis stay away past the deadline.
    """
    group = group_name(settings.topics, service.name)
    topic = topic_name(settings.topics, service.topic)
    own_id = f"{group}-{settings.instance}"
    config = LoopConfig(topic, group, own_id, service.batch_records, service.batch_s, service.keeps_records)
    loop = TransactionalLoop(settings.kafka, config, service.stage, service.metrics, service.health)
    with MetricsServer(settings.metrics, service.metrics, service.health) as server, _garbage_seldom_collected():
        wait_for_broker(settings.kafka, stopping=stop.is_set)
        admin = make_admin(settings.kafka)
        # A broker that answered a moment ago may be on its way down, or just up and not able to create anything.
        wait_until(
            lambda: ensure_topics(admin, settings.topics, _TOPICS_S, service=service.name),
            settings.kafka.reconnect_deadline_s,
            "topics",
            stop.is_set,
        )
        _log.info("started", service=service.name, group=group, metrics_port=server.port, topic=topic)
        loop.run(stop.is_set)
    _log.info("stopped", service=service.name)


@contextmanager
def _garbage_seldom_collected() -> Iterator[None]:
    """Look for reference cycles less often, and not among what was there before.

    Records are thousands of objects a second that are in no cycle; looking for one among them took a fifth of the time.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextmanager
def stop_on_signals(deadline_s: float | None = None) -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set, so that the batch in work is finished and committed.

    deadline_s: a process that has not ended so long after the signal writes to stderr where its threads are and exits
    with 1, from wherever it is, which costs as little as a kill does. It is in force after the block too.
    """
    stop = threading.Event()
    # A handler interrupts the main thread anywhere, so also where it holds the lock of the log or of the event.
    before = {number: signal.signal(number, lambda *_: None) for number in _STOPPING}
    with _listening(stop, deadline_s):
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _listening(stop: threading.Event, deadline_s: float | None) -> Iterator[None]:
    """Hear of signals in a thread, at once: the main thread may be in a call that does not come back."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard, stop, deadline_s), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()


def _listen(heard: socket.socket, stop: threading.Event, deadline_s: float | None) -> None:
    with heard:
        number = next((number for number in iter(lambda: heard.recv(1), b"") if number[0] in _STOPPING), b"")
    if not number:
        return
    if deadline_s is not None:
        _end_after(deadline_s)
    stop.set()
    _log.info("stopping after this batch", signal=signal.Signals(number[0]).name, deadline_s=deadline_s)


def _end_after(deadline_s: float) -> None:
    faulthandler.dump_traceback_later(deadline_s, exit=True, file=sys.__stderr__ or sys.stderr)
    # Where nobody reads stderr, the one above waits for ever.
    last = threading.Timer(deadline_s + _LAST_WORDS_S, os._exit, (1,))
    last.daemon = True
    last.start()
