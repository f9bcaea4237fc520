"""Which faults come when: drawn from the seed. Knows no process."""

from typing import Literal, get_args

import msgspec
import numpy as np

from tests.faults.live import Point

Kind = Literal["kill", "crash", "zombie", "flush", "redis restart", "join", "restart", "broker restart"]
Victim = Literal["windower", "worker"]
POINTS: tuple[Point, ...] = get_args(Point)

# How often each comes, in parts of the whole.
_SHARES: dict[Kind, float] = {
    "kill": 0.14,
    "crash": 0.18,
    "zombie": 0.22,
    "flush": 0.15,
    "redis restart": 0.07,
    "join": 0.12,
    "restart": 0.12,
}
# The broker is restarted in good order only: one that stands alone and is killed may lose track of a transaction that
# is about to end (Kafka 4.3.1). With three of them `tests/hard_faults` kills them.
_BROKER_EVERY = 8
# Longer than the session of a member: the group gives its partitions away meanwhile.
ZOMBIE_S = (3.0, 8.0)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. pause_s: quiet time before it. hold_s: how long it lasts. hard: a joined instance leaves by SIGKILL.

    point, batch: where a service that crashes kills itself. meanwhile: whether Redis is emptied while it lasts.
    began_s: when it came, in seconds since the load began.
    """

    kind: Kind
    victim: Victim
    pause_s: float
    hold_s: float
    hard: bool
    meanwhile: bool
    point: Point = "inside the transaction"
    batch: int = 1
    began_s: float = -1.0


def draw(seed: int, count: int) -> list[Fault]:
    """Draw faults; about a third follow the one before at once, and some are restarts of the broker."""
    generator = np.random.default_rng([seed, 1])
    return [_fault(generator, broker=number % _BROKER_EVERY == _BROKER_EVERY - 3) for number in range(count)]


def _fault(generator: np.random.Generator, *, broker: bool) -> Fault:
    drawn = list(_SHARES)[int(generator.choice(len(_SHARES), p=list(_SHARES.values())))]
    kind: Kind = "broker restart" if broker else drawn
    held = ZOMBIE_S if kind in ("zombie", "join") else (0.0, 3.0)
    return Fault(
        kind=kind,
        victim="windower" if generator.random() < 0.5 else "worker",
        pause_s=round(float(generator.uniform(0, 4)) if generator.random() < 0.7 else 0.0, 3),
        hold_s=round(float(generator.uniform(*held)), 3),
        hard=bool(generator.random() < 0.5),
        meanwhile=bool(kind not in ("broker restart", "crash") and generator.random() < 0.15),
        point=POINTS[int(generator.integers(len(POINTS)))],
        batch=int(generator.integers(1, 6)),
    )


def against(promise: str) -> list[Fault]:
    """Return the faults that a promise protects from; see `tests.chaos.sabotage`."""

    def fault(kind: Kind, victim: Victim, point: Point = "inside the transaction") -> Fault:
        return Fault(
            kind=kind, victim=victim, pause_s=3.0, hold_s=0.5, hard=True, meanwhile=False, point=point, batch=3
        )

    match promise:
        case "transaction":
            return [fault("crash", "worker"), fault("crash", "windower"), fault("crash", "worker")]
        case "fence":
            return [fault("flush", "windower"), fault("flush", "windower")]
        case "replay":
            return [
                fault("crash", "windower", "after the commit"),
                fault("flush", "windower"),
                fault("kill", "windower"),
            ]
        case "verdicts":
            return [fault("kill", "worker"), fault("kill", "worker")]
        case _:
            raise ValueError(f"nobody knows how to break {promise!r}")
