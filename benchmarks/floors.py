"""All speed benchmarks in one file, and the floors that their ratios must not fall below.

`make bench JSON=out.json` measures; `make bench-check JSON=out.json` judges what was measured, or measures first. Only
ratios of one run are judged, generously: a busy machine must not fail them, a change that undoes an idea must.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BENCHMARKS = ("inference", "ingest", "pipeline", "training")

Report = dict[str, Any]


class Floor(NamedTuple):
    """A figure that wants to be at least `least`. measure: None where the reports can't say."""

    name: str
    measure: Callable[[Report], float | None]
    least: float


class Finding(NamedTuple):
    """What a floor made of reports; `value` is None where they can't say, which is no failure."""

    floor: Floor
    value: float | None

    @property
    def kept(self) -> bool:
        """Whether the figure has not fallen below its floor."""
        return self.value is None or self.value >= self.floor.least


def _precision_kept(reports: Report) -> float | None:
    fast, paper = reports["inference"]["ap_fast"], reports["inference"]["ap_paper"]
    return None if fast is None or paper is None else float(fast - paper)


def _against_peers(reports: Report) -> float | None:
    peers = reports["ingest"]["peers"]
    return reports["ingest"]["samples_per_s_per_core"] / max(peers.values()) if peers else None


FLOORS = (
    Floor("inference: rows/s over the paper's sampler", lambda r: r["inference"]["speedup_vs_paper_sampler"], 50),
    Floor("inference: average precision over the paper's sampler", _precision_kept, -0.01),
    Floor("ingest: samples/s and core over the fastest opponent", _against_peers, 1),
    Floor(
        "ingest: samples/s and core, exactly once over at least once",
        lambda r: 1 / r["ingest"]["exactly_once_cost_per_core"],
        0.6,
    ),
    Floor(
        "ingest: samples/s and core, columns over JSON",
        lambda r: r["ingest"]["columns_samples_per_s_per_core"] / r["ingest"]["samples_per_s_per_core"],
        1.5,
    ),
    Floor("pipeline: rows scored under twice the load", lambda r: -r["pipeline"]["overload"]["unscored"], 0),
    Floor(
        "training: windows/s over a plain loop",
        lambda r: r["training"]["samples_per_s"] / r["training"]["plain_samples_per_s"],
        2,
    ),
    Floor("training: time not spent waiting for windows", lambda r: 1 - r["training"]["waiting_share"], 0.8),
    Floor("training: equal weights for equal seeds", lambda r: float(r["training"]["same_weights"]), 1),
)


def judge(reports: Report) -> list[Finding]:
    """Hold reports, by benchmark, against all floors."""
    return [Finding(floor, floor.measure(reports)) for floor in FLOORS]


def measure(arguments: Sequence[str]) -> Report:
    """Run every benchmark as a user does. arguments: further ones for inference and training."""
    reports: Report = {}
    for name in BENCHMARKS:
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "report.json"
            more = arguments if name in ("inference", "training") else ()
            command = [sys.executable, "-m", "telltale", "bench", name, "--json", str(found), *more]
            subprocess.run(command, check=True)  # noqa: S603 our own command line
            reports[name] = json.loads(found.read_text())
    return reports


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge, or both; return 1 if a floor is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where the reports are written, or stand already")
    parser.add_argument("--check", action="store_true", help="judge; measure only if there are no reports yet")
    parser.add_argument("--data", type=Path, help="folder of SMAP, MSL and SMD for inference and training")
    chosen = parser.parse_args(arguments)
    if chosen.check and chosen.json and chosen.json.exists():
        reports = json.loads(chosen.json.read_text())
    else:
        reports = measure(["--data", str(chosen.data)] if chosen.data else [])
        if chosen.json:
            chosen.json.write_text(json.dumps(reports, indent=1))
    findings = judge(reports)
    for floor, value in findings:
        told = "not measured" if value is None else f"{value:.2f}, floor {floor.least:g}"
        sys.stdout.write(f"{'kept  ' if Finding(floor, value).kept else 'BROKEN'} {floor.name}: {told}\n")
    return 0 if not chosen.check or all(finding.kept for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
