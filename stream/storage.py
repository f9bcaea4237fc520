"""Durable writes and guarded reads on any pyarrow filesystem. Knows no checkpoint and no archive, only names and bytes.

A local disk has links, fsync and atomic rename; an object store has none of them, but puts a file whole or not at all.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowInvalid, fs

from stream.errors import CheckpointError, TransientError, UsageError

_PARTIAL = ".partial"


def open_storage(url: str | Path, what: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a folder or URL and the path in it; raise UsageError if pyarrow knows none for it."""
    if isinstance(url, Path) or "://" not in url:
        return fs.LocalFileSystem(), str(Path(url).absolute())
    try:
        return fs.FileSystem.from_uri(url)
    except ArrowInvalid as error:
        scheme = url.partition("://")[0]  # the rest may hold a secret
        raise UsageError(f"{what} wants a path or a URL that pyarrow knows, got one with {scheme}://") from error


@contextmanager
def reachable(what: str, path: str) -> Iterator[None]:
    """Give a failure of the storage its fate: try again later. FileExistsError is an answer, not a failure."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise TransientError(f"{what}: {path} can't be used now: {error}") from error


def local_path(filesystem: fs.FileSystem, path: str) -> Path | None:
    """Return the path on the local disk; None for anything else."""
    if isinstance(filesystem, fs.SubTreeFileSystem):
        return local_path(filesystem.base_fs, f"{filesystem.base_path.rstrip('/')}/{path}")
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else None


def write_folder(filesystem: fs.FileSystem, path: str, contents: dict[str, bytes]) -> None:
    """Write a new folder of files; the last of them is what makes it complete.

    On a local disk nobody sees the folder before all of it is synced. Raises FileExistsError for a taken path.
    """
    folder = local_path(filesystem, path)
    if folder is None:
        _write_objects(filesystem, path, contents)
    else:
        _write_and_rename(folder, contents)


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder and those above it where they are missing, so that they are still there after a power cut."""
    local = local_path(filesystem, path)
    if local is None:
        filesystem.create_dir(path, recursive=True)
    elif not local.is_dir():
        make_folder(filesystem, str(Path(path).parent))
        local.mkdir(exist_ok=True)
        _sync_folder(local.parent)


def is_leftover(name: str) -> bool:
    """Say whether a file's name is that of a write that was not finished."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def replace_file(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Put a file in place of what is there: readers see the old one or the new one, also after a power cut."""
    target = local_path(filesystem, path)
    if target is None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    partial = _partial(target)
    try:
        _write_synced(partial, data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)


def read_file(filesystem: fs.FileSystem, path: str, max_bytes: int) -> bytes:
    """Read a plain file of at most so many bytes.

    Raises FileNotFoundError if there is none, CheckpointError for a link, a folder or a larger file.
    """
    local = local_path(filesystem, path)
    if local is not None and local.is_symlink():
        raise CheckpointError(f"{path} is a symbolic link, wanted a plain file")
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{path} is missing")
    if info.type != fs.FileType.File:
        raise CheckpointError(f"{path} is no file")
    if info.size > max_bytes:
        raise CheckpointError(f"{path} has {info.size} bytes, allowed are {max_bytes}")
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def _write_and_rename(folder: Path, contents: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    try:
        partial.mkdir()
        for name, data in contents.items():
            _write_synced(partial / name, data)
        _sync_folder(partial)
        _rename_to_new(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync_folder(folder.parent)


def _rename_to_new(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)  # fails on a folder that isn't empty, so of two writers one wins
    except OSError as error:
        if folder.exists():
            raise FileExistsError(f"{folder} is there already and is never overwritten") from error
        raise


def _write_objects(filesystem: fs.FileSystem, path: str, contents: dict[str, bytes]) -> None:
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        raise FileExistsError(f"{path} is there already and is never overwritten")
    filesystem.create_dir(path, recursive=True)
    for name, data in contents.items():
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(data)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
