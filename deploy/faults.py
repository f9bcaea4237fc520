"""What can go wrong with a simulated entity, and what it does inside the simulation. Knows no physics and no plan."""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import msgspec
import numpy as np

from deploy.simulator_blueprint import Blueprint, Effects
from deploy.simulator_draws import Bools, Ints, Keys, normal

FaultKind = Literal["stuck", "drift", "spike", "noise_burst", "wrong_command_response", "correlation_break"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
SENSOR_KINDS: tuple[FaultKind, ...] = ("stuck", "drift", "spike", "noise_burst")

# Lanes of the draws, apart from those of sensors (below 100) and of plants (200 and more).
_BURST_LANE = 150


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with one entity in the slots first_slot .. last_slot, both inclusive.

    channels: where it acts, and for a wrong response the dead commands together with the channels that should answer.
    magnitude, by kind, with sizes in spreads (standard deviations) of the channel's normal values over a cycle:

    stuck                   unused. The sensor repeats its last reading while the truth moves on, planned by 0.5 to 3.
    drift                   bias reached at last_slot, growing linearly from 0. Planned 1.5 to 3.
    spike                   size of a disturbance of one slot in three. Planned 3 to 6.
    noise_burst             standard deviation of the added noise. Planned 0.3 to 0.6.
    wrong_command_response  share of the actuator's effect that is lost. Planned 1: the answer misses by 1.5 to 4.
    correlation_break       share of the channel's driver that comes from half a cycle away. Planned 1: the value is one
                            of the channel's normal ones, and 0.5 to 3 from what the other channels imply.

    So hardly a planned fault but the spike leaves its channel's normal range, and a fixed limit finds none; a linear
    prediction from the other channels misses by 5 to 100 of its own normal errors at the peak.
    """

    entity: str
    kind: FaultKind
    channels: tuple[str, ...]
    first_slot: int
    last_slot: int
    magnitude: float

    def __post_init__(self) -> None:
        """Raise ValueError for a fault that no simulation could carry out."""
        if self.last_slot < self.first_slot:
            raise ValueError(f"last_slot wants at least first_slot ({self.first_slot}), got {self.last_slot}")
        if not self.channels:
            raise ValueError("channels wants at least one name, got none")
        if self.kind in ("wrong_command_response", "correlation_break") and not 0 < self.magnitude <= 1:
            raise ValueError(f"magnitude of {self.kind} wants a share above 0 and up to 1, got {self.magnitude}")


def effects(faults: Iterable[Fault], slots: Ints, blueprint: Blueprint, entities: Sequence[str], keys: Keys) -> Effects:
    """Return the effects of the faults in consecutive slots, (R,). keys: (E,) of the entities."""
    shape = (len(slots), len(entities))
    sensors, commands = len(blueprint.sensors), len(blueprint.commands)
    result = Effects(
        bias=np.zeros((*shape, sensors)),
        stuck=np.zeros((*shape, sensors), np.bool_),
        response=np.ones((*shape, commands)),
        coupling=np.ones((*shape, sensors)),
    )
    for fault in faults:
        low = max(fault.first_slot - int(slots[0]), 0)
        high = min(fault.last_slot + 1 - int(slots[0]), len(slots))
        if low < high:
            entity = entities.index(fault.entity)
            _apply(fault, blueprint, _of_entity(result, slice(low, high), entity), slots[low:high], keys[[entity]])
    return result


def check_fault(fault: Fault, blueprint: Blueprint, entities: Sequence[str]) -> None:
    """Raise ValueError unless the fault names an entity and channels of the fleet that it can act on."""
    dead = [name for name in fault.channels if name in blueprint.command_index]
    unknown = [name for name in fault.channels if name not in blueprint.sensor_index and name not in dead]
    if fault.entity not in entities:
        raise ValueError(f"entity wants one of {', '.join(entities)}, got {fault.entity}")
    if unknown:
        raise ValueError(f"channels of {blueprint.family} don't include {', '.join(unknown)}")
    if bool(dead) != (fault.kind == "wrong_command_response"):
        raise ValueError(f"{fault.kind} on commands wants them for wrong_command_response only, got {fault.channels}")
    if fault.kind == "correlation_break" and not set(fault.channels) <= set(blueprint.couplings):
        raise ValueError(
            f"correlation_break wants channels out of {', '.join(blueprint.couplings)}, got {fault.channels}"
        )


def _of_entity(result: Effects, rows: slice, entity: int) -> Effects:
    """Return views of one entity's rows: (rows, C) and (rows, K)."""
    return Effects(
        bias=result.bias[rows, entity],
        stuck=result.stuck[rows, entity],
        response=result.response[rows, entity],
        coupling=result.coupling[rows, entity],
    )


def _apply(fault: Fault, blueprint: Blueprint, result: Effects, slots: Ints, key: Keys) -> None:
    columns = [blueprint.sensor_index[name] for name in fault.channels if name in blueprint.sensor_index]
    dead = [blueprint.command_index[name] for name in fault.channels if name in blueprint.command_index]
    spread = blueprint.per_sensor(lambda sensor: sensor.spread)
    elapsed = slots - fault.first_slot + 1
    match fault.kind:
        case "wrong_command_response":
            result.response[:, dead] = 1.0 - fault.magnitude
        case "correlation_break":
            result.coupling[:, columns] = 1.0 - fault.magnitude
        case "stuck":
            result.stuck[:, columns] = True
        case "drift":
            share = elapsed / (fault.last_slot - fault.first_slot + 1)
            result.bias[:, columns] += fault.magnitude * np.outer(share, spread[columns])
        case "spike":
            result.bias[:, columns] += fault.magnitude * np.outer(elapsed % 3 == 1, spread[columns])
        case "noise_burst":
            for column in columns:
                result.bias[:, column] += fault.magnitude * spread[column] * normal(key, slots, _BURST_LANE + column)


def labels(faults: Iterable[Fault], entity: str, first_slot: int, rows: int) -> Bools:
    """Return where the entity has a fault, (rows,)."""
    result = np.zeros(rows, np.bool_)
    for fault in faults:
        if fault.entity == entity:
            result[max(fault.first_slot - first_slot, 0) : max(fault.last_slot + 1 - first_slot, 0)] = True
    return result
