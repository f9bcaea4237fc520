"""The training loop (paper, Algorithm 1 and section 4.2). Knows no threshold and no checkpoint's layout.

Every train step draws from a generator of its own, seeded by (seed, train step): the same seed and number of train
steps give the same weights on one machine, whether the run was interrupted or not.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import structlog
import torch
from torch import Tensor

from detector.denoiser import Denoiser
from detector.diffusion import NoiseSchedule
from detector.manifest import DenoiserConfig, ScoringConfig, TrainingRecord
from stream.errors import UsageError
from stream.grid import Geometry
from training.datasets import Dataset, fingerprint
from training.presets import PRESETS, Preset
from training.sampling import TrainingBatch, WindowSampler
from training.scaling import Scaling, measure_scaling
from training.train_state import RunIdentity, TrainState, load_state, save_state

GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.25
EMA_DECAY = 0.998
_VALIDATION_WINDOWS = 64
# No train step's generator is seeded so.
_VALIDATION_STEP = 2**62
_REPORTS = 50
_PROBE_STEPS = 8

_log = structlog.get_logger(__name__)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. loss: mean since the last report. validation: the averaged weights' loss on held-out rows."""

    train_step: int
    train_steps: int
    loss: float
    validation: float | None
    elapsed_s: float


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Weights and what they were trained for: a checkpoint but for its calibration."""

    name: str
    dataset: Dataset
    scaling: Scaling
    geometry: Geometry
    denoiser: DenoiserConfig
    scoring: ScoringConfig
    weights: dict[str, Tensor]
    training: TrainingRecord


def train(
    dataset: Dataset,
    *,
    name: str,
    preset: str | Preset = "small",
    minutes: float = 5.0,
    train_steps: int | None = None,
    seed: int = 0,
    geometry: Geometry | None = None,
    state_folder: Path | None = None,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """Fit a denoiser to a data set.

    The number of train steps is `train_steps`, else the preset's epochs, else what fits into `minutes`, which then are
    a hard limit. With `state_folder`, progress is kept there and a run of the same settings goes on where it stopped.
    Raises FloatingPointError if the loss is no number any more.
    """
    label, plan = _choose(preset)
    geometry = geometry or plan.geometry
    config = plan.denoiser(len(dataset.numeric), len(dataset.commands), len(dataset.series), geometry.length)
    scaling = measure_scaling(dataset)
    sampler = WindowSampler(dataset, scaling, geometry, config.timesteps)
    data_sha256 = fingerprint(dataset)
    settings = msgspec.json.encode([plan, geometry, config]).decode()
    identity = RunIdentity(data_sha256=data_sha256, preset=label, settings=settings, seed=seed)

    def start() -> _Fit:
        return _Fit(config, plan, sampler, seed, device)

    fit = start()
    state = _resume(fit, state_folder, identity)
    if state is None:
        fixed = train_steps or _epoch_steps(plan, sampler.rows)
        budget_s = math.inf if fixed else minutes * 60
        total = fixed or _affordable_steps(start(), budget_s)
        state = TrainState(identity=identity, train_step=0, train_steps=total, elapsed_s=0.0)
    else:
        budget_s = math.inf
    state, metrics = _loop(fit, state, budget_s, state_folder, on_progress)
    record = TrainingRecord(
        preset=label,
        seed=seed,
        minutes=round(state.elapsed_s / 60, 3),
        train_steps=state.train_step,
        rows=dataset.rows,
        data_sha256=data_sha256,
        metrics=metrics,
    )
    scoring = plan.scoring_for(geometry)
    return TrainedModel(name, dataset, scaling, geometry, config, scoring, fit.averaged_weights(), record)


class _Fit:
    """Network, averaged network and optimiser of one run."""

    def __init__(self, config: DenoiserConfig, plan: Preset, sampler: WindowSampler, seed: int, device: str) -> None:
        """Draw the first weights from the seed, leaving torch's global generator as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.denoiser = Denoiser(config).to(device)
        self.schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last).to(device)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.average = {name: tensor.clone() for name, tensor in self.denoiser.state_dict().items()}
        self._plan, self._sampler, self._seed, self._device = plan, sampler, seed, device

    def train_step(self, number: int, total: int) -> float:
        """Run the train step of this number, counted from 1, and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._plan.learning_rate * learning_rate_share(number, total)
        batch = self._sampler.training(self._generator(number), self._plan.batch)
        loss = self._loss(self.denoiser, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at train step {number}; lower the learning rate")
        self._follow(number)
        return loss.item()

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the averaged network's loss on held-out rows, always the same ones; None without such rows."""
        batch = self._sampler.validation(self._generator(_VALIDATION_STEP), _VALIDATION_WINDOWS)
        if batch is None:
            return None
        averaged = copy.deepcopy(self.denoiser)
        averaged.load_state_dict(self.average)
        return self._loss(averaged.eval(), batch).item()

    def averaged_weights(self) -> dict[str, Tensor]:
        """Return the exponential moving average of the weights."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.average.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that changes from one train step to the next, by name."""
        parameters = dict(self.denoiser.named_parameters())
        moments = {
            f"{kind}.{name}": self.optimizer.state[parameter][kind]
            for name, parameter in parameters.items()
            for kind in ("exp_avg", "exp_avg_sq")
        }
        weights = {f"weights.{name}": tensor for name, tensor in self.denoiser.state_dict().items()}
        return weights | {f"average.{name}": tensor for name, tensor in self.average.items()} | moments

    def restore(self, tensors: dict[str, Tensor], train_step: int) -> None:
        """Undo `tensors`."""
        self.denoiser.load_state_dict({name: tensors[f"weights.{name}"] for name in self.average})
        self.average = {name: tensors[f"average.{name}"].to(self._device) for name in self.average}
        for name, parameter in self.denoiser.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(train_step)),
                "exp_avg": tensors[f"exp_avg.{name}"].to(self._device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self._device),
            }

    def _loss(self, denoiser: Denoiser, batch: TrainingBatch) -> Tensor:
        """Compute the paper's MSE of the noise (Eq. 3) over present values."""
        batch = batch.to(self._device)
        x_t = self.schedule.q_sample(batch.x, batch.timestep, batch.noise) * batch.valid
        condition = denoiser.encode_condition(batch.commands, batch.entity)
        error = (denoiser(x_t, batch.valid, batch.timestep, condition) - batch.noise).square()
        loss: Tensor = (error * batch.valid).sum() / batch.valid.sum().clamp(min=1)
        return loss

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Let the average follow, faster in the beginning, when the weights are still far from anything."""
        decay = min(EMA_DECAY, number / (number + 10))
        for name, tensor in self.denoiser.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number])


def learning_rate_share(number: int, total: int) -> float:
    """Return the share of the full learning rate: up for a quarter of the run, then a cosine to zero (section 4.4)."""
    peak = max(1, round(WARM_UP_SHARE * total))
    if number <= peak:
        return number / peak
    return 0.5 * (1 + math.cos(math.pi * (number - peak) / max(1, total - peak)))


def _choose(preset: str | Preset) -> tuple[str, Preset]:
    if isinstance(preset, Preset):
        return "custom", preset
    if preset not in PRESETS:
        raise UsageError(f"preset wants one of {', '.join(PRESETS)}, got {preset!r}")
    return preset, PRESETS[preset]


def _epoch_steps(plan: Preset, rows: int) -> int | None:
    """Return the preset's epochs as train steps: an epoch shows as many slots as there are rows to fit to."""
    if plan.epochs is None:
        return None
    return max(1, round(plan.epochs * rows / (plan.batch * plan.geometry.length)))


def _affordable_steps(fit: _Fit, budget_s: float) -> int:
    """Measure a few train steps on a network that is thrown away afterwards."""
    fit.train_step(1, _PROBE_STEPS)
    begin = time.perf_counter()
    for number in range(2, _PROBE_STEPS + 1):
        fit.train_step(number, _PROBE_STEPS)
    per_step = (time.perf_counter() - begin) / (_PROBE_STEPS - 1)
    return max(1, int(budget_s / per_step))


def _resume(fit: _Fit, folder: Path | None, identity: RunIdentity) -> TrainState | None:
    found = load_state(folder, identity) if folder else None
    if found is None:
        return None
    state, tensors = found
    fit.restore(tensors, state.train_step)
    _log.info("training_resumed", train_step=state.train_step, train_steps=state.train_steps)
    return state


def _loop(
    fit: _Fit, state: TrainState, budget_s: float, folder: Path | None, on_progress: Callable[[Progress], None]
) -> tuple[TrainState, dict[str, float]]:
    """Run the remaining train steps, reporting and saving now and then; stop early where the budget ends first."""
    total, before = state.train_steps, state.elapsed_s
    every = max(1, total // _REPORTS)
    begin, losses, metrics = time.perf_counter(), list[float](), dict[str, float]()
    for number in range(state.train_step + 1, total + 1):
        losses.append(fit.train_step(number, total))
        elapsed = before + time.perf_counter() - begin
        spent = elapsed >= budget_s
        if number % every and number != total and not spent:
            continue
        state = msgspec.structs.replace(state, train_step=number, elapsed_s=elapsed)
        metrics = _report(fit, state, sum(losses) / len(losses), on_progress)
        losses.clear()
        if folder:
            save_state(folder, state, fit.tensors())
        if spent:
            _log.warning("training_cut_short", train_step=number, train_steps=total, reason="the time budget ended")
            break
    return state, metrics


def _report(fit: _Fit, state: TrainState, loss: float, on_progress: Callable[[Progress], None]) -> dict[str, float]:
    validation = fit.validate()
    progress = Progress(
        train_step=state.train_step,
        train_steps=state.train_steps,
        loss=loss,
        validation=validation,
        elapsed_s=state.elapsed_s,
    )
    _log.info("training", **msgspec.structs.asdict(progress))
    on_progress(progress)
    return {"loss": loss} | ({} if validation is None else {"validation": validation})
