"""What the detector finds, beside the honest opponents, on labelled data: several seeds, one protocol, one JSON.

    python -m benchmarks.quality --data FOLDER --families MSL SMAP SMD --seeds 0 1 2 --minutes 5 --out quality.json

The detector goes through `train`, `score` and `evaluate` as a user's does. Opponents are fitted to the same files,
smoothed (centred Hanning, or its causal half) and thresholded by three-sigma on the scored series; every width is in
the result, and the table shows for each figure the best one, which favours them.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from detector.registry import Registry
from stream.grid import Geometry
from training.baselines.protocol import Options
from training.baselines.smoothing import smooth, three_sigma
from training.baselines.table import BASELINES
from training.comparison import Honest, PointAdjusted
from training.datasets import Dataset, read_dataset
from training.evaluation import Evaluation, evaluate, evaluate_series
from training.labelled_scores import LabelledSeries
from training.metrics import Scores
from training.presets import PAPER_SMOOTHING
from training.publish import publish_trained
from training.score_file import load_model, score_file
from training.trainer import TrainedModel, train

OPPONENTS = ("random", "median-deviation", "pca-error", "nearest-neighbour", "ridge-ar60")
SIZES = (25, 101, 201, 401)
# Means over entities, then figures over all events of a data set.
MEANS = ("roc_auc", "average_precision", "vus_pr", "best_f1", "provisional_average_precision", "nominal_in_alarm")
POOLED = ("event_f1", "corrected_event_f05")
LOW_IS_GOOD = frozenset({"nominal_in_alarm"})
# What is declared for a family; the others have the preset's. Servers report once a minute, and nobody wants to wait
# longer than half an hour for the final word on one.
GEOMETRIES = {"SMD": Geometry(length=128, hop=32, final_delay=25, slack=256)}

Figures = dict[str, float | None]


def figures(evaluation: Evaluation) -> Figures:
    """Pick what the table shows out of an evaluation."""
    mean, pooled = evaluation.entity_mean, evaluation.concatenated
    found: Figures = {name: _mean(mean.honest, name) for name in MEANS}
    found |= {f"pooled_{name}": _mean(pooled.honest, name) for name in POOLED}
    found |= {f"mean_{name}": _mean(mean.honest, name) for name in POOLED}
    return found | {
        "point_adjusted_f1": _mean(mean.point_adjusted, "best_f1"),
        "point_adjusted_f1_random": _mean(mean.point_adjusted_random, "best_f1"),
        "pooled_point_adjusted_f1": _mean(pooled.point_adjusted, "best_f1"),
        "pooled_point_adjusted_f1_random": _mean(pooled.point_adjusted_random, "best_f1"),
    }


def measure_detector(folder: Path, family: str, seed: int, minutes: float, keep: Path) -> dict[str, Any]:
    """Train, score and evaluate one seed as a user does; files stay in `keep`."""
    dataset, geometry = read_dataset(folder / f"{family}_train.parquet"), GEOMETRIES.get(family)
    trained = train(dataset, name=family.lower(), minutes=minutes, seed=seed, geometry=geometry)
    evaluation = _evaluated(folder, family, trained, keep)
    paper = _evaluated(folder, family, smoothed_as_in_the_paper(trained), keep)
    return {
        "seed": seed,
        "train_steps": trained.training.train_steps,
        "minutes": trained.training.minutes,
        **figures(evaluation),
        "paper_point_adjusted_f1": _mean(paper.entity_mean.point_adjusted, "best_f1"),
        "paper_point_adjusted_f1_random": _mean(paper.entity_mean.point_adjusted_random, "best_f1"),
        "attribution": msgspec.to_builtins(evaluation.attribution),
    }


def smoothed_as_in_the_paper(trained: TrainedModel) -> TrainedModel:
    """Return the same network and companions with the paper's smoothing kernel (section 4.2), for its protocol."""
    scoring = msgspec.structs.replace(trained.scoring, smoothing_size=PAPER_SMOOTHING, provisional_size=None)
    return dataclasses.replace(trained, scoring=scoring)


def _evaluated(folder: Path, family: str, trained: TrainedModel, keep: Path) -> Evaluation:
    version = publish_trained(Registry(keep / "registry"), trained).version
    test, scores = folder / f"{family}_test.parquet", keep / f"{family}_{version}.parquet"
    interpretation = folder / f"{family}_interpretation.json"
    explained = interpretation.exists()
    score_file(test, load_model(f"{keep / 'registry'}/{trained.name}@{version}"), scores, explain=explained)
    return evaluate(scores, test, trained.training.seed, interpretation_path=interpretation if explained else None)


def measure_opponents(folder: Path, family: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Fit every opponent once and measure it at every width."""
    train, test = (read_dataset(folder / f"{family}_{part}.parquet") for part in ("train", "test"))
    found = []
    for name in names:
        baseline = BASELINES[name](Options())
        scorer = baseline.fit(train)
        raw = [scorer(series) for series in test.series]
        for size in SIZES:
            evaluation = evaluate_series([*_labelled(test, raw, size, baseline.lookahead)])
            found.append({"name": name, "smoothing_size": size, **figures(evaluation)})
    return found


def best_width(opponents: Sequence[dict[str, Any]], name: str) -> Figures:
    """Return the best figure over all widths, each figure for itself."""
    rows = [row for row in opponents if row["name"] == name]
    keys = [key for key in rows[0] if key not in ("name", "smoothing_size")]
    return {key: _best([row[key] for row in rows if row[key] is not None], key) for key in keys}


def render(family: str, runs: Sequence[dict[str, Any]], opponents: Sequence[dict[str, Any]]) -> Table:
    """Lay one data set out: the detector's median, lowest and highest seed, then the opponents at their best width."""
    table = Table("figure", "Telltale", "lowest", "highest", *OPPONENTS, title=family)
    best = {name: best_width(opponents, name) for name in OPPONENTS}
    for key in (*best["random"], "paper_point_adjusted_f1", "paper_point_adjusted_f1_random"):
        values = [run[key] for run in runs if run[key] is not None]
        spread = [np.median(values), min(values), max(values)] if values else [None] * 3
        table.add_row(key, *(_text(value) for value in (*spread, *(best[name].get(key) for name in OPPONENTS))))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the families that are asked for and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--families", nargs="+", default=["MSL", "SMAP", "SMD"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--keep", type=Path, help="where checkpoints and scores stay; else they are deleted")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    result: dict[str, Any] = {"command": " ".join(sys.argv), "minutes": chosen.minutes, "families": {}}
    with tempfile.TemporaryDirectory() as temporary:
        keep = chosen.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        for family in chosen.families:
            opponents = measure_opponents(chosen.data, family, OPPONENTS)
            runs = [measure_detector(chosen.data, family, seed, chosen.minutes, keep) for seed in chosen.seeds]
            result["families"][family] = {"detector": runs, "opponents": opponents}
            chosen.out.write_text(json.dumps(result, indent=1))
            Console().print(render(family, runs, opponents))


def _labelled(test: Dataset, raw: Sequence[Scores], size: int, lookahead: int) -> Iterable[LabelledSeries]:
    for series, scores in zip(test.series, raw, strict=True):
        assert series.labels is not None, "a test file wants labels"
        final = _filled(smooth(scores, size))
        known = np.concatenate([np.full(min(lookahead, len(scores)), np.nan), scores[: len(scores) - lookahead]])
        yield LabelledSeries(
            entity=series.entity,
            labels=series.labels.astype(bool),
            score=final,
            pred=three_sigma(final),
            p_value=None,
            unscored_rows=int(np.isnan(scores).sum()),
            times=series.slots,
            provisional=_filled(smooth(known, size, causal=True)),
        )


def _filled(scores: Scores) -> Scores:
    """Give rows without a score the lowest one, as an evaluation of a file does."""
    known = scores[~np.isnan(scores)]
    return np.where(np.isnan(scores), known.min() if len(known) else 0.0, scores)


def _mean(figures: Honest | PointAdjusted, name: str) -> float | None:
    value = getattr(figures, name)
    return None if value is None else float(value)


def _best(values: Sequence[float], key: str) -> float | None:
    if not values:
        return None
    return min(values) if key in LOW_IS_GOOD else max(values)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
