"""Makes a new version of a family's model for the retrainer, and measures it beside the champion. Promotes nothing."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog
import torch
from torch import Tensor

from detector.checkpoint import Bundle
from detector.companions import PREFIX
from detector.models import Model, choose_device, fit_columns, prove
from detector.registry import Registry
from stream.contracts import Gate
from stream.errors import CheckpointError, UsageError
from stream.grid import MAX_TS_MS
from training.archive import read_archive
from training.datasets import Dataset, Series, fingerprint, read_dataset
from training.gates import Figures, judge
from training.knobs import half_range
from training.publish import publish_trained
from training.retrain_job import Job
from training.retraining import Outcome
from training.score_file import fit_dataset
from training.trainer import TrainedModel, train
from training.trial import measure, split, spread

_log = structlog.get_logger(__name__)
_ENTITY_TABLE = "condition.entity.weight"


# Gives the rows of a job's family from `start_ms` up to `at_ms`, without those excluded.
Reader = Callable[[Job], Dataset]


class Champion(NamedTuple):
    """The model in force, read and ready to score."""

    bundle: Bundle
    model: Model


def make_model(job: Job, folder: Path, read: Reader | None = None) -> Outcome:
    """Train on all rows but the newest, publish, read back, and measure on the newest beside the champion.

    read: where the rows come from, `read_rows` if left out.
    Goes on where an interrupted call of the same job stopped: in the midst of training, or behind the publication.
    Raises UsageError for too little data, FloatingPointError for a loss that is no number.
    """
    torch.set_num_threads(job.settings.threads)
    job = msgspec.structs.replace(job, device=choose_device(job.device))
    registry, dataset = Registry(job.registry), (read or read_rows)(job)
    champion = load_champion(registry, job)
    if champion is not None:
        dataset = fit_dataset(dataset, champion.model)
    old, new = split(dataset, job.settings.held_out, job.settings.minimum_rows)
    data_sha256 = fingerprint(old)
    version = _published(registry, job, data_sha256)
    if version is None:
        trained = _train(job, old, champion and champion.bundle, folder / "state")
        version = publish_trained(registry, trained, device=job.device).version
    gates = measured(job, registry.read(job.name, version), champion, old.series, new)
    return Outcome(version=version, data_sha256=data_sha256, gates=gates)


def load_champion(registry: Registry, job: Job) -> Champion | None:
    """Read and prove the champion; None where there is none that the declared family can be scored with."""
    if job.champion is None:
        return None
    try:
        bundle = registry.read(job.name, job.champion)
        fit_columns(job.declared, bundle.manifest)
        detector = prove(bundle, job.device)
    except CheckpointError as error:
        _log.error("champion_not_compared", family=job.name, version=job.champion, reason=str(error))
        return None
    return Champion(bundle, Model(detector, np.arange(len(bundle.manifest.channels))))


def read_rows(job: Job) -> Dataset:
    """Read the rows that may be trained on, by the family's declaration; those of alarms are missing."""
    family, data = job.declared, job.settings.data
    if "://" in data or Path(data).is_dir():
        return read_archive(data, family, job.start_ms, job.at_ms, job.exclude, most_rows=job.settings.most_rows)
    dataset = read_dataset(data, interval_ms=family.interval_ms)
    outside = [(0, job.start_ms), (job.at_ms, MAX_TS_MS)]
    series = [one for one in dataset.series if family.matches(one.entity)]
    series = [without(one, [*outside, *job.exclude.get(one.entity, ())], family.interval_ms) for one in series]
    return replace(dataset, series=[one for one in series if len(one.slots)])


def without(series: Series, exclude: Sequence[tuple[int, int]], interval_ms: int) -> Series:
    """Return the rows that lie in none of these intervals, in milliseconds."""
    ts_ms, keep = series.slots * interval_ms, np.ones(len(series.slots), bool)
    for start_ms, end_ms in exclude:
        keep &= (ts_ms < start_ms) | (ts_ms >= end_ms)
    return Series(series.entity, series.slots[keep], series.values[keep], None)


def warm_weights(champion: Bundle, entities: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the champion's network with its entities' vectors in another order; new ones get that of unseen ones."""
    weights = {name: tensor for name, tensor in champion.weights.items() if not name.startswith(PREFIX)}
    index = {entity.name: entity.index for entity in champion.manifest.entities}
    table = weights[_ENTITY_TABLE]
    return weights | {_ENTITY_TABLE: table[[0, *(index.get(entity, 0) for entity in entities)]]}


def measured(
    job: Job, challenger: Bundle, champion: Champion | None, before: Sequence[Series], rows: Sequence[Series]
) -> list[Gate]:
    """Judge a published version on rows that it was not trained on, beside the champion."""
    chosen = spread(len(rows), job.settings.gates.entities)
    old, new = [before[i] for i in chosen], [rows[i] for i in chosen]
    movement = {entity.name: half_range(entity) for entity in challenger.manifest.entities}
    sizes = [movement[series.entity] for series in old]
    metrics = challenger.manifest.training.metrics
    loss = metrics.get("validation", metrics.get("loss", math.nan))
    other = None if champion is None else measure(champion.model, old, new, sizes, job.settings.seed)
    try:
        model = Model(prove(challenger, job.device), np.arange(len(challenger.manifest.channels)))
        own = measure(model, old, new, sizes, job.settings.seed)
    except (CheckpointError, FloatingPointError) as error:
        _log.error("challenger_refused", family=job.name, version=challenger.manifest.version, reason=str(error))
        own = Figures(math.nan, math.nan, math.nan, golden=False)
    return judge(own._replace(loss=loss), other, job.settings.gates)


def _published(registry: Registry, job: Job, data_sha256: str) -> str | None:
    """Return the version that this attempt has published already, before it was killed."""
    for version in reversed(registry.versions(job.name)):
        manifest = registry.manifest(job.name, version)
        if manifest.created_ms < job.at_ms:
            return None
        if (manifest.training.data_sha256, manifest.training.seed) == (data_sha256, job.settings.seed):
            return version
    return None


def _train(job: Job, dataset: Dataset, champion: Bundle | None, state: Path) -> TrainedModel:
    warm = None
    if champion is not None and job.settings.warm_start:
        warm = warm_weights(champion, [series.entity for series in dataset.series])

    def run() -> TrainedModel:
        return train(
            dataset,
            name=job.name,
            preset=job.settings.preset,
            minutes=job.settings.minutes,
            seed=job.settings.seed,
            geometry=job.declared.geometry,
            state_folder=state,
            device=job.device,
            warm=warm,
        )

    try:
        return run()
    except UsageError as error:
        if not state.exists():
            raise
        _log.warning("training_begins_anew", family=job.name, reason=str(error))
        shutil.rmtree(state)
        return run()
