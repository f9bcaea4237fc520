"""Runs one stage as a service process: metrics endpoint, signals, transactional loop. Knows no stage's work."""

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import structlog

from stream.kafka import make_admin, wait_for_broker, wait_until
from stream.loop import LoopConfig, Stage, TransactionalLoop
from stream.metrics import Health, Metrics, MetricsServer
from stream.settings import Settings
from stream.topics import Topic, ensure_topics, group_name, topic_name

_log = structlog.get_logger()
_GARBAGE_THRESHOLDS = (50_000, 20, 100)


class Service(NamedTuple):
    """A stage with what it reads. name: also its consumer group. batch_records, batch_s: see `LoopConfig`."""

    name: str
    topic: Topic
    batch_records: int
    batch_s: float
    stage: Stage
    metrics: Metrics
    health: Health


def run_service(settings: Settings, service: Service, stop: threading.Event) -> None:
    """Serve metrics and run the stage on a topic until `stop` is set.

    Raises UsageError for what can't work, TransientError when broker or Redis stay away past the deadline.
    """
    group = group_name(settings.topics, service.name)
    topic = topic_name(settings.topics, service.topic)
    config = LoopConfig(topic, group, f"{group}-{settings.instance}", service.batch_records, service.batch_s)
    loop = TransactionalLoop(settings.kafka, config, service.stage, service.metrics, service.health)
    with MetricsServer(settings.metrics, service.metrics, service.health) as server, _garbage_seldom_collected():
        wait_for_broker(settings.kafka, stopping=stop.is_set)
        admin = make_admin(settings.kafka)
        # A broker that answered a moment ago may be on its way down, or just up and not able to create anything.
        wait_until(
            lambda: ensure_topics(admin, settings.topics, service=service.name),
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
def stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set, so that the batch in work is finished and committed."""
    stop = threading.Event()

    def request_stop(number: int, _: object) -> None:
        _log.info("stopping after this batch", signal=signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
