"""How services log: readable on a terminal, JSON otherwise, always to stderr. Knows nothing of what is logged."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# user:password@ of any URL that finds its way into a message.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")


def configure_logging(level: str = "info") -> None:
    """Set up structlog for this process."""
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide credentials inside URLs, whatever field they stand in."""
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = _CREDENTIALS.sub("***", value)
    return event
