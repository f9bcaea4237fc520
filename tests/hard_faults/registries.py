"""Faults of the model registry: an alias that flaps, trainers that race, a disk that is full."""

import multiprocessing
import resource
import threading
from pathlib import Path
from typing import Any

from detector.checkpoint import Golden
from detector.engine import Detector
from detector.registry import Registry
from stream.errors import TelltaleError
from tests.builders import random_windows, untrained
from tests.hard_faults.processes import judge
from tests.hard_faults.scene import Row, Stage

_FLAP_S, _FLAPPING_S = 0.3, 20.0
_TRAINERS, _VERSIONS = 3, 6
FAMILY = "test"


def alias_flapping(stage: Stage, row: Row) -> None:
    """The champion changes three times a second between two versions of one network: no score is lost or other."""
    with stage.scene() as scene:
        registry = Registry(scene.settings.registry)
        first = registry.alias(FAMILY, "champion")
        assert first is not None
        bundle = registry.read(FAMILY, first)
        second = registry.publish(FAMILY, bundle.manifest, bundle.weights, bundle.golden)
        changes = _flap(registry, (second, first))
        row.details["changes"] = changes
        row.recovery_s = scene.recovery()
        judge(scene, row, only_scores=True)


def _flap(registry: Registry, versions: tuple[str, str]) -> int:
    pause = threading.Event()  # nobody sets it: a wait is a sleep
    rounds = int(_FLAPPING_S / _FLAP_S)
    for number in range(rounds):
        registry.set_alias(FAMILY, "champion", versions[number % 2])
        pause.wait(_FLAP_S)
    return rounds


def racing_trainers(stage: Stage, row: Row) -> None:
    """Three trainers publish and promote at once: every version is whole, none is lost, the champion is one of them."""
    folder = stage.folder() / "registry"
    context = multiprocessing.get_context("spawn")
    with context.Pool(_TRAINERS) as pool:
        made = pool.starmap(_publish, [(str(folder), seed) for seed in range(_TRAINERS)])
    registry = Registry(folder)
    versions = [version for some in made for version in some]
    assert sorted(versions) == registry.versions(FAMILY), "versions were lost or written over"
    assert all(registry.read(FAMILY, version) for version in versions)
    assert registry.alias(FAMILY, "champion") in versions
    row.details["versions"] = len(versions)


def _publish(folder: str, seed: int) -> list[str]:
    registry = Registry(folder)
    parts = _checkpoint(seed)
    versions = []
    for _ in range(_VERSIONS):
        versions.append(registry.publish(FAMILY, *parts))
        registry.promote(FAMILY, versions[-1])
    return versions


def _checkpoint(seed: int) -> tuple[Any, Any, Golden]:
    manifest, weights = untrained(seed=seed)
    windows = random_windows(manifest, [entity.name for entity in manifest.entities])
    scores = Detector(manifest, weights).score(windows)
    golden = Golden(list(windows.entities), windows.end_slots, windows.values, scores.provisional, scores.final)
    return manifest, weights, golden


def disk_full(stage: Stage, row: Row) -> None:
    """The disk takes no more in the middle of a checkpoint: nobody ever sees a part of it, and the champion stays."""
    folder = stage.folder() / "registry"
    registry = Registry(folder)
    first = registry.publish(FAMILY, *_checkpoint(0))
    registry.promote(FAMILY, first)
    whole = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    context = multiprocessing.get_context("spawn")
    for share in (0.05, 0.3, 0.9):
        trainer = context.Process(target=_publish_with_little_room, args=(str(folder), int(whole * share)))
        trainer.start()
        trainer.join(120)
        assert trainer.exitcode == 7, f"the trainer ended with {trainer.exitcode}, wanted its own error"
        assert registry.versions(FAMILY) == [first]
        assert registry.alias(FAMILY, "champion") == first
    after = registry.publish(FAMILY, *_checkpoint(1))
    registry.promote(FAMILY, after)
    row.details["left_over_files"] = _left_over(folder, {first, after})


def _publish_with_little_room(folder: str, limit: int) -> None:
    """Publish where no file may grow beyond a size, which a process is told as it is told of a full disk."""
    parts = _checkpoint(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Registry(folder).publish(FAMILY, *parts)
    except (TelltaleError, OSError):
        raise SystemExit(7) from None


def _left_over(folder: Path, versions: set[str]) -> float:
    return float(sum(1 for file in folder.rglob("*") if file.is_file() and file.parent.name not in versions)) - 1
