"""Server processes that outlive the command that started them. Knows no Kafka and no Redis.

A process is named by its id and its start time together, so that a reused id is never taken for the server.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from stream.errors import TransientError

# Start times are derived from the wall clock at boot, which an adjustment of the clock moves a little.
_START_TOLERANCE_S = 2.0
_POLL_S = 0.05
# Below the range that systems hand out to outgoing connections: a client that reconnects can't take the port.
_FIRST_PORT, _LAST_PORT = 15_000, 29_999
_LOG_LIMIT = 10 * 2**20


class ServerProcess(msgspec.Struct, frozen=True):
    """Identity of a running server. started_s: start time in seconds since 1970 as the system reports it."""

    pid: int
    started_s: float


def spawn(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> ServerProcess:
    """Start a server in a session of its own, so that Ctrl-C in the terminal does not reach it.

    Its output is appended to `log`; one that has grown past 10 MiB is put aside first.
    """
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".1.log"))
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP],
    )
    return ServerProcess(pid, psutil.Process(pid).create_time())


def is_alive(process: ServerProcess | None) -> bool:
    """Say whether the very process still runs; one that ended and belongs to this process is reaped."""
    found = _find(process)
    if process is None or found is None:
        return False
    try:
        return not _has_ended(found)
    except psutil.NoSuchProcess:
        return False


def resident_bytes(process: ServerProcess | None) -> int:
    """Return the memory the process holds, 0 if it is gone."""
    found = _find(process)
    try:
        return int(found.memory_info().rss) if found else 0
    except psutil.Error:
        return 0


def stop(process: ServerProcess | None, *, grace_s: float) -> bool:
    """End the process and its group: ask, and kill after `grace_s` (at once if 0). Return whether it ran.

    Raises TransientError if it survives even that.
    """
    if process is None or not is_alive(process):
        return False
    if grace_s > 0:
        _signal_group(process, signal.SIGTERM)
        _wait_gone(process, grace_s)
    if is_alive(process):
        _signal_group(process, signal.SIGKILL)
        _wait_gone(process, 10.0)
    if is_alive(process):
        raise TransientError(f"process {process.pid} does not end even when killed")
    return True


def free_port() -> int:
    """Return a TCP port that nobody listens on at 127.0.0.1 now."""
    for _ in range(200):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT + 1)
        if port_is_free(port):
            return port
    raise TransientError(f"no free TCP port between {_FIRST_PORT} and {_LAST_PORT}")


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on the port at 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set this too: connections of the last run that still linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts_connections(port: int, timeout_s: float = 1.0) -> bool:
    """Say whether somebody answers on the port at 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout_s).close()
    except OSError:
        return False
    return True


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log for an error message."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) or "(empty log)"


def _find(process: ServerProcess | None) -> psutil.Process | None:
    if process is None:
        return None
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.started_s) < _START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return None
    return found if same else None


def _has_ended(found: psutil.Process) -> bool:
    """Say whether all of the process is over: its first thread may be gone while others still hold its ports."""
    if found.status() != psutil.STATUS_ZOMBIE:
        return False
    try:
        return os.waitpid(found.pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        pass  # somebody else's child, whom its parent or init collects
    try:
        return found.num_threads() <= 1
    except psutil.ZombieProcess:
        return True


def _signal_group(process: ServerProcess, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # it ended on its own in between


def _wait_gone(process: ServerProcess, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
