"""Which faults a run gets: spread over entities and kinds, where they show, with rest between. Knows no physics."""

from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple, TypeVar

import numpy as np

from deploy.faults import KINDS, Fault, FaultKind
from deploy.simulator import Fleet, simulate
from deploy.simulator_draws import Bools, entity_keys

Item = TypeVar("Item")

# Slots an entity is left alone after a fault: longer than the slowest lag, so that it has recovered.
RECOVERY = 200
# The first fault of a plan begins within so many slots.
EARLY = 30
# It is of a kind that shows at once, whatever the entity is doing.
_FIRST_KIND: FaultKind = "noise_burst"
# Places looked at before the one where a fault shows best is chosen, and the slots they lie in.
_CANDIDATES, _WITHIN = 8, 90
# A fault that changes its channel by less in half of its slots, in spreads, is no fault to be found.
_LEAST_CONTRAST = 0.5
# A command that runs more briefly leaves too little to see.
_SHORTEST_RUN = 10
# An answer that stays away shows for a little longer than the command.
_AFTER_RUN = 30
# Opposite commands with less between them are one manoeuvre.
_COAST = 45
# The last fault begins so many slots before the end, if the plan is long enough.
_ROOM = 300

_LASTS: dict[FaultKind, tuple[int, int]] = {
    "stuck": (80, 140),
    "drift": (120, 200),
    "spike": (7, 13),
    "noise_burst": (40, 80),
    "correlation_break": (90, 150),
}
_MAGNITUDES: dict[FaultKind, tuple[float, float]] = {
    "stuck": (1.0, 1.0),
    "drift": (1.5, 3.0),
    "spike": (3.0, 6.0),
    "noise_burst": (0.3, 0.6),
    "wrong_command_response": (1.0, 1.0),
    "correlation_break": (1.0, 1.0),
}


class _Place(NamedTuple):
    """Where a fault may go: its channels and its slots, both inclusive."""

    channels: tuple[str, ...]
    first: int
    last: int


def plan_faults(fleet: Fleet, seed: int, first_slot: int, last_slot: int, count: int) -> list[Fault]:
    """Return count faults within first_slot .. last_slot in order of time, the first within EARLY slots.

    Kinds and entities take turns in a shuffled order as far as there is room. The fault-free telemetry of the same
    seed tells where a command is sent and where a channel moves enough for a fault to show. Faults of one entity are
    RECOVERY slots apart. Raises ValueError if the slots have no room for so many.
    """
    plan = _Plan(fleet, seed, first_slot, last_slot)
    latest = max(first_slot, last_slot - _ROOM)
    for number, start in enumerate(np.linspace(first_slot, latest, count).astype(np.int64)):
        plan.add(number, int(start))
    return sorted(plan.faults, key=lambda fault: (fault.first_slot, fault.entity))


class _Plan:
    """A plan as it grows: the faults so far, and from which slot on each entity is free."""

    def __init__(self, fleet: Fleet, seed: int, first_slot: int, last_slot: int) -> None:
        self.faults: list[Fault] = []
        self._blueprint = fleet.blueprint
        self._first_slot, self._last_slot = first_slot, last_slot
        self._normal = simulate(fleet, seed, first_slot, last_slot + 1 - first_slot + self._blueprint.cycle)
        self._free_from = dict.fromkeys(fleet.entities, first_slot)
        self._rng = np.random.default_rng([int(entity_keys(seed, [fleet.family])[0]), first_slot])
        self._entities = [str(entity) for entity in self._rng.permutation(fleet.entities)]
        others = [kind for kind in KINDS if kind != _FIRST_KIND]
        self._kinds = [_FIRST_KIND, *(others[index] for index in self._rng.permutation(len(others)))]

    def add(self, number: int, start: int) -> None:
        """Place the fault of that number at or after start: the first kind and entity in turn that fit."""
        lap, turn = divmod(number, len(self._kinds))
        for kind in _turned(self._kinds, turn):
            for entity in _turned(self._entities, turn + lap):
                place = self._best_place(kind, entity, max(start, self._free_from[entity]), early=number == 0)
                if place is not None:
                    self._put(kind, entity, place)
                    return
        raise ValueError(
            f"slots {self._first_slot} to {self._last_slot} of {len(self._entities)} entities have no room for fault "
            f"{number + 1}: plan fewer faults or more slots"
        )

    def _put(self, kind: FaultKind, entity: str, place: _Place) -> None:
        self._free_from[entity] = place.last + 1 + RECOVERY
        self.faults.append(
            Fault(
                entity=entity,
                kind=kind,
                channels=place.channels,
                first_slot=place.first,
                last_slot=place.last,
                magnitude=float(self._rng.uniform(*_MAGNITUDES[kind])),
            )
        )

    def _best_place(self, kind: FaultKind, entity: str, start: int, *, early: bool) -> _Place | None:
        """Return where the fault shows best among a few places, or None if it fits nowhere."""
        if kind == "wrong_command_response":
            places = self._unanswered(entity, start)
        else:
            places = self._disturbed(kind, start, EARLY if early else _WITHIN)
        fitting = [(self._contrast(kind, entity, place), place) for place in places if place.last <= self._last_slot]
        contrast, best = max(fitting, key=itemgetter(0), default=(0.0, None))
        return best if contrast >= _LEAST_CONTRAST else None

    def _disturbed(self, kind: FaultKind, start: int, within: int) -> Iterator[_Place]:
        """Yield places for a fault of one channel that begins less than `within` slots after start."""
        sensors = [sensor.name for sensor in self._blueprint.sensors if not sensor.controls]
        channel = str(self._rng.choice(self._blueprint.couplings if kind == "correlation_break" else sensors))
        shortest, longest = _LASTS[kind]
        for _ in range(_CANDIDATES):
            first = start + int(self._rng.integers(within))
            yield _Place((channel,), first, first + int(self._rng.integers(shortest, longest + 1)) - 1)

    def _unanswered(self, entity: str, start: int) -> Iterator[_Place]:
        """Yield the first run of the commands of one kind of response that begins in the cycle after start."""
        responses = self._blueprint.responses
        commands, answers = responses[int(self._rng.integers(len(responses)))]
        rows = self._normal[entity][start - self._first_slot :]
        sent = np.any([rows[:, self._column(name)] > 0 for name in commands], axis=0)
        for first, last in _runs(sent, gap=_COAST if len(commands) > 1 else 0):
            if 0 < first < self._blueprint.cycle and last - first + 1 >= _SHORTEST_RUN:
                yield _Place(commands + answers, start + first, start + last + _AFTER_RUN)
                return

    def _contrast(self, kind: FaultKind, entity: str, place: _Place) -> float:
        """Return by how much the fault changes its channel, in spreads; 1 if that doesn't depend on the place."""
        if kind not in ("stuck", "correlation_break"):
            return 1.0
        column = self._column(place.channels[0])
        series = self._normal[entity][:, column] / self._blueprint.sensors[column].spread
        first, last = place.first - self._first_slot, place.last - self._first_slot
        if kind == "stuck":
            instead = series[max(first - 1, 0)]
        else:
            half = self._blueprint.cycle // 2
            instead = series[first + half : last + 1 + half]
        return float(np.median(np.abs(series[first : last + 1] - instead)))

    def _column(self, name: str) -> int:
        return [channel.name for channel in self._blueprint.channels].index(name)


def _turned(items: list[Item], by: int) -> list[Item]:
    """Return the items from index `by` on, then those before it."""
    by %= len(items)
    return items[by:] + items[:by]


def _runs(on: Bools, gap: int) -> list[tuple[int, int]]:
    """Return first and last index of each run of True; runs with at most `gap` False between them are one."""
    indices = np.flatnonzero(on)
    if len(indices) == 0:
        return []
    breaks = np.flatnonzero(np.diff(indices) > gap + 1)
    firsts, lasts = np.append(0, breaks + 1), np.append(breaks, len(indices) - 1)
    return [(int(indices[first]), int(indices[last])) for first, last in zip(firsts, lasts, strict=True)]
