"""Stand-ins for Redis and Kafka in unit tests: a window store in a dictionary, acknowledgements by hand, records."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count

import msgspec

from stream.contracts import Sample, WindowNotice
from stream.errors import FencedError
from stream.kafka import Record
from stream.ring import Layout
from stream.settings import FamilySettings
from stream.window_store import RingIndex, RingRef, RingWrite, Snapshot, Window, WindowRequest

FIRST_SLOT = 1_767_225_600
TELEMETRY = "telemetry"


class Crash(Exception):  # noqa: N818 not an error of ours
    """The process died here."""


class InMemoryWindowStore:
    """Implements `stream.window_store.WindowStore`; `crash_before` names the operation at which to die once."""

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self.crash_before: str | None = None
        self._clock = clock or count(1).__next__
        self.wipe()

    def wipe(self) -> None:
        """Lose everything, as a FLUSHALL does."""
        self._epochs: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._heads: dict[int, dict[str, bytes]] = defaultdict(dict)
        self._rings: dict[tuple[int, str, int], bytearray] = {}

    def acquire(self, partition: int) -> int:
        self._epochs[partition] = max(self._epochs.get(partition, 0) + 1, self._clock())
        return self._epochs[partition]

    def load(self, partition: int) -> Snapshot:
        return Snapshot(self._next.get(partition), dict(self._heads[partition]))

    def write_rows(self, partition: int, epoch: int, rings: Sequence[RingWrite]) -> None:
        if not rings:
            return
        self._enter("write_rows", partition, epoch)
        for one in rings:
            keys = [(partition, ref.entity, ref.ring) for ref in one.refs]
            rings = [self._rings.setdefault(key, bytearray(one.layout.size)) for key in keys]
            one.layout.put(rings, one.runs)

    def save_heads(self, partition: int, epoch: int, next_offset: int, heads: Mapping[str, bytes]) -> None:
        self._enter("save_heads", partition, epoch)
        self._heads[partition] |= heads
        self._next[partition] = next_offset

    def read_windows(self, requests: Sequence[WindowRequest]) -> list[Window]:
        return [self._window(request) for request in requests]

    def read_indexes(self, partition: int, refs: Iterable[RingRef]) -> list[RingIndex]:
        return [ref.layout.decode_index(self._ring(partition, ref)) for ref in refs]

    def _window(self, request: WindowRequest) -> Window:
        layout, ring = request.ref.layout, self._ring(request.partition, request.ref)
        ranges = layout.window_ranges(request.end_slot, request.length)
        parts = [ring[part.first : part.last + 1] for part in ranges]
        return Window(*layout.decode_window(parts, request.end_slot, request.length))

    def _ring(self, partition: int, ref: RingRef) -> bytes:
        return bytes(self._rings.get((partition, ref.entity, ref.ring), b""))

    def _enter(self, operation: str, partition: int, epoch: int) -> None:
        if self.crash_before == operation:
            self.crash_before = None
            raise Crash(operation)
        if self._epochs.get(partition) != epoch:
            raise FencedError(f"partition {partition} has another owner")


class FakeAcknowledgements:
    """Implements `stream.acknowledgements.Acknowledgements` over a log of notices; `score` plays the worker."""

    def __init__(self) -> None:
        self.log: dict[int, list[WindowNotice]] = defaultdict(list)
        self._scored: dict[int, int] = defaultdict(int)

    def announce(self, partition: int, notice: WindowNotice) -> int:
        """Append a notice to the windows topic and return its offset."""
        self.log[partition].append(notice)
        return len(self.log[partition]) - 1

    def score(self, partition: int, windows: int) -> None:
        """Let the worker commit so many windows more."""
        self._scored[partition] = min(self._scored[partition] + windows, len(self.log[partition]))

    def scored_up_to(self, partition: int) -> int:
        return self._scored[partition]

    def outstanding(self, partition: int) -> Iterator[tuple[int, WindowNotice]]:
        for offset in range(self._scored[partition], len(self.log[partition])):
            yield offset, self.log[partition][offset]


def record(
    value: bytes | None, offset: int = 0, *, key: bytes | None = b"e1", partition: int = 0, **more: object
) -> Record:
    """Return a telemetry record as consumed; its time stamp is its offset."""
    return Record(TELEMETRY, partition, offset, key, value, timestamp_ms=offset, **more)  # type: ignore[arg-type]


def sample_record(
    entity: str, slot: int, values: dict[str, float | bool | None], offset: int, *, interval_ms: int = 1000
) -> Record:
    """Return the record of one row."""
    value = msgspec.json.encode(Sample(entity, slot * interval_ms, values))
    return record(value, offset, key=entity.encode())


def layout_of(family: FamilySettings) -> Layout:
    """Return the layout of a family's rings."""
    return Layout(family.geometry.capacity, len(family.channels))


def request_of(notice: WindowNotice, family: FamilySettings) -> WindowRequest:
    """Return the read that the worker makes for a notice."""
    ref = RingRef(notice.entity, notice.ring, layout_of(family))
    return WindowRequest(notice.source.partition, ref, notice.end_slot, notice.length)
