"""Runs the opponents' scripts in an environment of their own, if it is there. Knows no windower."""

import subprocess
from pathlib import Path

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
    path = _ROOT / "benchmarks" / "peers" / script
    topic, group = topic_name(settings.topics, TELEMETRY), f"{settings.topics.prefix}{path.stem}"
    command = [str(PYTHON), str(path), settings.kafka.bootstrap, topic, group, str(samples), str(seconds)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds + _PATIENCE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"{script} measured nothing within {error.timeout:.0f} s") from error
    lines = [line for line in ended.stdout.splitlines() if line.startswith(b"{")]
    if not lines:
        raise TransientError(f"{script} measured nothing: {ended.stderr[-1000:].decode(errors='replace')}")
    return msgspec.json.decode(lines[-1], type=Opponent)
