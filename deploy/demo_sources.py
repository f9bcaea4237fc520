"""What the demo streams and trains on: the simulator or a Parquet file. Knows no broker and no service."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from deploy.fault_plan import plan_faults
from deploy.faults import Fault
from deploy.replay import samples
from deploy.simulator import Fleet, Simulation, fleets, simulate, to_sample
from stream.contracts import Sample
from stream.errors import UsageError
from stream.grid import Geometry
from stream.settings import FamilySettings
from training.datasets import DATASET_EPOCH_MS, Dataset, Series, read_dataset

_INTERVAL_MS = 1000
_TRAINING_ROWS = 6000
_FAULT_EVERY_ROWS = 2500
_CHUNK_ROWS = 20


class KnownFault(NamedTuple):
    """Something that is wrong in the streamed data, as its maker or labeller tells."""

    entity: str
    kind: str
    channels: tuple[str, ...]
    first_ms: int
    last_ms: int


class Source(Protocol):
    """Where the demo's telemetry comes from."""

    name: str
    families: list[FamilySettings]
    rows_per_s: float
    train_steps: int

    def training(self, family: FamilySettings) -> Dataset:
        """Return the data a family's model is trained on."""

    def rows(self) -> Iterator[Sample]:
        """Yield the telemetry to stream."""

    def faults(self) -> list[KnownFault]:
        """Return what is wrong in the streamed telemetry."""


def choose_source(source: str, seconds: float, seed: int) -> Source:
    """Return the simulator or the named file; raise UsageError if it is neither."""
    if source == "simulator":
        return SimulatorSource(seconds, seed)
    if not Path(source).is_file():
        raise UsageError(f"--source wants simulator or a Parquet file, {source} is neither")
    return FileSource(Path(source), seconds)


def declare(dataset: Dataset, name: str, entities: str, geometry: Geometry) -> FamilySettings:
    """Declare a family that has a data set's channels."""
    return FamilySettings(
        name=name,
        entities=entities,
        interval_ms=dataset.interval_ms,
        numeric=[dataset.channels[i].name for i in dataset.numeric],
        commands=[dataset.channels[i].name for i in dataset.commands],
        length=geometry.length,
        hop=geometry.hop,
        lateness=geometry.lateness,
        final_delay=geometry.final_delay,
        slack=geometry.slack,
    )


class SimulatorSource:
    """A spacecraft and a server fleet, each entity sending twenty rows a second, with faults planned over the run."""

    name = "simulator"
    train_steps = 450
    geometry = Geometry(length=256, hop=16, final_delay=32, slack=512)
    _entity_rows_per_s = 20

    def __init__(self, seconds: float, seed: int) -> None:
        """Plan the run so that its event time ends about now."""
        self._seed = seed
        self._fleets = {fleet.family: fleet for fleet in fleets()}
        self._slots = max(int(seconds * self._entity_rows_per_s), 3 * self.geometry.length)
        self._first = int(time.time() * 1000) // _INTERVAL_MS - self._slots
        patterns = {"spacecraft": "sat-*", "servers": "host-*"}
        self.families = [
            declare(self._dataset(fleet, {}, 0), name, patterns[name], self.geometry)
            for name, fleet in self._fleets.items()
        ]
        self.rows_per_s = float(self._entity_rows_per_s * sum(len(f.entities) for f in self._fleets.values()))
        self._planned = {name: self._plan(fleet) for name, fleet in self._fleets.items()}

    def training(self, family: FamilySettings) -> Dataset:
        """Simulate fault-free telemetry of the same fleet, always the same stretch so that a model can be kept."""
        fleet, first = self._fleets[family.name], DATASET_EPOCH_MS // _INTERVAL_MS
        return self._dataset(fleet, simulate(fleet, self._seed, first, _TRAINING_ROWS), first)

    def rows(self) -> Iterator[Sample]:
        """Simulate on and on, the entities side by side."""
        running = [(f, Simulation(f, self._seed, self._first, self._planned[f.family])) for f in self._fleets.values()]
        while True:
            chunks = [(fleet, moving.next_slot, moving.advance(_CHUNK_ROWS)) for fleet, moving in running]
            for row in range(_CHUNK_ROWS):
                for fleet, first, values in chunks:
                    ts_ms = (first + row) * _INTERVAL_MS
                    for entity, one in zip(fleet.entities, values[:, row], strict=True):
                        yield to_sample(fleet, entity, ts_ms, one)

    def faults(self) -> list[KnownFault]:
        """Return the planned faults in order of time."""
        planned = [fault for faults in self._planned.values() for fault in faults]
        return [
            KnownFault(f.entity, f.kind, f.channels, f.first_slot * _INTERVAL_MS, f.last_slot * _INTERVAL_MS)
            for f in sorted(planned, key=lambda fault: fault.first_slot)
        ]

    def _plan(self, fleet: Fleet) -> list[Fault]:
        count = max(1, self._slots * len(fleet.entities) // _FAULT_EVERY_ROWS)
        return plan_faults(
            fleet, self._seed, self._first + self.geometry.length + self.geometry.hop, self._first + self._slots, count
        )

    def _dataset(
        self, fleet: Fleet, values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], first: int
    ) -> Dataset:
        slots = np.arange(first, first + _TRAINING_ROWS)
        return Dataset(fleet.channels, _INTERVAL_MS, [Series(e, slots, rows, None) for e, rows in values.items()])


class FileSource:
    """A recorded data set, streamed so that it lasts as long as the demo; its labels are the known faults."""

    train_steps = 600
    geometry = Geometry(length=512, hop=32, final_delay=100, slack=1024)

    def __init__(self, path: Path, seconds: float) -> None:
        """Read the file, and find what to train on."""
        self.name = path.name
        self._live = read_dataset(path)
        self._training = _training_beside(path, self._live)
        self.families = [declare(self._live, _family_name(path), "*", self.geometry)]
        self.rows_per_s = max(100.0, self._live.rows / (0.9 * seconds))

    def training(self, family: FamilySettings) -> Dataset:
        """Return the training file beside the streamed one, or the first half of each entity's rows."""
        return self._training

    def rows(self) -> Iterator[Sample]:
        """Yield the file's rows, the entities side by side."""
        return samples(self._live)

    def faults(self) -> list[KnownFault]:
        """Return the labelled stretches."""
        return [fault for series in self._live.series for fault in _labelled(series, self._live.interval_ms)]


def _family_name(path: Path) -> str:
    stem = path.stem.lower().removesuffix("_test")
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "_-" else "-" for c in stem).strip("-_")
    return plain[:64].rstrip("-_") or "telemetry"


def _training_beside(path: Path, live: Dataset) -> Dataset:
    beside = path.with_name(path.name.replace("_test", "_train"))
    if beside != path and beside.is_file():
        return read_dataset(beside, interval_ms=live.interval_ms)
    halves = [
        Series(s.entity, s.slots[: len(s.slots) // 2], s.values[: len(s.slots) // 2], None)
        for s in live.series
        if len(s.slots) >= 2
    ]
    return Dataset(live.channels, live.interval_ms, halves)


def _labelled(series: Series, interval_ms: int) -> Iterator[KnownFault]:
    if series.labels is None:
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[0], series.labels != 0, [0]]).astype(np.int8)))
    for first, after in edges.reshape(-1, 2).tolist():
        begins, ends = int(series.slots[first]), int(series.slots[after - 1])
        yield KnownFault(series.entity, "labelled", (), begins * interval_ms, ends * interval_ms)
