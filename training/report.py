"""Writes an evaluation as one page: tables, curves, worst misses, worst false alarms. Computes no figure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from training.evaluation import Evaluation
from training.evaluation_table import blame_rows, caption, cell, figure_rows, p_value_line, spoken
from training.labelled_scores import LabelledSeries
from training.report_excerpts import Excerpt, deviating_channel, false_alarms, misses
from training.report_page import PAGE, STYLE
from training.report_plots import curve_plot, excerpt_plot, p_value_plot

EXCERPTS = 6


class Plot(NamedTuple):
    """A plot and the text above it."""

    caption: str
    svg: Markup


def write_report(path: Path, evaluation: Evaluation, series: Sequence[LabelledSeries]) -> None:
    """Write the page, which needs nothing but itself; series: those that were evaluated."""
    path.write_text(render_page(evaluation, series), encoding="utf-8")


def render_page(evaluation: Evaluation, series: Sequence[LabelledSeries]) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        style=Markup(STYLE),  # noqa: S704 - our own text
        caption=caption(evaluation),
        headline=_headline(evaluation),
        blamed=_blamed(evaluation),
        curves=_curve_plots(evaluation) + _p_value_plots(series),
        p_values=p_value_line(evaluation.p_values),
        excerpts=[
            _excerpts("Worst misses: events without an alarm", "miss", misses(series)),
            _excerpts("Worst false alarms: alarms without an event", "false", false_alarms(series)),
        ],
        entities=_entities(evaluation),
    )


def _headline(evaluation: Evaluation) -> dict[str, Any]:
    headers = ["figure", "entity mean", "random", "concatenated", "random"]
    return {"headers": headers, "sections": figure_rows(evaluation)}


def _blamed(evaluation: Evaluation) -> dict[str, Any] | None:
    report = evaluation.attribution
    if report is None:
        return None
    headers = ["figure", "by row", "random", "by segment", "random"]
    return {"entities": len(report.per_entity), "headers": headers, "sections": [blame_rows(report.entity_mean)]}


def _curve_plots(evaluation: Evaluation) -> list[Plot]:
    curves = evaluation.curves
    if curves is None:
        return []
    mean, whole = evaluation.entity_mean.honest, evaluation.concatenated.honest
    base_rate = evaluation.anomalous_rows / evaluation.rows
    roc = curve_plot(
        "roc",
        curves.roc_entity_mean,
        curves.roc_concatenated,
        x_label="false positive rate",
        y_label="true positive rate",
        chance=(0, 1),
    )
    pr = curve_plot(
        "pr",
        curves.pr_entity_mean,
        curves.pr_concatenated,
        x_label="recall",
        y_label="precision",
        chance=(base_rate, base_rate),
    )
    return [
        _plot(f"ROC: area {cell(mean.roc_auc)} entity mean, {cell(whole.roc_auc)} concatenated", roc),
        _plot(
            f"Precision over recall: area {cell(mean.average_precision)} entity mean, "
            f"{cell(whole.average_precision)} concatenated",
            pr,
        ),
    ]


def _p_value_plots(series: Sequence[LabelledSeries]) -> list[Plot]:
    nominal = np.concatenate([*(s.p_value[~s.labels] for s in series if s.p_value is not None), np.empty(0)])
    nominal = nominal[~np.isnan(nominal)]
    if not len(nominal):
        return []
    return [
        _plot(
            "Calibration of p-values on nominal rows: above the line, more alarms than promised",
            p_value_plot("p", nominal),
        )
    ]


def _excerpts(title: str, name: str, found: list[Excerpt]) -> dict[str, Any]:
    figures = [_excerpt(f"{name}{number}", excerpt) for number, excerpt in enumerate(found[:EXCERPTS])]
    return {"title": title, "total": len(found), "figures": figures}


def _excerpt(name: str, excerpt: Excerpt) -> Plot:
    s = excerpt.series
    channel = deviating_channel(excerpt)
    text = f"{s.entity}, rows {excerpt.start} to {excerpt.end - 1} ({excerpt.rows})"
    if s.interval_s is not None:
        text += f", from {datetime.fromtimestamp(s.times[excerpt.start] / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if channel is not None:
        text += f"; channel {s.channels[channel]}"
    return _plot(text, excerpt_plot(name, excerpt, channel))


def _plot(text: str, svg: str) -> Plot:
    return Plot(text, Markup(svg))  # noqa: S704 - matplotlib escapes text, and none of it comes from the files


def _entities(evaluation: Evaluation) -> dict[str, Any]:
    figures = {
        name: [getattr(e.comparison.honest, name) for e in evaluation.per_entity]
        for name in evaluation.entity_mean.honest.__struct_fields__
    }
    present = [name for name, values in figures.items() if set(values) != {None}]
    rows = [
        (e.entity, [e.rows, e.anomalous_rows, e.unscored_rows, *(cell(figures[name][i]) for name in present)])
        for i, e in enumerate(evaluation.per_entity)
    ]
    return {"headers": ["entity", "rows", "anomalous", "unscored", *map(spoken, present)], "rows": rows}
