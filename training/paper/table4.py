"""Table 4: intersection over union of labelled and flagged frames, by smoothing kernel and size, from one detector.

Neither the data set nor the length of a frame is in the paper: two lengths are given.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from training import metrics
from training.alarms import frame_counts, frame_iou
from training.baselines.smoothing import three_sigma
from training.metrics import Flags
from training.paper.lab import Lab
from training.paper.outcome import Outcome, Sheet, cell
from training.paper.published import TABLE4

SHORT_FRAME = 100
_RANDOM_SEEDS = 5


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One smoothing: IOU of frames, three-sigma predictions, mean over entities.

    random_...: the same alarms moved. adjusted_...: predictions adjusted to labelled events before.
    """

    family: str
    smoothing: str
    size: int
    frame_rows: int
    iou: float
    random_iou: float
    adjusted_iou: float
    adjusted_random_iou: float
    flagged_share: float
    paper: float


def table4(lab: Lab) -> Outcome:
    """Measure every smoothing of the paper on every family of the lab."""
    lengths = SHORT_FRAME, lab.scale.detector.geometry.length
    rows = [
        _row(lab, family, smoothing, size, frame_rows)
        for family in lab.families
        for smoothing, size in TABLE4
        for frame_rows in lengths
    ]
    return Outcome(
        experiment="table4",
        figures=rows,
        sheets=[_sheet(family, frame_rows, rows) for family in lab.families for frame_rows in lengths],
        notes=[
            "the paper names neither the data set nor the length of a frame; the longer a frame, the more it forgives",
            "adjusted: predictions adjusted to labelled events before; the paper never says whether it does",
            "predictions by three sigma of the smoothed series itself, IOU of each entity, then the mean",
            f"random: the same alarms of each entity moved by a random number of rows, mean of {_RANDOM_SEEDS} draws",
        ],
    )


def mean_iou(labels: Sequence[Flags], preds: Sequence[Flags], frame_rows: int) -> float:
    """Return the mean over entities of the IOU of frames; an entity with nothing labelled or flagged has none."""
    each = (frame_iou(frame_counts(*pair, frame_rows)) for pair in zip(labels, preds, strict=True))
    return metrics.entity_mean(each).mean or 0.0


def _row(lab: Lab, family: str, smoothing: str, size: int, frame_rows: int) -> Row:
    labels = lab.labels(family)
    preds = [three_sigma(scores) for scores in lab.smoothed(family, smoothing, size)]
    moved = [_elsewhere(preds, np.random.default_rng([lab.seed, number])) for number in range(_RANDOM_SEEDS)]
    return Row(
        family=family,
        smoothing=smoothing,
        size=size,
        frame_rows=frame_rows,
        iou=mean_iou(labels, preds, frame_rows),
        random_iou=float(np.mean([mean_iou(labels, each, frame_rows) for each in moved])),
        adjusted_iou=mean_iou(labels, _adjusted(labels, preds), frame_rows),
        adjusted_random_iou=float(np.mean([mean_iou(labels, _adjusted(labels, each), frame_rows) for each in moved])),
        flagged_share=float(np.concatenate(preds).mean()),
        paper=TABLE4[smoothing, size],
    )


def _adjusted(labels: Sequence[Flags], preds: Sequence[Flags]) -> list[Flags]:
    return [metrics.point_adjust_pred(*pair) for pair in zip(labels, preds, strict=True)]


def _elsewhere(preds: Sequence[Flags], generator: np.random.Generator) -> list[Flags]:
    """Turn each series of flags by a random number of rows: as many alarms, as long, anywhere."""
    return [np.roll(pred, generator.integers(len(pred))) for pred in preds]


def _sheet(family: str, frame_rows: int, rows: list[Row]) -> Sheet:
    cells = [
        [
            f"{row.smoothing} {row.size}",
            *(cell(f) for f in (row.paper, row.iou, row.random_iou, row.adjusted_iou, row.adjusted_random_iou)),
        ]
        for row in rows
        if (row.family, row.frame_rows) == (family, frame_rows)
    ]
    headers = ["smoothing", "paper", "IOU", "random", "adjusted", "random"]
    return Sheet(f"Table 4, {family}: IOU of frames of {frame_rows} rows", headers, cells)
