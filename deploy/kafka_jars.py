"""Kafka's jars: fetched once by their Maven coordinates, checked against pinned hashes at every start.

`kafka_jars.sha256` is the list of jars and the proof in one, in the format of `sha256sum` over the layout of a
Maven repository, so no dependency is resolved when the stack starts. Knows no process.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from deploy.versions import KAFKA_ARTIFACT, LOG_BINDING_ARTIFACT
from stream.errors import TelltaleError, TransientError

PINNED = Path(__file__).with_name("kafka_jars.sha256")
_TRIES = 3
_HTTP_TIMEOUT_S = 30
_CONNECTIONS = 8

Progress = Callable[[str, int, int], None]
"""Told after every jar that arrived: its file name, how many are there, how many it takes."""


class ChecksumError(TelltaleError):
    """A jar is not the one that was pinned."""


def default_cache_dir() -> Path:
    """Return where downloads are kept: TELLTALE_CACHE_DIR, else the user's cache directory."""
    given = os.environ.get("TELLTALE_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telltale"


def read_pins(pins: Path = PINNED) -> dict[str, str]:
    """Return the wanted SHA-256 by path inside the repository layout."""
    lines = [line.split(maxsplit=1) for line in pins.read_text().splitlines() if line.strip()]
    return {path: digest for digest, path in lines}


def ensure_jars(cache_dir: Path, *, pins: Path = PINNED, progress: Progress | None = None) -> list[Path]:
    """Return every pinned jar, fetching those that `cache_dir` lacks and checking all.

    Raises ChecksumError for a jar that differs from its pin, TransientError if one can't be fetched.
    """
    wanted = read_pins(pins)
    root = cache_dir / "jars"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        missing = [path for path in wanted if not (root / path).exists()]
        if missing:
            _fetch_all(missing, wanted, root, progress)
        for path, digest in wanted.items():
            _check(root / path, digest)
    return [root / path for path in wanted]


def _fetch_all(missing: list[str], wanted: dict[str, str], root: Path, progress: Progress | None) -> None:
    """Download beside the cache and move in what was checked: an interrupted download leaves nothing behind."""
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
        context = _maven(Path(scratch))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            jobs = {pool.submit(_fetch, context, path): path for path in missing}
            for done, job in enumerate(as_completed(jobs), start=1):
                path, fetched = jobs[job], job.result()
                _check(fetched, wanted[path])
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(root / path)
                if progress:
                    progress(fetched.name, len(wanted) - len(missing) + done, len(wanted))


def _maven(scratch: Path) -> Any:
    """Return jgo's repository access; mirrors come from the person's jgo configuration."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext, PythonResolver

    return MavenContext(
        resolver=PythonResolver(),
        repo_cache=scratch,
        remote_repos=GlobalSettings.load().repositories or None,
        timeout=_HTTP_TIMEOUT_S,
    )


def _fetch(context: Any, path: str) -> Path:
    """Download one jar, trying again when the connection fails."""
    import requests

    *group, artifact, version, _ = PurePosixPath(path).parts
    wanted = context.project(".".join(group), artifact).at_version(version).artifact()
    for attempt in range(1, _TRIES + 1):
        try:
            return Path(wanted.resolve())
        except (requests.RequestException, RuntimeError) as error:
            wanted.cached_path.unlink(missing_ok=True)
            if attempt == _TRIES:
                raise TransientError(
                    f"can't fetch {artifact} {version} for the local Kafka: {error}. Check the network (mirrors go "
                    "into jgo's configuration file), or name a running broker in TELLTALE_KAFKA__BOOTSTRAP"
                ) from error
            time.sleep(attempt)
    raise AssertionError("unreachable")


def _check(jar: Path, digest: str) -> None:
    with jar.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise ChecksumError(
            f"{jar} is not the pinned jar: wanted SHA-256 {digest}, got {actual}. Delete the file to fetch it again"
        )


def pin(pins: Path = PINNED) -> int:
    """Resolve Kafka's dependencies anew and write their hashes, after a version has been changed.

    Trusts what it downloads: compare the difference before you commit it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        context = _maven(Path(scratch))
        inputs, transitive = context.resolver.resolve([context.create_dependency(KAFKA_ARTIFACT)])
        # The binding alone: resolved together, log4j's own version table would change Kafka's other dependencies.
        needed = [*inputs, *transitive, context.create_dependency(LOG_BINDING_ARTIFACT)]
        jars = sorted(Path(dependency.artifact.resolve()) for dependency in needed)
        entries = [
            f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.relative_to(scratch).as_posix()}\n" for jar in jars
        ]
    scratch_pins = pins.with_suffix(".new")
    scratch_pins.write_text("".join(entries))
    shutil.move(scratch_pins, pins)
    return len(entries)


if __name__ == "__main__":
    sys.stdout.write(f"pinned {pin()} jars in {PINNED}\n")
