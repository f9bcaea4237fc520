"""Runs one stage as a service process: metrics endpoint, signals, transactional loop. Knows no stage's work."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from stream.kafka import make_admin, wait_for_broker
from stream.loop import LoopConfig, Stage, TransactionalLoop
from stream.metrics import Health, Metrics, MetricsServer
from stream.settings import Settings
from stream.topics import Topic, ensure_topics, group_name, topic_name

_log = structlog.get_logger()


def run_service(
    settings: Settings, name: str, topic: Topic, stage: Stage, metrics: Metrics, health: Health, stop: threading.Event
) -> None:
    """Serve metrics and run the stage on a topic until `stop` is set.

    Raises UsageError for what can't work, TransientError when broker or Redis stay away past the deadline.
    """
    with MetricsServer(settings.metrics, metrics, health) as server:
        wait_for_broker(settings.kafka)
        ensure_topics(make_admin(settings.kafka), settings.topics)
        group = group_name(settings.topics, name)
        config = LoopConfig(topic_name(settings.topics, topic), group, f"{group}-{settings.instance}")
        _log.info("started", service=name, group=group, metrics_port=server.port, topic=config.topic)
        TransactionalLoop(settings.kafka, config, stage, metrics, health).run(stop.is_set)
    _log.info("stopped", service=name)


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
