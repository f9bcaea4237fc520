"""The telemetry that benchmarks run on, and a model of the real shape for it. Knows no broker and measures nothing.

Twenty-five channels an entity, few or many of them numeric; numbers have all the digits of a float32, as replayed data
has.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.engine import Detector
from detector.manifest import Channel, Manifest
from detector.registry import Registry
from stream.columns import to_columns
from stream.contracts import Sample, SampleColumns
from stream.settings import FamilySettings
from training.calibration import calibrate, golden_windows
from training.datasets import DATASET_EPOCH_MS, Dataset, Series
from training.presets import PRESETS
from training.trainer import train

FAMILY = "bench"
INTERVAL_MS = 1000
# On a hop boundary of every power of two up to 4096 s, so that the first window comes after one whole hop.
FIRST_SLOT = DATASET_EPOCH_MS // INTERVAL_MS
SPIKE_SLOTS = 16
SPIKE_HEIGHT = 5.0
_PERIOD_SLOTS = 300
_NOISE = 0.03
_COMMAND_SLOTS = 90
_TRAINED_ENTITIES = 4
_TRAINING_ROWS = 1024


class Shape(NamedTuple):
    """How many channels of each kind an entity has."""

    numeric: int
    commands: int

    @property
    def channels(self) -> int:
        """All of them."""
        return self.numeric + self.commands


# As the public data set SMAP has them.
FEW_NUMERIC = Shape(1, 24)
# The network then sees every slot by itself, which takes longer; so do records of so many digits.
MANY_NUMERIC = Shape(20, 5)


def make_family(shape: Shape, slack: int) -> FamilySettings:
    """Declare the family, with the small preset's geometry and room for so many rows ahead of the worker."""
    geometry = msgspec.structs.asdict(PRESETS["small"].geometry) | {"slack": slack}
    return FamilySettings(
        name=FAMILY,
        interval_ms=INTERVAL_MS,
        numeric=[f"numeric_{i}" for i in range(shape.numeric)],
        commands=[f"command_{i}" for i in range(shape.commands)],
        **geometry,
    )


def make_values(shape: Shape, entities: int, rows: int, seed: int) -> NDArray[np.float32]:
    """Make normal telemetry (E, rows, C): waves with noise within about -1 to 1, and commands that toggle."""
    generator = np.random.default_rng(seed)
    phase = generator.uniform(0, 2 * np.pi, (entities, 1, shape.numeric))
    waves = 0.8 * np.sin(2 * np.pi * np.arange(rows)[:, None] / _PERIOD_SLOTS + phase)
    numeric = waves + generator.normal(0, _NOISE, waves.shape)
    toggles = generator.random((entities, rows, shape.commands)) < 1 / _COMMAND_SLOTS
    return np.concatenate([numeric, np.cumsum(toggles, 1) % 2], -1).astype(np.float32)


def add_spikes(values: NDArray[np.float32], shape: Shape, every: int, seed: int, height: float = SPIKE_HEIGHT) -> None:
    """Raise all numeric channels far out of their range once in `every` slots of each entity, at random places."""
    generator = np.random.default_rng(seed)
    for of_entity in values:
        for begin in range(every, len(of_entity) - every, every):
            at = begin + int(generator.integers(0, every - SPIKE_SLOTS))
            of_entity[at : at + SPIKE_SLOTS, : shape.numeric] += height


def to_samples(family: FamilySettings, values: NDArray[np.float32], first_slot: int = FIRST_SLOT) -> Iterator[Sample]:
    """Yield the rows slot by slot, all entities side by side."""
    names, first_command = [_entity(number) for number in range(len(values))], len(family.numeric)
    for index in range(values.shape[1]):
        ts_ms = (first_slot + index) * family.interval_ms
        rows = values[:, index]
        for name, numeric, commands in zip(names, rows[:, :first_command], rows[:, first_command:] > 0, strict=True):
            yield Sample(name, ts_ms, dict(zip(family.channels, numeric.tolist() + commands.tolist(), strict=True)))


def to_blocks(
    family: FamilySettings, values: NDArray[np.float32], first_slot: int = FIRST_SLOT
) -> Iterator[SampleColumns]:
    """Yield the same rows with those of a hop in one record, hop by hop, all entities side by side."""
    channels, hop = [*family.channels], family.hop
    for begin in range(0, values.shape[1], hop):
        rows = values[:, begin : begin + hop]
        ts_ms = (first_slot + begin + np.arange(rows.shape[1])) * family.interval_ms
        for number, of_entity in enumerate(rows):
            yield to_columns(_entity(number), channels, ts_ms, of_entity)


def _entity(number: int) -> str:
    return f"entity-{number:04d}"


def publish_model(registry: Registry, shape: Shape, starts: tuple[int, ...], seed: int) -> Manifest:
    """Publish and promote a small-preset model, calibrated on normal rows after one train step.

    Its speed is that of any model of its shape. Its output is next to zero, so what it scores is the distance from
    the network's input: it fires at spikes, which is all that is asked of it here.
    """
    preset = msgspec.structs.replace(
        PRESETS["small"], scoring=msgspec.structs.replace(PRESETS["small"].scoring, starts=starts)
    )
    dataset = make_dataset(shape, make_values(shape, _TRAINED_ENTITIES, _TRAINING_ROWS, seed))
    trained = train(dataset, name=FAMILY, preset=preset, train_steps=1, seed=seed)
    manifest = calibrate(trained)
    golden = golden_windows(Detector(manifest, trained.weights), dataset)
    version = registry.publish(FAMILY, manifest, trained.weights, golden)
    registry.promote(FAMILY, version)
    return msgspec.structs.replace(manifest, version=version)


def make_dataset(shape: Shape, values: NDArray[np.float32]) -> Dataset:
    """Make a data set of rows (E, rows, C) that end before FIRST_SLOT."""
    family = make_family(shape, PRESETS["small"].geometry.slack)
    channels = [Channel(name, "numeric") for name in family.numeric]
    channels += [Channel(name, "command") for name in family.commands]
    slots = FIRST_SLOT - values.shape[1] + np.arange(values.shape[1])
    series = [Series(f"entity-{i:04d}", slots, of_entity, None) for i, of_entity in enumerate(values)]
    return Dataset(channels, family.interval_ms, series)
