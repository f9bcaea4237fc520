"""How fast the detector scores windows in process, and on what its time goes. Needs no server."""

import tempfile
import threading
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console

from benchmarks.measure import Machine, Spread, describe_machine, spread, timed
from benchmarks.stack_profile import StackProfile
from benchmarks.workload import FEW_NUMERIC, FIRST_SLOT, MANY_NUMERIC, Shape, make_values, publish_model
from deploy.demo_view import DemoView
from detector.engine import Detector, WindowBatch
from detector.manifest import Manifest
from detector.registry import Registry
from stream.logs import configure_logging
from training.presets import PRESETS

_PRESET = PRESETS["small"]
# By their number: one, the preset's own, and three.
_STARTS = {len(starts): starts for starts in ((20,), (5, 20, 60), _PRESET.scoring.starts)}
_PROFILED_CALLS = 3
_PARTS = {
    "convolve": "FFT",
    "Conv1d._conv_forward": "convolution and matmul",
    "ConvTranspose1d.forward": "convolution and matmul",
    "Linear.forward": "convolution and matmul",
    "smooth": "convolution and matmul",
    "Denoiser.forward": "elementwise",
    "Condition.forward": "elementwise",
    "TimestepEmbedding.forward": "elementwise",
    "CascadeLayer.forward": "elementwise",
    "Detector._reconstruct": "elementwise",
    "slot_noise": "noise",
    "Detector._score_part": "residuals and bands",
    "Detector._inputs": "inputs",
}


class Load(msgspec.Struct, frozen=True):
    """How much is measured. batch: windows in one call."""

    batch: int = 64
    calls: int = 7
    seed: int = 0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one number of threads. patch: slots that the network sees as one position.

    rows_per_s: new rows (hop times windows) by wall time. rows_per_s_per_core: by CPU seconds of the process.
    time_shares: of the wall time, from calls beside the measured ones.
    """

    numeric: int
    commands: int
    patch: int
    starts: int
    threads: int
    rows_per_s: Spread
    rows_per_s_per_core: Spread
    time_shares: dict[str, float]


class InferenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """The detector's figures.

    rows_per_s: median by number of starts, with torch's own choice of threads, of a model with one numeric channel
    and of one with many. preset_starts: those of the preset.
    """

    rows_per_s: dict[str, float]
    rows_per_s_many_numeric: dict[str, float]
    cases: list[Case]
    preset: str
    preset_starts: int
    batch: int
    length: int
    hop: int
    seed: int
    machine: Machine


def run(console: Console, load: Load | None = None) -> InferenceReport:
    """Measure, print and return the detector's figures."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine, geometry = describe_machine(), _PRESET.geometry
    cases: list[Case] = []
    for shape, (_, starts) in product((FEW_NUMERIC, MANY_NUMERIC), sorted(_STARTS.items())):
        name = f"{shape.numeric} of {shape.channels} channels numeric, {len(starts)} start(s)"
        with view.step(f"{name}: model") as step:
            detector = _detector(shape, starts, load.seed)
            step.done("one train step, calibrated")
        threads = {1, machine.torch_threads} if starts == _PRESET.scoring.starts else {machine.torch_threads}
        for count in sorted(threads):
            with view.step(f"{name}, {count} thread(s)") as step:
                cases.append(_measure(detector, shape, load, count))
                step.done(_line(cases[-1]))
    return InferenceReport(
        rows_per_s=_by_starts(cases, FEW_NUMERIC, machine.torch_threads),
        rows_per_s_many_numeric=_by_starts(cases, MANY_NUMERIC, machine.torch_threads),
        cases=cases,
        preset="small",
        preset_starts=len(_PRESET.scoring.starts),
        batch=load.batch,
        length=geometry.length,
        hop=geometry.hop,
        seed=load.seed,
        machine=machine,
    )


def _by_starts(cases: list[Case], shape: Shape, threads: int) -> dict[str, float]:
    wanted = [case for case in cases if case.numeric == shape.numeric and case.threads == threads]
    return {str(case.starts): case.rows_per_s.median for case in wanted}


def _line(case: Case) -> str:
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in case.time_shares.items())
    return f"{case.rows_per_s.median:,.0f} rows/s ({case.rows_per_s_per_core.median:,.0f} a core): {shares}"


def _detector(shape: Shape, starts: tuple[int, ...], seed: int) -> Detector:
    with tempfile.TemporaryDirectory(prefix="telltale-bench-") as folder:
        registry = Registry(Path(folder) / "registry")
        bundle = registry.read("bench", publish_model(registry, shape, starts, seed).version)
    return Detector(bundle.manifest, bundle.weights)


def _measure(detector: Detector, shape: Shape, load: Load, threads: int) -> Case:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    windows = _windows(detector.manifest, shape, load)
    rows = load.batch * detector.manifest.geometry.hop
    try:
        detector.score(windows)
        calls = [timed(lambda: detector.score(windows)) for _ in range(load.calls)]
        profile = StackProfile(_PARTS)
        with profile.watching(threading.get_ident()):
            for _ in range(_PROFILED_CALLS):
                detector.score(windows)
    finally:
        torch.set_num_threads(before)
    return Case(
        numeric=shape.numeric,
        commands=shape.commands,
        patch=detector.manifest.denoiser.patch,
        starts=len(detector.manifest.scoring.starts),
        threads=threads,
        rows_per_s=spread([rows / call.wall_s for call in calls], 0),
        rows_per_s_per_core=spread([rows / call.cpu_s for call in calls], 0),
        time_shares=profile.shares(),
    )


def _windows(manifest: Manifest, shape: Shape, load: Load) -> WindowBatch:
    length = manifest.geometry.length
    values = make_values(shape, load.batch, length, load.seed).transpose(0, 2, 1)
    entities = [f"entity-{i:04d}" for i in range(load.batch)]
    return WindowBatch(entities, np.full(load.batch, FIRST_SLOT + length - 1), np.ascontiguousarray(values))
