"""Checks that what the services need is there: broker, topics, Redis, families, models. Changes nothing."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from detector.models import fit_columns
from detector.registry import Registry
from stream.errors import TelltaleError, UsageError
from stream.kafka import make_admin, wait_for_broker
from stream.settings import FamilySettings, Settings
from stream.topics import ALL, partition_counts
from stream.window_store import connect

_DEADLINE_S = 5.0


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    good: bool
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Look at everything, each thing whatever the others say."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("Kafka", lambda: _kafka(settings)),
        ("topics", lambda: _topics(settings)),
        ("Redis", lambda: _redis(settings)),
        ("families", lambda: _families(settings)),
        *((f"model of {f.name}", _model_check(settings, f)) for f in settings.families),
    ]
    return list(_findings(checks))


def _findings(checks: list[tuple[str, Callable[[], str]]]) -> Iterator[Finding]:
    for what, check in checks:
        try:
            yield Finding(what, good=True, detail=check())
        except TelltaleError as error:
            yield Finding(what, good=False, detail=str(error))


def _kafka(settings: Settings) -> str:
    wait_for_broker(settings.kafka, _DEADLINE_S)
    return f"answers at {settings.kafka.bootstrap}"


def _topics(settings: Settings) -> str:
    counts = partition_counts(make_admin(settings.kafka), settings.topics, _DEADLINE_S)
    if not counts:
        return "none yet; the services make them"
    if len(counts) < len(ALL) or len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        raise UsageError(f"want {len(ALL)} topics with the same number of partitions, got {listed}")
    return f"{len(counts)} with {next(iter(counts.values()))} partitions each"


def _redis(settings: Settings) -> str:
    store = connect(settings.redis)
    try:
        store.check()
    finally:
        store.close()
    return "answers and evicts nothing"


def _families(settings: Settings) -> str:
    if not settings.families:
        raise UsageError("none declared; add [[families]] to the settings file")
    return ", ".join(f"{f.name} ({f.entities}, {len(f.channels)} channels)" for f in settings.families)


def _model_check(settings: Settings, family: FamilySettings) -> Callable[[], str]:
    def check() -> str:
        registry = Registry(settings.registry)
        name, version = registry.resolve(family.name)
        fit_columns(family, registry.read(name, version).manifest)
        return f"{version} is intact and fits"

    return check
