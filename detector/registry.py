"""The model registry: `<registry>/<family>/<version>/` bundles and `<registry>/<family>/<alias>.json` pointers.

Versions are immutable and sort by age; an alias is replaced atomically and remembers what it named before; decisions
stand beside them in `<family>/decisions/`. Works on a local path and on any URL that pyarrow knows. Does not know who
announces a version or who loads it.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec
from pyarrow import fs

from detector.checkpoint import Bundle, Golden, WeightsLayout, read_bundle, read_manifest, write_bundle
from detector.history import read_history, write_decision
from detector.manifest import Manifest
from stream.contracts import ModelEvent
from stream.errors import CheckpointError, UsageError
from stream.sketch import MANIFEST
from stream.storage import open_storage, reachable, read_file, replace_file

if TYPE_CHECKING:
    from torch import Tensor

Alias = Literal["champion", "challenger"]
ALIASES: tuple[Alias, ...] = get_args(Alias)

MAX_NAME_LENGTH = 128
# An alias file is read every second: it remembers so many earlier versions and stays below so many bytes.
MAX_PREVIOUS = 32
MAX_ALIAS_BYTES = 16 * 1024

_reachable = partial(reachable, "registry")

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"v\d{8}T\d{9}-[0-9a-f]{6}")
_STAMP = "v%Y%m%dT%H%M%S%f"


class Pointed(msgspec.Struct, frozen=True):
    """A version that an alias names or named, and since when."""

    version: str
    since_ms: int


class AliasRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an alias file holds. previous: what it named before, newest last; a rollback takes from its end."""

    v: Literal[1] = 1
    current: Pointed
    previous: list[Pointed] = []


def weights_layout(manifest: Manifest) -> Mapping[str, "Tensor"]:
    """Return a checkpoint's tensors without their values: names, shapes and dtypes on the meta device."""
    import torch

    from detector.companions import PREFIX, Companions
    from detector.denoiser import Denoiser

    config = manifest.denoiser
    with torch.device("meta"):
        wanted = Denoiser(config).state_dict()
        if manifest.companions:
            companions = Companions(manifest.companions, config.numeric, config.entities)
            wanted |= {f"{PREFIX}{name}": tensor for name, tensor in companions.state_dict().items()}
    return wanted


class Registry:
    """Versioned checkpoints of all families under one URL or local path.

    Every method raises TransientError when the storage can't be reached.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        layout: WeightsLayout = weights_layout,
        filesystem: fs.FileSystem | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raise UsageError for a URL that no filesystem understands.

        layout: what tensors a configured network wants. filesystem: where given, `url` is a path in it.
        """
        self._filesystem, self._root = (filesystem, str(url)) if filesystem else open_storage(url, "registry")
        self._layout = layout
        self._clock = clock

    def families(self) -> list[str]:
        """Return the families that have a version."""
        return [name for name in self._folders(self._root) if _NAME.fullmatch(name) and self.versions(name)]

    def versions(self, name: str) -> list[str]:
        """Return the complete versions of a family, oldest first; none for an unknown family."""
        path = self._path(name)
        candidates = [version for version in self._folders(path) if _created_ms(version) is not None]
        with _reachable(path):
            infos = self._filesystem.get_file_info([f"{path}/{version}/{MANIFEST}" for version in candidates])
        return [v for v, info in zip(candidates, infos, strict=True) if info.type == fs.FileType.File]

    def publish(self, name: str, manifest: Manifest, weights: Mapping[str, "Tensor"], golden: Golden) -> str:
        """Write a new version and return its name, which sorts after those there are.

        The manifest's name, version, time of creation and files are filled in here. No alias changes.
        """
        path = self._path(name)
        while True:
            created_ms, version = self._next_version(name)
            stamped = msgspec.structs.replace(manifest, name=name, version=version, created_ms=created_ms)
            try:
                with _reachable(path):
                    write_bundle(self._filesystem, f"{path}/{version}", stamped, weights, golden)
            except FileExistsError:
                continue
            return version

    def read(self, name: str, version: str) -> Bundle:
        """Read and verify a version; raise CheckpointError if anything is wrong with it."""
        path = f"{self._path(name)}/{_check_version(version)}"
        with _reachable(path):
            bundle = read_bundle(self._filesystem, path, self._layout)
        _check_identity(bundle.manifest, name, version)
        return bundle

    def manifest(self, name: str, version: str) -> Manifest:
        """Read a version's manifest alone, without verifying its files."""
        path = f"{self._path(name)}/{_check_version(version)}"
        with _reachable(path):
            manifest = read_manifest(self._filesystem, path)
        _check_identity(manifest, name, version)
        return manifest

    def resolve(self, model: str) -> tuple[str, str]:
        """Return family and version of `NAME` (its champion), `NAME@VERSION` or `NAME@ALIAS`; guess nothing.

        Raises UsageError saying what there is instead.
        """
        name, _, wanted = model.partition("@")
        wanted = wanted or "champion"
        version = self.alias(name, wanted) if wanted in ALIASES else wanted
        versions = self.versions(name)
        if not versions:
            raise UsageError(f"no family {name} in {self._root}; there are: {', '.join(self.families()) or 'none'}")
        if version is None:
            raise UsageError(f"{name} has no {wanted}; promote one of its versions or name it: {', '.join(versions)}")
        if version not in versions:
            raise UsageError(f"{name} has no version {version}; there are: {', '.join(versions)}")
        return name, version

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that an alias names, None where it is not set. One small read."""
        record = self.alias_record(name, alias)
        return record.current.version if record else None

    def alias_record(self, name: str, alias: str) -> AliasRecord | None:
        """Return what an alias names and named; raise CheckpointError for a file that is none of ours."""
        path = self._alias_path(name, alias)
        with _reachable(path):
            try:
                data = read_file(self._filesystem, path, MAX_ALIAS_BYTES)
            except FileNotFoundError:
                return None
        try:
            return msgspec.json.decode(data, type=AliasRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} can't be decoded: {error}") from error

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version; raise UsageError or CheckpointError, changing nothing, if it doesn't verify."""
        self._verify(name, version)
        record = self.alias_record(name, alias)
        if record is None:
            self._write_alias(name, alias, AliasRecord(current=self._pointed(version)))
        elif record.current.version != version:
            previous = [*record.previous, record.current][-MAX_PREVIOUS:]
            self._write_alias(name, alias, AliasRecord(current=self._pointed(version), previous=previous))

    def promote(self, name: str, version: str | None = None) -> str:
        """Make a version the champion, by default the challenger, which then is none any more; return it."""
        challenger = self.alias(name, "challenger")
        chosen = version or challenger
        if chosen is None:
            raise UsageError(f"{name} has no challenger to promote; name a version")
        self.set_alias(name, "champion", chosen)
        if chosen == challenger:
            self.clear_alias(name, "challenger")
        return chosen

    def rollback(self, name: str) -> str:
        """Make the previous champion the champion again; return it. Rolling back twice goes back twice."""
        record = self.alias_record(name, "champion")
        if record is None or not record.previous:
            raise UsageError(f"{name} has no earlier champion to go back to")
        version = record.previous[-1].version
        self._verify(name, version)
        rolled_back = AliasRecord(current=self._pointed(version), previous=record.previous[:-1])
        self._write_alias(name, "champion", rolled_back)
        return version

    def clear_alias(self, name: str, alias: str) -> None:
        """Remove an alias with its memory; nothing happens where it is not set."""
        path = self._alias_path(name, alias)
        with _reachable(path):
            if self._filesystem.get_file_info(path).type != fs.FileType.NotFound:
                self._filesystem.delete_file(path)

    def record(self, decision: ModelEvent) -> ModelEvent:
        """Add a decision to its family's history and return it as written, later than those there are."""
        path = self._history_path(decision.family)
        with _reachable(path):
            return write_decision(self._filesystem, path, decision)

    def history(self, name: str) -> list[ModelEvent]:
        """Return the newest decisions about a family, oldest first; one that can't be read is logged and left out."""
        path = self._history_path(name)
        with _reachable(path):
            return read_history(self._filesystem, path)

    def _verify(self, name: str, version: str) -> None:
        if _check_version(version) not in self.versions(name):
            raise UsageError(f"{name} has no version {version}; there are: {', '.join(self.versions(name)) or 'none'}")
        self.read(name, version)

    def _pointed(self, version: str) -> Pointed:
        return Pointed(version, round(self._clock() * 1000))

    def _write_alias(self, name: str, alias: str, record: AliasRecord) -> None:
        path = self._alias_path(name, alias)
        with _reachable(path):
            replace_file(self._filesystem, path, msgspec.json.encode(record))

    def _next_version(self, name: str) -> tuple[int, str]:
        now_ms = round(self._clock() * 1000)
        newest_ms = max((ms for ms in map(_created_ms, self.versions(name)) if ms is not None), default=-1)
        created_ms = max(now_ms, newest_ms + 1)
        at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=created_ms)
        return created_ms, f"{at.strftime(_STAMP)[:-3]}-{secrets.token_hex(3)}"

    def _folders(self, path: str) -> Iterator[str]:
        with _reachable(path):
            infos = self._filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return iter(sorted(info.base_name for info in infos if info.type == fs.FileType.Directory))

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _history_path(self, name: str) -> str:
        return f"{self._path(name)}/decisions"

    def _alias_path(self, name: str, alias: str) -> str:
        if alias not in ALIASES:
            raise UsageError(f"alias wants one of {', '.join(ALIASES)}, got {alias!r}")
        return f"{self._path(name)}/{alias}.json"


def check_name(name: str) -> str:
    """Return a family's name if it may name a folder; raise UsageError otherwise."""
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise UsageError(f"family wants 1 to {MAX_NAME_LENGTH} letters, digits and . _ - between them, got {name!r}")
    return name


def _check_version(version: str) -> str:
    if _created_ms(version) is None:
        raise UsageError(f"version wants a name like v20260131T120000000-0123ab, got {version!r}")
    return version


def _check_identity(manifest: Manifest, name: str, version: str) -> None:
    if (manifest.name, manifest.version) != (name, version):
        raise CheckpointError(f"{name}@{version} says that it is {manifest.name}@{manifest.version}")


def _created_ms(version: str) -> int | None:
    """Return when a version was made; None for what is no version's name."""
    try:
        at = datetime.strptime(version.partition("-")[0], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return round(at.timestamp() * 1000) if _VERSION.fullmatch(version) else None
