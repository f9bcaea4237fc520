"""Compares a file of scores with a file of labels. Owns the protocol and the report; the figures are `metrics`'.

Honest figures come first. Point-adjusted ones are only ever given beside those of a uniform random score that flags
as many rows of every entity, under the same protocol, averaged over several seeds.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from rich.console import Group
from rich.table import Table

from training import metrics
from training.labelled_scores import LabelledSeries, join

RANDOM_SEEDS = 5
# Rows between two predicted stretches that still count as one alarm.
MERGE_GAP = 50
P_LEVELS = (0.1, 0.01, 0.001)

Figures = TypeVar("Figures", "Honest", "PointAdjusted")


class Honest(msgspec.Struct, frozen=True, kw_only=True):
    """Figures without point adjustment; null where the rows are of one class. best_f1 takes the best threshold.

    precision, recall, f1 and the event figures are those of the file's own predictions.
    """

    roc_auc: float | None = None
    average_precision: float | None = None
    best_f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    event_precision: float | None = None
    event_recall: float | None = None
    event_f1: float | None = None
    corrected_event_f05: float | None = None
    nominal_in_alarm: float | None = None


class PointAdjusted(msgspec.Struct, frozen=True, kw_only=True):
    """Figures after point adjustment: of the best threshold, then of the file's own predictions."""

    best_f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the scores and, under the same protocol, of a random score."""

    honest: Honest
    honest_random: Honest
    point_adjusted: PointAdjusted
    point_adjusted_random: PointAdjusted


class EntityEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's figures."""

    entity: str
    rows: int
    anomalous_rows: int
    unscored_rows: int
    comparison: Comparison


class PValueShare(msgspec.Struct, frozen=True):
    """The share of nominal rows whose p-value is at most the level: about the level if the p-values are calibrated."""

    level: float
    nominal_share: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What scores are worth. ranked_entities: those with both classes, over which entity_mean is taken.

    concatenated: all entities as one series with one threshold; events are still those of each entity.
    unscored_rows count as least anomalous.
    """

    rows: int
    anomalous_rows: int
    unscored_rows: int
    entities: int
    ranked_entities: int
    random_seeds: int
    merge_gap: int
    entity_mean: Comparison
    concatenated: Comparison
    p_values: list[PValueShare]
    per_entity: list[EntityEvaluation]


def evaluate(scores_path: str | Path, labels_path: str | Path, seed: int = 0) -> Evaluation:
    """Join scores with labels, row by row, and measure them.

    Both are Parquet with `entity` and `t` or `ts`; scores have `score` (null = no score), `pred` and maybe `p_value`,
    labels have `label`. Raises UsageError naming the first row or column that doesn't fit.
    """
    return evaluate_series(join(scores_path, labels_path), seed)


def evaluate_series(series: Sequence[LabelledSeries], seed: int = 0) -> Evaluation:
    """Measure the entities' series; equal seeds give equal random scores."""
    generators = [np.random.default_rng((seed, k)) for k in range(RANDOM_SEEDS)]
    randoms = [[_randomise(s, generator) for s in series] for generator in generators]
    per_entity = [
        EntityEvaluation(
            entity=s.entity,
            rows=len(s.labels),
            anomalous_rows=int(s.labels.sum()),
            unscored_rows=s.unscored_rows,
            comparison=_compare([s], [[random[i]] for random in randoms]),
        )
        for i, s in enumerate(series)
    ]
    return Evaluation(
        rows=sum(e.rows for e in per_entity),
        anomalous_rows=sum(e.anomalous_rows for e in per_entity),
        unscored_rows=sum(e.unscored_rows for e in per_entity),
        entities=len(series),
        ranked_entities=sum(metrics.has_both_classes(s.labels) for s in series),
        random_seeds=RANDOM_SEEDS,
        merge_gap=MERGE_GAP,
        entity_mean=_mean_comparison([e.comparison for e in per_entity]),
        concatenated=_compare(series, randoms),
        p_values=_p_values(series),
        per_entity=per_entity,
    )


def _randomise(series: LabelledSeries, generator: np.random.Generator) -> LabelledSeries:
    """Score at random and flag as many rows as the series does, the highest ones."""
    score = generator.random(len(series.labels))
    pred = np.zeros_like(series.pred)
    pred[np.argsort(-score)[: series.pred.sum()]] = True
    return replace(series, score=score, pred=pred)


def _compare(series: Sequence[LabelledSeries], randoms: Sequence[Sequence[LabelledSeries]]) -> Comparison:
    return Comparison(
        honest=_honest(series),
        honest_random=_mean([_honest(random) for random in randoms]),
        point_adjusted=_point_adjusted(series),
        point_adjusted_random=_mean([_point_adjusted(random) for random in randoms]),
    )


def _honest(series: Sequence[LabelledSeries]) -> Honest:
    labels = np.concatenate([s.labels for s in series])
    score = np.concatenate([s.score for s in series])
    pred = np.concatenate([s.pred for s in series])
    nominal_in_alarm = None if labels.all() else metrics.nominal_in_alarm(labels, pred)
    if nominal_in_alarm is None or not labels.any():
        return Honest(nominal_in_alarm=nominal_in_alarm)
    rows = metrics.detection(labels, pred)
    each = [metrics.event_counts(s.labels, s.pred, MERGE_GAP) for s in series]
    counts = metrics.EventCounts(*map(sum, zip(*each, strict=True)))
    events = metrics.event_detection(counts)
    return Honest(
        roc_auc=metrics.roc_auc(labels, score),
        average_precision=metrics.average_precision(labels, score),
        best_f1=metrics.best_f1(labels, score).f1,
        precision=rows.precision,
        recall=rows.recall,
        f1=rows.f1,
        event_precision=events.precision,
        event_recall=events.recall,
        event_f1=events.f1,
        corrected_event_f05=metrics.corrected_event_f05(counts, nominal_in_alarm),
        nominal_in_alarm=nominal_in_alarm,
    )


def _point_adjusted(series: Sequence[LabelledSeries]) -> PointAdjusted:
    labels = np.concatenate([s.labels for s in series])
    if not metrics.has_both_classes(labels):
        return PointAdjusted()
    score = np.concatenate([metrics.point_adjust_score(s.labels, s.score) for s in series])
    pred = np.concatenate([metrics.point_adjust_pred(s.labels, s.pred) for s in series])
    found = metrics.detection(labels, pred)
    best = metrics.best_f1(labels, score)
    return PointAdjusted(best_f1=best.f1, precision=found.precision, recall=found.recall, f1=found.f1)


def _mean(each: Sequence[Figures]) -> Figures:
    """Average every figure over those that have it."""
    names = each[0].__struct_fields__
    return type(each[0])(**{name: metrics.entity_mean(getattr(e, name) for e in each).mean for name in names})


def _mean_comparison(each: Sequence[Comparison]) -> Comparison:
    return Comparison(
        honest=_mean([c.honest for c in each]),
        honest_random=_mean([c.honest_random for c in each]),
        point_adjusted=_mean([c.point_adjusted for c in each]),
        point_adjusted_random=_mean([c.point_adjusted_random for c in each]),
    )


def _p_values(series: Sequence[LabelledSeries]) -> list[PValueShare]:
    nominal = [s.p_value[~s.labels] for s in series if s.p_value is not None]
    p_value = np.concatenate([*nominal, np.empty(0)])
    p_value = p_value[~np.isnan(p_value)]
    if not len(p_value):
        return []
    return [PValueShare(level, float((p_value <= level).mean())) for level in P_LEVELS]


def render(evaluation: Evaluation) -> Group:
    """Lay the figures out for a terminal: honest ones first, everything beside random."""
    e = evaluation
    caption = (
        f"{e.rows} rows of {e.entities} entities, {e.anomalous_rows} anomalous, {e.unscored_rows} without a score; "
        f"means over the {e.ranked_entities} entities with both classes; random: {e.random_seeds} uniform scores "
        "with as many alarms"
    )
    summary = Table(title="Scores against labels", caption=caption)
    for header in ("figure", "entity mean", "random", "concatenated", "random"):
        summary.add_column(header, justify="left" if header == "figure" else "right")
    for part in ("honest", "point_adjusted"):
        _add_figures(summary, part, e.entity_mean, e.concatenated)
    return Group(summary, _p_value_line(e.p_values), _entity_table(e.per_entity))


def _add_figures(table: Table, part: str, *comparisons: Comparison) -> None:
    columns = [getattr(c, name) for c in comparisons for name in (part, f"{part}_random")]
    for name in columns[0].__struct_fields__:
        label = name.replace("_", " ")
        cells = [_cell(getattr(column, name)) for column in columns]
        table.add_row(f"point-adjusted {label}" if part == "point_adjusted" else label, *cells)
    table.add_section()


def _p_value_line(shares: list[PValueShare]) -> str:
    if not shares:
        return "no p-values"
    return "nominal rows with p at most " + ", ".join(f"{s.level:g}: {s.nominal_share:.4f}" for s in shares)


def _entity_table(entities: list[EntityEvaluation]) -> Table:
    table = Table(title="Entities")
    figures = ("roc_auc", "average_precision", "best_f1", "f1", "event_f1", "nominal_in_alarm")
    table.add_column("entity")
    for header in ("rows", "anomalous", *(name.replace("_", " ") for name in figures)):
        table.add_column(header, justify="right")
    for e in entities:
        cells = [_cell(getattr(e.comparison.honest, name)) for name in figures]
        table.add_row(e.entity, str(e.rows), str(e.anomalous_rows), *cells)
    return table


def _cell(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
