"""Makes entities known that training never saw, from a stretch of their normal rows, without training anything.

They get what training gives: scales, a vector, companions, residual scales, levels and moments, all by the same code.
What the model knew before stays as it was, so known entities score as they did. Promotes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.checkpoint import Bundle, Golden
from detector.companions import PREFIX
from detector.denoiser import UNSEEN_ENTITY, encodes_entities
from detector.engine import Detector
from detector.manifest import EntityCalibration, Manifest
from detector.models import Model, prove
from detector.registry import Registry
from stream.errors import UsageError
from training.calibration import GOLDEN_WINDOWS, calibrate, golden_windows
from training.companions import fit_companions
from training.context import ENTITY_VECTORS, encode_entities
from training.datasets import Dataset, Series
from training.sampling import WindowSampler
from training.scaling import Scaling, measure_scaling
from training.score_file import fit_dataset
from training.trainer import TrainedModel


@dataclass(frozen=True, eq=False)
class Enrolled:
    """What a registry publishes: a manifest that knows the new entities, its weights and golden windows."""

    manifest: Manifest
    weights: dict[str, Tensor]
    golden: Golden


def enrol_and_publish(registry: Registry, name: str, version: str, dataset: Dataset, *, device: str = "cpu") -> str:
    """Publish a version that also knows the entities of these normal rows, and return it. Errors as `enrol`."""
    enrolled = enrol(registry.read(name, version), dataset, device=device)
    return registry.publish(name, enrolled.manifest, enrolled.weights, enrolled.golden)


def enrol(bundle: Bundle, dataset: Dataset, *, device: str = "cpu") -> Enrolled:
    """Add the entities of a data set of normal rows to a model.

    1. the newcomers alone, as if they were all that the weights had been trained on
    2. their calibration, by the code that calibrates after training
    3. their rows below those of the known entities, in tables and manifest

    Raises UsageError if one is known already, has fewer rows with values than a window, or if the data lacks a channel
    of the model or has others.
    """
    manifest = bundle.manifest
    dataset = fit_dataset(dataset, Model(prove(bundle, device), np.arange(len(manifest.channels))))
    _check_new(manifest, dataset)
    newcomers = _alone(bundle, dataset)
    calibrated = calibrate(newcomers, device=device).entities
    weights = bundle.weights | {
        name: torch.cat([bundle.weights[name], newcomers.weights[name][UNSEEN_ENTITY + 1 :]])
        for name in bundle.weights
        if name == ENTITY_VECTORS or name.startswith(PREFIX)
    }
    extended = _extended(manifest, calibrated)
    golden = golden_windows(Detector(extended, weights, device), dataset)
    return Enrolled(extended, weights, _joined(bundle.golden, golden))


def _check_new(manifest: Manifest, dataset: Dataset) -> None:
    known = {entity.name for entity in manifest.entities}
    again = [series.entity for series in dataset.series if series.entity in known]
    if again:
        raise UsageError(f"{manifest.name} knows {_few(again)} already; leave their rows out or train anew")
    least = manifest.geometry.length
    short = [series.entity for series in dataset.series if _rows_with_values(dataset, series) < least]
    if short:
        raise UsageError(f"enrolment wants at least {least} rows with values of every entity; too few: {_few(short)}")


def _rows_with_values(dataset: Dataset, series: Series) -> int:
    return int((~np.isnan(series.values[:, dataset.numeric])).any(1).sum())


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _alone(bundle: Bundle, dataset: Dataset) -> TrainedModel:
    """Return the model as if the newcomers were the only entities it knows."""
    manifest = bundle.manifest
    config = msgspec.structs.replace(manifest.denoiser, entities=len(dataset.series))
    scaling = _scaling(manifest, dataset)
    weights = {name: tensor for name, tensor in bundle.weights.items() if not name.startswith(PREFIX)}
    if encodes_entities(config):
        sampler = WindowSampler(dataset, scaling, manifest.geometry, config.timesteps)
        weights |= encode_entities(manifest.denoiser, weights, sampler)
    else:
        unseen = weights[ENTITY_VECTORS][UNSEEN_ENTITY]
        weights |= {ENTITY_VECTORS: unseen.repeat(config.entities + 1, 1)}
    if manifest.companions is not None:
        weights |= fit_companions(manifest.companions, dataset, scaling, manifest.training.seed)
    return TrainedModel(
        name=manifest.name,
        dataset=dataset,
        scaling=scaling,
        geometry=manifest.geometry,
        denoiser=config,
        scoring=manifest.scoring,
        weights=weights,
        training=manifest.training,
        companions=manifest.companions,
    )


def _scaling(manifest: Manifest, dataset: Dataset) -> Scaling:
    """Measure the newcomers' ranges beside those of the known entities, which say what a still channel's usual one is.

    The unseen entity stands for the pooled range.
    """
    known = [_range_as_rows(dataset, entry) for entry in (manifest.unseen, *manifest.entities)]
    scaling = measure_scaling(Dataset(dataset.channels, dataset.interval_ms, [*known[1:], *dataset.series]))
    new = slice(len(known) - 1, None)
    return Scaling(
        scaling.minimum[new],
        scaling.maximum[new],
        np.array(manifest.unseen.minimum),
        np.array(manifest.unseen.maximum),
    )


def _range_as_rows(dataset: Dataset, entry: EntityCalibration) -> Series:
    values: NDArray[np.float32] = np.zeros((2, len(dataset.channels)), np.float32)
    values[:, dataset.numeric] = [entry.minimum, entry.maximum]
    return Series(entry.name, np.arange(2), values, None)


def _extended(manifest: Manifest, newcomers: Sequence[EntityCalibration]) -> Manifest:
    """Return the manifest with the newcomers' entries behind the known ones; the tails stay those of training."""
    known = manifest.denoiser.entities
    entries = [msgspec.structs.replace(entry, index=known + entry.index) for entry in newcomers]
    return msgspec.structs.replace(
        manifest,
        denoiser=msgspec.structs.replace(manifest.denoiser, entities=known + len(entries)),
        entities=[*manifest.entities, *entries],
    )


def _joined(before: Golden, after: Golden) -> Golden:
    """Put the newcomers' windows behind those of training, which must get the scores they got."""
    kept = slice(GOLDEN_WINDOWS + 1)
    return Golden(
        before.entities[kept] + after.entities,
        np.concatenate([before.end_slots[kept], after.end_slots]),
        np.concatenate([before.values[kept], after.values]),
        np.concatenate([before.provisional[kept], after.provisional]),
        np.concatenate([before.final[kept], after.final]),
    )
