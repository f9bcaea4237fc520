"""Manifests and windows made up for tests: a detector of the real shape with random weights."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from detector.blocks import WindowView
from detector.companions import PREFIX, Companions
from detector.denoiser import Denoiser
from detector.engine import WindowBatch
from detector.manifest import (
    COMPANION_VIEWS,
    Channel,
    CompanionConfig,
    DecisionConfig,
    DenoiserConfig,
    EntityCalibration,
    Manifest,
    Moments,
    ScoringConfig,
    Tail,
    TrainingRecord,
)
from detector.models import Model
from detector.offline import Series, _notices, _Piece, _score
from stream.contracts import WindowNotice
from stream.grid import Geometry
from stream.heads import Cut


def untrained(
    *,
    numeric: int = 2,
    commands: int = 3,
    entities: tuple[str, ...] = ("P-1", "M-6"),
    geometry: Geometry | None = None,
    scoring: ScoringConfig | None = None,
    denoiser: DenoiserConfig | None = None,
    companions: CompanionConfig | None = None,
    seed: int = 0,
) -> tuple[Manifest, dict[str, Tensor]]:
    """Return a manifest and weights that fit it; every entity gets another calibration."""
    scoring = scoring or ScoringConfig(smoothing_size=31)
    denoiser = denoiser or DenoiserConfig(
        numeric=numeric, commands=commands, entities=len(entities), layers=2, width=8, state=8
    )
    channels = [Channel(f"m{i}", "numeric") for i in range(numeric)]
    channels[1:1] = [Channel(f"c{i}", "command") for i in range(commands)]
    manifest = Manifest(
        name="test",
        version="1",
        created_ms=0,
        interval_ms=1000,
        geometry=geometry or Geometry(length=96, hop=16, final_delay=20, slack=64),
        channels=channels,
        denoiser=denoiser,
        scoring=scoring,
        decision=DecisionConfig(learning=48, adapt_after=24),  # short series see both
        companions=companions,
        entities=[_calibration(name, i + 1, numeric, scoring, companions) for i, name in enumerate(entities)],
        unseen=_calibration("", 0, numeric, scoring, companions),
        provisional_tail=Tail([0.5, 0.9, 0.99, 0.999], [0.0, 1.0, 3.0, 5.0]),
        final_tail=Tail([0.5, 0.9, 0.99, 0.999], [0.0, 1.0, 3.0, 5.0]),
        training=TrainingRecord(
            preset="small", seed=seed, minutes=0, train_steps=0, rows=0, data_sha256="0" * 64, metrics={}
        ),
    )
    weights = random_weights(denoiser, seed)
    if companions:
        weights |= random_companions(companions, numeric, len(entities), seed)
    return manifest, weights


def random_weights(config: DenoiserConfig, seed: int = 0) -> dict[str, Tensor]:
    """Draw weights of a network whose output is not zero, leaving torch's global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Denoiser(config)
        torch.nn.init.normal_(network.output.weight, std=0.3)
        return network.state_dict()


def random_companions(config: CompanionConfig, numeric: int, entities: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw coefficients of a mean over the lags, more or less, and training windows of noise."""
    generator = torch.Generator().manual_seed(seed)
    companions = Companions(config, numeric, entities)
    companions.coefficients.normal_(1 / config.lags, 0.1 / config.lags, generator=generator)
    companions.intercept.normal_(0, 0.1, generator=generator)
    companions.windows.normal_(0, 0.7, generator=generator)
    companions.window_slots.random_(0, 1000, generator=generator)
    companions.usual_activity.normal_(-1, 0.3, generator=generator)
    return {f"{PREFIX}{name}": tensor for name, tensor in companions.state_dict().items()}


def random_windows(manifest: Manifest, entities: list[str], *, missing: float = 0.1, seed: int = 0) -> WindowBatch:
    """Draw windows within the training range, with single values and whole rows missing."""
    generator = np.random.default_rng(seed)
    shape = (len(entities), len(manifest.channels), manifest.geometry.length)
    values = generator.uniform(0, 2, shape).astype(np.float32)
    command = [channel.kind == "command" for channel in manifest.channels]
    values[:, command] = values[:, command] > 1
    values[generator.random(shape) < missing] = np.nan
    values.transpose(0, 2, 1)[generator.random((shape[0], shape[2])) < missing / 2] = np.nan
    end_slots = generator.integers(10**9, 2 * 10**9, len(entities)) // manifest.geometry.hop * manifest.geometry.hop - 1
    return WindowBatch(entities, end_slots, values)


def scored_windows(model: Model, series: Series, cuts: Sequence[Cut]) -> Iterator[tuple[WindowNotice, WindowView]]:
    """Yield the windows of a recorded series as the worker gets them, and what the model says of each."""
    views = _score(model, [_Piece(series, list(cuts), first=True, last=True)])
    return zip(_notices(model, series, cuts), views, strict=True)


def _calibration(
    name: str, index: int, numeric: int, scoring: ScoringConfig, companions: CompanionConfig | None
) -> EntityCalibration:
    views = COMPANION_VIEWS if companions else 0
    return EntityCalibration(
        name=name,
        index=index,
        minimum=[-0.5 * index - 0.1 * channel for channel in range(numeric)],
        maximum=[2.0 + 0.3 * index + 0.1 * channel for channel in range(numeric)],
        residual_scale=[[0.1 + 0.02 * index + 0.001 * start] * numeric for start in (*scoring.starts, *range(views))],
        provisional_levels=(1.0, *(1.5 + 0.1 * index + 0.2 * view for view in range(views))),
        final_levels=(1.0, *(1.4 - 0.1 * index + 0.3 * view for view in range(views))),
        provisional=Moments(1000, 1.0, 0.25),
        final=Moments(1000, 1.0, 0.2),
    )
