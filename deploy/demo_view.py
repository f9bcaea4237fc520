"""What the demo shows in a terminal. Knows no broker and computes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.demo_report import DemoReport
from stream.contracts import Alert, ChannelEvidence, Severity

_COLOURS: dict[Severity, str] = {"warning": "yellow", "error": "red", "critical": "bold red"}
_MARKS = {"firing": "ALERT", "updated": "update", "resolved": "over"}
_SHOWN_CHANNELS = 2


class Step:
    """One line of progress."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        """Belong to a running progress display."""
        self._progress = progress
        self._task = task
        self.name = name
        self.outcome = ""
        self.good = True

    def progress(self, what: str, done: float, total: float) -> None:
        """Show how far the step is."""
        self._progress.update(self._task, description=f"{self.name}: {what}", completed=done, total=total)

    def done(self, outcome: str) -> None:
        """Say how the step ended."""
        self.outcome = outcome

    def missed(self, outcome: str) -> None:
        """Say that the step did not get where it should."""
        self.outcome, self.good = outcome, False


class DemoView:
    """Prints steps as they end and alerts as they come; progress bars only on a terminal."""

    def __init__(self, console: Console) -> None:
        """Print to a console."""
        self.console = console

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show a step's progress while it goes on, and one line when it has ended."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            if not self.console.is_terminal:
                self.console.print(f"  … {escape(name)}")
            step = Step(bars, bars.add_task(name, total=None), name)
            yield step
        mark = "[green]✓[/]" if step.good else "[red]✗[/]"
        self.console.print(f"{mark} {escape(name)}: {escape(step.outcome)}", highlight=False)

    def alert(self, alert: Alert) -> None:
        """Print one alert message."""
        print_alert(self.console, alert)

    def summary(self, report: DemoReport) -> None:
        """Print what the run was worth."""
        table = Table(title="Known faults and what became of them", title_justify="left")
        for heading in ("entity", "kind", "began", "alerted after"):
            table.add_column(heading)
        for fault in report.fault_list:
            began = datetime.fromtimestamp(fault.first_ms / 1000, UTC)
            outcome = f"{fault.delay_slots} slots" if fault.found else "[red]missed[/]"
            table.add_row(escape(fault.entity), fault.kind, f"{began:%Y-%m-%d %H:%M:%S}Z", outcome)
        if report.fault_list:
            self.console.print(table)
        self.console.print(
            f"{report.rows_in:,} rows in, {report.rows_scored:,} of {report.rows_scorable:,} scorable rows scored; "
            f"{report.faults_found} of {report.faults} known faults found, "
            f"{report.alerts} alerts of which {report.false_alarms} at no known fault",
            highlight=False,
        )


def print_alert(console: Console, alert: Alert) -> None:
    """Print one alert message: when, what, who, and the channels that say why."""
    colour = "green" if alert.state == "resolved" else _COLOURS[alert.severity]
    when = datetime.fromtimestamp(alert.observed_at_ms / 1000, UTC)
    head = f"{when:%Y-%m-%d %H:%M:%S}Z  {_MARKS[alert.state]:<6} {alert.severity:<8}"
    adapting = "  adapting" if alert.adapting else ""
    console.print(f"[{colour}]{head}[/] {escape(alert.entity)}{adapting}", highlight=False)
    if alert.state == "resolved":
        return
    console.print(
        f"    score {alert.score:.3g} over {alert.threshold:.3g}, {alert.rests_on}", style="dim", highlight=False
    )
    for evidence in alert.channels[:_SHOWN_CHANNELS]:
        console.print(f"    {escape(_explain(evidence))}", highlight=False)
    if alert.commands:
        console.print(f"    commanded: {escape(', '.join(alert.commands))}", highlight=False)


def _explain(evidence: ChannelEvidence) -> str:
    observed = "missing" if evidence.observed is None else f"{evidence.observed:.4g}"
    return (
        f"{evidence.channel}: observed {observed}, expected {evidence.expected:.4g} "
        f"({evidence.low:.4g} to {evidence.high:.4g}), {evidence.share:.0%} of the deviation"
        + ("" if evidence.explained is None else f"; commands explain {evidence.explained:.0%} of it")
    )
