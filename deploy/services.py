"""Services as child processes: started from this command line, watched, and ended for good. Knows no stage's work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from stream.errors import TransientError

_GRACE_S = 20.0
_TAIL_LINES = 15
# What of the environment services with a settings file of their own may see.
_KEPT = ("TELLTALE_STATE_DIR", "TELLTALE_CACHE_DIR", "TELLTALE_DATA")


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    log: Path


class Services:
    """Child processes of this one, each with a log file."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """Keep logs in a folder; start nothing yet. environment: all that the children see of it."""
        self._folder = folder
        self._environment = environment
        self._children: dict[str, _Child] = {}

    def start(self, name: str, *arguments: str, module: str = "telltale", instance: str | None = None) -> None:
        """Run `telltale ARGUMENTS` under a name; in a session of its own, so that Ctrl-C reaches it through `stop`.

        module: another one to be run as the command line. instance: tells it from others of its service, which would
        fence it by the same name.
        """
        log = self._folder / f"{name}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(  # noqa: S603 our own interpreter and module
                [sys.executable, "-m", module, *arguments],
                env=self._environment | ({"TELLTALE_INSTANCE": instance} if instance else {}),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self._children[name] = _Child(process, log)

    def check(self) -> None:
        """Raise TransientError with the end of its log if a service has stopped by itself."""
        for name, child in self._children.items():
            if child.process.poll() is not None:
                raise TransientError(
                    f"{name} stopped with exit code {child.process.returncode}; the end of {child.log}:\n"
                    f"{self._tail(child)}"
                )

    def kill(self, name: str) -> None:
        """End a service at once, as a crash would."""
        child = self._children.pop(name)
        child.process.kill()
        child.process.wait()

    def pid(self, name: str) -> int:
        """Return a service's process id."""
        return self._children[name].process.pid

    def memory_mib(self) -> dict[str, float]:
        """Return the resident memory of each running service."""
        running = {name: child.process.pid for name, child in self._children.items() if child.process.poll() is None}
        return {name: round(psutil.Process(pid).memory_info().rss / 2**20, 1) for name, pid in running.items()}

    def stop(self) -> None:
        """Ask all services to finish their batch, and kill those that do not within a grace time."""
        for child in self._children.values():
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _GRACE_S
        for child in self._children.values():
            try:
                child.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children = {}

    @staticmethod
    def _tail(child: _Child) -> str:
        return "\n".join(child.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


def service_environment(config: Path) -> dict[str, str]:
    """Return the environment of services whose settings are all in one file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TELLTALE_") or name in _KEPT}
    return {**kept, "TELLTALE_CONFIG": str(config)}
