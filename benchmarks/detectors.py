"""Our detector beside scikit-learn's, PyOD's and river's on the same entities: quality and speed, on one thread.

    python -m benchmarks.detectors --data FOLDER --model REGISTRY/msl --seed 0 --json detectors.json

Every opponent is fitted to each entity's training rows, scaled as the baselines' are, and gets either the row alone or
the 25 rows around it; cutting those is not in the time of PyOD and river. Its scores are smoothed by a centred Hanning
window; of three widths the best by labels counts, for each figure, which favours it. Ours is as shipped. PyOD and river
run in the environment of `make peers` and are left out, with a note why, where it is missing.
"""

import argparse
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import sklearn
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file
from torch import Tensor

from benchmarks.detector_figures import (
    WIDTHS,
    DetectorFigures,
    Drawn,
    draw,
    figures_of,
    finite,
    quality,
    smoothed_figures,
)
from benchmarks.inference_cases import whole_model
from benchmarks.measure import Machine, Timing, describe_machine, timed
from benchmarks.opponents import MISSING, PYTHON, run_script
from benchmarks.subjects import with_hop
from detector.engine import Detector
from detector.manifest import Manifest
from detector.offline import SeriesScores, score_all
from stream.logs import configure_logging
from training.baselines.kernel_methods import PLAN, KernelPCA, OneClassSupportVectors
from training.baselines.protocol import Baseline
from training.baselines.scaled_rows import fit_scaler
from training.baselines.windows import LONGEST, WindowPlan
from training.metrics import Scores
from training.score_file import find_model, fit_dataset

VIEWS = {"row": 1, f"{LONGEST} rows": LONGEST}
_PATIENCE_S = 1800.0
# Script, library, detector, views, whether it scores the same rows again.
_AROUND = f"{LONGEST} rows"
_SCRIPTED = (
    ("pyod_detectors.py", "pyod", "autoencoder", (_AROUND,), True),
    ("pyod_detectors.py", "pyod", "vae", (_AROUND,), True),
    ("pyod_detectors.py", "pyod", "deep-svdd", (_AROUND,), True),
    ("pyod_detectors.py", "pyod", "lstm", ("row",), True),
    ("river_detectors.py", "river", "half-space-trees", tuple(VIEWS), False),
    ("river_detectors.py", "river", "one-class-svm", tuple(VIEWS), False),
    ("river_detectors.py", "river", "gaussian", ("row",), False),
)


class PeerRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a script in `benchmarks/peers` says of one detector: fitting all entities, and each pass over their rows."""

    fit: Timing
    timings: list[Timing]
    version: str


class DetectorsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all detectors on the same entities. note: why opponents are missing, if they are."""

    detectors: list[DetectorFigures]
    entities: list[str]
    train_rows: int
    rows: int
    widths: tuple[int, ...]
    repeats: int
    seed: int
    model: str
    versions: dict[str, str]
    note: str
    machine: Machine


def measure_ours(manifest: Manifest, weights: dict[str, Tensor], drawn: Drawn, repeats: int) -> DetectorFigures:
    """Score as the manifest says, once to warm up."""
    model = whole_model(Detector(manifest, weights))
    series = fit_dataset(drawn.test, model).series
    scores = list[SeriesScores]()
    timings = [timed(lambda: scores.extend(score_all(model, series))) for _ in range(repeats + 1)][1:]
    found = quality(drawn.test, [finite(one.score) for one in scores[: len(series)]])
    fit_s, view = 60 * manifest.training.minutes, f"window of {manifest.geometry.length}, hop {manifest.geometry.hop}"
    return figures_of("Telltale", "ours", view, (fit_s, None), timings, drawn, {None: found})


def measure_baseline(name: str, view: str, baseline: Baseline, drawn: Drawn, repeats: int) -> DetectorFigures:
    """Fit and score in this process."""
    scorers = []
    fit = timed(lambda: scorers.append(baseline.fit(drawn.train)))
    raw = list[Scores]()
    timings = [timed(lambda: raw.extend(map(scorers[0], drawn.test.series))) for _ in range(repeats)]
    return smoothed_figures(name, "scikit-learn", view, fit, timings, drawn, raw[: len(drawn.test.series)])


def measure_scripted(
    drawn: Drawn, repeats: int, seed: int, only: Container[str] | None = None
) -> Iterator[tuple[DetectorFigures, str]]:
    """Let each script, or the named ones, fit and score the same rows; give figures with their library's version."""
    with tempfile.TemporaryDirectory() as temporary:
        inputs = {
            view: _write(drawn, length, Path(temporary) / f"{length}.safetensors") for view, length in VIEWS.items()
        }
        target = Path(temporary) / "scores.safetensors"
        for script, library, name, views, again in _SCRIPTED:
            for view in views if only is None or name in only else ():
                arguments = [name, str(inputs[view]), str(target), str(repeats if again else 1), str(seed)]
                run = run_script(script, arguments, _PATIENCE_S, PeerRun)
                arrays = load_file(target)
                raw = [arrays[f"scores_{k}"] for k in range(len(drawn.test.series))]
                yield smoothed_figures(name, library, view, run.fit, run.timings, drawn, raw), run.version


def _write(drawn: Drawn, length: int, target: Path) -> Path:
    """Write what scripts read: windows of so many rows around every row, (n, D) an entity."""
    scaler, plan = fit_scaler(drawn.train), WindowPlan(most=None, longest=length)
    arrays = {
        f"{part}_{number}": np.ascontiguousarray(plan.windows(scaler(series)))
        for part, dataset in (("train", drawn.train), ("test", drawn.test))
        for number, series in enumerate(dataset.series)
    }
    save_file(arrays, target)
    return target


def _measure_all(
    drawn: Drawn, spec: str, repeats: int, seed: int, only: Container[str] | None
) -> Iterator[tuple[DetectorFigures, str]]:
    """Measure ours live and as a backfill does, then the opponents; beside each its library's version."""
    registry, family, version = find_model(spec)
    bundle = registry.read(family, version)
    for hop in (bundle.manifest.geometry.hop, bundle.manifest.geometry.length // 2):
        yield measure_ours(with_hop(bundle.manifest, hop), bundle.weights, drawn, repeats), version
    for view, length in VIEWS.items():
        plan = replace(PLAN, longest=length)
        baselines: dict[str, Baseline] = {
            "kernel-pca": KernelPCA(seed, plan=plan),
            "oc-svm": OneClassSupportVectors(seed, plan=plan),
        }
        for name, baseline in baselines.items():
            if only is None or name in only:
                yield measure_baseline(name, view, baseline, drawn, repeats), sklearn.__version__
    if PYTHON.exists():
        yield from measure_scripted(drawn, repeats, seed, only)


def run(
    console: Console, drawn: Drawn, spec: str, repeats: int, seed: int, only: Container[str] | None = None
) -> DetectorsReport:
    """Measure, print and return every detector's figures."""
    torch.set_num_threads(1)
    machine, detectors, versions = describe_machine(), list[DetectorFigures](), dict[str, str]()
    for figures, version in _measure_all(drawn, spec, repeats, seed, only):
        detectors.append(figures)
        versions[figures.library] = version
        console.print(
            f"{figures.library} {figures.name} ({figures.view}): AP {figures.average_precision:.3f}, ROC-AUC "
            f"{figures.roc_auc:.3f}, {figures.rows_per_s_per_core.median:,.0f} rows/s a core, fit {figures.fit_s:.1f} s"
        )
    return DetectorsReport(
        detectors=detectors,
        entities=[series.entity for series in drawn.test.series],
        train_rows=drawn.train.rows,
        rows=drawn.rows,
        widths=WIDTHS,
        repeats=repeats,
        seed=seed,
        model=spec,
        versions=versions,
        note="" if PYTHON.exists() else MISSING,
        machine=machine,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw entities, measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with FAMILY_train.parquet and so on")
    parser.add_argument("--family", default="MSL")
    parser.add_argument("--model", required=True, help="REGISTRY/NAME[@VERSION]")
    parser.add_argument("--entities", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="opponents by name; PyOD's take minutes each")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    configure_logging("warning")
    drawn = draw(chosen.data, chosen.family, chosen.entities, chosen.seed)
    report = run(Console(), drawn, chosen.model, chosen.repeats, chosen.seed, chosen.only)
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


if __name__ == "__main__":
    main()
