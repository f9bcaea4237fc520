"""Compares a file of scores with a file of labels. Owns the protocol; the figures are `comparison`'s.

Honest figures come first. Point-adjusted ones are only ever given beside those of a uniform random score that flags
as many rows of every entity, under the same protocol, averaged over several seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from training import curves, metrics
from training.attribution import AttributionReport, attribute, read_interpretation
from training.comparison import FRAME_ROWS, MERGE_GAP, Comparison, compare, mean_comparison, randomise
from training.labelled_scores import LabelledSeries, channel_names, final_delay, join, numeric_columns
from training.vus import WINDOW

RANDOM_SEEDS = 5
P_LEVELS = (0.1, 0.01, 0.001)


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


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """ROC and precision-recall curves: the mean over ranked entities, and of all entities as one series."""

    roc_entity_mean: curves.Curve
    roc_concatenated: curves.Curve
    pr_entity_mean: curves.Curve
    pr_concatenated: curves.Curve


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What scores are worth. ranked_entities: those with both classes, over which entity_mean is taken.

    concatenated: all entities as one series with one threshold; events are still those of each entity, so event figures
    and delays are those of all events pooled. unscored_rows count as least anomalous. frame_rows: of frame_iou.
    vus_window: longest window of the volumes. day: what alarms_per_day counts by. final_delay_rows: how many rows later
    than its row a final score is known, null if the file doesn't say. events: labelled ones.
    """

    rows: int
    anomalous_rows: int
    unscored_rows: int
    entities: int
    ranked_entities: int
    random_seeds: int
    merge_gap: int
    events: int
    frame_rows: int
    vus_window: int
    day: Literal["24 h", "86,400 rows"]
    final_delay_rows: int | None = None
    entity_mean: Comparison
    concatenated: Comparison
    p_values: list[PValueShare]
    curves: Curves | None = None
    attribution: AttributionReport | None = None
    per_entity: list[EntityEvaluation]


def evaluate(
    scores_path: str | Path,
    labels_path: str | Path,
    seed: int = 0,
    *,
    interpretation_path: str | Path | None = None,
    frame_rows: int = FRAME_ROWS,
) -> Evaluation:
    """Join scores with labels, row by row, and measure them.

    Both are Parquet with `entity` and `t` or `ts`; scores have `score` (null = no score), `pred` and maybe `p_value`
    and more (see `labelled_scores.LabelledSeries`), labels have `label`. Raises UsageError naming the first row or
    column that doesn't fit.
    """
    series = join(scores_path, labels_path, with_channels=interpretation_path is not None)
    return evaluate_joined(
        series, scores_path, labels_path, seed, interpretation_path=interpretation_path, frame_rows=frame_rows
    )


def evaluate_joined(
    series: Sequence[LabelledSeries],
    scores_path: str | Path,
    labels_path: str | Path,
    seed: int = 0,
    *,
    interpretation_path: str | Path | None = None,
    frame_rows: int = FRAME_ROWS,
) -> Evaluation:
    """Measure what `join` read from the two files; attribution wants it to have read the channels."""
    attribution = None
    if interpretation_path is not None:
        numbered = numeric_columns(labels_path) or channel_names(scores_path, labels_path)
        attribution = attribute(series, read_interpretation(interpretation_path), numbered)
    evaluation = evaluate_series(series, seed, frame_rows)
    return msgspec.structs.replace(evaluation, final_delay_rows=final_delay(scores_path), attribution=attribution)


def evaluate_series(series: Sequence[LabelledSeries], seed: int = 0, frame_rows: int = FRAME_ROWS) -> Evaluation:
    """Measure the entities' series; equal seeds give equal random scores."""
    generators = [np.random.default_rng((seed, k)) for k in range(RANDOM_SEEDS)]
    randoms = [[randomise(s, generator) for s in series] for generator in generators]
    per_entity = [
        EntityEvaluation(
            entity=s.entity,
            rows=len(s.labels),
            anomalous_rows=int(s.labels.sum()),
            unscored_rows=s.unscored_rows,
            comparison=compare([s], [[random[i]] for random in randoms], frame_rows),
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
        events=sum(len(metrics.runs(s.labels)[0]) for s in series),
        frame_rows=frame_rows,
        vus_window=WINDOW,
        day="24 h" if all(s.interval_s is not None for s in series) else "86,400 rows",
        entity_mean=mean_comparison([e.comparison for e in per_entity]),
        concatenated=compare(series, randoms, frame_rows),
        p_values=_p_values(series),
        curves=_curves(series),
        per_entity=per_entity,
    )


def _curves(series: Sequence[LabelledSeries]) -> Curves | None:
    ranked = [s for s in series if metrics.has_both_classes(s.labels)]
    if not ranked:
        return None
    labels, score = np.concatenate([s.labels for s in series]), np.concatenate([s.score for s in series])
    return Curves(
        roc_entity_mean=curves.mean_curve([curves.roc_curve(s.labels, s.score) for s in ranked]),
        roc_concatenated=curves.roc_curve(labels, score),
        pr_entity_mean=curves.mean_curve([curves.pr_curve(s.labels, s.score) for s in ranked]),
        pr_concatenated=curves.pr_curve(labels, score),
    )


def _p_values(series: Sequence[LabelledSeries]) -> list[PValueShare]:
    nominal = [s.p_value[~s.labels] for s in series if s.p_value is not None]
    p_value = np.concatenate([*nominal, np.empty(0)])
    p_value = p_value[~np.isnan(p_value)]
    if not len(p_value):
        return []
    return [PValueShare(level, float((p_value <= level).mean())) for level in P_LEVELS]
