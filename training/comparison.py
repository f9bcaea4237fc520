"""The figures of one or more labelled series, and those of a random score under the same protocol.

Owns which figures there are and that none stands without its opponent; their formulas are in the metric modules.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from training import alarms, metrics
from training.labelled_scores import LabelledSeries
from training.vus import volumes

# Rows between two predicted stretches that still count as one alarm.
MERGE_GAP = 50
# The paper names no length of its frames. Its windows have 2,000 rows, which would leave an entity four frames.
FRAME_ROWS = 100

Figures = TypeVar("Figures", "Honest", "PointAdjusted")


class Honest(msgspec.Struct, frozen=True, kw_only=True):
    """Figures without point adjustment; null where the rows are of one class. best_f1 takes the best threshold.

    precision, recall, f1 and what follows are those of the file's own predictions. provisional_*: the score that is
    known at once. vus_*: of one entity only, as a buffer must not reach into the next one. median_delay_*: from an
    event's first row to its first flagged one, over found events, so read it beside event_recall; the waiting for the
    final score is not in it. alarms_per_day: see `Evaluation.day`.
    """

    roc_auc: float | None = None
    average_precision: float | None = None
    vus_roc: float | None = None
    vus_pr: float | None = None
    best_f1: float | None = None
    provisional_roc_auc: float | None = None
    provisional_average_precision: float | None = None
    provisional_vus_roc: float | None = None
    provisional_vus_pr: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    event_precision: float | None = None
    event_recall: float | None = None
    event_f1: float | None = None
    corrected_event_f05: float | None = None
    frame_iou: float | None = None
    median_delay_rows: float | None = None
    median_delay_s: float | None = None
    provisional_median_delay_rows: float | None = None
    provisional_median_delay_s: float | None = None
    nominal_in_alarm: float | None = None
    alarms_per_day: float | None = None


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


def randomise(series: LabelledSeries, generator: np.random.Generator) -> LabelledSeries:
    """Score at random and flag as many rows as the series does, the highest ones."""
    score = generator.random(len(series.labels))
    order = np.argsort(-score)

    def flag(like: metrics.Flags) -> metrics.Flags:
        pred = np.zeros_like(like)
        pred[order[: like.sum()]] = True
        return pred

    return replace(
        series,
        score=score,
        pred=flag(series.pred),
        provisional=None if series.provisional is None else score,
        provisional_pred=None if series.provisional_pred is None else flag(series.provisional_pred),
    )


def compare(
    series: Sequence[LabelledSeries], randoms: Sequence[Sequence[LabelledSeries]], frame_rows: int
) -> Comparison:
    """Measure series taken together as one; randoms: for every seed, the series that `randomise` made of them."""
    return Comparison(
        honest=_honest(series, frame_rows),
        honest_random=_mean([_honest(random, frame_rows) for random in randoms]),
        point_adjusted=_point_adjusted(series),
        point_adjusted_random=_mean([_point_adjusted(random) for random in randoms]),
    )


def _honest(series: Sequence[LabelledSeries], frame_rows: int) -> Honest:
    labels = np.concatenate([s.labels for s in series])
    pred = np.concatenate([s.pred for s in series])
    alarm_figures = {
        "nominal_in_alarm": None if labels.all() else metrics.nominal_in_alarm(labels, pred),
        "alarms_per_day": _alarms_per_day(series),
    }
    if not metrics.has_both_classes(labels):
        return Honest(**alarm_figures)
    rows = metrics.detection(labels, pred)
    frames = [alarms.frame_counts(s.labels, s.pred, frame_rows) for s in series]
    return Honest(
        **_ranking_figures(series, [s.score for s in series], ""),
        **_ranking_figures(series, [s.provisional for s in series], "provisional_"),
        best_f1=metrics.best_f1(labels, np.concatenate([s.score for s in series])).f1,
        precision=rows.precision,
        recall=rows.recall,
        f1=rows.f1,
        **_event_figures(series, metrics.nominal_in_alarm(labels, pred)),
        frame_iou=alarms.frame_iou(alarms.FrameCounts(*map(sum, zip(*frames, strict=True)))),
        **_delay_figures(series, [s.pred for s in series], ""),
        **_delay_figures(series, [s.provisional_pred for s in series], "provisional_"),
        **alarm_figures,
    )


def _ranking_figures(
    series: Sequence[LabelledSeries], scores: Sequence[metrics.Scores | None], prefix: str
) -> dict[str, float | None]:
    present = [score for score in scores if score is not None]
    if len(present) < len(series):
        return {}
    labels, score = np.concatenate([s.labels for s in series]), np.concatenate(present)
    volume = volumes(labels, score) if len(series) == 1 else None
    return {
        f"{prefix}roc_auc": metrics.roc_auc(labels, score),
        f"{prefix}average_precision": metrics.average_precision(labels, score),
        f"{prefix}vus_roc": volume.roc if volume else None,
        f"{prefix}vus_pr": volume.pr if volume else None,
    }


def _event_figures(series: Sequence[LabelledSeries], nominal_in_alarm: float) -> dict[str, float]:
    each = [metrics.event_counts(s.labels, s.pred, MERGE_GAP) for s in series]
    counts = metrics.EventCounts(*map(sum, zip(*each, strict=True)))
    events = metrics.event_detection(counts)
    return {
        "event_precision": events.precision,
        "event_recall": events.recall,
        "event_f1": events.f1,
        "corrected_event_f05": metrics.corrected_event_f05(counts, nominal_in_alarm),
    }


def _delay_figures(
    series: Sequence[LabelledSeries], preds: Sequence[metrics.Flags | None], prefix: str
) -> dict[str, float | None]:
    both = [(s, pred) for s, pred in zip(series, preds, strict=True) if pred is not None]
    rows = [alarms.detection_delays(s.labels, pred) for s, pred in both]
    ms = [alarms.detection_delays(s.labels, pred, s.times) for s, pred in both if s.interval_s is not None]
    return {
        f"{prefix}median_delay_rows": _median(rows),
        f"{prefix}median_delay_s": None if (median := _median(ms)) is None else median / 1000,
    }


def _median(parts: Sequence[NDArray[np.int64]]) -> float | None:
    values = np.concatenate([*parts, np.empty(0)])
    return float(np.median(values)) if len(values) else None


def _alarms_per_day(series: Sequence[LabelledSeries]) -> float:
    """Return alarms per day of rows; a row number counts as a second."""
    days = sum(len(s.labels) * (s.interval_s or 1.0) for s in series) / alarms.DAY_S
    return sum(alarms.alarm_count(s.pred, MERGE_GAP) for s in series) / days


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


def mean_comparison(each: Sequence[Comparison]) -> Comparison:
    """Average every figure over the entities that have it."""
    return Comparison(
        honest=_mean([c.honest for c in each]),
        honest_random=_mean([c.honest_random for c in each]),
        point_adjusted=_mean([c.point_adjusted for c in each]),
        point_adjusted_random=_mean([c.point_adjusted_random for c in each]),
    )
