"""A tiny checkpoint for tests: three entities, two numeric channels and a command, a layout of two tensors."""

import numpy as np
import torch

from detector.checkpoint import Golden
from detector.manifest import (
    Channel,
    DenoiserConfig,
    EntityCalibration,
    Manifest,
    Moments,
    ScoringConfig,
    Tail,
    TrainingRecord,
)
from stream.grid import Geometry

LENGTH = 16


def make_layout(manifest):
    config = manifest.denoiser
    with torch.device("meta"):
        return {"input.weight": torch.empty(config.width, config.numeric), "entity": torch.empty(config.entities + 1)}


def make_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(w.shape, generator=generator) for name, w in make_layout(make_manifest()).items()}


def make_manifest(**changes):
    fields = {
        "name": "rover",
        "version": "unpublished",
        "created_ms": 0,
        "interval_ms": 1000,
        "geometry": Geometry(length=LENGTH, hop=4, final_delay=4, slack=16),
        "channels": [Channel("a", "numeric"), Channel("cmd", "command"), Channel("b", "numeric")],
        "denoiser": DenoiserConfig(numeric=2, commands=1, entities=3, width=4),
        "scoring": ScoringConfig(starts=(5, 20), smoothing_size=5),
        "entities": [make_calibration(f"e-{i}", i) for i in (1, 2, 3)],
        "unseen": make_calibration("unseen", 0),
        "provisional_tail": Tail([0.5, 0.99], [0.0, 3.0]),
        "final_tail": Tail([0.5, 0.99], [0.0, 2.5]),
        "training": TrainingRecord(
            preset="small", seed=0, minutes=1.0, train_steps=10, rows=100, data_sha256="0" * 64, metrics={"loss": 0.1}
        ),
    }
    return Manifest(**{**fields, **changes})


def make_calibration(name, index):
    return EntityCalibration(
        name=name,
        index=index,
        minimum=[0.0, -1.0],
        maximum=[1.0, 1.0],
        residual_scale=[[0.1, 0.2], [0.3, 0.4]],
        provisional=Moments(100.0, 1.0, 0.5),
        final=Moments(100.0, 1.0, 0.25),
    )


def make_golden(windows=2):
    """Make windows with a missing slot, scored by `golden_score`."""
    values = np.random.default_rng(7).normal(size=(windows, 3, LENGTH)).astype(np.float32)
    values[:1, :, 3] = np.nan
    entities = [f"e-{i + 1}" for i in range(windows)]
    end_slots = np.arange(windows, dtype=np.int64) * 4 + 99
    return Golden(entities, end_slots, values, *golden_score(entities, end_slots, values))


def golden_score(entities, end_slots, values):
    final = np.abs(values[:, 0]) + 10 * (end_slots[:, None] % 7)
    return (final / 2).astype(np.float32), final.astype(np.float32)
