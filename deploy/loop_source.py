"""The fleet of the loop demo: it changes its regime at a slot, and gets faults while it runs. Knows no broker."""

import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue

import numpy as np

from deploy.demo_sources import KnownFault, declare
from deploy.fault_plan import plan_faults
from deploy.faults import Fault
from deploy.simulator import Simulation, fleets, simulate, to_sample
from stream.contracts import Sample
from stream.grid import Geometry
from stream.settings import FamilySettings
from training.datasets import DATASET_EPOCH_MS, Dataset, Series

INTERVAL_MS = 1000
_CHUNK_ROWS = 20
# Faults are planned while the fleet moves on: the first begins so many slots ahead.
_AHEAD = 400


class RegimeSource:
    """Spacecraft whose telemetry comes faster than real time, each entity's rows a second apart by their own clock."""

    name = "simulator"

    def __init__(self, entities: int, geometry: Geometry, slots_before: int, most_slots: int, seed: int) -> None:
        """Plan a run of `most_slots` whose event time ends about now; the regime changes behind `slots_before`."""
        (self._usual,) = fleets(entities, 0)
        self._seed = seed
        self.geometry = geometry
        self.first_slot = int(time.time() * 1000) // INTERVAL_MS - most_slots
        self.regime_slot = self.first_slot + slots_before
        self._fleet = self._usual.moved(self.regime_slot)
        self._simulation = Simulation(self._fleet, seed, self.first_slot)
        self._coming: SimpleQueue[Fault] = SimpleQueue()
        self._planned: list[Fault] = []
        self.family = declare(self._dataset({}, 0, 0), self._usual.family, "sat-*", geometry)

    @property
    def families(self) -> list[FamilySettings]:
        """The one family there is."""
        return [self.family]

    def training(self, rows: int) -> Dataset:
        """Simulate telemetry of the usual regime, of another time."""
        first = DATASET_EPOCH_MS // INTERVAL_MS
        return self._dataset(simulate(self._usual, self._seed, first, rows), first, rows)

    def rows(self) -> Iterator[Sample]:
        """Simulate on and on, the entities side by side."""
        while True:
            self._take_faults()
            first, values = self._simulation.next_slot, self._simulation.advance(_CHUNK_ROWS)
            for row in range(_CHUNK_ROWS):
                for entity, one in zip(self._fleet.entities, values[:, row], strict=True):
                    yield to_sample(self._fleet, entity, (first + row) * INTERVAL_MS, one)

    def plant(self, count: int, slots: int) -> list[KnownFault]:
        """Plan faults within so many slots that lie ahead, and return all planned so far; from any thread."""
        first = self._simulation.next_slot + _AHEAD
        for fault in plan_faults(self._fleet, self._seed, first, first + slots, count):
            self._planned.append(fault)
            self._coming.put(fault)
        return self.faults()

    def faults(self) -> list[KnownFault]:
        """Return the faults planned so far."""
        return [
            KnownFault(f.entity, f.kind, f.channels, f.first_slot * INTERVAL_MS, f.last_slot * INTERVAL_MS)
            for f in self._planned
        ]

    def _take_faults(self) -> None:
        while True:
            try:
                self._simulation.inject(self._coming.get_nowait())
            except Empty:
                return

    def _dataset(
        self, values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], first: int, rows: int
    ) -> Dataset:
        slots = np.arange(first, first + rows)
        return Dataset(self._usual.channels, INTERVAL_MS, [Series(e, slots, one, None) for e, one in values.items()])
