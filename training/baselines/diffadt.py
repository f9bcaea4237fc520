"""The paper's own method as a row of its Table 3: our denoiser with and without the entity's embedding."""

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from detector.engine import Detector
from detector.models import Model
from detector.offline import score_series
from training.baselines.protocol import PLAIN, Scorer
from training.calibration import calibrate
from training.datasets import Dataset
from training.presets import Preset
from training.trainer import train


@dataclass(frozen=True)
class DiffADT:
    """Residual of the diffusion model's reconstruction, by the product's own training, calibration and scoring."""

    use_entity: bool
    seed: int = 0
    minutes: float = 2.0
    train_steps: int | None = None
    preset: Preset = PLAIN

    @property
    def lookahead(self) -> int:
        """See `Baseline`."""
        return self.preset.geometry.final_delay + self.preset.geometry.hop - 1

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        trained = train(
            dataset,
            name="diffadt",
            preset=msgspec.structs.replace(self.preset, use_entity=self.use_entity),
            minutes=self.minutes,
            train_steps=self.train_steps,
            seed=self.seed,
        )
        raw = msgspec.structs.replace(trained.scoring, smoothing_size=1)
        manifest = calibrate(replace(trained, scoring=raw))
        model = Model(Detector(manifest, trained.weights), np.arange(len(manifest.channels)))
        return lambda series: score_series(model, series).score
