"""The noise a window gets: a pure function of entity, slot, channel, start timestep and seed. Knows no batch, no clock.

Counter-based: splitmix64 (Steele et al. 2014) hashes the coordinates, sixteen bits of the hash pick a normal quantile.
So overlapping windows share their noise and a replayed window gets the same again, bit by bit, on every platform.
"""

import functools
import hashlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_QUANTILES = 1 << 16
# One 64-bit hash holds four 16-bit quantile numbers, so four channels share a hash.
_CHANNELS_PER_HASH = 4
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def slot_noise(
    entities: Sequence[str], slots: NDArray[np.int64], channels: int, start: int, seed: int
) -> NDArray[np.float32]:
    """Return standard normal noise (B, C, L) for the slots (B, L) of the entities (B,).

    start: the start timestep; every start has noise of its own.
    """
    keys = np.array([_entity_key(entity, start, seed) for entity in entities], dtype=np.uint64)  # (B,)
    groups = np.arange(-(-channels // _CHANNELS_PER_HASH), dtype=np.uint64)
    counters = _splitmix64(keys[:, None] + slots.astype(np.int64).view(np.uint64) * _GOLDEN_GAMMA)  # (B, L)
    hashes = _splitmix64(counters[:, None] + groups[:, None] * _GOLDEN_GAMMA)  # (B, C / 4, L)
    shifts = (np.uint64(16) * np.arange(_CHANNELS_PER_HASH, dtype=np.uint64))[:, None]
    index = (hashes[:, :, None] >> shifts) & np.uint64(_QUANTILES - 1)  # (B, C / 4, 4, L)
    index = index.reshape(len(keys), -1, slots.shape[1])[:, :channels]  # (B, C, L)
    noise: NDArray[np.float32] = normal_quantiles()[index]
    return noise


@functools.cache
def normal_quantiles() -> NDArray[np.float32]:
    """Return the 65,536 midpoint quantiles of the standard normal distribution, ascending and exactly symmetric."""
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse(0.5 + (i + 0.5) / _QUANTILES) for i in range(_QUANTILES // 2)]).astype(np.float32)
    return np.concatenate([-upper[::-1], upper])


@functools.lru_cache(maxsize=1 << 16)
def _entity_key(entity: str, start: int, seed: int) -> int:
    text = f"{seed}\n{start}\n{entity}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = counter + _GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))
