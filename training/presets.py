"""Named sets of hyper-parameters, as plain data."""

from typing import Literal

import msgspec

from detector.manifest import CompanionConfig, DenoiserConfig, ScoringConfig
from stream.grid import Geometry

# The size that serves the paper best (Table 4), and the least one here.
PAPER_SMOOTHING = 25

# Up for a quarter of the run and then down (section 4.4), or the same all the time.
LearningRate = Literal["warm_up", "constant"]


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run is made of.

    layer: see `DenoiserConfig`. epochs: passes over the training rows; without it, the time budget decides.
    learning_rate_course: how the learning rate goes over the run. hop_ratio: alpha of the paper's section 4.1, training
    frames lie alpha * L slots apart; without it, windows are cut at random. precision: of activations, by autocast.
    recompute: compute activations again in the backward pass, which takes a third more time and far less memory.
    companions: the views beside the reconstruction, None for the paper's detector. entity_source and use_entity: see
    `DenoiserConfig`.
    """

    geometry: Geometry
    scoring: ScoringConfig
    layers: int
    width: int
    state: int
    patch: int
    layer: Literal["s4d", "s4", "res"] = "s4d"
    timesteps: int = 200
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int | None = None
    learning_rate_course: LearningRate = "warm_up"
    hop_ratio: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    companions: CompanionConfig | None = None
    entity_source: Literal["id", "context"] = "id"
    use_entity: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for frames that would leave rows out."""
        if self.hop_ratio is not None and not 0 < self.hop_ratio <= 1:
            raise ValueError(f"hop_ratio wants more than 0 and at most 1, got {self.hop_ratio}")

    def scoring_for(self, geometry: Geometry) -> ScoringConfig:
        """Fit the score to a geometry that is not the preset's: a final score looks back as far as it looks ahead."""
        if geometry.final_delay == self.geometry.final_delay:
            return self.scoring
        size = max(PAPER_SMOOTHING, 2 * geometry.final_delay + 1)
        shorter = self.scoring.provisional_size and max(PAPER_SMOOTHING, geometry.final_delay | 1)
        return msgspec.structs.replace(self.scoring, smoothing_size=size, provisional_size=shorter)

    def denoiser(self, numeric: int, commands: int, entities: int, length: int) -> DenoiserConfig:
        """Fit the network to a data set; the patch is the largest up to the preset's that divides the length.

        The values of a patch must pass through the network's width, and half of it is wanted for what is not noise.
        """
        most = max(1, min(self.patch, self.width // (2 * numeric)))
        patch = max(size for size in range(1, most + 1) if length % size == 0)
        return DenoiserConfig(
            numeric=numeric,
            commands=commands,
            entities=entities,
            layers=self.layers,
            width=self.width,
            state=self.state,
            patch=patch,
            layer=self.layer,
            entity_source=self.entity_source,
            use_entity=self.use_entity,
            timesteps=self.timesteps,
        )


PRESETS: dict[str, Preset] = {
    # Trains in minutes on two cores and keeps up with tens of thousands of rows a second there.
    # Learning rate, starts, smoothing and companions are those that find injected anomalies best: docs/experiments.md.
    "small": Preset(
        geometry=Geometry(),
        scoring=ScoringConfig(starts=(10, 40), smoothing_size=201, provisional_size=101, smoothing_power=2),
        companions=CompanionConfig(),
        layers=4,
        width=48,
        state=32,
        patch=4,
        learning_rate=1e-2,
    ),
    # The paper's Table 2, Figure 1 and section 4.3. It doesn't tell N, nor alpha: frames overlap by half.
    "paper": Preset(
        geometry=Geometry(length=2000, hop=1000, final_delay=12, slack=2024),
        scoring=ScoringConfig(starts=(20,), sampler_steps=20, smoothing_size=PAPER_SMOOTHING, top_channels=1_000_000),
        layers=18,
        width=512,
        state=64,
        patch=1,
        layer="s4",
        epochs=800,
        hop_ratio=0.5,
        recompute=True,
    ),
}
