"""What a family of simulated entities consists of, and what its physics must offer. Contains no physics itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from deploy.simulator_draws import Bools, Floats, Ints, Keys
from detector.manifest import Channel


@dataclass(frozen=True)
class Sensor:
    """One numeric channel. noise (standard deviation), quantum and spread are in the channel's unit.

    spread: about the standard deviation of normal values over a cycle; sizes of faults are multiples of it.
    controls: whether a controller acts on the reading, so that a false one has consequences after its end.
    """

    name: str
    noise: float
    quantum: float
    spread: float
    controls: bool = False


class Response(NamedTuple):
    """Which numeric channels answer at once to which commands."""

    commands: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Effects:
    """What all faults together do in a chunk of R slots.

    bias: (R, E, C) added to readings, in the channel's unit. stuck: (R, E, C). response: (R, E, K), share of a
    command's effect that happens. coupling: (R, E, C), share of a channel's driver that is the right one.
    """

    bias: Floats
    stuck: Bools
    response: Floats
    coupling: Floats


class Plant(Protocol):
    """The physics of E entities, advanced one slot at a time."""

    def prepare(self, slots: Ints, effects: Effects) -> None:
        """Take the next R consecutive slots and work out all that doesn't depend on the plant's condition."""

    def advance(self, index: int, readings: Floats) -> tuple[Floats, Floats]:
        """Move to slot `index` of the prepared ones; return true values (E, C) and commands (E, K).

        readings: (E, C) of the slot before, which controllers act on.
        """


@dataclass(frozen=True)
class Blueprint:
    """All that the entities of a family have in common.

    cycle: slots of an orbit or a day. responses: what `wrong_command_response` can break. couplings: channels that
    `correlation_break` can cut off their driver. plant: makes the physics from the entities' keys.
    """

    family: str
    sensors: tuple[Sensor, ...]
    commands: tuple[str, ...]
    cycle: int
    responses: tuple[Response, ...]
    couplings: tuple[str, ...]
    plant: Callable[[Keys], Plant]

    @property
    def channels(self) -> list[Channel]:
        """The numeric channels, then the commands."""
        numeric = [Channel(sensor.name, "numeric") for sensor in self.sensors]
        return numeric + [Channel(name, "command") for name in self.commands]

    @cached_property
    def sensor_index(self) -> dict[str, int]:
        """Column of each numeric channel."""
        return {sensor.name: column for column, sensor in enumerate(self.sensors)}

    @cached_property
    def command_index(self) -> dict[str, int]:
        """Column of each command among the commands."""
        return {name: column for column, name in enumerate(self.commands)}

    def per_sensor(self, value: Callable[[Sensor], float]) -> Floats:
        """Return one number a sensor, (C,)."""
        return np.array([value(sensor) for sensor in self.sensors])


def mixed(coupling: Floats, driver: Floats, elsewhere: Floats) -> Floats:
    """Return the driver as far as the coupling holds, and what it is half a cycle away for the rest."""
    return coupling * driver + (1.0 - coupling) * elsewhere
