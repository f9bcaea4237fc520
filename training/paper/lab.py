"""What the experiments share: data, trained detectors and cascades, each made once, on first use."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stream.errors import UsageError
from training.baselines.smoothing import smooth
from training.datasets import Dataset, Series, read_dataset
from training.metrics import Flags, Scores
from training.paper.cascade import CascadeRun, run_cascade
from training.paper.detector import PaperDetector
from training.paper.scale import FAMILIES, SCALES, Scale
from training.presets import LearningRate

# The published 562,800 rows of SMAP are those without P-2, which the public label file lists twice.
LEFT_OUT = {"SMAP": {"P-2"}}


def _silent(what: str) -> None:
    pass


class Lab:
    """One place for one scale, one seed and one device."""

    def __init__(
        self,
        data: Path,
        scale: Scale,
        *,
        families: tuple[str, ...] = FAMILIES,
        seed: int = 0,
        device: str = "cpu",
        on_work: Callable[[str], None] = _silent,
    ) -> None:
        """Read and train nothing yet. data: folder with SMAP_train.parquet and so on; on_work hears what is done."""
        self.scale, self.families, self.seed, self.device = scale, families, seed, device
        self._folder, self.on_work = data, on_work
        self._data: dict[tuple[str, str], Dataset] = {}
        self._distances: dict[tuple[str, bool], list[Scores]] = {}
        self._cascades: dict[tuple[str, int, str], CascadeRun] = {}

    def train(self, family: str) -> Dataset:
        """Return a family's training rows."""
        return self._read(family, "train")

    def test(self, family: str) -> Dataset:
        """Return a family's test rows, which have labels; UsageError if not."""
        dataset = self._read(family, "test")
        if any(series.labels is None for series in dataset.series):
            raise UsageError(f"{self._folder / family}_test.parquet wants a column label")
        return dataset

    def labels(self, family: str) -> list[Flags]:
        """Return the labels of a family's test series."""
        return [flags_of(series) for series in self.test(family).series]

    def distances(self, family: str, *, use_entity: bool = True) -> list[Scores]:
        """Return the paper's distance of a family's test rows, not smoothed, an array for each series."""
        key = family, use_entity
        if key not in self._distances:
            self.on_work(f"DiffADT {'with' if use_entity else 'without'} embedding on {family}")
            scorer = self.detector(family, use_entity=use_entity).fit(self.train(family))
            self._distances[key] = [scorer(series) for series in self.test(family).series]
        return self._distances[key]

    def smoothed(self, family: str, smoothing: str, size: int) -> list[Scores]:
        """Return the smoothed distance (eq. 5)."""
        return [smooth(distance, size, smoothing) for distance in self.distances(family)]

    def detector(self, family: str, *, use_entity: bool) -> PaperDetector:
        """Return the detector of a family, not trained."""
        steps = self.scale.detector_steps.get(family)
        return PaperDetector(self.scale.detector, use_entity, self.seed, steps, self.device)

    def cascade(self, layer: str, layers: int, course: LearningRate = "warm_up") -> CascadeRun:
        """Return a trained cascade of SMAP: kind and number of its layers, course of its learning rate."""
        key = layer, layers, course
        if key not in self._cascades:
            self.on_work(f"{layers} {layer} layers, {course} learning rate")
            self._cascades[key] = run_cascade(
                self.train("SMAP"), self.scale, layer, layers, course, seed=self.seed, device=self.device
            )
        return self._cascades[key]

    def _read(self, family: str, part: str) -> Dataset:
        if (family, part) not in self._data:
            path = self._folder / f"{family}_{part}.parquet"
            dataset = read_dataset(path)
            rows = self.scale.rows.get(family)
            newest = 0 if rows is None else getattr(rows, part)
            series = [
                _newest(series, newest) for series in dataset.series if series.entity not in LEFT_OUT.get(family, ())
            ]
            self._data[family, part] = replace(dataset, series=series)
        return self._data[family, part]


def open_lab(
    data: Path,
    scale: str,
    families: str,
    train_steps: int | None,
    seed: int,
    device: str,
    on_work: Callable[[str], None] = _silent,
) -> Lab:
    """Return the lab that a command line asks for; families separated by commas. UsageError names what is unknown."""
    if scale not in SCALES:
        raise UsageError(f"scale wants one of {', '.join(SCALES)}, got {scale!r}")
    chosen = tuple(families.split(","))
    unknown = [family for family in chosen if family not in FAMILIES]
    if unknown:
        raise UsageError(f"families want some of {', '.join(FAMILIES)}, got {', '.join(unknown)!r}")
    files = [f"{family}_{part}.parquet" for family in chosen for part in ("train", "test")]
    missing = [name for name in files if not (data / name).is_file()]
    if missing:
        raise UsageError(f"{data} wants {', '.join(missing)}; leave families out with --families")
    sized = SCALES[scale].limited(train_steps)
    return Lab(data, sized, families=chosen, seed=seed, device=device, on_work=on_work)


def flags_of(series: Series) -> Flags:
    """Return the labels of a series as booleans."""
    if series.labels is None:
        raise ValueError(f"{series.entity} wants labels, got none")
    return series.labels.astype(bool)


def _newest(series: Series, rows: int) -> Series:
    """Return the last rows of a series, 0 for all."""
    labels = None if series.labels is None else series.labels[-rows:]
    return replace(series, slots=series.slots[-rows:], values=series.values[-rows:], labels=labels)
