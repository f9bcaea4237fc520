"""What an experiment hands back: figures for a file, sheets for a terminal, a plot where the paper has one."""

from typing import Any

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from training.paper.scale import Scale


class Sheet(msgspec.Struct, frozen=True):
    """A table of text; the first column is the rows' name."""

    title: str
    headers: list[str]
    rows: list[list[str]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment's result. figures: plain data or structs, one for each row; svg: the plot, if there is one."""

    experiment: str
    figures: list[Any]
    sheets: list[Sheet]
    notes: list[str]
    svg: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome as it is kept: with all that it takes to run it again."""

    experiment: str
    command: str
    seed: int
    device: str
    threads: int
    wall_s: float
    scale: Scale
    notes: list[str]
    figures: list[Any]


def render(outcome: Outcome) -> Group:
    """Lay an outcome out for a terminal."""
    tables = []
    for sheet in outcome.sheets:
        table = Table(title=sheet.title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
        for number, header in enumerate(sheet.headers):
            table.add_column(header, justify="right" if number else "left")
        for row in sheet.rows:
            table.add_row(*row)
        tables.append(table)
    return Group(*tables, *(Text(f"- {note}") for note in outcome.notes))


def cell(figure: float | None, digits: int = 3) -> str:
    """Return a figure, or a dash where there is none."""
    return "-" if figure is None else f"{figure:.{digits}f}"
