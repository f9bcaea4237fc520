"""Plots of a report as SVG text. Owns how they look; their colours are the page's, so they follow light and dark."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.curves import Curve
from training.metrics import runs
from training.report_excerpts import Excerpt

# Colours that stand for the page's variables of these names, and are replaced by them in the SVG.
INK, MUTED, GRID, MAIN, SECOND, EVENT, ALARM = (f"#0{digit}0{digit}0{digit}" for digit in "1234567")
VARIABLES = dict(
    zip(
        (INK, MUTED, GRID, MAIN, SECOND, EVENT, ALARM),
        ("ink", "muted", "grid", "main", "second", "event", "alarm"),
        strict=True,
    )
)
# Rows are joined into so many buckets, of which the lowest and the highest value are drawn.
BUCKETS = 500
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "telltale",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "path.simplify_threshold": 0.5,
}


def curve_plot(
    name: str, mean: Curve, concatenated: Curve, *, x_label: str, y_label: str, chance: Sequence[float] | None = None
) -> str:
    """Draw the mean over entities and the concatenated curve; chance: the y of a random score at x = 0 and 1."""
    with _drawing(name, (3.9, 3.1)) as (figure, svg):
        axes = figure.subplots()
        if chance is not None:
            axes.plot([0, 1], chance, color=MUTED, linestyle=":", label="random")
        axes.plot(concatenated.x, concatenated.y, color=SECOND, label="concatenated")
        axes.plot(mean.x, mean.y, color=MAIN, label="entity mean")
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(loc="best", fontsize=8)
    return svg[0]


def p_value_plot(name: str, p_values: NDArray[np.float64]) -> str:
    """Draw which share of nominal rows has a p-value of at most each level, beside what calibrated ones would have."""
    lowest = max(1e-4, 10 / len(p_values)) if len(p_values) < 100_000 else 1e-4
    levels = np.geomspace(min(lowest, 0.1), 1, 120)
    shares = np.searchsorted(np.sort(p_values), levels, side="right") / len(p_values)
    with _drawing(name, (3.9, 3.1)) as (figure, svg):
        axes = figure.subplots()
        axes.plot(levels, levels, color=MUTED, linestyle=":", label="calibrated")
        axes.plot(levels[shares > 0], shares[shares > 0], color=MAIN, label="these scores")
        axes.set(xscale="log", yscale="log", xlabel="p-value at most", ylabel="share of nominal rows")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(loc="upper left", fontsize=8)
    return svg[0]


def excerpt_plot(name: str, excerpt: Excerpt, channel: int | None) -> str:
    """Draw a channel with its expectation, if there is one, above the score; labelled and flagged rows are shaded."""
    with _drawing(name, (5.6, 3.1 if channel is not None else 2.0)) as (figure, svg):
        panels = figure.subplots(1 if channel is None else 2, sharex=True, squeeze=False)[:, 0]
        for axes in panels:
            _shade(axes, excerpt)
        if channel is not None:
            _draw_channel(panels[0], excerpt, channel)
        _draw_score(panels[-1], excerpt)
        panels[-1].set_xlabel("row")
        figure.align_ylabels()
    return svg[0]


def _shade(axes: Axes, excerpt: Excerpt) -> None:
    for flags, colour, low, high in ((excerpt.series.labels, EVENT, 0, 1), (excerpt.series.pred, ALARM, 0, 0.06)):
        for start, end in zip(*runs(flags[excerpt.shown]), strict=True):
            first = excerpt.shown.start + start - 0.5
            width = max(end - start, (excerpt.shown.stop - excerpt.shown.start) / BUCKETS)
            axes.axvspan(
                first,
                first + width,
                low,
                high,
                color=colour,
                alpha=0.25 if colour == EVENT else 1,
                zorder=1 if colour == EVENT else 2.2,
                linewidth=0,
            )


def _draw_channel(axes: Axes, excerpt: Excerpt, channel: int) -> None:
    s = excerpt.series
    if s.observed is not None:
        _draw_line(axes, excerpt.shown, s.observed[:, channel], color=INK, label="observed")
    if s.expected is not None:
        _draw_line(axes, excerpt.shown, s.expected[:, channel], color=SECOND, label="expected")
    axes.set_ylabel("value")
    axes.margins(y=0.12)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, fontsize=8, borderaxespad=0)


def _draw_score(axes: Axes, excerpt: Excerpt) -> None:
    s = excerpt.series
    _draw_line(axes, excerpt.shown, s.score, color=MAIN, label="score")
    if s.threshold is not None:
        _draw_line(axes, excerpt.shown, s.threshold, color=ALARM, linestyle="--", label="threshold")
    axes.set_ylabel("score")
    axes.set_xlim(excerpt.shown.start, excerpt.shown.stop)
    axes.margins(y=0.12)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, fontsize=8, borderaxespad=0)


def _draw_line(axes: Axes, shown: slice, values: NDArray[np.floating], **look: str) -> None:
    rows, kept = thin(np.asarray(values[shown], np.float64))
    axes.plot(rows + shown.start, kept, **look)  # type: ignore[arg-type]


def thin(values: NDArray[np.float64], buckets: int = BUCKETS) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keep the lowest and the highest value of each bucket of rows, so that no peak is lost; return rows and values."""
    size = -(-len(values) // buckets)
    if size <= 2:
        return np.arange(len(values)), values
    filled = np.append(values, np.full(-len(values) % size, np.nan)).reshape(-1, size)
    low, high = np.where(np.isnan(filled), np.inf, filled), np.where(np.isnan(filled), -np.inf, filled)
    place = np.sort(np.stack([low.argmin(1), high.argmax(1)], 1), axis=1)
    rows = (place + size * np.arange(len(filled))[:, None]).ravel().clip(max=len(values) - 1)
    return rows, values[rows]


@contextmanager
def _drawing(name: str, inches: tuple[float, float]) -> Iterator[tuple[Figure, list[str]]]:
    """Give a figure to draw on and a list that holds its SVG afterwards."""
    done: list[str] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure, done
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    done.append(_embedded(file.getvalue(), name))


def _embedded(svg: str, name: str) -> str:
    """Return an SVG document as an element of a page: sized and coloured by it, with ids of its own."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    svg = f"{head}>" + re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
