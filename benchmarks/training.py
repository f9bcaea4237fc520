"""How fast training gets to a useful reconstruction: seconds to the paper's L1, samples a second, waiting for data.

L1 is the mean |x - x0| of normal windows in scaled units, over entities, x0 by one deterministic call from timestep 20,
of the averaged weights. The windows end in the rows that weights are not fitted to, with nothing hidden. Needs no
server.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console

from benchmarks.measure import Machine, describe_machine
from benchmarks.paper_sampler import PAPER_START
from benchmarks.workload import FEW_NUMERIC, make_dataset, make_values
from deploy.demo_view import DemoView
from detector.denoiser import Denoiser
from detector.engine import EXPECTED_LIMIT
from stream.errors import UsageError
from stream.logs import configure_logging
from training.datasets import Dataset, read_dataset
from training.fit import Fit
from training.parallel import ALONE
from training.presets import PRESETS
from training.sampling import TrainingBatch, WindowSampler
from training.scaling import measure_scaling
from training.trainer import train

# Of the paper's network with 6 layers, on SMAP (Table 5).
PAPER_L1 = 0.031
_FILE = "SMAP_train.parquet"
_PRESET = PRESETS["small"]
_PROBE_STEPS, _HASH_STEPS = 8, 5
_L1_WINDOWS, _L1_SEED, _CHECKS = 512, 2**61, 20
_MADE_ENTITIES, _MADE_ROWS = 8, 4000


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. minutes: of training at most, which also is what the learning rate's course is laid for."""

    data: str | None = None
    minutes: float = 5.0
    seed: int = 0


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Training's figures.

    seconds_to_l1: until L1 was first at most `target_l1`, without the checks themselves; null if it never was. l1: at
    the end. samples_per_s: training windows. plain_samples_per_s: of a loop that draws window by window and steps on
    each window's gradient added up. waiting_share: of the time, spent drawing windows. same_weights: two runs of the
    same seed end with the same bytes.
    """

    seconds_to_l1: float | None
    l1: float
    target_l1: float
    train_steps: int
    planned_steps: int
    seconds: float
    cpu_seconds: float
    samples_per_s: float
    plain_samples_per_s: float
    waiting_share: float
    same_weights: bool
    weights_sha256: str
    course: list[tuple[float, float]]
    load: Load
    machine: Machine


def run(console: Console, load: Load | None = None) -> TrainingReport:
    """Measure, print and return training's figures."""
    load, view = load or Load(), DemoView(console)
    configure_logging("warning")
    machine, dataset = describe_machine(), _dataset(load)
    with view.step("same seed, same weights") as step:
        hashes = [_weights_sha256(dataset, load.seed) for _ in range(2)]
        step.done("yes" if len(set(hashes)) == 1 else "NO")
    with view.step("a plain loop") as step:
        plain = _plain_samples_per_s(dataset, load.seed)
        step.done(f"{plain:,.0f} windows/s")
    with view.step("training") as step:
        run = _Run(dataset, load)
        run.go(lambda share, l1: step.progress(f"L1 {l1:.4f}", share, 1.0))
        reached = "not reached" if run.reached_s is None else f"reached after {run.reached_s:.0f} s"
        step.done(f"L1 {run.l1:.4f}, {PAPER_L1} {reached}; {run.samples_per_s:,.0f} windows/s")
    return TrainingReport(
        seconds_to_l1=run.reached_s and round(run.reached_s, 1),
        l1=round(run.l1, 4),
        target_l1=PAPER_L1,
        train_steps=run.train_step,
        planned_steps=run.planned,
        seconds=round(run.seconds, 1),
        cpu_seconds=round(run.cpu_seconds, 1),
        samples_per_s=round(run.samples_per_s, 1),
        plain_samples_per_s=round(plain, 1),
        waiting_share=round(run.sampler.drawing_s / run.seconds, 4),
        same_weights=len(set(hashes)) == 1,
        weights_sha256=hashes[0],
        course=run.course,
        load=load,
        machine=machine,
    )


class _TimedSampler(WindowSampler):
    """Adds up how long it takes to draw."""

    drawing_s = 0.0

    def training(self, generator: np.random.Generator, batch: int) -> TrainingBatch:
        """See `WindowSampler.training`."""
        begin = time.perf_counter()
        drawn = super().training(generator, batch)
        self.drawing_s += time.perf_counter() - begin
        return drawn


class _Run:
    """One training run that is looked at now and then."""

    def __init__(self, dataset: Dataset, load: Load) -> None:
        self.sampler = _sampler(dataset)
        self._fit = _fit(dataset, self.sampler, load.seed)
        self._budget_s = 60 * load.minutes
        self._watched = _held_out(self.sampler, load.seed)
        self.planned = max(1, int(self._budget_s / _step_s(dataset, load.seed)))
        self.sampler.drawing_s = 0.0
        self.train_step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.reached_s: float | None = None
        self.l1 = float("inf")
        self.course = list[tuple[float, float]]()

    @property
    def samples_per_s(self) -> float:
        """Windows trained on a second."""
        return self.train_step * _PRESET.batch / self.seconds

    def go(self, on_check: Callable[[float, float], None]) -> None:
        """Train until the budget or the planned train steps end."""
        for check in range(1, _CHECKS + 1):
            begin, cpu = time.perf_counter(), time.process_time()
            while self.train_step < self.planned * check // _CHECKS:
                self.train_step += 1
                self._fit.train_step(self.train_step, self.planned)
                if self.seconds + time.perf_counter() - begin >= self._budget_s:
                    break
            self.seconds += time.perf_counter() - begin
            self.cpu_seconds += time.process_time() - cpu
            self._look()
            on_check(check / _CHECKS, self.l1)
            if self.seconds >= self._budget_s:
                return

    def _look(self) -> None:
        self.l1 = reconstruction_l1(self._fit, self._watched)
        self.course.append((round(self.seconds, 1), round(self.l1, 4)))
        if self.reached_s is None and self.l1 <= PAPER_L1:
            self.reached_s = self.seconds


@torch.no_grad()
def reconstruction_l1(fit: Fit, batch: TrainingBatch) -> float:
    """Return the mean |x - x0|, over entities, x0 by one call of the averaged network from the paper's start."""
    denoiser = Denoiser(fit.denoiser.config)
    denoiser.load_state_dict(fit.average)
    denoiser.eval()
    timestep = torch.full((len(batch.x),), PAPER_START)
    x_t = fit.schedule.q_sample(batch.x, timestep, batch.noise) * batch.valid
    noise = denoiser(x_t, batch.valid, timestep, denoiser.encode_condition(batch.commands, batch.entity))
    x0 = fit.schedule.predict_x0(x_t, timestep, noise).clamp(-EXPECTED_LIMIT, EXPECTED_LIMIT)
    off, present = (values.sum((1, 2)) for values in ((batch.x - x0).abs() * batch.valid, batch.valid))
    own = [batch.entity == entity for entity in batch.entity.unique()]  # type: ignore[no-untyped-call]
    return float(np.mean([(off[of_one].sum() / present[of_one].sum().clamp(min=1)).item() for of_one in own]))


def _dataset(load: Load) -> Dataset:
    if load.data is None:
        return make_dataset(FEW_NUMERIC, make_values(FEW_NUMERIC, _MADE_ENTITIES, _MADE_ROWS, load.seed))
    return read_dataset(Path(load.data) / _FILE)


def _sampler(dataset: Dataset) -> _TimedSampler:
    return _TimedSampler(dataset, measure_scaling(dataset), _PRESET.geometry, _PRESET.timesteps)


def _held_out(sampler: WindowSampler, seed: int) -> TrainingBatch:
    windows = sampler.validation(np.random.default_rng([_L1_SEED, seed]), _L1_WINDOWS)
    if windows is None:
        raise UsageError("a series of more rows is wanted: none is long enough to hold any back")
    return windows


def _fit(dataset: Dataset, sampler: WindowSampler, seed: int) -> Fit:
    numeric, commands, entities = len(dataset.numeric), len(dataset.commands), len(dataset.series)
    config = _PRESET.denoiser(numeric, commands, entities, _PRESET.geometry.length)
    return Fit(config, _PRESET, sampler, seed, ALONE, "cpu")


def _step_s(dataset: Dataset, seed: int) -> float:
    """Measure a train step of a network that is thrown away, without the first, which warms up."""
    fit = _fit(dataset, _sampler(dataset), seed)
    fit.train_step(1, _PROBE_STEPS)
    begin = time.perf_counter()
    for number in range(2, _PROBE_STEPS + 1):
        fit.train_step(number, _PROBE_STEPS)
    return (time.perf_counter() - begin) / (_PROBE_STEPS - 1)


def _plain_samples_per_s(dataset: Dataset, seed: int) -> float:
    """Measure the loop as it is first written: one window after the other, its gradient added to those before."""
    sampler = _sampler(dataset)
    fit, generator = _fit(dataset, sampler, seed), np.random.default_rng(seed)
    begin = time.perf_counter()
    for _ in range(_PROBE_STEPS // 4):
        fit.optimizer.zero_grad()
        for _ in range(_PRESET.batch):
            _add_gradient(fit, sampler.training(generator, 1))
        fit.optimizer.step()
    return _PROBE_STEPS // 4 * _PRESET.batch / (time.perf_counter() - begin)


def _add_gradient(fit: Fit, batch: TrainingBatch) -> None:
    x_t = fit.schedule.q_sample(batch.x, batch.timestep, batch.noise) * batch.valid
    condition = fit.denoiser.encode_condition(batch.commands, batch.entity)
    error = (fit.denoiser(x_t, batch.valid, batch.timestep, condition) - batch.noise).square() * batch.valid
    (error.sum() / batch.present()).backward()


def _weights_sha256(dataset: Dataset, seed: int) -> str:
    weights = train(dataset, name="bench", preset=_PRESET, train_steps=_HASH_STEPS, seed=seed).weights
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()
