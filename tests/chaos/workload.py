"""Made-up telemetry of one seed, in the order it is sent, with everything that telemetry does to a pipeline.

Rows out of order within the lateness, gaps, silences that begin a new life, missing values, spikes, rows sent twice
with another value, rows that come too late, rows whose clock is wrong, and records that are none. Knows no window.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.grid import Geometry

FIRST_SLOT = 1_767_225_600
INTERVAL_MS = 1000
NUMERIC, COMMAND = "m0", "c0"
# Slots: a row sent twice is sent again at once, so that its first version never stands in a finished window.
_LATE_SHARE, _BROKEN_SHARE, _TWICE_SHARE, _STRAY_SHARE = 0.002, 0.002, 0.01, 0.002
_FARTHEST = 400_000_000  # slots: years

Kind = Literal["row", "late", "stray", "broken"]


class Sending(NamedTuple):
    """One record: what it is, and as it goes over the wire. values: numeric channel and command, NaN where missing."""

    kind: Kind
    entity: str
    slot: int
    values: tuple[float, float]
    payload: bytes


def count_rows(records: Iterable[Sending]) -> int:
    """Count the rows of telemetry among records."""
    return sum(one.kind == "row" for one in records)


class Workload:
    """The telemetry of one seed: the same every time."""

    def __init__(self, geometry: Geometry, *, seed: int, entities: int, rows: int) -> None:
        """Draw `rows` records in all, spread over so many entities."""
        self._geometry = geometry
        generator = np.random.default_rng(seed)
        each = -(-rows // entities)
        placed: list[tuple[float, int, Sending]] = []
        for number in range(entities):
            phase = float(generator.uniform(0, 20))
            for i, one in enumerate(self._series(f"e-{number}", each, generator)):
                placed.append((phase + i, len(placed), one))
        self.records = [one for _, _, one in sorted(placed, key=lambda entry: entry[:2])]

    def _series(self, entity: str, rows: int, generator: np.random.Generator) -> Iterator[Sending]:
        slots = self._slots(rows, generator)
        values = self._values(len(slots), generator)
        newest = 0
        since_gap = 0
        arrival = np.argsort(slots + generator.uniform(0, self._geometry.lateness, len(slots)), kind="stable")
        for i in arrival.tolist():
            slot = int(slots[i])
            since_gap = 0 if slot > newest + 2 + self._geometry.lateness else since_gap + 1
            newest = max(newest, slot)
            if generator.random() < _TWICE_SHARE:
                yield _row("row", entity, slot, (float(np.float32(generator.uniform(0, 2))), 1.0))
            yield _row("row", entity, slot, (float(values[i, 0]), float(values[i, 1])))
            if since_gap > 2 * self._geometry.hop and generator.random() < _LATE_SHARE * 3:
                late = newest - self._geometry.lateness - self._geometry.hop - 1
                # The value makes each of them another record.
                yield _row("late", entity, late, (float(np.float32(generator.uniform(2, 3))), 0.0))
            if generator.random() < _STRAY_SHARE:
                yield from self._strays(entity, newest, generator)
            if generator.random() < _BROKEN_SHARE:
                broken = b'{"entity": "%s", "number": %d' % (entity.encode(), generator.integers(2**60))
                yield Sending("broken", entity, slot, (0.0, 0.0), broken)

    def _strays(self, entity: str, newest: int, generator: np.random.Generator) -> Iterator[Sending]:
        """Draw rows far ahead or far behind, too few of them for a clock that has really jumped."""
        far = int(generator.integers(self._geometry.max_jump + 1_000_000, _FARTHEST))
        slot = newest + far * int(generator.choice([-1, 1]))
        for i in range(int(generator.integers(1, self._geometry.jump_rows))):
            yield _row("stray", entity, slot + i, (float(np.float32(generator.uniform(2, 3))), 0.0))

    def _slots(self, rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw slots: single ones missing, gaps within a life, and silences after which a new life begins."""
        geometry = self._geometry
        steps = np.ones(rows, dtype=np.int64)
        steps[generator.random(rows) < 0.02] = 2
        for place in generator.integers(1, rows, rows // 400):
            steps[place] = generator.integers(5, geometry.max_gap - 2 * geometry.lateness)
        for place in generator.integers(1, rows, rows // 500):
            steps[place] = geometry.capacity + generator.integers(1, 500)
        return FIRST_SLOT + int(generator.integers(0, geometry.hop)) + np.cumsum(steps)

    def _values(self, rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
        """Draw noise with stretches that alarm; (rows, 2)."""
        values = generator.uniform(0, 2, (rows, 2)).astype(np.float32)
        for start in generator.integers(0, rows, rows // 150):
            values[start : start + 8, 0] *= 8
        values[:, 1] = values[:, 1] > 1
        values[generator.random(values.shape) < 0.03] = np.nan
        return values


def _row(kind: Kind, entity: str, slot: int, values: tuple[float, float]) -> Sending:
    numeric, command = values
    channels = {NUMERIC: _known(numeric), COMMAND: None if command != command else bool(command)}
    payload = msgspec.json.encode({"entity": entity, "ts": slot * INTERVAL_MS, "values": channels})
    return Sending(kind, entity, slot, values, payload)


def _known(value: float) -> float | None:
    return None if value != value else value
