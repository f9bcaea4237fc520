"""Waiting for servers: each wait has an end of its own, and is broken off when the service is to stop.

Knows no server. A call into the client library can't be broken off, and Python's signal handlers run between calls of
the main thread only, so a long one is made in short ones.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException

from stream.errors import TransientError

_log = structlog.get_logger()
_SLICE_S = 5.0
_Answer = TypeVar("_Answer")
Stopping = Callable[[], bool]


def never() -> bool:
    """Be the answer of who is never asked to stop."""
    return False


def wait_until(attempt: Callable[[], None], deadline_s: float, what: str, stopping: Stopping = never) -> None:
    """Call `attempt` until it raises no TransientError; raise one after the deadline or when `stopping()`."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            return attempt()
        except TransientError as error:
            if time.monotonic() >= end:
                raise
            refuse_to_wait(stopping, what)
            _log.warning("waiting", what=what, error=str(error))
            time.sleep(0.5)


def refuse_to_wait(stopping: Stopping, what: str) -> None:
    """Raise TransientError when `stopping()`."""
    if stopping():
        raise TransientError(f"asked to stop while waiting for {what}")


def in_slices(call: Callable[[float], _Answer], timeout_s: float, what: str, stopping: Stopping) -> _Answer:
    """Make a client call that takes a time-out and may be made again after it: for `timeout_s` in all, a bit at a time.

    Raises KafkaException as the call does, TransientError when `stopping()`.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            return call(min(_SLICE_S, timeout_s))
        except KafkaException as error:
            if error.args[0].code() != KafkaError._TIMED_OUT or time.monotonic() >= end:  # noqa: SLF001 its constant
                raise
            refuse_to_wait(stopping, what)


def within(timeout_s: float, what: str, call: Callable[[], None]) -> None:
    """Make a client call that may outlast its own timeout; raise TransientError if it has after `timeout_s`.

    Such a call keeps its thread and its client, which are to be given up.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TransientError(f"{what} has not returned within {timeout_s:.0f} s")
    if errors:
        raise errors[0]
