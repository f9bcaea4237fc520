"""What people decide about models: promote, roll back, ask for one. Recorded and announced as by the retrainer."""

import getpass
import time
from collections.abc import Callable

from detector.registry import Registry
from stream.contracts import ModelEvent, ModelEventKind
from stream.errors import AccessError, TransientError, UsageError
from stream.model_events import announce
from stream.settings import Settings

_ANSWER_S = 5.0


def promote(settings: Settings, registry: Registry, model: str, say: Callable[[str], None]) -> str:
    """Make `NAME@VERSION`, or the challenger of `NAME`, the champion and return the version."""
    name, _, wanted = model.partition("@")
    before = registry.alias(name, "champion")
    version = registry.promote(name, wanted or None)
    if any(one.kind == "rolled_back" and one.version == version for one in registry.history(name)):
        say(f"note: {name}@{version} was rolled back before")
    _decide(settings, registry, "promoted", name, version, before, say)
    return version


def rollback(settings: Settings, registry: Registry, name: str, say: Callable[[str], None]) -> str:
    """Make the previous champion champion again and return its version."""
    before = registry.alias(name, "champion")
    version = registry.rollback(name)
    _decide(settings, registry, "rolled_back", name, before, version, say)
    return version


def request(settings: Settings, registry: Registry, name: str, say: Callable[[str], None]) -> None:
    """Ask the retrainer for a new model of a declared family; raise UsageError for any other."""
    declared = [family.name for family in settings.families]
    if name not in declared:
        raise UsageError(f"no declared family {name}; there are: {', '.join(declared) or 'none'}")
    _decide(settings, registry, "requested", name, None, registry.alias(name, "champion"), say)


def _decide(
    settings: Settings,
    registry: Registry,
    kind: ModelEventKind,
    family: str,
    version: str | None,
    champion: str | None,
    say: Callable[[str], None],
) -> None:
    event = ModelEvent(
        kind=kind, family=family, version=version, champion=champion, at_ms=round(time.time() * 1000), who=_who()
    )
    event = registry.record(event)
    try:
        announce(settings, event, _ANSWER_S)
    except (TransientError, UsageError, AccessError) as error:
        say(f"recorded, but not announced on Kafka: {error}")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return "unknown"
