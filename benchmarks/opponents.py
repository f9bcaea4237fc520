"""Runs the opponents' scripts in an environment of their own, if it is there. Knows no windower and no detector."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from stream.errors import TransientError
from stream.settings import Settings
from stream.topics import TELEMETRY, topic_name

_ROOT = Path(__file__).parents[1]
PYTHON = _ROOT / ".venv-peers" / "bin" / "python"
MISSING = "no opponents: `make peers` makes their environment, .venv-peers"
_SCRIPTS = {"faust-streaming": "faust_streaming.py", "quixstreams": "quix_streams.py"}
# Beyond what it measures, an opponent may take so long to join its group and to read the first records.
_PATIENCE_S = 60.0

Figures = TypeVar("Figures")


class Opponent(msgspec.Struct, frozen=True):
    """What one did with the topic: by wall time, and by CPU seconds of all its threads."""

    samples_per_s: float
    samples_per_s_per_core: float
    rows: int


def measure_opponents(settings: Settings, samples: int, seconds: float) -> dict[str, Opponent]:
    """Let each read a topic of so many samples from its beginning, for so many seconds at most; none without PYTHON."""
    if not PYTHON.exists():
        return {}
    return {name: _measure(settings, script, samples, seconds) for name, script in _SCRIPTS.items()}


def _measure(settings: Settings, script: str, samples: int, seconds: float) -> Opponent:
    topic, group = topic_name(settings.topics, TELEMETRY), f"{settings.topics.prefix}{Path(script).stem}"
    arguments = [settings.kafka.bootstrap, topic, group, str(samples), str(seconds)]
    return run_script(script, arguments, seconds + _PATIENCE_S, Opponent)


def run_script(script: str, arguments: Sequence[str], patience_s: float, figures: type[Figures]) -> Figures:
    """Return the figures in the last line of JSON that a script in `benchmarks/peers` writes.

    Raises TransientError if it writes none, or takes longer than it may.
    """
    command = [str(PYTHON), str(_ROOT / "benchmarks" / "peers" / script), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=patience_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{script} measured nothing within {error.timeout:.0f} s") from error
    lines = [line for line in ended.stdout.splitlines() if line.startswith(b"{")]
    if not lines:
        raise TransientError(f"{script} measured nothing: {ended.stderr[-1000:].decode(errors='replace')}")
    return msgspec.json.decode(lines[-1], type=figures)
