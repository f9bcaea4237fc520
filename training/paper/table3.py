"""Table 3: every method under one protocol, beside the paper's figures, random ones and honest ones.

The protocol is the likely reading of the paper: distance smoothed by a Hanning kernel of 25, threshold three deviations
above the mean of the scored series itself, figures of each entity, then their mean. The paper doesn't say whether it
adjusts predictions to labelled events; both are given.
"""

import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from training import metrics
from training.baselines.protocol import Options
from training.baselines.smoothing import smooth, three_sigma
from training.baselines.table import BASELINES
from training.metrics import Detection, Flags, Scores
from training.paper.lab import Lab
from training.paper.outcome import Outcome, Sheet, cell
from training.paper.published import TABLE3
from training.presets import PAPER_SMOOTHING

RANDOM_SEEDS = 5
_EMBEDDING = {"diffadt-no-embedding": False, "diffadt": True}
_ADJUSTED = ["adjusted to events", "paper mPre", "mRec", "mF1", "3 sigma mPre", "mRec", "mF1", "best mF1"]
_HONEST = ["not adjusted", "ROC", "AP", "best F1", "3 sigma F1"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One method on one family: means over the entities that have both normal and anomalous rows.

    adjusted_...: predictions by three-sigma, adjusted to events. adjusted_f1_of_means: F1 of mean precision and mean
    recall, which is what most of the paper's rows hold. adjusted_best_f1: by each entity's best threshold. The rest is
    not adjusted. seconds: of fitting and scoring; None for a detector trained for another experiment too.
    """

    family: str
    method: str
    adjusted_precision: float
    adjusted_recall: float
    adjusted_f1: float
    adjusted_f1_of_means: float
    adjusted_best_f1: float
    roc_auc: float
    average_precision: float
    best_f1: float
    three_sigma_f1: float
    entities: int
    seconds: float | None = None
    paper: Detection | None = None


def table3(lab: Lab) -> Outcome:
    """Fit and measure every method on every family of the lab."""
    rows = {family: list(_rows(lab, family)) for family in lab.families}
    notes = [
        f"all rows: distance smoothed by Hanning {PAPER_SMOOTHING}, figures of each entity, then the mean",
        "the paper never says whether it adjusts predictions to events; read it beside random under the same protocol",
        "best: the best threshold of each entity by its labels, an upper bound; honest: without adjustment",
        f"random: mean of {RANDOM_SEEDS} uniform scores; DiffADT: plain L1 distance, all timesteps from the start",
        *_data_notes(lab),
    ]
    return Outcome(
        experiment="table3",
        figures=[row for each in rows.values() for row in each],
        sheets=[sheet for family, each in rows.items() for sheet in _sheets(family, each)],
        notes=notes,
    )


def measure(labels: Sequence[Flags], scores: Sequence[Scores], *, family: str, method: str) -> Row:
    """Measure raw scores under the protocol; a row without a score counts as the least anomalous of its entity."""
    each = []
    for truth, own in zip(labels, scores, strict=True):
        if not metrics.has_both_classes(truth):
            continue
        smoothed = smooth(own, PAPER_SMOOTHING)
        pred = three_sigma(smoothed)
        score = np.where(np.isnan(smoothed), np.nanmin(smoothed, initial=np.inf), smoothed)
        adjusted = metrics.detection(truth, metrics.point_adjust_pred(truth, pred))
        best_adjusted = metrics.best_f1(truth, metrics.point_adjust_score(truth, score)).f1
        ranking = metrics.roc_auc(truth, score), metrics.average_precision(truth, score)
        best = metrics.best_f1(truth, score).f1, metrics.detection(truth, pred).f1
        each.append([*adjusted, best_adjusted, *ranking, *best])
    precision, recall, f1, best_adjusted, roc, ap, best_f1, sigma_f1 = np.mean(each, axis=0).tolist()
    return Row(
        family=family,
        method=method,
        adjusted_precision=precision,
        adjusted_recall=recall,
        adjusted_f1=f1,
        adjusted_f1_of_means=harmonic_mean(precision, recall),
        adjusted_best_f1=best_adjusted,
        roc_auc=roc,
        average_precision=ap,
        best_f1=best_f1,
        three_sigma_f1=sigma_f1,
        entities=len(each),
    )


def harmonic_mean(precision: float, recall: float) -> float:
    """Return F1 of a precision and a recall, 0 where both are."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _rows(lab: Lab, family: str) -> Iterator[Row]:
    labels = lab.labels(family)
    for method in BASELINES:
        begin = time.perf_counter()
        if method == "random":
            yield _random(lab, family, labels)
            continue
        scores = _scores(lab, family, method)
        row = measure(labels, scores, family=family, method=method)
        yield msgspec.structs.replace(
            row, seconds=round(time.perf_counter() - begin, 1), paper=TABLE3[family].get(method)
        )


def _scores(lab: Lab, family: str, method: str) -> Sequence[Scores]:
    if method in _EMBEDDING:
        return lab.distances(family, use_entity=_EMBEDDING[method])
    lab.on_work(f"{method} on {family}")
    scorer = BASELINES[method](Options(seed=lab.seed, train_steps=lab.scale.opponent_steps)).fit(lab.train(family))
    return [scorer(series) for series in lab.test(family).series]


def _random(lab: Lab, family: str, labels: Sequence[Flags]) -> Row:
    """Average every figure over several uniform scores."""
    rows = []
    for number in range(RANDOM_SEEDS):
        generator = np.random.default_rng([lab.seed, number])
        uniform = [generator.random(len(truth)) for truth in labels]
        rows.append(measure(labels, uniform, family=family, method="random"))
    names = [name for name in Row.__struct_fields__ if isinstance(getattr(rows[0], name), float)]
    return msgspec.structs.replace(
        rows[0], **{name: float(np.mean([getattr(r, name) for r in rows])) for name in names}
    )


def _sheets(family: str, rows: list[Row]) -> tuple[Sheet, Sheet]:
    """Lay a family out twice: what the paper may have measured, and what it should have."""
    adjusted = [
        [
            row.method,
            *(cell(figure) for figure in row.paper or (None, None, None)),
            *(cell(figure) for figure in (row.adjusted_precision, row.adjusted_recall, row.adjusted_f1)),
            cell(row.adjusted_best_f1),
        ]
        for row in rows
    ]
    honest = [
        [row.method, *(cell(f) for f in (row.roc_auc, row.average_precision, row.best_f1, row.three_sigma_f1))]
        for row in rows
    ]
    title = f"Table 3, {family}: mean over {rows[0].entities} entities"
    return Sheet(title, _ADJUSTED, adjusted), Sheet(title, _HONEST, honest)


def _data_notes(lab: Lab) -> Iterator[str]:
    if "SMAP" in lab.families:
        yield "SMAP without P-2, as in the published 562,800 rows"
    for family, rows in lab.scale.rows.items():
        if family in lab.families:
            yield f"{family}: the newest {rows.train} training and {rows.test} test rows of every entity"
    if {"SMAP", "MSL"} & {*lab.families}:
        yield "SMAP and MSL were scaled by their publisher with the test set's own range, which flatters every method"
