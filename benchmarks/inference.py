"""How fast the detector scores recorded rows in process, what that costs in quality, and where the time goes.

Needs no server. Every figure says how far apart its windows lie: with a hop of 64 every row is in 8 windows of 512 (the
live geometry), with half a window in two (a backfill). Quality is measured in the same run on the same weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from benchmarks.inference_cases import (
    LIVE,
    ONE_START,
    SHIPPED,
    Case,
    describe,
    mean_precision,
    measure,
    recent_windows,
    reconstruction_l1,
    variants,
    whole_model,
)
from benchmarks.measure import Machine, Timing, describe_machine, timed
from benchmarks.operations import OperationShares, operation_shares
from benchmarks.paper_sampler import PAPER_START, PaperSampler, part
from benchmarks.subjects import Subject, make_subject, read_subjects, with_hop, with_scoring
from deploy.demo_view import DemoView
from detector.cuts import cut_series
from detector.engine import Detector
from detector.manifest import Manifest
from detector.offline import score_all
from stream.logs import configure_logging
from training.datasets import Series
from training.metrics import has_both_classes

# Enough for a steady figure: the paper's sampler takes a good part of a second for each.
_TIMED_WINDOWS = 8


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. rows: of test data a family, about. paper_windows: that the paper's sampler gets, a family.

    models: see `subjects.read_subjects`.
    """

    data: str | None = None
    models: tuple[str, ...] = ()
    minutes: float = 0.5
    rows: int = 60_000
    repeats: int = 5
    paper_windows: int = 40
    seed: int = 0


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """The paper's sampler against the same entities scored fast; see `Case` for the units.

    ap_fast: as shipped, with half-window hops. ap_one_step: one deterministic call from the same start. speedup: of
    what is shipped, by wall time, over all rows of the family; speedup_one_step: of one start and one timestep.
    """

    family: str
    entities: list[str]
    windows: int
    rows_per_s: float
    rows_per_s_per_core: float
    speedup: float
    speedup_per_core: float
    speedup_one_step: float
    ap: float | None
    ap_fast: float | None
    ap_one_step: float | None
    l1: float
    l1_fast: float


class InferenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The detector's figures; see `Case` and `Paper` for units.

    rows_per_s: what is shipped, end to end from rows in memory to judged scores, every row in two windows, over all
    families with one numeric channel. rows_per_s_live: the same at the live hop. rows_per_s_one_start: one start and
    no companions. values_per_s: numeric values of the family that has most. ap_..., l1_...: means over the families
    with one numeric channel; ap_fast (what ships), ap_one_step (one start and timestep) and ap_paper are of the same
    entities.
    """

    rows_per_s: float
    rows_per_s_per_core: float
    rows_per_s_one_start: float
    rows_per_s_one_start_per_core: float
    rows_per_s_live: float
    rows_per_s_live_per_core: float
    values_per_s: float
    speedup_vs_paper_sampler: float
    ap_fast: float | None
    ap_one_step: float | None
    ap_paper: float | None
    l1_fast: float
    l1_paper: float
    cases: list[Case]
    paper: list[Paper]
    operations: list[OperationShares]
    load: Load
    machine: Machine


def run(console: Console, load: Load | None = None) -> InferenceReport:
    """Measure, print and return the detector's figures."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine, subjects = describe_machine(), list[Subject]()
    with view.step("models and data") as step:
        subjects = _subjects(load, lambda name: step.progress(name, 0, 1))
        step.done(", ".join(f"{subject.name} {subject.rows:,} rows" for subject in subjects))
    cases, papers, operations = list[Case](), list[Paper](), list[OperationShares]()
    for subject in subjects:
        for variant in variants(subject.manifest):
            with view.step(f"{subject.name}: {variant.name}") as step:
                cases.append(measure(subject, variant, load.repeats))
                step.done(describe(cases[-1]))
        with view.step(f"{subject.name}: the paper's sampler") as step:
            papers.append(_paper(subject, [case for case in cases if case.family == subject.name], load))
            step.done(_paper_line(papers[-1]))
        with view.step(f"{subject.name}: where the time goes") as step:
            operations.append(_operations(subject))
            step.done(", ".join(f"{kind} {share:.0%}" for kind, share in operations[-1].shares.items()))
    return _report(subjects, cases, papers, operations, load, machine)


def _subjects(load: Load, on_family: Callable[[str], None]) -> list[Subject]:
    if load.data is None:
        return [make_subject(load.seed)]
    return read_subjects(Path(load.data), load.models, load.minutes, load.rows, load.seed, on_family)


def _paper(subject: Subject, cases: Sequence[Case], load: Load) -> Paper:
    """Score a few entities by the paper's sampler and by the fast path."""
    half = subject.manifest.geometry.length // 2
    alone = with_hop(with_scoring(subject.manifest, starts=(PAPER_START,)), half)
    series = _few(subject.test, alone, load.paper_windows)
    paper, one = PaperSampler(alone, subject.weights), Detector(alone, subject.weights)
    rows, timing = _time_paper(paper, series)
    by_name = {case.name: case for case in cases}
    return Paper(
        family=subject.name,
        entities=[each.entity for each in series],
        windows=sum(len(cut_series(alone.geometry, each)) for each in series),
        rows_per_s=round(rows / timing.wall_s, 1),
        rows_per_s_per_core=round(rows / timing.cpu_s, 1),
        speedup=round(by_name[SHIPPED].rows_per_s.median * timing.wall_s / rows, 1),
        speedup_per_core=round(by_name[SHIPPED].rows_per_s_per_core.median * timing.cpu_s / rows, 1),
        speedup_one_step=round(by_name[ONE_START].rows_per_s.median * timing.wall_s / rows, 1),
        ap=_ranked(paper, series),
        ap_fast=_ranked(Detector(with_hop(subject.manifest, half), subject.weights), series),
        ap_one_step=_ranked(one, series),
        l1=reconstruction_l1(paper, subject),
        l1_fast=reconstruction_l1(one, subject),
    )


def _ranked(detector: Detector, series: Sequence[Series]) -> float | None:
    """Score series and return how well the scores rank their rows."""
    return mean_precision(series, list(score_all(whole_model(detector), series)))


def _time_paper(paper: PaperSampler, series: Sequence[Series]) -> tuple[int, Timing]:
    """Return how many new rows a few windows have and how long they take, every operation free to use all threads."""
    geometry = paper.manifest.geometry
    windows = recent_windows(series, geometry, _TIMED_WINDOWS)
    paper.score(part(windows, slice(1)))
    timing = timed(lambda: paper.score(windows, geometry.hop + geometry.final_delay))
    return len(windows.entities) * geometry.hop, timing


def _few(test: Sequence[Series], manifest: Manifest, windows: int) -> list[Series]:
    """Take the shortest series that have both kinds of rows, until there are windows enough."""
    ranked = sorted(test, key=lambda one: (one.labels is None or not has_both_classes(one.labels > 0), len(one.slots)))
    taken, so_far = list[Series](), 0
    for series in ranked:
        if taken and so_far >= windows:
            break
        taken.append(series)
        so_far += len(cut_series(manifest.geometry, series))
    return taken


def _operations(subject: Subject) -> OperationShares:
    detector = Detector(subject.manifest, subject.weights)
    geometry = subject.manifest.geometry
    windows = recent_windows(subject.test, geometry, 64)
    return operation_shares(
        f"{subject.name}, live", lambda: detector.score(windows, geometry.hop + geometry.final_delay)
    )


def _report(
    subjects: Sequence[Subject],
    cases: list[Case],
    papers: list[Paper],
    operations: list[OperationShares],
    load: Load,
    machine: Machine,
) -> InferenceReport:
    narrow = {subject.name for subject in subjects if subject.manifest.denoiser.numeric == 1} or {subjects[0].name}
    few = [paper for paper in papers if paper.family in narrow]
    rates = {
        name: _together([c for c in cases if c.name == name and c.family in narrow])
        for name in (SHIPPED, ONE_START, LIVE)
    }
    return InferenceReport(
        rows_per_s=rates[SHIPPED][0],
        rows_per_s_per_core=rates[SHIPPED][1],
        rows_per_s_one_start=rates[ONE_START][0],
        rows_per_s_one_start_per_core=rates[ONE_START][1],
        rows_per_s_live=rates[LIVE][0],
        rows_per_s_live_per_core=rates[LIVE][1],
        values_per_s=max(case.values_per_s for case in cases if case.name == ONE_START),
        speedup_vs_paper_sampler=min(paper.speedup for paper in few),
        ap_fast=_mean([paper.ap_fast for paper in few]),
        ap_one_step=_mean([paper.ap_one_step for paper in few]),
        ap_paper=_mean([paper.ap for paper in few]),
        l1_fast=round(float(np.mean([paper.l1_fast for paper in few])), 4),
        l1_paper=round(float(np.mean([paper.l1 for paper in few])), 4),
        cases=cases,
        paper=papers,
        operations=operations,
        load=load,
        machine=machine,
    )


def _together(cases: Sequence[Case]) -> tuple[float, float]:
    """Return the rate at which all families' rows are scored one after the other, by wall and by CPU time."""
    rows = sum(case.rows for case in cases)
    wall_s = sum(case.rows / case.rows_per_s.median for case in cases)
    cpu_s = sum(case.rows / case.rows_per_s_per_core.median for case in cases)
    return round(rows / wall_s), round(rows / cpu_s)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def _paper_line(paper: Paper) -> str:
    return (
        f"{paper.rows_per_s:,.0f} rows/s, AP {paper.ap}, L1 {paper.l1}; {paper.speedup:,.0f} times as fast with AP "
        f"{paper.ap_fast} as shipped, {paper.speedup_one_step:,.0f} times with {paper.ap_one_step} in one step"
    )
