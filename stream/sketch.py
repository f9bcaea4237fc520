"""What training rows were like, by entity and channel: what live blocks are compared with. Knows no model.

A sketch stands in a checkpoint's manifest; a reader that needs nothing else takes it from there.
"""

import math
from typing import NamedTuple, Self

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from stream.errors import CheckpointError, TransientError
from stream.storage import open_storage, reachable, read_file

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20

_log = structlog.get_logger()
# Blocks this many times longer than the rows' memory have means that are all but independent.
_MEMORIES = 8
# The family's memory is that of all but one in so many of its series.
_QUANTILE = 0.9
_MAX_CORRELATION = 0.9


class Sketch(msgspec.Struct, frozen=True):
    """Training rows of one entity: a value by numeric channel, then one for its final score.

    blocks: how many blocks of one window the rows fill. mean, deviation: of the rows, in raw units. block_deviation: of
    the means of such blocks, which is what makes rows that remember harmless. memory: slots after which a row's
    correlation with itself has fallen to 1/e.
    """

    blocks: float
    mean: list[float]
    deviation: list[float]
    block_deviation: list[float]
    memory: list[float]

    def covers(self, channels: int) -> bool:
        """Say whether it is about so many channels and the score."""
        columns = (self.mean, self.deviation, self.block_deviation, self.memory)
        return all(len(column) == channels + 1 for column in columns)


class _Length(msgspec.Struct):
    length: int


class _Channel(msgspec.Struct):
    name: str
    kind: str


class _Entity(msgspec.Struct):
    name: str
    sketch: Sketch | None = None


class _Manifest(msgspec.Struct):
    """The part of a manifest that is read here."""

    name: str
    version: str
    geometry: _Length
    channels: list[_Channel]
    entities: list[_Entity]


class Reference(NamedTuple):
    """What block means of one entity are by training, for blocks of several windows; (S,) each, the score last.

    floor: deviation that a series has at least. error: of the training mean itself, in block deviations.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    block_deviation: NDArray[np.float64]
    inflation: NDArray[np.float64]
    error: NDArray[np.float64]


class TrainingSketch(NamedTuple):
    """The sketches of a model's entities. channels: the numeric ones. merged: windows that make one block."""

    channels: list[str]
    length: int
    merged: int
    entities: dict[str, Reference]

    @classmethod
    def of(cls, length: int, channels: list[str], sketches: dict[str, Sketch], max_merged: int) -> Self:
        """Choose the length of a block by the rows' memory, and say what its means are by training."""
        memories = [memory for sketch in sketches.values() for memory in sketch.memory]
        merged = windows_per_block(length, memories, max_merged)
        floor = _floor(list(sketches.values()))
        return cls(
            channels,
            length,
            merged,
            {name: _reference(sketch, length, merged, floor) for name, sketch in sketches.items()},
        )


def windows_per_block(length: int, memories: list[float], most: int) -> int:
    """Return how many windows make a block long against the memory of nearly all series; a power of two."""
    memory = float(np.quantile(memories, _QUANTILE)) if memories else 0.0
    merged = 1
    while merged * 2 <= most and merged * length < _MEMORIES * memory:
        merged *= 2
    return merged


def _floor(sketches: list[Sketch]) -> NDArray[np.float64]:
    """Return the deviation that each series has at least: one that stood still in training may have some noise."""
    deviation = np.array([sketch.deviation for sketch in sketches])
    magnitude = np.abs([sketch.mean for sketch in sketches]).max(0)
    floor: NDArray[np.float64] = np.maximum(0.01 * deviation.max(0), np.maximum(1e-4 * magnitude, 1e-6))
    return floor


def _reference(sketch: Sketch, length: int, merged: int, floor: NDArray[np.float64]) -> Reference:
    deviation = np.maximum(sketch.deviation, floor)
    block = np.maximum(sketch.block_deviation, floor / math.sqrt(length))
    window = np.array([block_correlation(memory, length) for memory in sketch.memory])
    # Of a mean of several correlated window means.
    lags = np.arange(1, merged)
    shrink = 1 / merged + 2 / merged**2 * ((merged - lags) * window[:, None] ** lags).sum(1)
    correlation = np.array([block_correlation(memory, merged * length) for memory in sketch.memory])
    inflation = (1 + correlation) / (1 - correlation)
    error = np.sqrt(inflation * merged / max(sketch.blocks, 1.0))
    return Reference(np.array(sketch.mean), deviation, block * np.sqrt(shrink), inflation, error)


def block_correlation(memory: float, length: int) -> float:
    """Return the correlation of the means of two neighbouring blocks of rows that forget exponentially."""
    phi = math.exp(-1 / memory) if memory > 0 else 0.0
    if phi == 0:
        return 0.0
    total = length * (1 - phi**2) - 2 * phi * (1 - phi**length)
    return min(phi * (1 - phi**length) ** 2 / max(total, 1e-12), _MAX_CORRELATION)


def mean_deviation(memory: float, length: int) -> float:
    """Return the deviation of a block's mean, in deviations of rows that forget exponentially."""
    phi = math.exp(-1 / memory) if memory > 0 else 0.0
    variance = (length * (1 - phi**2) - 2 * phi * (1 - phi**length)) / (length * (1 - phi)) ** 2
    return math.sqrt(min(max(variance, 0.0), 1.0))


def read_sketch(registry: str, family: str, version: str, max_merged: int) -> TrainingSketch | None:
    """Read the sketches of a version; None, and a line in the log, where there are none to be had.

    Raises TransientError when the storage can't be reached.
    """
    filesystem, root = open_storage(registry, "registry")
    path = f"{root}/{family}/{version}/{MANIFEST}"
    try:
        with reachable("registry", path):
            data = read_file(filesystem, path, MAX_MANIFEST_BYTES)
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (TransientError, CheckpointError, msgspec.MsgspecError) as error:
        if isinstance(error, TransientError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        _log.warning("no training sketch; the family is not watched", family=family, version=version, error=str(error))
        return None
    numeric = [channel.name for channel in manifest.channels if channel.kind == "numeric"]
    sketches = {
        entity.name: entity.sketch
        for entity in manifest.entities
        if entity.sketch is not None and entity.sketch.covers(len(numeric))
    }
    if not sketches:
        _log.warning("a model of before sketches; the family is not watched", family=family, version=version)
        return None
    return TrainingSketch.of(manifest.geometry.length, numeric, sketches, max_merged)
