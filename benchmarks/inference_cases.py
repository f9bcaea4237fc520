"""The ways to score that are measured, each with its speed and its quality on the same weights."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.measure import Spread, Timing, spread, timed
from benchmarks.paper_sampler import PAPER_START, part
from benchmarks.subjects import Subject, with_hop, with_scoring
from detector.cuts import cut_series
from detector.engine import Detector, WindowBatch
from detector.fused import Precision
from detector.manifest import Manifest
from detector.models import Model
from detector.offline import SeriesScores, score_all
from stream.frames import frame
from stream.grid import Geometry
from training.datasets import Series
from training.metrics import average_precision, has_both_classes

STEPS = (1, 2, 4, 20)
SHIPPED, ONE_START, LIVE = "as shipped", "one start, one timestep", "as shipped, live hop"
# More timesteps than these are scored once: they take seconds.
_REPEATED_UP_TO = 4
_L1_WINDOWS = 32


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to score. hop: slots between windows; with windows twice as long every row is in two.

    rows_per_s: by wall time, all threads. rows_per_s_per_core: by CPU seconds. ap: mean average precision over
    entities. l1: mean |x - x0| of normal rows in scaled units, of the first start.
    """

    family: str
    name: str
    starts: tuple[int, ...]
    companions: bool
    sampler_steps: int
    hop: int
    precision: Precision
    rows: int
    rows_per_s: Spread
    rows_per_s_per_core: Spread
    values_per_s: float
    ap: float | None
    l1: float


class Variant(NamedTuple):
    """A way to score that is measured. repeats: at most so many."""

    name: str
    manifest: Manifest
    precision: Precision = "float32"
    repeats: int = 1000


def variants(manifest: Manifest) -> list[Variant]:
    """List what is measured: as shipped and one start, then other precisions and numbers of timesteps."""
    half = manifest.geometry.length // 2
    shipped, one = with_hop(manifest, half), with_hop(with_scoring(manifest, starts=(PAPER_START,)), half)
    steps = [
        Variant(
            f"{count} timesteps",
            with_hop(with_scoring(manifest, starts=(PAPER_START,), sampler_steps=count), half),
            repeats=1 if count > _REPEATED_UP_TO else 1000,
        )
        for count in STEPS[1:]
    ]
    return [
        Variant(SHIPPED, shipped),
        Variant(ONE_START, one),
        Variant(LIVE, manifest, repeats=3),
        Variant("as shipped, bfloat16", shipped, "bfloat16"),
        Variant("one start, bfloat16", one, "bfloat16"),
        *steps,
    ]


def measure(subject: Subject, variant: Variant, repeats: int) -> Case:
    """Score all of a family's test rows a few times, once to warm up."""
    manifest = variant.manifest
    model = whole_model(Detector(manifest, subject.weights, precision=variant.precision))
    list(score_all(model, subject.test[:1]))  # warm
    timings, scores = list[Timing](), list[SeriesScores]()
    for _ in range(min(repeats, variant.repeats)):
        timings.append(timed(lambda: scores.extend(score_all(model, subject.test))))
    rates = [subject.rows / timing.wall_s for timing in timings]
    return Case(
        family=subject.name,
        name=variant.name,
        starts=manifest.scoring.starts,
        companions=manifest.companions is not None,
        sampler_steps=manifest.scoring.sampler_steps,
        hop=manifest.geometry.hop,
        precision=variant.precision,
        rows=subject.rows,
        rows_per_s=spread(rates, 0),
        rows_per_s_per_core=spread([subject.rows / timing.cpu_s for timing in timings], 0),
        values_per_s=round(float(np.median(rates)) * manifest.denoiser.numeric),
        ap=mean_precision(subject.test, scores[: len(subject.test)]),
        l1=reconstruction_l1(model.detector, subject),
    )


def recent_windows(every: Sequence[Series], geometry: Geometry, count: int) -> WindowBatch:
    """Cut the last windows of each series, as many of each."""
    share = -(-count // len(every))
    parts = list[WindowBatch]()
    for series in every:
        ends = np.array([cut.end_slot for cut in cut_series(geometry, series, ended=False)[-share:]], dtype=np.int64)
        values = frame(series.slots, series.values, ends, geometry.length)
        parts.append(WindowBatch([series.entity] * len(ends), ends, values))
    entities = [entity for part in parts for entity in part.entities]
    whole = WindowBatch(
        entities, np.concatenate([part.end_slots for part in parts]), np.concatenate([part.values for part in parts])
    )
    return part(whole, slice(count))


def reconstruction_l1(detector: Detector, subject: Subject) -> float:
    """Return mean |x - x0| of normal windows, x0 of the first start."""
    x, expected = detector.reconstruct(recent_windows(subject.normal, detector.manifest.geometry, _L1_WINDOWS))
    return round(float(np.nanmean(np.abs(x - expected[0]))), 4)


def mean_precision(series: Sequence[Series], scores: Sequence[SeriesScores]) -> float | None:
    """Return the mean average precision of entities that have both kinds of rows; unscored rows rank last."""
    found = [
        average_precision(one.labels > 0, np.where(np.isnan(of_one.score), -np.inf, of_one.score).clip(-1e300))
        for one, of_one in zip(series, scores, strict=True)
        if one.labels is not None and has_both_classes(one.labels > 0)
    ]
    return round(float(np.mean(found)), 4) if found else None


def whole_model(detector: Detector) -> Model:
    """Return a model of series that have the detector's channels in its own order."""
    return Model(detector, np.arange(len(detector.manifest.channels)))


def describe(case: Case) -> str:
    """Say in one line what was measured."""
    quality = "" if case.ap is None else f", AP {case.ap:.3f}"
    return (
        f"{case.rows_per_s.median:,.0f} rows/s ({case.rows_per_s_per_core.median:,.0f} a core), hop {case.hop}"
        f"{quality}, L1 {case.l1:.3f}"
    )
