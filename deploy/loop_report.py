"""The figures of the loop demo, and how a terminal shows them. Computes nothing."""

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stream.contracts import Gate, ModelEvent


class AlarmRates(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of slots in alarm, those of known faults left out; None where nothing was scored.

    before: the usual regime. during: the new one under the old champion. after: the new one under the new champion.
    """

    before: float | None = None
    during: float | None = None
    after: float | None = None


class LoopReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of the closed loop was worth; None where something was not reached.

    drift_delay_blocks: from the change to the block that decided, in blocks of `block_slots` slots. drift_delay_s and
    the other seconds are those of the wall clock. swap_s: from the decision to the last of `workers` workers' first
    scores by the new champion. gates: all of its trial, then those of shadow. not_reached: in words.
    """

    drift_delay_blocks: float | None
    gates: list[Gate]
    swap_s: float | None
    slots_unscored: int
    slots_repeated: int
    alarm_rate: AlarmRates
    faults_after: int
    faults_after_found: int
    bad_challenger_refused: bool
    bad_champion_rolled_back: bool
    alarm_rate_ratio: float | None
    workers: int
    entities: int
    rows: int
    rows_per_s: float
    block_slots: int | None
    drift_delay_s: float | None
    training_s: float | None
    false_alarms_after: int
    refused_because: str
    rolled_back_because: str
    decisions: list[ModelEvent]
    not_reached: list[str]
    seed: int
    seconds: float


def show_gates(console: Console, gates: list[Gate]) -> None:
    """Print what a model had to show."""
    table = Table(title="Gates", title_justify="left")
    for heading in ("gate", "challenger", "bound", "champion", ""):
        table.add_column(heading)
    for gate in gates:
        passed = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        table.add_row(gate.name, *(_number(one) for one in (gate.value, gate.bound, gate.champion)), passed)
    console.print(table)


def show_report(console: Console, report: LoopReport) -> None:
    """Print what the run was worth."""
    table = Table(title="The loop", title_justify="left", show_header=False)
    rates = report.alarm_rate
    for name, value in (
        ("drift called after", f"{_number(report.drift_delay_blocks)} blocks"),
        ("swap on all workers", f"{_number(report.swap_s)} s"),
        ("slots unscored, repeated", f"{report.slots_unscored}, {report.slots_repeated} of {report.rows:,}"),
        ("alarm rate before, during, after", ", ".join(map(_number, (rates.before, rates.during, rates.after)))),
        ("after over before", _number(report.alarm_rate_ratio)),
        ("faults found after", f"{report.faults_after_found} of {report.faults_after}"),
        ("alerts after at no fault", str(report.false_alarms_after)),
        ("bad challenger", report.refused_because or "not refused"),
        ("bad champion", report.rolled_back_because or "not rolled back"),
        ("seconds", f"{report.seconds:.0f}"),
    ):
        table.add_row(name, escape(value))
    console.print(table)
    for missed in report.not_reached:
        console.print(f"[red]not reached:[/] {escape(missed)}", highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
