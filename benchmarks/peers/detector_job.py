"""What each opposing detector does: fit every entity's rows, score its later rows. Knows no detector.

Rows come as arrays train_0, test_0, train_1 ... of a safetensors file, a pair an entity; scores go back as scores_0 ...
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Rows = NDArray[np.float64]
# Rows (n, D) to scores (n,), higher = more anomalous.
Score = Callable[[Rows], Rows]


def run(library: str, fits: dict[str, Callable[[Rows, int], Score]], arguments: Sequence[str]) -> None:
    """Fit and score, then write figures as one line of JSON. Arguments: detector, input, output, repeats, seed."""
    name, source, target, repeats, seed = arguments
    arrays = load_file(source)
    pairs = [(arrays[f"train_{k}"], arrays[f"test_{k}"]) for k in range(len(arrays) // 2)]
    wall, cpu = time.perf_counter(), time.process_time()
    scorers = [fits[name](train, int(seed)) for train, _ in pairs]
    fit = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    timings: list[dict[str, float]] = []
    for _ in range(int(repeats)):
        wall, cpu = time.perf_counter(), time.process_time()
        found = [score(test) for score, (_, test) in zip(scorers, pairs, strict=True)]
        timings.append({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu})
    save_file({f"scores_{k}": np.ascontiguousarray(one, np.float64) for k, one in enumerate(found)}, target)
    sys.stdout.write(json.dumps({"fit": fit, "timings": timings, "version": version(library)}) + "\n")
