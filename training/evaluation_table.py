"""Lays the figures of an evaluation out for a terminal: honest ones first, everything beside random."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from training.attribution import Attribution, AttributionReport
from training.evaluation import EntityEvaluation, Evaluation, PValueShare

# Figures of every entity that fit a terminal, with short headers.
_ENTITY_FIGURES = {
    "roc_auc": "ROC",
    "average_precision": "AP",
    "vus_pr": "VUS-PR",
    "best_f1": "best F1",
    "event_f1": "event F1",
    "nominal_in_alarm": "in alarm",
}


_SPOKEN = {
    "roc": "ROC",
    "auc": "AUC",
    "vus": "VUS",
    "pr": "PR",
    "f1": "F1",
    "f05": "F0.5",
    "iou": "IOU",
    "ndcg": "NDCG",
    "rows": "(rows)",
    "s": "(s)",
    "100": "100 %",
    "150": "150 %",
}


def render(evaluation: Evaluation) -> Group:
    """Lay the figures out for a terminal; one that no column has is left out."""
    summary = Table(title="Scores against labels", caption=caption(evaluation))
    for header in ("figure", "entity mean", "random", "concatenated", "random"):
        summary.add_column(header, justify="left" if header == "figure" else "right")
    for section in figure_rows(evaluation):
        for label, cells in section:
            summary.add_row(label, *cells)
        summary.add_section()
    blamed = [_attribution_table(evaluation.attribution)] if evaluation.attribution else []
    return Group(summary, p_value_line(evaluation.p_values), *blamed, _entity_table(evaluation.per_entity))


def caption(evaluation: Evaluation) -> str:
    """Say what was measured and by which conventions."""
    e = evaluation
    known = "" if e.final_delay_rows is None else f"; a final score is known {e.final_delay_rows} rows after its row"
    return (
        f"{e.rows} rows of {e.entities} entities, {e.anomalous_rows} anomalous, {e.unscored_rows} without a score; "
        f"means over the {e.ranked_entities} entities with both classes; concatenated: all entities as one series, "
        f"its event figures and delays those of all {e.events} events pooled; random: {e.random_seeds} uniform scores "
        f"with as many alarms; a day is {e.day}; frames of {e.frame_rows} rows; VUS over windows 0 to {e.vus_window}"
        f"{known}"
    )


def figure_rows(evaluation: Evaluation) -> list[list[tuple[str, list[str]]]]:
    """Return the honest rows and the point-adjusted ones: label, then entity mean, random, concatenated, random."""
    comparisons = (evaluation.entity_mean, evaluation.concatenated)
    sections = []
    for part, prefix in (("honest", ""), ("point_adjusted", "point-adjusted ")):
        columns = [getattr(c, name) for c in comparisons for name in (part, f"{part}_random")]
        figures = {name: [getattr(column, name) for column in columns] for name in columns[0].__struct_fields__}
        present = {name: values for name, values in figures.items() if set(values) != {None}}
        sections.append([(prefix + spoken(name), [cell(v) for v in values]) for name, values in present.items()])
    return sections


def spoken(name: str) -> str:
    """Return a figure's name as people write it."""
    return " ".join(_SPOKEN.get(word, word) for word in name.split("_"))


def cell(figure: float | None) -> str:
    """Return a figure with three decimals, or one from 100 on, or a dash where there is none."""
    if figure is None:
        return "-"
    return f"{figure:.3f}" if abs(figure) < 100 else f"{figure:.1f}"


def p_value_line(shares: list[PValueShare]) -> str:
    """Say how many nominal rows have small p-values."""
    if not shares:
        return "no p-values"
    return "nominal rows with p at most " + ", ".join(f"{s.level:g}: {s.nominal_share:.4f}" for s in shares)


def blame_rows(attribution: Attribution) -> list[tuple[str, list[str]]]:
    """Return for each figure of attribution: label, then by row, random, by segment, random."""
    columns = (attribution.rows, attribution.rows_random, attribution.segments, attribution.segments_random)
    return [(spoken(name), [cell(getattr(c, name)) for c in columns]) for name in attribution.rows.__struct_fields__]


def _attribution_table(report: AttributionReport) -> Table:
    table = Table(title=f"Blamed channels, mean over {len(report.per_entity)} entities")
    for header in ("figure", "by row", "random", "by segment", "random"):
        table.add_column(header, justify="left" if header == "figure" else "right")
    for label, cells in blame_rows(report.entity_mean):
        table.add_row(label, *cells)
    return table


def _entity_table(entities: list[EntityEvaluation]) -> Table:
    table = Table(title="Entities", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("entity", overflow="fold")
    for header in ("rows", "anomalous", *_ENTITY_FIGURES.values()):
        table.add_column(header, justify="right", no_wrap=True)
    for e in entities:
        cells = [cell(getattr(e.comparison.honest, name)) for name in _ENTITY_FIGURES]
        table.add_row(e.entity, str(e.rows), str(e.anomalous_rows), *cells)
    return table
