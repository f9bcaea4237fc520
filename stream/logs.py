"""How services log: readable on a terminal, JSON otherwise, always to stderr. Knows nothing of what is logged."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

# user:password@ or token@ of any URL that finds its way into a message; a password may hold an unescaped slash.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s@]*:\S*|[^/\s@]+)(?=@)")
_PARAMETERS = re.compile(r"(?i)([?&][^=&\s]*(?:key|secret|token|passw|signature|credential)[^=&\s]*=)[^&\s#'\"]+")


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
    event.update(redacted(event))
    return event


def redacted(value: Any) -> Any:
    """Return text, or whatever holds text as JSON does, without the credentials in its URLs."""
    if isinstance(value, str) and "://" in value:
        return _PARAMETERS.sub(r"\1***", _CREDENTIALS.sub("***", value))
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value
