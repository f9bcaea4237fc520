"""What the detector's speed and quality are measured on: trained models and labelled test series. Measures nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from torch import Tensor

from benchmarks.workload import FAMILY, FEW_NUMERIC, add_spikes, make_dataset, make_values
from detector.manifest import EntityCalibration, Manifest
from stream.errors import UsageError
from stream.grid import Geometry
from training.calibration import calibrate
from training.datasets import Dataset, Series, read_dataset
from training.score_file import find_model
from training.trainer import train

FAMILIES = ("MSL", "SMAP", "SMD")
_SERVERS = "SMD"
# Servers report once a minute, so nobody wants windows of 512 slots there; as in `benchmarks.quality`.
_SERVER_GEOMETRY = Geometry(length=128, hop=32, final_delay=25, slack=256)
_MADE_ENTITIES, _MADE_ROWS, _MADE_STEPS = 8, 6000, 150
_FAULT_EVERY, _FAULT_HEIGHT = 700, 0.6


class Subject(NamedTuple):
    """One family: its trained model, rows that are normal, and labelled series to score."""

    name: str
    manifest: Manifest
    weights: dict[str, Tensor]
    normal: Sequence[Series]
    test: Sequence[Series]

    @property
    def rows(self) -> int:
        """Rows to score."""
        return sum(len(series.slots) for series in self.test)


def read_subjects(
    data: Path, models: Sequence[str], minutes: float, rows: int, seed: int, on_family: Callable[[str], None]
) -> list[Subject]:
    """Read the families of a folder, up to about so many test rows of each.

    models: REGISTRY/NAME[@VERSION] of trained ones; families without one are trained for so many minutes.
    """
    trained = {name.upper(): (registry, name, version) for registry, name, version in map(find_model, models)}
    found = [name for name in FAMILIES if (data / f"{name}_test.parquet").exists() and (name in trained or not models)]
    if not found:
        raise UsageError(f"{data} wants a file {FAMILIES[0]}_test.parquet or of another known family and its model")
    subjects = []
    for name in found:
        on_family(name)
        normal = read_dataset(data / f"{name}_train.parquet")
        if name in trained:
            registry, family, version = trained[name]
            bundle = registry.read(family, version)
            manifest, weights = bundle.manifest, bundle.weights
        else:
            manifest, weights = _trained(normal, name.lower(), minutes=minutes, seed=seed)
        test = _some(read_dataset(data / f"{name}_test.parquet").series, rows)
        subjects.append(Subject(name, manifest, weights, normal.series, test))
    return subjects


def make_subject(seed: int) -> Subject:
    """Make a family of waves with planted faults, and a model of it that was trained for a short time."""
    normal = make_dataset(FEW_NUMERIC, make_values(FEW_NUMERIC, _MADE_ENTITIES, _MADE_ROWS, seed))
    manifest, weights = _trained(normal, FAMILY, train_steps=_MADE_STEPS, seed=seed)
    clean = make_values(FEW_NUMERIC, _MADE_ENTITIES, _MADE_ROWS, seed + 1)
    faulty = clean.copy()
    add_spikes(faulty, FEW_NUMERIC, _FAULT_EVERY, seed, height=_FAULT_HEIGHT)
    labels = (faulty != clean).any(-1).astype(np.uint8)
    test = [
        Series(series.entity, series.slots + _MADE_ROWS, values, of_entity)
        for series, values, of_entity in zip(normal.series, faulty, labels, strict=True)
    ]
    return Subject("made up", manifest, weights, normal.series, test)


def _trained(
    normal: Dataset, name: str, *, minutes: float = 0.0, train_steps: int | None = None, seed: int
) -> tuple[Manifest, dict[str, Tensor]]:
    geometry = _SERVER_GEOMETRY if name.upper() == _SERVERS else None
    trained = train(normal, name=name, minutes=minutes, train_steps=train_steps, seed=seed, geometry=geometry)
    return calibrate(trained), trained.weights


def _some(every: Sequence[Series], rows: int) -> list[Series]:
    """Take entities until there are rows enough; those that know both kinds of rows count, so they come first."""
    ranked = sorted(every, key=lambda series: series.labels is None or not 0 < series.labels.mean() < 1)
    taken = list[Series]()
    for series in ranked:
        if sum(len(one.slots) for one in taken) >= rows:
            break
        taken.append(series)
    return taken


def with_scoring(manifest: Manifest, *, starts: tuple[int, ...], sampler_steps: int = 1) -> Manifest:
    """Return the manifest of the reconstruction alone, from other starts.

    Scales of residuals are the mean of those that were calibrated: with one channel they don't change how an entity's
    rows rank.
    """
    known = len(manifest.scoring.starts)

    def alone(entry: EntityCalibration) -> EntityCalibration:
        scale = np.mean(entry.residual_scale[:known], axis=0).tolist()
        return msgspec.structs.replace(
            entry, residual_scale=[scale] * len(starts), provisional_levels=(1.0,), final_levels=(1.0,)
        )

    scoring = msgspec.structs.replace(manifest.scoring, starts=starts, sampler_steps=sampler_steps)
    return msgspec.structs.replace(
        manifest,
        scoring=scoring,
        companions=None,
        unseen=alone(manifest.unseen),
        entities=[alone(entry) for entry in manifest.entities],
    )


def with_hop(manifest: Manifest, hop: int) -> Manifest:
    """Return the manifest with windows that lie so many slots apart."""
    geometry = manifest.geometry
    slack = max(geometry.slack, 2 * (hop + geometry.lateness) + geometry.final_delay)
    return msgspec.structs.replace(manifest, geometry=msgspec.structs.replace(geometry, hop=hop, slack=slack))
