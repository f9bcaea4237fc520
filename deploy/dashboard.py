"""The Grafana dashboard as data: `python -m deploy.dashboard` writes `grafana/dashboards/telltale.json`.

Knows the metrics' names only; a test compares them with those the services expose, and the file with this module.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).parent / "grafana" / "dashboards" / "telltale.json"
_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 7
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One chart. queries: pairs of PromQL and legend. unit: a Grafana unit id."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["timeseries", "table"] = "timeseries"
    help: str = ""


def rate(metric: str, *labels: str, unit_s: int = 1) -> tuple[str, str]:
    """Return the query for how fast a counter grows, split by labels, per `unit_s` seconds."""
    factor = "" if unit_s == 1 else f"{unit_s} * "
    return f"{factor}{_sum(*labels)} (rate(telltale_{metric}_total{_RATE}))", _legend(labels)


def total(metric: str, *labels: str) -> tuple[str, str]:
    """Return the query for the sum of a gauge, split by labels."""
    return f"{_sum(*labels)} (telltale_{metric})", _legend(labels)


def quantiles(metric: str, *labels: str, of: tuple[float, ...] = (0.5, 0.99)) -> tuple[tuple[str, str], ...]:
    """Return the queries for quantiles of a histogram, split by labels."""
    buckets = f"{_sum('le', *labels)} (rate(telltale_{metric}_bucket{_RATE}))"
    return tuple(
        (f"histogram_quantile({q}, {buckets})", f"{_legend(labels) if labels else ''} p{q * 100:g}".strip()) for q in of
    )


def mean(metric: str, *labels: str) -> tuple[str, str]:
    """Return the query for the mean of a histogram, split by labels."""
    parts = (f"{_sum(*labels)} (rate(telltale_{metric}_{part}{_RATE}))" for part in ("sum", "count"))
    return " / ".join(parts), _legend(labels)


def _sum(*labels: str) -> str:
    return f"sum by ({', '.join(labels)})" if labels else "sum"


def _legend(labels: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Flow",
        (
            Panel("Records taken", (rate("records_consumed", "service"),), "cps"),
            Panel("Records waiting", (total("consumer_lag_records", "service"),)),
            Panel("Entities", (total("entities_active", "service"),)),
            Panel("Windows", ((rate("notices")[0], "announced"), (rate("windows_scored")[0], "scored")), "cps"),
            Panel(
                "Rows",
                ((rate("rows_scored")[0], "scored"), (rate("gap_slots")[0], "missing")),
                "cps",
                help="Missing: slots of the grid for which no row came, published as gaps.",
            ),
            Panel("Alert messages per minute", (rate("alerts", "severity", "state", unit_s=60),)),
        ),
    ),
    (
        "Delay",
        (
            Panel(
                "From record to committed score",
                quantiles("end_to_end_latency_seconds", of=(0.5, 0.95, 0.99)),
                "s",
                help="Measured from the record's Kafka time stamp; the hop of the family is part of it.",
            ),
            Panel("Network, one pass", quantiles("inference_compute_seconds"), "s"),
            Panel("Windows in one pass", ((mean("inference_batch_windows")[0], "mean"),)),
            Panel("Transaction commit", quantiles("txn_commit_seconds", "service"), "s"),
            Panel("Redis round trip", quantiles("redis_op_seconds", "op", of=(0.99,)), "s"),
            Panel(
                "Partitions paused",
                (total("paused_partitions", "service"),),
                help="Above 0 the windower waits, so that no window is overwritten before it is scored.",
            ),
        ),
    ),
    (
        "Trouble",
        (
            Panel("Records refused per minute", (rate("records_rejected", "reason", unit_s=60),)),
            Panel("Dead letters per minute", (rate("dead_letters", "reason", unit_s=60),)),
            Panel(
                "Dead letters left out per minute",
                (rate("dead_letters_dropped", "reason", unit_s=60),),
                help="Refused records beyond limits.dead_letters_per_s, told together.",
            ),
            Panel(
                "Families whose records break their contract",
                (total("refusing", "family"),),
                help="1 while more than limits.refused_share of a family's records are refused.",
            ),
            Panel("Late rows", ((rate("late_records")[0], "late"),), "cps"),
            Panel("Jumps of clocks per minute", ((rate("clock_jumps", unit_s=60)[0], "jumps"),)),
            Panel("Transactions given up per minute", (rate("txn_aborts", "service", unit_s=60),)),
            Panel(
                "Partitions held back",
                (total("held_back_partitions", "service"),),
                help="Records wait behind a transaction that nobody ends; the service's log names the way out.",
            ),
            Panel("Rebalances per minute", (rate("rebalances", "service", unit_s=60),)),
            Panel("Windows rebuilt per minute", (rate("window_rebuilds", "cause", unit_s=60),)),
        ),
    ),
    (
        "Models",
        (
            Panel("In use", (("sum by (family, version) (telltale_model_info)", ""),), kind="table"),
            Panel("Changes per minute", (rate("model_swaps", "result", unit_s=60),)),
            Panel(
                "Entities compared with training",
                (
                    ("max by (family) (telltale_drift_watched_entities)", "{{family}} watched"),
                    ("max by (family) (telltale_drift_moved_entities)", "{{family}} moved"),
                ),
                help="Enough moved entities at once are drift: the model's training data is of another time.",
            ),
            Panel("Drift events", (("sum by (family) (telltale_drift_events_total)", "{{family}}"),)),
            Panel("Decisions per minute", (rate("model_decisions", "family", "kind", unit_s=60),)),
            Panel("Families looked after", (total("families_owned", "service"),)),
            Panel("Windows in shadow", (rate("shadow_windows"),), "cps"),
            Panel("Challengers dropped per minute", (rate("challengers_dropped", "family", unit_s=60),)),
            Panel("Windows without a model per minute", ((rate("unscored_windows", unit_s=60)[0], "unscored"),)),
        ),
    ),
    (
        "Archive",
        (
            Panel("Rows archived", (rate("archived_rows", "family"),), "cps"),
            Panel(
                "Rows that wait to be written",
                (("max(telltale_archive_flush_age_seconds)", "oldest"),),
                "s",
                help="Grows beyond archive.flush_s while the storage can't be written.",
            ),
            Panel("Memory of rows that wait", (total("archive_buffer_bytes", "service"),), "bytes"),
            Panel("Size", (("max(telltale_archive_size_bytes)", "all files"),), "bytes"),
            Panel(
                "Written and removed",
                (
                    (rate("archive_written_bytes", "cause")[0], "written by {{cause}}"),
                    (rate("archive_removed_bytes", "cause")[0], "removed by {{cause}}"),
                ),
                "Bps",
            ),
            Panel("Time of a flush", quantiles("archive_flush_seconds"), "s"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard in Grafana's format."""
    return {
        "uid": "telltale",
        "title": "Telltale",
        "tags": ["telltale"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "panels": [{"id": index, **panel} for index, panel in enumerate(_panels(), start=1)],
    }


def _panels() -> Iterator[dict[str, Any]]:
    y = 0
    for title, panels in ROWS:
        yield {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(0, y, 24, 1)}
        y += 1
        for index, panel in enumerate(panels):
            row, column = divmod(index, _COLUMNS)
            yield _chart(panel, _place(column * _WIDTH, y + row * _HEIGHT, _WIDTH, _HEIGHT))
        y += -(-len(panels) // _COLUMNS) * _HEIGHT


def _chart(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **({} if table else {"min": 0})}, "overrides": []},
        "options": {} if table else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": table,
                "format": panel.kind if table else "time_series",
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def render() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
    sys.stdout.write(f"wrote {FILE}\n")
