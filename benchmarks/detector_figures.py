"""One detector's figures, whoever's it is: the entities that are drawn, what scores are worth, how fast they came."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.measure import Spread, Timing, spread
from stream.errors import UsageError
from training.baselines.smoothing import smooth
from training.datasets import Dataset, Series, read_dataset
from training.metrics import Flags, Scores, average_precision, has_both_classes, roc_auc

WIDTHS = (25, 101, 201)


class DetectorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One detector. view: the rows that it sees of every scored one; LSTMs keep a window of their own.

    fit_s, fit_cpu_s: of all entities that are scored; of ours, of its whole family, as its checkpoint says. rows_per_s:
    by wall time, rows_per_s_per_core: by CPU seconds. roc_auc, average_precision: means over entities, without point
    adjustment, at the widths of smoothing beside them; ours has its own and shows none.
    """

    name: str
    library: str
    view: str
    fit_s: float
    fit_cpu_s: float | None
    rows_per_s: Spread
    rows_per_s_per_core: Spread
    roc_auc: float
    roc_auc_width: int | None
    average_precision: float
    average_precision_width: int | None


class Drawn(NamedTuple):
    """The same entities' rows before and after the split."""

    train: Dataset
    test: Dataset

    @property
    def rows(self) -> int:
        """Rows to score."""
        return self.test.rows


def draw(folder: Path, family: str, count: int, seed: int) -> Drawn:
    """Draw entities whose labelled rows are of both classes."""
    train, test = (read_dataset(folder / f"{family}_{part}.parquet") for part in ("train", "test"))
    known = {series.entity for series in train.series}
    fit = [one for one in test.series if one.entity in known and has_both_classes(_flags(one))]
    chosen = np.sort(np.random.default_rng(seed).choice(len(fit), min(count, len(fit)), replace=False))
    names = [fit[index].entity for index in chosen]
    return Drawn(*(_only(dataset, names) for dataset in (train, test)))


def quality(test: Dataset, scores: Sequence[Scores]) -> tuple[float, float]:
    """Return ROC-AUC and average precision, means over entities; scores are finite."""
    pairs = [(_flags(series), one) for series, one in zip(test.series, scores, strict=True)]
    figures = (roc_auc, average_precision)
    roc, precision = (float(np.mean([figure(*pair) for pair in pairs])) for figure in figures)
    return roc, precision


def finite(scores: Scores) -> Scores:
    """Give rows without a score the lowest one, and infinite ones the highest finite one."""
    known = scores[np.isfinite(scores)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    return np.nan_to_num(scores, nan=low, posinf=high, neginf=low)


def smoothed_figures(
    name: str,
    library: str,
    view: str,
    fit: Timing,
    timings: Sequence[Timing],
    drawn: Drawn,
    raw: Sequence[Scores],
) -> DetectorFigures:
    """Take the best width for each figure."""
    found: dict[int | None, tuple[float, float]] = {
        width: quality(drawn.test, [smooth(finite(one), width) for one in raw]) for width in WIDTHS
    }
    return figures_of(name, library, view, (fit.wall_s, fit.cpu_s), timings, drawn, found)


def figures_of(
    name: str,
    library: str,
    view: str,
    fit: tuple[float, float | None],
    timings: Sequence[Timing],
    drawn: Drawn,
    found: dict[int | None, tuple[float, float]],
) -> DetectorFigures:
    """Summarise passes; fit: wall and CPU seconds; found: ROC-AUC and average precision by width of smoothing."""
    roc, precision = (max(found, key=lambda width: found[width][index]) for index in (0, 1))
    fit_s, fit_cpu_s = fit
    return DetectorFigures(
        name=name,
        library=library,
        view=view,
        fit_s=round(fit_s, 2),
        fit_cpu_s=None if fit_cpu_s is None else round(fit_cpu_s, 2),
        rows_per_s=spread([drawn.rows / one.wall_s for one in timings], 0),
        rows_per_s_per_core=spread([drawn.rows / one.cpu_s for one in timings], 0),
        roc_auc=round(found[roc][0], 4),
        roc_auc_width=roc,
        average_precision=round(found[precision][1], 4),
        average_precision_width=precision,
    )


def _flags(series: Series) -> Flags:
    if series.labels is None:
        raise UsageError(f"the test rows of {series.entity} want labels")
    return series.labels > 0


def _only(dataset: Dataset, names: Sequence[str]) -> Dataset:
    by_name = {series.entity: series for series in dataset.series}
    return Dataset(dataset.channels, dataset.interval_ms, [by_name[name] for name in names])
