"""Random numbers addressed by seed, entity and position instead of drawn in order. Knows no physics.

The same address gives the same number whatever was drawn before, so a simulation may begin anywhere and be cut into
chunks of any size.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LANE = np.uint64(0xD1B54A32D192ED03)
# Lanes of normal numbers start here, above all lanes of uniform ones.
_NORMAL = 1 << 16
# Position of an entity's constants: no slot, orbit or day is that large.
_CONSTANTS = np.array([2**62], np.int64)


def entity_keys(seed: int, entities: Sequence[str]) -> Keys:
    """Return one key an entity, (E,): it depends on the seed and the name, not on the entities beside it."""
    digests = (hashlib.blake2b(f"{seed}\n{entity}".encode(), digest_size=8).digest() for entity in entities)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def uniform(keys: Keys, positions: Ints, lane: int) -> Floats:
    """Return numbers in [0, 1) of the positions, which broadcast against keys; lane tells purposes apart."""
    lanes = np.array([lane], np.uint64) * _LANE
    mixed = _mix(keys ^ _mix(positions.astype(np.uint64) * _GOLDEN + lanes))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: Keys, positions: Ints, lane: int) -> Floats:
    """Return standard normal numbers of the positions (Box and Muller 1958); lanes are apart from those of uniform."""
    first = _NORMAL + 2 * lane
    radius = np.sqrt(-2.0 * np.log1p(-uniform(keys, positions, first)))
    return radius * np.cos(2.0 * np.pi * uniform(keys, positions, first + 1))


def constant(keys: Keys, lane: int, low: float, high: float) -> Floats:
    """Return one number of [low, high) an entity, (E,)."""
    return low + (high - low) * uniform(keys, _CONSTANTS, lane)


@dataclass(frozen=True)
class Activity:
    """Something that happens at most once a cycle. earliest, latest (its start), shortest, longest: in slots.

    lane: it and the two after it belong to this activity. latest + longest must fit into the cycle.
    """

    lane: int
    chance: float
    earliest: int
    latest: int
    shortest: int
    longest: int


def since_start(keys: Keys, cycle: Ints, position: Ints, activity: Activity) -> tuple[Ints, Ints]:
    """Return the slots since the activity began, negative while it has not, and how long it lasts; both (R, E)."""
    happens = uniform(keys, cycle, activity.lane) < activity.chance
    start = activity.earliest + uniform(keys, cycle, activity.lane + 1) * (activity.latest - activity.earliest + 1)
    lasts = activity.shortest + uniform(keys, cycle, activity.lane + 2) * (activity.longest - activity.shortest + 1)
    since = np.where(happens, position - start.astype(np.int64), -1)
    return since, lasts.astype(np.int64)


def active(keys: Keys, cycle: Ints, position: Ints, activity: Activity) -> Floats:
    """Return 1.0 where the activity is going on and 0.0 elsewhere, (R, E)."""
    since, lasts = since_start(keys, cycle, position, activity)
    return ((since >= 0) & (since < lasts)).astype(np.float64)


def _mix(bits: Keys) -> Keys:
    """Scramble 64 bits (Steele et al. 2014, SplitMix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
