"""One training run of Tables 5 and 6 and Figure 5: its loss curve, how well it reconstructs and how fast."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from detector.denoiser import Denoiser
from detector.diffusion import Denoise, NoiseSchedule, ancestral, ddim
from training.datasets import Dataset
from training.paper.scale import Scale
from training.presets import LearningRate, Preset
from training.sampling import TrainingBatch, WindowSampler
from training.trainer import Progress, TrainedModel, train

# Rows of the window whose reconstruction is timed, whatever the scale: the paper's frame.
TIMED_ROWS = 2000
_TIMED_RUNS = 7
# Held-out windows that are reconstructed.
_WINDOWS = 64
# The last 500 of the paper's 800 epochs.
LAST_SHARE = 500 / 800


class CascadeRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of one network gave.

    losses: of each train step. l1: mean |x - x0| of held-out rows, by Algorithm 2; l1_deterministic: by the product's
    sampler. l2_mean, l2_deviation: of the losses of the last part. seconds: a reconstruction of a window of the
    paper's length, median of several. steps_per_epoch: train steps that show every frame once.
    """

    layer: str
    layers: int
    learning_rate_course: str
    parameters: int
    losses: list[float]
    l1: float
    l1_deterministic: float
    l2_mean: float
    l2_deviation: float
    seconds: float
    training_s: float
    steps_per_epoch: int


def run_cascade(
    dataset: Dataset, scale: Scale, layer: str, layers: int, course: LearningRate, *, seed: int, device: str
) -> CascadeRun:
    """Train a cascade on a data set and measure it."""
    fields: dict[str, Any] = {"layer": layer, "layers": layers, "learning_rate_course": course}
    preset = msgspec.structs.replace(scale.cascade, **fields)
    losses = list[float]()

    def collect(progress: Progress) -> None:
        losses.extend(progress.losses)

    begin = time.perf_counter()
    trained = train(
        dataset,
        name="cascade",
        preset=preset,
        train_steps=scale.cascade_steps,
        seed=seed,
        device=device,
        on_progress=collect,
    )
    training_s = time.perf_counter() - begin
    sampler = WindowSampler(dataset, trained.scaling, trained.geometry, trained.denoiser.timesteps)
    last = losses[-max(1, round(LAST_SHARE * len(losses))) :]
    denoiser = _load(trained, device)
    l1, l1_deterministic = _reconstruction_l1(denoiser, preset, sampler, seed, device)
    return CascadeRun(
        layer=layer,
        layers=layers,
        learning_rate_course=course,
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        losses=losses,
        l1=l1,
        l1_deterministic=l1_deterministic,
        l2_mean=float(np.mean(last)),
        l2_deviation=float(np.std(last)),
        seconds=_seconds_a_window(denoiser, preset, device),
        training_s=training_s,
        steps_per_epoch=-(-len(sampler.frames(preset.hop_ratio or 1)) // preset.batch),
    )


def first_stays_below(losses: Sequence[float], level: float, span: int) -> int | None:
    """Return the train step, counted from 1, from which on the mean of the last `span` losses is never above a level.

    A mean needs all its losses; None if the run ends above the level.
    """
    span = min(span, len(losses))
    means = np.convolve(losses, np.ones(span) / span, "valid")
    above = np.flatnonzero(means > level)
    first = int(above[-1]) + 1 if len(above) else 0
    return None if first == len(means) else first + span


def _load(trained: TrainedModel, device: str) -> Denoiser:
    denoiser = Denoiser(trained.denoiser)
    denoiser.load_state_dict(trained.weights)
    return denoiser.to(device).eval()


@torch.inference_mode()
def _reconstruction_l1(
    denoiser: Denoiser, preset: Preset, sampler: WindowSampler, seed: int, device: str
) -> tuple[float, float]:
    """Reconstruct held-out windows by Algorithm 2 and by the deterministic sampler, from the same noise."""
    generator = np.random.default_rng([seed, 1])
    batch = sampler.validation(generator, _WINDOWS) or sampler.training(generator, _WINDOWS)
    draws = generator.standard_normal((preset.scoring.starts[0] - 1, *batch.x.shape), dtype=np.float32)
    parts = [slice(first, first + preset.batch) for first in range(0, _WINDOWS, preset.batch)]
    errors = torch.stack(
        [
            _absolute_errors(denoiser, preset, batch.part(part).to(device), torch.from_numpy(draws[:, part]).to(device))
            for part in parts
        ]
    ).sum(0)
    by_algorithm_2, deterministic = (errors / batch.present()).tolist()
    return by_algorithm_2, deterministic


def _absolute_errors(denoiser: Denoiser, preset: Preset, batch: TrainingBatch, draws: Tensor) -> Tensor:
    """Return the summed |x - x0| over present values of both samplers, (2,)."""
    config, start = denoiser.config, preset.scoring.starts[0]
    schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last).to(batch.x.device)
    timestep = torch.full_like(batch.timestep, start)
    x_t = schedule.q_sample(batch.x, timestep, batch.noise)
    denoise = _denoise(denoiser, batch)
    found = (
        ancestral(schedule, denoise, x_t, start, draws),
        ddim(schedule, denoise, x_t, timestep, preset.scoring.sampler_steps),
    )
    return torch.stack([((batch.x - x0).abs() * batch.valid).sum() for x0 in found])


def _denoise(denoiser: Denoiser, batch: TrainingBatch) -> Denoise:
    condition = denoiser.encode_condition(batch.commands, batch.entity)

    def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
        return denoiser(x_t * batch.valid, batch.valid, timestep, condition)  # type: ignore[no-any-return]

    return denoise


@torch.inference_mode()
def _seconds_a_window(denoiser: Denoiser, preset: Preset, device: str) -> float:
    """Time the reconstruction of one window of TIMED_ROWS rows by all timesteps from the start."""
    config, start = denoiser.config, preset.scoring.starts[0]
    denoiser.prepare(TIMED_ROWS)
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))

    one = torch.ones(1, dtype=torch.int64)
    shape = 1, config.numeric, TIMED_ROWS
    commands = normal(1, config.commands, TIMED_ROWS)
    batch = TrainingBatch(normal(*shape), torch.ones(shape), commands, one, start * one, normal(*shape)).to(device)
    schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last).to(device)
    times = []
    for _ in range(_TIMED_RUNS + 1):
        begin = time.perf_counter()
        x_t = schedule.q_sample(batch.x, batch.timestep, batch.noise)
        denoise = _denoise(denoiser, batch)
        ddim(schedule, denoise, x_t, batch.timestep, preset.scoring.sampler_steps).sum().item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first one warms up
