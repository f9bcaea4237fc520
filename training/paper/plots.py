"""Plots of the paper's figures as SVG files. Owns how they look."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.curves import Curve

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "telltale",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
}


def loss_plot(courses: Mapping[str, Sequence[float]], counts: Mapping[str, Sequence[float]], span: int) -> str:
    """Draw two panels of loss curves by name, averaged over `span` train steps."""
    with _drawing((8, 3.2)) as (figure, svg):
        for axes, curves, title in zip(
            figure.subplots(1, 2, sharey=True), (courses, counts), ("learning rate", "layers"), strict=True
        ):
            for name, losses in curves.items():
                _draw_losses(axes, name, losses, span)
            axes.set(yscale="log", xlabel="train step", title=title)
            axes.legend(fontsize=8)
        figure.axes[0].set_ylabel("noise loss")
    return svg[0]


def roc_plot(families: Mapping[str, Mapping[str, Curve]], printed_auc: float) -> str:
    """Draw the ROC curves of each family by name in a panel of its own."""
    with _drawing((3.6 * len(families), 3.4)) as (figure, svg):
        panels = figure.subplots(1, len(families), squeeze=False)[0]
        for axes, (family, curves) in zip(panels, families.items(), strict=True):
            axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="random 0.500")
            for name, curve in curves.items():
                axes.plot(curve.x, curve.y, label=f"{name} {np.trapezoid(curve.y, curve.x):.3f}")
            axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"{family}; paper {printed_auc}")
            axes.legend(loc="lower right", fontsize=7)
    return svg[0]


def _draw_losses(axes: Axes, name: str, losses: Sequence[float], span: int) -> None:
    span = min(span, len(losses))
    means = np.convolve(losses, np.ones(span) / span, "valid")
    axes.plot(np.arange(span, len(losses) + 1), means, label=name)


@contextmanager
def _drawing(inches: tuple[float, float]) -> Iterator[tuple[Figure, list[str]]]:
    """Give a figure to draw on and a list that holds its SVG afterwards."""
    done: list[str] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure, done
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    done.append(file.getvalue())
