"""The paper's detector as an opponent among others: reconstruction by all timesteps from the start, plain L1 distance.

Unlike the product's score, the distance is not divided by what is usual for the entity.
"""

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from detector.engine import Detector
from detector.manifest import EntityCalibration, Manifest
from detector.models import Model
from detector.offline import score_series
from training.baselines.protocol import Scorer
from training.calibration import calibrate
from training.datasets import Dataset
from training.presets import Preset
from training.trainer import TrainedModel, train


@dataclass(frozen=True)
class PaperDetector:
    """DiffADT; `train_steps` None trains for the preset's epochs."""

    preset: Preset
    use_entity: bool = True
    seed: int = 0
    train_steps: int | None = None
    device: str = "cpu"

    @property
    def lookahead(self) -> int:
        """See `training.baselines.protocol.Baseline`."""
        return self.preset.geometry.final_delay + self.preset.geometry.hop - 1

    def fit(self, dataset: Dataset) -> Scorer:
        """Train, and return a scorer that gives each row its distance, averaged over channels, not smoothed."""
        trained = train(
            dataset,
            name="diffadt",
            preset=msgspec.structs.replace(self.preset, use_entity=self.use_entity),
            train_steps=self.train_steps,
            seed=self.seed,
            device=self.device,
        )
        manifest = self._manifest(trained)
        model = Model(Detector(manifest, trained.weights, self.device), np.arange(len(manifest.channels)))
        return lambda series: score_series(model, series).score

    def _manifest(self, trained: TrainedModel) -> Manifest:
        """Calibrate by one timestep, since nothing of it but the ranges of values is used."""
        quickly = msgspec.structs.replace(trained.scoring, sampler_steps=1)
        manifest = _plain(calibrate(replace(trained, scoring=quickly), device=self.device))
        scoring = msgspec.structs.replace(trained.scoring, smoothing_size=1)
        return msgspec.structs.replace(manifest, scoring=scoring)


def _plain(manifest: Manifest) -> Manifest:
    """Count residuals in scaled units, where an entity's training range is [-1, 1]."""

    def plain(entry: EntityCalibration) -> EntityCalibration:
        ones = [[1.0] * len(scales) for scales in entry.residual_scale]
        return msgspec.structs.replace(entry, residual_scale=ones)

    return msgspec.structs.replace(
        manifest, unseen=plain(manifest.unseen), entities=[plain(entry) for entry in manifest.entities]
    )
