"""The command line as a person runs it: in a folder of its own, with an environment of its own."""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from tests.faults.live import forked
from tests.pipeline import WAIT_S


class Outcome(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """Return the one line on stderr that is no log record; more or fewer of them fail the test."""
        lines = [line for line in self.err.splitlines() if line.strip() and not line.startswith("{")]
        assert len(lines) == 1, self.err
        return lines[0]


class CommandLine:
    """Runs `telltale` in a folder; no setting of the tests' own environment reaches it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {"OMP_NUM_THREADS": "1", **environment}

    def __call__(self, command: str, *arguments: object, **environment: str) -> Outcome:
        """Run a command to its end, its words split at spaces and further arguments as they are."""
        files = [str(self.folder / f"std{name}.txt") for name in ("out", "err")]
        words = [*command.split(), *(str(argument) for argument in arguments)]
        process = forked()(target=_be, args=(words, str(self.folder), {**self.environment, **environment}, *files))
        process.start()
        process.join(2 * WAIT_S)
        code = process.exitcode
        process.kill()
        process.join()
        said = [Path(file).read_text() for file in files]
        assert code is not None, f"telltale {' '.join(words)} did not end: {said}"
        return Outcome(code, *said)


def _be(words: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    from telltale import main

    for name in [name for name in os.environ if name.startswith("TELLTALE_")]:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["telltale", *words]
    main()
