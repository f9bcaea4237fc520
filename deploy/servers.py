"""Kafka and Redis for a command that needs both for its own duration: given, found running, or started and ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from deploy.demo_report import ServerReport
from deploy.demo_view import DemoView
from deploy.local_stack import LocalStack, default_state_dir
from stream.settings import load_settings


class Servers(NamedTuple):
    """Where both answer, and what they are."""

    bootstrap: str
    redis_url: str
    broker: ServerReport
    redis: ServerReport


@contextmanager
def running_servers(view: DemoView) -> Iterator[Servers]:
    """Give Kafka and Redis: those the settings name, those running, or new ones that end with the block."""
    given = load_settings()
    bootstrap, redis_url = given.kafka.bootstrap, given.redis.url.get_secret_value()
    if bootstrap and redis_url:
        yield Servers(bootstrap, redis_url, ServerReport("given", "unknown"), ServerReport("given", "unknown"))
        return
    stack = LocalStack(default_state_dir())
    ours = not stack.status().kafka.running
    try:
        with view.step("Kafka and Redis") as step:
            found = stack.start(progress=step.progress)
            step.done(
                f"Apache Kafka {found.kafka_version} at {found.bootstrap}, "
                f"{found.redis_kind} {found.redis_version} at {found.redis_url}"
            )
        broker, redis = (
            ServerReport("Apache Kafka", found.kafka_version),
            ServerReport(found.redis_kind, found.redis_version),
        )
        yield Servers(found.bootstrap, found.redis_url, broker, redis)
    finally:
        if ours:
            stack.stop()
