"""Tables 5 and 6 and Figure 5: what the number and the kind of layers and the warm-up do to training, on SMAP."""

from collections.abc import Sequence

import msgspec

from training.paper import plots
from training.paper.cascade import LAST_SHARE, TIMED_ROWS, CascadeRun, first_stays_below
from training.paper.lab import Lab
from training.paper.outcome import Outcome, Sheet, cell
from training.paper.published import FIGURE5_SAVED, TABLE5_EPOCH, TABLE6
from training.paper.scale import Scale


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run. reached: for each level the train step from which the loss stays at or below it, None if never.

    paper_layers: the row of the paper that stands beside it, of as many layers or at the same place in the list.
    """

    layer: str
    layers: int
    paper_layers: int
    learning_rate_course: str
    parameters: int
    train_steps: int
    steps_per_epoch: int
    levels: list[float]
    reached: list[int | None]
    l1: float
    l1_deterministic: float
    l2_mean: float
    l2_deviation: float
    seconds: float
    training_s: float
    losses: list[float]
    paper: tuple[float, float, float, float]


def table5(lab: Lab) -> Outcome:
    """Measure cascades of S4 layers."""
    rows = _rows(lab, "s4")
    arrival = [
        [f"S4-L{row.layers}", *map(_train_step, row.reached), _printed(row, str(TABLE5_EPOCH[row.paper_layers]))]
        for row in rows
    ]
    quality = [
        [
            f"S4-L{row.layers}",
            cell(row.l1, 4),
            cell(row.seconds, 4),
            _printed(row, cell(row.paper[0], 4)),
            cell(row.paper[3], 4),
        ]
        for row in rows
    ]
    levels = [f"{level:g}" for level in lab.scale.levels]
    return Outcome(
        experiment="table5",
        figures=rows,
        sheets=[
            Sheet(
                f"Table 5, SMAP: train step of {rows[0].train_steps} from which the loss stays at",
                ["layers", *levels, "paper: epoch at 1e-3"],
                arrival,
            ),
            Sheet("Table 5, SMAP", ["layers", "L1", "seconds", "paper: L1", "seconds"], quality),
        ],
        notes=list(_notes(lab)),
    )


def table6(lab: Lab) -> Outcome:
    """Measure cascades of S4 layers beside those of dilated convolutions alone."""
    rows = [*_rows(lab, "s4"), *_rows(lab, "res")]
    cells = [
        [
            _name(row),
            cell(row.l1, 4),
            f"{row.l2_mean:.4f} ± {row.l2_deviation:.4f}",
            cell(row.seconds, 4),
            _printed(row, cell(row.paper[0], 4)),
            f"{row.paper[1]:.4f} ± {row.paper[2]:.4f}",
            cell(row.paper[3], 4),
        ]
        for row in rows
    ]
    more = [[_name(row), f"{row.parameters:,}", cell(row.l1_deterministic, 4), f"{row.training_s:.0f}"] for row in rows]
    return Outcome(
        experiment="table6",
        figures=rows,
        sheets=[
            Sheet("Table 6, SMAP", ["layers", "L1", "L2", "seconds", "paper: L1", "L2", "seconds"], cells),
            Sheet("Beyond the paper", ["layers", "parameters", "L1, deterministic sampler", "training (s)"], more),
        ],
        notes=[f"L2: mean and deviation of the last {LAST_SHARE:.1%} of the training losses", *_notes(lab)],
    )


def figure5(lab: Lab) -> Outcome:
    """Compare loss curves: warm-up beside a constant learning rate, and different numbers of layers."""
    scale = lab.scale
    middle = scale.layers[-2]
    courses = [lab.cascade("s4", middle, course) for course in ("warm_up", "constant")]
    counts = [lab.cascade("s4", layers) for layers in scale.layers]
    rows = [_row(scale, run) for run in [*courses, *counts]]
    warm_up, constant = rows[:2]
    saved = [_saved(*pair) for pair in zip(warm_up.reached, constant.reached, strict=True)]
    cells = [
        [f"{level:g}", _train_step(warm), _train_step(flat), "-" if share is None else f"{share:.0%}"]
        for level, warm, flat, share in zip(scale.levels, warm_up.reached, constant.reached, saved, strict=True)
    ]
    spread = [
        [row.learning_rate_course, f"{row.l2_mean:.4f} ± {row.l2_deviation:.4f}", cell(row.l1, 4)] for row in rows[:2]
    ]
    return Outcome(
        experiment="figure5",
        figures=rows,
        sheets=[
            Sheet(
                f"Figure 5 (left), S4-L{middle}: train step of {warm_up.train_steps} from which the loss stays there",
                ["level", "warm-up", "constant", "saved"],
                cells,
            ),
            Sheet("Both runs", ["learning rate", "L2 of the last part", "L1"], spread),
        ],
        notes=[f"paper: warm-up saves {FIGURE5_SAVED:.0%} of the time until the loss first is 1e-2", *_notes(lab)],
        svg=plots.loss_plot(
            {run.learning_rate_course.replace("_", "-"): run.losses for run in courses},
            {f"S4-L{run.layers}": run.losses for run in counts},
            scale.span,
        ),
    )


def _rows(lab: Lab, layer: str) -> list[Row]:
    return [_row(lab.scale, lab.cascade(layer, layers)) for layers in lab.scale.layers]


def _row(scale: Scale, run: CascadeRun) -> Row:
    paper_layers = sorted(TABLE5_EPOCH)[scale.layers.index(run.layers)]
    fields = msgspec.structs.asdict(run)
    return Row(
        **fields,
        paper_layers=paper_layers,
        train_steps=len(run.losses),
        levels=list(scale.levels),
        reached=[first_stays_below(run.losses, level, scale.span) for level in scale.levels],
        paper=TABLE6[run.layer, paper_layers],
    )


def _saved(warm_up: int | None, constant: int | None) -> float | None:
    return None if warm_up is None or constant is None else 1 - warm_up / constant


def _name(row: Row) -> str:
    return f"{row.layer.upper()}-L{row.layers}"


def _printed(row: Row, figure: str) -> str:
    """Say of how many layers the paper's figure is."""
    return f"L{row.paper_layers}: {figure}"


def _train_step(reached: int | None) -> str:
    return "never" if reached is None else str(reached)


def _notes(lab: Lab) -> Sequence[str]:
    plan = lab.scale.cascade
    notes = [
        f"width {plan.width}, N {plan.state}, patches of {plan.patch}, frames of {plan.geometry.length}, "
        f"batch {plan.batch}, peak learning rate {plan.learning_rate:g}, SMAP without P-2",
        f"the loss is 1 for knowing nothing; averaged over {lab.scale.span} train steps before it counts",
        "L1: held-out training rows in units of half the training range, Algorithm 2 from start 20 by 20 timesteps",
        f"seconds: one window of {TIMED_ROWS} rows, 20 calls, on {lab.device}; the paper's on a Tesla P40",
    ]
    if lab.scale.layers != tuple(TABLE5_EPOCH):
        notes.insert(0, "scaled down: the paper's rows beside ours are those of 6, 12, 18 and 24 layers, in order")
    return notes
