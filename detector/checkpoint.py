"""The checkpoint bundle: written whole or not at all, read only if nothing is wrong.

A bundle is a folder with `weights.safetensors`, `golden.safetensors` (windows and the scores they must get) and
`manifest.json`, which carries sha256 and size of the other two. Knows no network: the tensors it wants are passed in,
and so is the function that scores the golden windows. Torch is imported on use, not with the module.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pyarrow import fs
from safetensors import SafetensorError

from detector.manifest import COMPANION_VIEWS, SCHEMA_VERSION, FileEntry, Manifest
from stream.errors import CheckpointError
from stream.storage import read_file, write_folder

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
MANIFEST = "manifest.json"
# Some 10,000 entities with 50 channels and 3 starts.
MAX_MANIFEST_BYTES = 64 * 2**20
# Far above any network of ours; a manifest that asks for more is damaged.
MAX_DIMENSION = 65_536

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# The tensors a manifest wants. Only names, shapes and dtypes are read, so they may live on the meta device.
WeightsLayout = Callable[[Manifest], Mapping[str, "Tensor"]]
# Scores windows, given as entities, end slots (B,) and raw values (B, C, L): provisional and final, each (B, L).
GoldenScore = Callable[
    [Sequence[str], NDArray[np.int64], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]
]


@dataclass(frozen=True)
class Golden:
    """A few windows with the scores that the training process gave them.

    end_slots: (B,). values: (B, C, L) in raw units, channels as in the manifest, NaN = missing.
    provisional, final: (B, L), NaN where the slot has no row.
    """

    entities: list[str]
    end_slots: NDArray[np.int64]
    values: NDArray[np.float32]
    provisional: NDArray[np.float32]
    final: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A verified checkpoint; its golden scores are still to be compared by whoever can score (`verify_golden`)."""

    manifest: Manifest
    weights: dict[str, "Tensor"]
    golden: Golden


def write_bundle(
    filesystem: fs.FileSystem, path: str, manifest: Manifest, weights: Mapping[str, "Tensor"], golden: Golden
) -> Manifest:
    """Write a bundle so that it is seen whole or not at all; return the manifest with `files` filled in.

    Raises CheckpointError for contents that would not be read back, FileExistsError for a taken path.
    """
    _check_consistent(manifest)
    _check_finite(weights)
    _check_golden(golden, manifest)
    contents = {WEIGHTS: _encode_weights(weights), GOLDEN: _encode_golden(golden)}
    manifest = msgspec.structs.replace(manifest, files={name: _entry(data) for name, data in contents.items()})
    write_folder(filesystem, path, {**contents, MANIFEST: _encode_manifest(manifest)})
    return manifest


def read_bundle(filesystem: fs.FileSystem, path: str, layout: WeightsLayout) -> Bundle:
    """Read a bundle, trusting nothing; raise CheckpointError with the first thing that is wrong.

    1. manifest: there, not too large, JSON of a known schema version, consistent in itself
    2. files: plain names, no links, sizes and hashes as the manifest says
    3. weights: a safetensors file, exactly the tensors that the configured network wants, all finite
    4. golden windows: shapes as the manifest's geometry and channels want them
    """
    manifest = read_manifest(filesystem, path)
    contents = {name: _read_verified(filesystem, f"{path}/{name}", entry) for name, entry in manifest.files.items()}
    weights = _decode_weights(contents[WEIGHTS])
    _check_layout(weights, layout(manifest))
    _check_finite(weights)
    golden = _decode_golden(contents[GOLDEN])
    _check_golden(golden, manifest)
    return Bundle(manifest, weights, golden)


def read_manifest(filesystem: fs.FileSystem, path: str) -> Manifest:
    """Read a bundle's manifest alone; raise CheckpointError if it is missing, too large, malformed or inconsistent."""
    data = _read(filesystem, f"{path}/{MANIFEST}", MAX_MANIFEST_BYTES)
    try:
        version = msgspec.json.decode(data, type=_Schema).schema_version
        if version != SCHEMA_VERSION:
            raise CheckpointError(f"{path}: schema version {version} is unknown, wanted {SCHEMA_VERSION}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}/{MANIFEST} can't be decoded (JSON has no NaN or Infinity): {error}") from error
    _check_consistent(manifest)
    _check_names(manifest)
    return manifest


def verify_golden(bundle: Bundle, score: GoldenScore, *, rtol: float = 1e-3, atol: float = 1e-3) -> None:
    """Score the golden windows and raise CheckpointError unless the scores are those of training.

    The tolerances cover another device's arithmetic, not another model; a reduced precision needs wider ones.
    """
    golden = bundle.golden
    provisional, final = score(golden.entities, golden.end_slots, golden.values)
    for stage, got, wanted in (("provisional", provisional, golden.provisional), ("final", final, golden.final)):
        if got.shape != wanted.shape:
            raise CheckpointError(f"golden {stage} scores want shape {wanted.shape}, got {got.shape}")
        wrong = ~np.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
        if wrong.any():
            window, at = np.argwhere(wrong)[0]
            raise CheckpointError(
                f"golden {stage} scores differ in {wrong.sum()} of {wrong.size} slots, first in window {window} "
                f"({golden.entities[window]}) at {at}: wanted {wanted[window, at]:g}, got {got[window, at]:g}"
            )


def model_sha256(manifest: Manifest) -> str:
    """Return the hash that names the weights."""
    return manifest.files[WEIGHTS].sha256


class _Schema(msgspec.Struct):
    schema_version: int


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _read(filesystem: fs.FileSystem, path: str, max_bytes: int) -> bytes:
    try:
        return read_file(filesystem, path, max_bytes)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error


def _read_verified(filesystem: fs.FileSystem, path: str, entry: FileEntry) -> bytes:
    data = _read(filesystem, path, entry.size)
    if len(data) != entry.size:
        raise CheckpointError(f"{path} has {len(data)} bytes, wanted {entry.size}: it is truncated")
    if _entry(data) != entry:
        raise CheckpointError(f"{path} has another sha256 than the manifest says: damaged or from another version")
    return data


def _encode_weights(weights: Mapping[str, "Tensor"]) -> bytes:
    import safetensors.torch
    import torch

    own = {name: w.detach().cpu().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
    data: bytes = safetensors.torch.save(own)
    return data


def _decode_weights(data: bytes) -> dict[str, "Tensor"]:
    import safetensors.torch

    try:
        weights: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype torch doesn't have
        raise CheckpointError(f"{WEIGHTS} is no safetensors file: {error}") from error
    return weights


def _encode_golden(golden: Golden) -> bytes:
    arrays: dict[str, NDArray[Any]] = {
        "end_slots": np.ascontiguousarray(golden.end_slots, np.int64),
        "values": np.ascontiguousarray(golden.values, np.float32),
        "provisional": np.ascontiguousarray(golden.provisional, np.float32),
        "final": np.ascontiguousarray(golden.final, np.float32),
    }
    entities = msgspec.json.encode(golden.entities).decode()
    data: bytes = safetensors.numpy.save(arrays, metadata={"entities": entities})
    return data


def _decode_golden(data: bytes) -> Golden:
    try:
        arrays = safetensors.numpy.load(data)
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")], type=_GoldenHeader)
        entities = msgspec.json.decode(header.metadata.entities, type=list[str])
        return Golden(entities, *(arrays[name] for name in ("end_slots", "values", "provisional", "final")))
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{GOLDEN} holds no golden windows: {error}") from error


class _GoldenMetadata(msgspec.Struct):
    entities: str


class _GoldenHeader(msgspec.Struct):
    metadata: _GoldenMetadata = msgspec.field(name="__metadata__")


def _encode_manifest(manifest: Manifest) -> bytes:
    for where in _not_finite(msgspec.to_builtins(manifest), "manifest"):
        raise CheckpointError(f"{where} is not a finite number")
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"manifest takes {len(data)} bytes, allowed are {MAX_MANIFEST_BYTES}")
    return data


def _not_finite(node: object, where: str) -> Iterator[str]:
    if isinstance(node, float):
        if not np.isfinite(node):
            yield where
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _not_finite(value, f"{where}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _not_finite(value, f"{where}[{i}]")


def _check_names(manifest: Manifest) -> None:
    for name in manifest.files:
        if not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"files wants plain file names, got {name!r}")
    if set(manifest.files) != {WEIGHTS, GOLDEN}:
        raise CheckpointError(f"files wants {WEIGHTS} and {GOLDEN}, got {sorted(manifest.files)}")


def _check_consistent(manifest: Manifest) -> None:
    for what, got, wanted in _lengths(manifest):
        if got != wanted:
            raise CheckpointError(f"manifest: {what} wants {wanted} entries, got {got}")
    for what, got, lowest, highest in _ranges(manifest):
        if not lowest <= got <= highest:
            raise CheckpointError(f"manifest: {what} wants {lowest} to {highest}, got {got}")


def _ranges(manifest: Manifest) -> Iterator[tuple[str, int, int, int]]:
    """Yield what has a range, its value, and the lowest and highest one with which a network can be built."""
    config = manifest.denoiser
    yield "denoiser.numeric", config.numeric, 1, MAX_DIMENSION
    for field in ("layers", "width", "state", "kernel_size", "dilation_cycle", "timesteps"):
        yield f"denoiser.{field}", getattr(config, field), 1, MAX_DIMENSION
    yield "number of scoring.starts", len(manifest.scoring.starts), 1, config.timesteps
    for start in manifest.scoring.starts:
        yield "scoring.starts", start, 1, config.timesteps
    if manifest.companions:
        for field in ("lags", "window", "windows", "activity"):
            yield f"companions.{field}", getattr(manifest.companions, field), 1, MAX_DIMENSION
    for entity in (manifest.unseen, *manifest.entities):
        yield f"index of {entity.name}", entity.index, 0, config.entities


def _lengths(manifest: Manifest) -> Iterator[tuple[str, int, int]]:
    """Yield what has a length, the one it has, and the one that the configuration wants."""
    config, kinds = manifest.denoiser, [channel.kind for channel in manifest.channels]
    companions = COMPANION_VIEWS if manifest.companions else 0
    yield "channels: numeric", kinds.count("numeric"), config.numeric
    yield "channels: command", kinds.count("command"), config.commands
    yield "provisional_tail", len(manifest.provisional_tail.values), len(manifest.provisional_tail.levels)
    yield "final_tail", len(manifest.final_tail.values), len(manifest.final_tail.levels)
    for entity in (manifest.unseen, *manifest.entities):
        yield f"minimum of {entity.name}", len(entity.minimum), config.numeric
        yield f"maximum of {entity.name}", len(entity.maximum), config.numeric
        yield f"residual_scale of {entity.name}", len(entity.residual_scale), len(manifest.scoring.starts) + companions
        for row in entity.residual_scale:
            yield f"residual_scale of {entity.name}, one start,", len(row), config.numeric
        yield f"provisional_levels of {entity.name}", len(entity.provisional_levels), 1 + companions
        yield f"final_levels of {entity.name}", len(entity.final_levels), 1 + companions


def _check_layout(weights: Mapping[str, "Tensor"], wanted: Mapping[str, "Tensor"]) -> None:
    missing, foreign = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or foreign:
        raise CheckpointError(f"{WEIGHTS}: tensors missing {missing[:3]}, tensors unknown {foreign[:3]}")
    for name, tensor in weights.items():
        want = wanted[name]
        if (tensor.shape, tensor.dtype) != (want.shape, want.dtype):
            raise CheckpointError(
                f"{WEIGHTS}: {name} wants {tuple(want.shape)} {want.dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
            )


def _check_finite(weights: Mapping[str, "Tensor"]) -> None:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{WEIGHTS}: {name} is not finite")


def _check_golden(golden: Golden, manifest: Manifest) -> None:
    windows, length = len(golden.entities), manifest.geometry.length
    if not windows:
        raise CheckpointError(f"{GOLDEN} wants at least one window, got none")
    for name, shape, dtype in (
        ("end_slots", (windows,), "int64"),
        ("values", (windows, len(manifest.channels), length), "float32"),
        ("provisional", (windows, length), "float32"),
        ("final", (windows, length), "float32"),
    ):
        array = getattr(golden, name)
        if (array.shape, array.dtype) != (shape, dtype):
            raise CheckpointError(f"{GOLDEN}: {name} wants {shape} {dtype}, got {array.shape} {array.dtype}")
