"""The registry as a table for people. Reads manifests, loads no weights."""

from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from detector.registry import ALIASES, Registry


def model_table(registry: Registry) -> Table:
    """Return a row for each version of each family, oldest first."""
    table = Table()
    for heading in ("family", "version", "alias", "trained", "rows", "preset", "seed"):
        table.add_column(heading)
    for name in registry.families():
        aliases = {registry.alias(name, alias): alias for alias in ALIASES}
        for version in registry.versions(name):
            manifest = registry.manifest(name, version)
            made = datetime.fromtimestamp(manifest.created_ms / 1000, UTC)
            record = manifest.training
            table.add_row(
                escape(name),
                version,
                aliases.get(version, ""),
                f"{made:%Y-%m-%d %H:%M}Z, {record.minutes:.1f} min",
                f"{record.rows:,}",
                record.preset,
                str(record.seed),
            )
    return table
