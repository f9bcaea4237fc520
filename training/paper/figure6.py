"""Figure 6: ROC of the smoothed distance, which the paper divides by its maximum.

Over which rows the maximum is taken is not in the paper, nor the data set: both readings and the entity mean are given.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from training import metrics
from training.curves import Curve, mean_curve, roc_curve
from training.metrics import Flags, Scores
from training.paper import plots
from training.paper.lab import Lab
from training.paper.outcome import Outcome, Sheet, cell
from training.paper.published import FIGURE6_AUC
from training.presets import PAPER_SMOOTHING


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Areas under the ROC of one family.

    pooled: all rows as one series, distances divided by the maximum of all of them, which changes no rank;
    pooled_by_entity: by that of each entity.
    """

    family: str
    entity_mean: float
    pooled: float
    pooled_by_entity: float
    entities: int
    paper: float
    curves: dict[str, Curve]


def figure6(lab: Lab) -> Outcome:
    """Draw the ROC of every family of the lab."""
    rows = [_row(lab, family) for family in lab.families]
    cells = [
        [row.family, cell(row.paper, 4), *(cell(f, 4) for f in (row.pooled, row.pooled_by_entity, row.entity_mean))]
        for row in rows
    ]
    headers = ["family", "paper", "pooled, one maximum", "pooled, maximum by entity", "entity mean"]
    return Outcome(
        experiment="figure6",
        figures=rows,
        sheets=[Sheet(f"Figure 6: ROC-AUC, Hanning {PAPER_SMOOTHING}", headers, cells)],
        notes=["the paper names no data set; a random score has 0.5; no adjustment, no threshold, so no label chooses"],
        svg=plots.roc_plot({row.family: row.curves for row in rows}, FIGURE6_AUC),
    )


def _row(lab: Lab, family: str) -> Row:
    pairs = list(zip(lab.labels(family), lab.smoothed(family, "hanning", PAPER_SMOOTHING), strict=True))
    ranked = [(labels, _finite(scores)) for labels, scores in pairs if metrics.has_both_classes(labels)]
    labels = np.concatenate([labels for labels, _ in pairs])
    pooled = _by_maximum(np.concatenate([_finite(scores) for _, scores in pairs]))
    by_entity = np.concatenate([_by_maximum(_finite(scores)) for _, scores in pairs])
    return Row(
        family=family,
        entity_mean=_mean_area(ranked),
        pooled=metrics.roc_auc(labels, pooled),
        pooled_by_entity=metrics.roc_auc(labels, by_entity),
        entities=len(ranked),
        paper=FIGURE6_AUC,
        curves={
            "entity mean": mean_curve([roc_curve(*pair) for pair in ranked]),
            "pooled, one maximum": roc_curve(labels, pooled),
            "pooled, maximum by entity": roc_curve(labels, by_entity),
        },
    )


def _mean_area(ranked: Sequence[tuple[Flags, Scores]]) -> float:
    return float(np.mean([metrics.roc_auc(*pair) for pair in ranked]))


def _finite(scores: Scores) -> Scores:
    """Let a row without a score count as the least anomalous."""
    return np.where(np.isnan(scores), np.nanmin(scores, initial=np.inf), scores)


def _by_maximum(scores: Scores) -> Scores:
    """Divide by the maximum, as Figure 6 does; distances are not negative."""
    maximum = scores.max()
    return scores / maximum if maximum > 0 else scores
