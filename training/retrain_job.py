"""The training process: `python -m training.retrain_job FOLDER`, its job as JSON in the first line of its input.

Trains, publishes and measures one model, and leaves `outcome.json`. A run that was killed goes on where it stopped. It
ends when its input does, which its parent holds open, and when it takes more memory than it may.
"""

import os
import resource
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from stream.errors import TelltaleError
from stream.logs import configure_logging
from stream.retraining_settings import RetrainingSettings
from stream.settings import FamilySettings
from training.exclusion import Intervals
from training.retraining import Outcome

OUTCOME = "outcome.json"
ORPHANED, TOO_LARGE = 98, 99
_WATCH_S = 0.5

_log = structlog.get_logger(__name__)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to train: rows of `family` from `start_ms` up to `at_ms`, when the attempt began, less those excluded."""

    registry: str
    family: dict[str, object]
    retraining: dict[str, object]
    at_ms: int
    start_ms: int
    exclude: Intervals
    champion: str | None
    device: str

    @property
    def name(self) -> str:
        """The family's name."""
        return str(self.family["name"])

    @property
    def declared(self) -> FamilySettings:
        """The family as the settings declare it."""
        return FamilySettings.model_validate(self.family)

    @property
    def settings(self) -> RetrainingSettings:
        """Of what and within which limits to train, and what the model must show."""
        return RetrainingSettings.model_validate(self.retraining)


def main() -> None:
    """Run the job in this process."""
    folder, source = Path(sys.argv[1]), sys.stdin.buffer
    configure_logging(os.environ.get("TELLTALE_LOG_LEVEL", "info"))
    job = msgspec.json.decode(source.readline(), type=Job)
    os.nice(job.settings.nice)
    threading.Thread(target=_watch, args=(source, job.settings.memory_mib), name="watch", daemon=True).start()
    outcome = run_guarded(job, folder)
    part = folder / f"{OUTCOME}.part"
    part.write_bytes(msgspec.json.encode(outcome))
    part.replace(folder / OUTCOME)


def run_guarded(job: Job, folder: Path) -> Outcome:
    """Run a job and say how it ended; whatever it died of is the outcome."""
    try:
        from training.new_model import make_model

        return make_model(job, folder)
    except (TelltaleError, ArithmeticError, MemoryError, OSError) as error:
        _log.error("training_failed", family=job.name, error=str(error))
        return Outcome(failure=f"{type(error).__name__}: {error}")
    except Exception as error:
        _log.exception("training_failed", family=job.name)
        return Outcome(failure=f"{type(error).__name__}: {error}")


def _watch(source: BinaryIO, memory_mib: int) -> None:
    """End the process when its parent is gone, or when it has taken too much memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    gone = threading.Event()

    def wait_for_the_end() -> None:
        source.read()
        gone.set()

    threading.Thread(target=wait_for_the_end, name="parent", daemon=True).start()
    while not gone.wait(_WATCH_S):
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > memory_mib * 2**20:
            os._exit(TOO_LARGE)
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
