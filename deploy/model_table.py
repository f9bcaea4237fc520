"""The registry as tables for people: versions, what was decided of them, how two differ. Loads no weights."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from detector.manifest import Manifest
from detector.registry import ALIASES, Registry
from stream.errors import CheckpointError

_VERSION_WIDTH = len("v20260131T120000000-0123ab")


def model_table(registry: Registry) -> Table:
    """Return a row for each version of each family, oldest first."""
    table = Table()
    for heading in ("family", "version", "alias", "decided", "trained", "rows", "preset", "seed"):
        # Never cut what other commands want to be given, however narrow the terminal or the pipe.
        table.add_column(heading, overflow="fold", min_width=_VERSION_WIDTH if heading == "version" else None)
    for name in registry.families():
        aliases = {registry.alias(name, alias): alias for alias in ALIASES}
        decided = {event.version: event.kind.replace("_", " ") for event in registry.history(name)}
        for version in registry.versions(name):
            told = aliases.get(version, ""), decided.get(version, "")
            table.add_row(escape(name), version, *told, *_about(registry, name, version))
    return table


def model_report(registry: Registry, name: str, version: str) -> dict[str, Any]:
    """Return a version's manifest and, under `decisions`, what was decided of it, as plain data."""
    decisions = [event for event in registry.history(name) if event.version == version]
    manifest: dict[str, Any] = msgspec.to_builtins(registry.manifest(name, version))
    return manifest | {"decisions": msgspec.to_builtins(decisions)}


def model_diff(registry: Registry, one: tuple[str, str], other: tuple[str, str]) -> Table:
    """Return a row for each thing in which two versions differ: configuration, data, metrics and gates."""
    table = Table("", escape("@".join(one)), escape("@".join(other)))
    mine, theirs = (dict(_facts(model_report(registry, *model))) for model in (one, other))
    for fact in [*mine, *(fact for fact in theirs if fact not in mine)]:
        if mine.get(fact) != theirs.get(fact):
            table.add_row(escape(fact), escape(mine.get(fact, "")), escape(theirs.get(fact, "")))
    return table


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is worth comparing in a version, by name; of the entities only who they are."""
    for part in ("interval_ms", "geometry", "denoiser", "scoring", "companions", "decision", "training"):
        yield from _flat(part, report[part])
    yield "channels", ", ".join(f"{channel['name']} ({channel['kind']})" for channel in report["channels"])
    yield "entities", ", ".join(sorted(entity["name"] for entity in report["entities"]))
    for decision in report["decisions"]:
        for gate in decision["gates"]:
            verdict = "passed" if gate["passed"] else "failed"
            yield f"gate {gate['name']}", f"{verdict}: {gate['value']} (bound {gate['bound']})"
    yield "decisions", ", ".join(decision["kind"] for decision in report["decisions"])


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def _about(registry: Registry, name: str, version: str) -> tuple[str, ...]:
    try:
        return _told(registry.manifest(name, version))
    except CheckpointError:
        return ("damaged",)


def _told(manifest: Manifest) -> tuple[str, ...]:
    made, record = datetime.fromtimestamp(manifest.created_ms / 1000, UTC), manifest.training
    trained = f"{made:%Y-%m-%d %H:%M}Z, {record.minutes:.1f} min"
    return trained, f"{record.rows:,}", record.preset, str(record.seed)
