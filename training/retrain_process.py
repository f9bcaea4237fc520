"""Training jobs as processes of their own, so that none can take the retrainer down. Knows no model.

A job's folder is `<work_dir>/<family>/<when it began>/`: what a run needs to go on, and how it ended.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from stream.errors import TransientError
from training.retrain_job import OUTCOME, TOO_LARGE, Job
from training.retraining import Outcome

_log = structlog.get_logger(__name__)
_OUTCOME = msgspec.json.Decoder(Outcome)
_END_S = 10.0


class _Run(NamedTuple):
    process: "subprocess.Popen[bytes]"
    began_s: float


class ProcessJobs:
    """Implements `training.retrainer.Jobs`."""

    def __init__(self, work_dir: Path, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start nothing. timeout_s: a process that runs for longer is ended."""
        self._work_dir = work_dir
        self._timeout_s = timeout_s
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def outcome(self, job: Job) -> Outcome | None:
        """See `Jobs.outcome`. Raises TransientError where the work folder can't be used."""
        folder = self._work_dir / job.name / str(job.at_ms)
        try:
            if (folder / OUTCOME).exists():
                self.stop(job.name)
                return _OUTCOME.decode((folder / OUTCOME).read_bytes())
            run = self._runs.get(job.name)
            if run is None:
                self._clear(job.name, keep=folder)
                folder.mkdir(parents=True, exist_ok=True)
                self._runs[job.name] = _Run(_start(job, folder), self._clock())
                return None
        except (OSError, msgspec.MsgspecError) as error:
            raise TransientError(f"training of {job.name} can't be kept in {folder}: {error}") from error
        return self._ended(job, run)

    def forget(self, family: str) -> None:
        """See `Jobs.forget`."""
        self.stop(family)
        self._clear(family)

    def stop(self, family: str) -> None:
        """See `Jobs.stop`."""
        run = self._runs.pop(family, None)
        if run is None:
            return
        assert run.process.stdin is not None
        run.process.stdin.close()
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait(_END_S)

    def close(self) -> None:
        """End all processes; another retrainer goes on with what they left."""
        for family in list(self._runs):
            self.stop(family)

    def _ended(self, job: Job, run: _Run) -> Outcome | None:
        status = run.process.poll()
        if status is None and self._clock() - run.began_s <= self._timeout_s:
            return None
        self.stop(job.name)
        if status is None:
            return Outcome(failure=f"training took longer than {self._timeout_s / 60:g} minutes")
        if status == TOO_LARGE:
            return Outcome(failure=f"training took more than {job.settings.memory_mib} MiB of memory")
        return Outcome(failure=f"the training process ended with status {status}")

    def _clear(self, family: str, keep: Path | None = None) -> None:
        for folder in (self._work_dir / family).glob("*"):
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)


def _start(job: Job, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a training process; its input stays open as long as this process lives."""
    environment = os.environ | {"OMP_NUM_THREADS": str(job.settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    argv = [sys.executable, "-m", "training.retrain_job", str(folder)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment)  # noqa: S603 our own module
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job) + b"\n")
    process.stdin.flush()
    _log.info("training_process", family=job.name, pid=process.pid, folder=str(folder))
    return process
