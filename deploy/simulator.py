"""Simulated telemetry of a small spacecraft fleet and a small server fleet, with faults on demand.

Owns the readings: what sensors make of the truth, and their order in a row. The physics is in `simulator_spacecraft`
and `simulator_servers`, the faults in `faults` and `fault_plan`. Knows no broker, no clock, no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy import simulator_servers, simulator_spacecraft
from deploy.faults import Fault, check_fault, effects, labels
from deploy.simulator_blueprint import Blueprint
from deploy.simulator_draws import Floats, entity_keys, normal
from detector.manifest import Channel
from stream.contracts import Sample

Rows = NDArray[np.float32]

# Slots run before the first one asked for. The slowest lag is 140 slots and a release comes every 1200, so what the
# plant started from has faded below a sensor's quantum: a slot's values don't depend on where the simulation began,
# unless a fault is longer than this.
WARM_UP = 3600
_CHUNK = 4096
_READING_LANE = 0


@dataclass(frozen=True)
class Fleet:
    """Entities of one design."""

    blueprint: Blueprint
    entities: tuple[str, ...]

    @property
    def family(self) -> str:
        """Name of the set of entities that share a model."""
        return self.blueprint.family

    @property
    def channels(self) -> list[Channel]:
        """Channels in the order of a row: numeric ones, then commands."""
        return self.blueprint.channels

    def only(self, *entities: str) -> "Fleet":
        """Return the fleet reduced to some entities; their values stay the same."""
        return replace(self, entities=entities)

    def moved(self, slot: int) -> "Fleet":
        """Return the same spacecraft, whose whole fleet is operated in another way from a slot on.

        Raises ValueError for a fleet of another kind.
        """
        if self.blueprint.plant is not simulator_spacecraft.Spacecraft:
            raise ValueError(f"only spacecraft change their regime, not {self.family}")
        plant = partial(simulator_spacecraft.Spacecraft, regime_from=slot)
        return replace(self, blueprint=replace(self.blueprint, plant=plant))


def fleets(satellites: int = 6, servers: int = 6) -> list[Fleet]:
    """Return the spacecraft fleet and the server fleet; one with no entities is left out."""
    described = (
        Fleet(simulator_spacecraft.BLUEPRINT, tuple(f"sat-{number + 1:02d}" for number in range(satellites))),
        Fleet(simulator_servers.BLUEPRINT, tuple(f"host-{number + 1:02d}" for number in range(servers))),
    )
    return [fleet for fleet in described if fleet.entities]


class Simulation:
    """A fleet moving through its slots, in chunks of any size.

    The same seed, entity, slot and faults give the same values whatever the chunks, the start and the other entities.
    """

    def __init__(self, fleet: Fleet, seed: int, start_slot: int, faults: Iterable[Fault] = ()) -> None:
        """Bring the fleet to the condition it has before start_slot.

        Raises ValueError for a fault that names another entity or channel.
        """
        self._fleet = fleet
        self._keys = entity_keys(seed, fleet.entities)
        self._plant = fleet.blueprint.plant(self._keys)
        self._noise = fleet.blueprint.per_sensor(lambda sensor: sensor.noise)
        self._quantum = fleet.blueprint.per_sensor(lambda sensor: sensor.quantum)
        self._readings = np.zeros((len(fleet.entities), len(fleet.blueprint.sensors)))
        self._faults = list(faults)
        for fault in self._faults:
            check_fault(fault, fleet.blueprint, fleet.entities)
        self._next_slot = start_slot - WARM_UP
        self.advance(WARM_UP)

    @property
    def next_slot(self) -> int:
        """The first slot that has not been simulated yet."""
        return self._next_slot

    def inject(self, fault: Fault) -> None:
        """Add a fault that lies ahead. Raises ValueError for one that began before next_slot or names a stranger."""
        check_fault(fault, self._fleet.blueprint, self._fleet.entities)
        if fault.first_slot < self._next_slot:
            raise ValueError(f"first_slot wants at least {self._next_slot}, got {fault.first_slot}")
        self._faults.append(fault)

    def advance(self, rows: int) -> Rows:
        """Return the next rows of all entities, (E, rows, C + K): numeric channels, then commands as 0 or 1."""
        sizes = [min(_CHUNK, rows - begin) for begin in range(0, rows, _CHUNK)]
        chunks = [self._chunk(size) for size in sizes]
        width = len(self._fleet.channels)
        return np.concatenate(chunks, axis=1) if chunks else np.zeros((len(self._keys), 0, width), np.float32)

    def _chunk(self, rows: int) -> Rows:
        slots = np.arange(self._next_slot, self._next_slot + rows, dtype=np.int64)
        upset = effects(self._faults, slots, self._fleet.blueprint, self._fleet.entities, self._keys)
        self._plant.prepare(slots, upset)
        disturbance = upset.bias + self._noise * self._sensor_noise(slots)  # (R, E, C)
        sensors = len(self._noise)
        result = np.empty((rows, len(self._keys), len(self._fleet.channels)), np.float32)
        for index in range(rows):
            truth, commands = self._plant.advance(index, self._readings)
            self._read(truth + disturbance[index], upset.stuck[index])
            result[index, :, :sensors] = self._readings
            result[index, :, sensors:] = commands
        self._next_slot += rows
        return np.ascontiguousarray(result.transpose(1, 0, 2))  # (E, R, C + K)

    def _sensor_noise(self, slots: NDArray[np.int64]) -> Floats:
        lanes = range(_READING_LANE, _READING_LANE + len(self._noise))
        return np.stack([normal(self._keys, slots[:, None], lane) for lane in lanes], axis=-1)  # (R, E, C)

    def _read(self, disturbed: Floats, stuck: NDArray[np.bool_]) -> None:
        """Quantise what the sensors see; a stuck one repeats itself."""
        quantised = np.round(disturbed / self._quantum) * self._quantum + 0.0  # no minus zero
        self._readings = np.where(stuck, self._readings, quantised)


def simulate(fleet: Fleet, seed: int, start_slot: int, rows: int, faults: Iterable[Fault] = ()) -> dict[str, Rows]:
    """Return the telemetry of each entity from start_slot on, (rows, C + K) each, as `Simulation` makes it."""
    values = Simulation(fleet, seed, start_slot, faults).advance(rows)
    return dict(zip(fleet.entities, values, strict=True))


def to_sample(fleet: Fleet, entity: str, ts_ms: int, row: Rows) -> Sample:
    """Return a row (C + K,) as the record that goes onto the wire."""
    values: dict[str, float | bool | None] = {
        channel.name: bool(value) if channel.kind == "command" else float(str(value))
        for channel, value in zip(fleet.channels, row, strict=True)
    }
    return Sample(entity=entity, ts=ts_ms, values=values)


def write_parquet(
    path: Path,
    fleet: Fleet,
    values: Mapping[str, Rows],
    start_slot: int,
    faults: Sequence[Fault] | None = None,
) -> None:
    """Write telemetry as a dataset file: training data without faults, else test data with a label a row.

    Columns: entity (dictionary), t (int32, from 0 at start_slot), numeric channels (float32), commands (bool), label
    (uint8, 1 where the entity has a fault). Rows of an entity are contiguous and in order.
    """
    rows = len(next(iter(values.values())))
    entity = pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(values), dtype=np.int32), rows), list(values))
    columns: dict[str, NDArray[Any]] = {"t": np.tile(np.arange(rows, dtype=np.int32), len(values))}
    stacked = np.concatenate(list(values.values()))  # (E * rows, C + K)
    for column, channel in enumerate(fleet.channels):
        series = np.ascontiguousarray(stacked[:, column])
        columns[channel.name] = series != 0 if channel.kind == "command" else series
    if faults is not None:
        faulty = [labels(faults, name, start_slot, rows) for name in values]
        columns["label"] = np.concatenate(faulty).astype(np.uint8)
    pq.write_table(pa.table({"entity": entity, **columns}), path, compression="zstd")
