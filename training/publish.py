"""From a data set to a published checkpoint: train, calibrate, record golden windows, publish. Promotes nothing."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from detector.engine import Detector
from detector.manifest import Manifest
from detector.registry import Registry
from stream.grid import Geometry
from training.calibration import calibrate, golden_windows
from training.datasets import Dataset
from training.trainer import Progress, TrainedModel, train


def train_and_publish(
    registry: Registry,
    dataset: Dataset,
    *,
    name: str,
    preset: str = "small",
    minutes: float = 5.0,
    train_steps: int | None = None,
    seed: int = 0,
    geometry: Geometry | None = None,
    state_folder: Path | None = None,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Manifest:
    """Publish a new version of a family's model and return its manifest.

    train_steps: where given, minutes don't count. geometry: without it, the preset's. state_folder: where an
    interrupted run goes on from.
    """
    trained = train(
        dataset,
        name=name,
        preset=preset,
        minutes=minutes,
        train_steps=train_steps,
        seed=seed,
        geometry=geometry,
        state_folder=state_folder,
        device=device,
        on_progress=on_progress,
    )
    return publish_trained(registry, trained, device=device)


def publish_trained(
    registry: Registry, trained: TrainedModel, *, device: str = "cpu", alarms_per_week: float | None = None
) -> Manifest:
    """Calibrate a trained model, publish it as a new version and return its manifest.

    alarms_per_week: false alarms that an entity may raise; without it, thresholds are the default numbers of sigmas.
    """
    manifest = calibrate(trained, device=device, alarms_per_week=alarms_per_week)
    golden = golden_windows(Detector(manifest, trained.weights, device), trained.dataset)
    version = registry.publish(trained.name, manifest, trained.weights, golden)
    return msgspec.structs.replace(manifest, version=version)
