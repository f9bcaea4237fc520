"""Chaos: telemetry under random faults, judged by an oracle that shares no code with the pipeline's windowing.

`make chaos SEEDS=n [JSON=out.json]`. Exits with 1 if a seed misses, repeats or falsifies anything.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from benchmarks.rig import unwinding_on_sigterm
from tests.chaos import plan, sabotage
from tests.chaos.seeds import SeedReport, Size, run_seed


def main() -> int:
    """Run the seeds one after the other and print a line for each."""
    options = _options()
    size = Size(rows=options.rows, entities=max(3, options.rows // 1000), rows_per_s=options.rate)
    # A broken promise must show under the very faults that it is for.
    faults = plan.against(options.breaking) if options.breaking else None
    reports: list[SeedReport] = []
    for seed in range(options.first, options.first + options.seeds):
        reports.append(run_seed(seed, size, faults=faults, breaking=options.breaking))
        print(_line(reports[-1]), flush=True)
        if options.json:
            options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"seeds": reports})))
    return 0 if all(report.passed for report in reports) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--rows", type=int, default=Size().rows, help="rows of telemetry a seed")
    parser.add_argument("--rate", type=float, default=Size().rows_per_s, help="rows a second")
    parser.add_argument("--json", type=Path, help="write the reports here")
    parser.add_argument("--break", dest="breaking", choices=sabotage.BY_NAME, help="break a promise: this must fail")
    return parser.parse_args()


def _line(report: SeedReport) -> str:
    told = [f"{name} {getattr(report, name)}" for name in ("samples", "kills", "zombies", "flushes")]
    verdict = [f"{name} {getattr(report, name)}" for name in ("missing", "repeated", "wrong")]
    line = f"seed {report.seed}: {', '.join(told)} in {report.seconds:.0f} s: {', '.join(verdict)}"
    return "\n  ".join([line, *report.examples, *report.failure.splitlines()[:1]])


if __name__ == "__main__":
    with unwinding_on_sigterm():
        sys.exit(main())
