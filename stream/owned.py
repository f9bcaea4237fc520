"""What a windower knows of a partition it owns: its entities, and which of their windows are still to be scored.

Knows no broker and no store; holds what others decide.
"""

from collections import defaultdict, deque
from typing import NamedTuple

from stream.heads import Head
from stream.newcomers import Newcomers
from stream.ring import Layout
from stream.settings import FamilySettings
from stream.window_store import RingRef

# Longer than telemetry is kept, so that a ring is never gone while its head is remembered.
_RING_KEPT_MS = 8 * 86_400_000


class Unscored(NamedTuple):
    """A window that the worker has still to score."""

    ring: int
    first_slot: int
    end_slot: int


class OwnedEntity:
    """One entity's head and which of its windows the worker has still to score, oldest first."""

    def __init__(self, name: str, family: FamilySettings, head: Head, unscored: deque[Unscored]) -> None:
        self.name = name
        self.family = family
        self.geometry = head.geometry
        self.head = head
        self.unscored = unscored
        self.last_slot_with_room = 0.0
        # Asked for of every entity of every batch.
        self._max_gap, self._longest_step = self.geometry.max_gap, self.geometry.longest_step
        self._reach = self.geometry.hop + self.geometry.slack
        self._layout = Layout(self.geometry.capacity, len(family.channels))
        self.ref = RingRef(name, head.ring, self._layout)
        # How long an idle ring is kept.
        self.ttl_ms = max(_RING_KEPT_MS, 2 * self.geometry.capacity * family.interval_ms)
        self.limit()

    def follow_head(self) -> None:
        """Name the ring of the present life, and work out which row may come."""
        if self.ref.ring != self.head.ring:
            self.ref = RingRef(self.name, self.head.ring, self._layout)
        self.limit()

    def surely_takes(self, oldest: int, newest: int) -> bool:
        """Say whether rows between two slots stay in this life and find room, in whatever order, each by itself.

        A window that is cut on the way leaves room up to `slack` slots behind its end.
        """
        emitted_end, max_slot = self.head.emitted_end, self.head.max_slot
        return (
            emitted_end < oldest
            and newest <= max_slot + self._max_gap
            and (newest if newest > max_slot else max_slot) - oldest <= self._longest_step
            and newest <= self.last_slot_with_room
            and newest <= emitted_end + self._reach
        )

    def limit(self) -> None:
        """Work out which row may come: none may take the place of one that an unscored window of its ring needs."""
        oldest = next((window.end_slot for window in self.unscored if window.ring == self.head.ring), None)
        self.last_slot_with_room = float("inf") if oldest is None else float(oldest + self.geometry.slack)


class OwnedPartition:
    """What a windower knows of a partition it owns."""

    def __init__(self, epoch: int, newcomers: Newcomers) -> None:
        self.epoch = epoch
        self.newcomers = newcomers
        self.next_offset: int | None = None  # to apply, of the next snapshot
        self.entities: dict[str, OwnedEntity] = {}
        self.touched: dict[str, OwnedEntity] = {}  # since the snapshot
        self.unscored: dict[str, deque[Unscored]] = defaultdict(deque)
        self.announced: deque[tuple[int, str]] = deque()  # offset in `windows` and entity

    def add_entity(self, name: str, family: FamilySettings, head: Head) -> OwnedEntity:
        """Know an entity more."""
        entity = self.entities[name] = OwnedEntity(name, family, head, self.unscored[name])
        return entity

    def forget_scored(self, scored_up_to: int) -> None:
        """Learn that the worker is done with the notices below an offset in `windows`."""
        while self.announced and self.announced[0][0] < scored_up_to:
            name = self.announced.popleft()[1]
            self.unscored[name].popleft()
            if name in self.entities:
                self.entities[name].limit()
