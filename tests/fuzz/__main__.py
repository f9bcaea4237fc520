"""Fuzzing by coverage: `make fuzz MINUTES=n`, shared evenly by all decoders, or `ARGS="--only sample ring"`.

Every target is a process of its own, since the fuzzer ends the one it runs in. Bytes that break a target are kept in
the folder of `--keep`, and are shown again by `python -m tests.fuzz --show TARGET FILE`. Exits with 1 if there are any.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

_LONGEST = 4000
TARGETS = (
    "sample",
    "columns",
    "ring",
    "notice",
    "block",
    "alert",
    "state",
    "head",
    "dead letter",
    "dropped letters",
    "manifest",
    "weights",
    "golden",
)


def main() -> int:
    """Fuzz the targets one after the other and print a line for each."""
    options = _options()
    if options.show:
        name, path = options.show
        return _show(name, Path(path))
    if options.run:
        _fuzz(options.run, options.rest)
    options.keep.mkdir(parents=True, exist_ok=True)
    each_s = max(1, round(60 * options.minutes / len(options.only)))
    broken = [name for name in options.only if not _passes(name, each_s, options.keep)]
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=TARGETS, help="these targets instead of all")
    parser.add_argument(
        "--keep", type=Path, default=Path(".telltale/fuzz"), help="folder for bytes that break a target"
    )
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "FILE"), help="run a target on bytes that were kept")
    parser.add_argument("--run", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def _passes(name: str, seconds: int, keep: Path) -> bool:
    """Fuzz one target in a process of its own and say whether it held."""
    with tempfile.TemporaryDirectory(prefix="telltale-fuzz-") as corpus:
        arguments = [f"-max_total_time={seconds}", f"-artifact_prefix={keep}/{name.replace(' ', '-')}-", "-timeout=20"]
        command = [sys.executable, "-m", "tests.fuzz", "--run", name, "--", *arguments, corpus]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    runs = next((line for line in reversed(lines) if line.startswith("Done ")), "")
    print(f"{name}: {'held' if done.returncode == 0 else 'BROKEN'}; {runs}", flush=True)
    if done.returncode:
        print(done.stdout[-_LONGEST:], *lines[-3:], sep="\n", flush=True)  # the fuzzer shows what was raised on stdout
    return done.returncode == 0


def _fuzz(name: str, arguments: Sequence[str]) -> NoReturn:
    """Be the process of one target; the last argument is the folder of its corpus."""
    import atheris

    with atheris.instrument_imports(include=["stream", "detector", "safetensors"]):
        from tests.fuzz.targets import targets
    target = targets()[name]
    for number, seed in enumerate(target.seeds()):
        (Path(arguments[-1]) / f"seed-{number}").write_bytes(seed)
    run: Callable[[bytes], Any] = target.run
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()
    sys.exit(0)


def _show(name: str, path: Path) -> int:
    from tests.fuzz.targets import targets

    targets()[name].run(path.read_bytes())
    print(f"{name} holds for {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
