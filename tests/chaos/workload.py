"""Made-up telemetry of one seed, in the order it is sent, with everything that telemetry does to a pipeline.

Rows out of order within the lateness, gaps, silences that begin a new life, missing values, spikes, rows sent twice
with another value, rows that come too late, rows whose clock is wrong, clocks that really jump, and records that are
none. A third of the entities put many rows into a record. Knows no window.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.columns import COLUMNS, to_columns
from stream.contracts import SampleColumns
from stream.grid import Geometry

FIRST_SLOT = 1_767_225_600
INTERVAL_MS = 1000
NUMERIC, COMMAND = "m0", "c0"
# Slots: a row sent twice is sent again at once, so that its first version never stands in a finished window.
_LATE_SHARE, _BROKEN_SHARE, _TWICE_SHARE, _STRAY_SHARE = 0.002, 0.002, 0.01, 0.002
_FARTHEST = 400_000_000  # slots: years
# Of the entities: how many put many rows into a record, and how many rows at most; one in how many has a clock that
# jumps, ahead and later back.
_TOGETHER_SHARE, _MOST_TOGETHER, _JUMPING = 0.3, 12, 30

Kind = Literal["row", "late", "stray", "broken"]
Values = tuple[float, float]  # numeric channel and command, NaN where missing


class Sending(NamedTuple):
    """One record: what it is, and as it goes over the wire; `slot` and `values` are those of its first row.

    more: the further rows of a record of many, in slot order; such a record is taken or refused as a whole.
    """

    kind: Kind
    entity: str
    slot: int
    values: Values
    payload: bytes
    more: tuple[tuple[int, Values], ...] = ()

    @property
    def rows(self) -> tuple[tuple[int, Values], ...]:
        """Slot and values of each row."""
        return (self.slot, self.values), *self.more

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """What says how the payload is encoded."""
        return [("content-type", COLUMNS.encode())] if self.more else []


def count_rows(records: Iterable[Sending]) -> int:
    """Count the rows of telemetry among records."""
    return sum(len(one.rows) for one in records if one.kind == "row")


class Workload:
    """The telemetry of one seed: the same every time."""

    def __init__(self, geometry: Geometry, *, seed: int, entities: int, rows: int, jumping: bool = True) -> None:
        """Draw `rows` rows in all, spread over so many entities. jumping: whether a clock among them jumps."""
        self._geometry = geometry
        generator = np.random.default_rng(seed)
        each = -(-rows // entities)
        placed: list[tuple[float, int, Sending]] = []
        jumper = int(generator.integers(min(entities, _JUMPING)))
        for number in range(entities):
            phase = float(generator.uniform(0, 20))
            sent = self._series(f"e-{number}", each, generator, jumping=jumping and number % _JUMPING == jumper)
            if generator.random() < _TOGETHER_SHARE:
                sent = self._together(sent, generator)
            at = phase
            for one in sent:
                placed.append((at, len(placed), one))
                at += len(one.rows)
        self.records = [one for _, _, one in sorted(placed, key=lambda entry: entry[:2])]

    def _series(self, entity: str, rows: int, generator: np.random.Generator, *, jumping: bool) -> Iterator[Sending]:
        """Draw one entity's records; a clock that jumps goes ahead by years, and later to years before its start."""
        lengths = [rows - 2 * (rows // 3), rows // 3, rows // 3] if jumping else [rows]
        ahead, back = generator.integers(self._geometry.max_jump + 1_000_000, _FARTHEST, 2).tolist()
        first = FIRST_SLOT + int(generator.integers(0, self._geometry.hop))
        for length, jump in zip(lengths, (0, ahead, -back), strict=False):
            yield from self._between_jumps(entity, first + jump, length, generator)

    def _between_jumps(self, entity: str, first: int, rows: int, generator: np.random.Generator) -> Iterator[Sending]:
        slots = first + self._steps(rows, generator)
        values = self._values(len(slots), generator)
        newest = since_gap = 0
        arrival = np.argsort(slots + generator.uniform(0, self._geometry.lateness, len(slots)), kind="stable")
        for i in arrival.tolist():
            slot = int(slots[i])
            since_gap = 0 if slot > newest + 2 + self._geometry.lateness else since_gap + 1
            newest = max(newest, slot)
            if generator.random() < _TWICE_SHARE:
                yield _row("row", entity, slot, (float(np.float32(generator.uniform(0, 2))), 1.0))
            yield _row("row", entity, slot, (float(values[i, 0]), float(values[i, 1])))
            if since_gap > 2 * self._geometry.hop and generator.random() < _LATE_SHARE * 3:
                yield self._late(entity, newest, generator)
            if generator.random() < _STRAY_SHARE:
                yield from self._strays(entity, newest, generator)
            if generator.random() < _BROKEN_SHARE:
                broken = b'{"entity": "%s", "number": %d' % (entity.encode(), generator.integers(2**60))
                yield Sending("broken", entity, slot, (0.0, 0.0), broken)

    def _late(self, entity: str, newest: int, generator: np.random.Generator) -> Sending:
        """Draw a row behind a window that is surely finished, or rows that come together and lag one slot too far."""
        # The value makes each of them another record.
        values = float(np.float32(generator.uniform(2, 3))), 0.0
        if generator.random() < 0.5:
            return _row("late", entity, newest - self._geometry.lateness - self._geometry.hop - 1, values)
        first = newest - self._geometry.lateness - 1
        return _columns([_row("late", entity, slot, values) for slot in (first, newest)])

    def _together(self, sent: Iterable[Sending], generator: np.random.Generator) -> Iterator[Sending]:
        """Put rows that follow each other into one record, as many as fit and are drawn."""
        held: list[Sending] = []
        most = 1
        for one in sent:
            fits = held and one.slot > held[-1].slot and one.slot - held[0].slot <= self._geometry.hop
            if held and not (one.kind == "row" and fits and len(held) < most):
                yield _columns(held)
                held = []
            if one.kind != "row":
                yield one
                continue
            if not held:
                most = int(generator.integers(1, _MOST_TOGETHER + 1))
            held.append(one)
        if held:
            yield _columns(held)

    def _strays(self, entity: str, newest: int, generator: np.random.Generator) -> Iterator[Sending]:
        """Draw rows far ahead or far behind, too few of them for a clock that has really jumped."""
        far = int(generator.integers(self._geometry.max_jump + 1_000_000, _FARTHEST))
        slot = newest + far * int(generator.choice([-1, 1]))
        strays = [
            _row("stray", entity, slot + i, (float(np.float32(generator.uniform(2, 3))), 0.0))
            for i in range(int(generator.integers(1, self._geometry.jump_rows)))
        ]
        if generator.random() < 0.5:
            yield _columns(strays)
        else:
            yield from strays

    def _steps(self, rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw slots from 0: single ones missing, gaps within a life, and silences after which a new life begins."""
        geometry = self._geometry
        steps = np.ones(rows, dtype=np.int64)
        steps[generator.random(rows) < 0.02] = 2
        for place in generator.integers(1, rows, rows // 400):
            steps[place] = generator.integers(5, geometry.max_gap - 2 * geometry.lateness)
        for place in generator.integers(1, rows, rows // 500):
            steps[place] = geometry.capacity + generator.integers(1, 500)
        return np.cumsum(steps)

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


def _columns(rows: list[Sending]) -> Sending:
    """Put rows of one kind into one record; a single one stays as it is."""
    if len(rows) == 1:
        return rows[0]
    first = rows[0]
    ts_ms = np.array([one.slot * INTERVAL_MS for one in rows])
    values = np.array([one.values for one in rows], dtype=np.float32)
    packed: SampleColumns = to_columns(first.entity, [NUMERIC, COMMAND], ts_ms, values)
    more = tuple((one.slot, one.values) for one in rows[1:])
    return first._replace(payload=msgspec.msgpack.encode(packed), more=more)


def _known(value: float) -> float | None:
    return None if value != value else value
