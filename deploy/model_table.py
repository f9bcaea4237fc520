"""The registry as a table for people. Reads manifests, loads no weights."""

from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from detector.manifest import Manifest
from detector.registry import ALIASES, Registry
from stream.errors import CheckpointError

_VERSION_WIDTH = len("v20260131T120000000-0123ab")


def model_table(registry: Registry) -> Table:
    """Return a row for each version of each family, oldest first."""
    table = Table()
    for heading in ("family", "version", "alias", "trained", "rows", "preset", "seed"):
        # Never cut what other commands want to be given, however narrow the terminal or the pipe.
        table.add_column(heading, overflow="fold", min_width=_VERSION_WIDTH if heading == "version" else None)
    for name in registry.families():
        aliases = {registry.alias(name, alias): alias for alias in ALIASES}
        for version in registry.versions(name):
            table.add_row(escape(name), version, aliases.get(version, ""), *_about(registry, name, version))
    return table


def _about(registry: Registry, name: str, version: str) -> tuple[str, ...]:
    try:
        return _told(registry.manifest(name, version))
    except CheckpointError:
        return ("damaged",)


def _told(manifest: Manifest) -> tuple[str, ...]:
    made, record = datetime.fromtimestamp(manifest.created_ms / 1000, UTC), manifest.training
    trained = f"{made:%Y-%m-%d %H:%M}Z, {record.minutes:.1f} min"
    return trained, f"{record.rows:,}", record.preset, str(record.seed)
