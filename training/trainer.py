"""The training loop (paper, section 4.2). Knows no threshold and no checkpoint's layout.

The same seed and number of train steps give the same weights on one machine, whether the run was interrupted or not.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from torch import Tensor

from detector.denoiser import encodes_entities
from detector.manifest import CompanionConfig, DenoiserConfig, ScoringConfig, TrainingRecord
from stream.errors import UsageError
from stream.grid import Geometry
from training.companions import companions_for, fit_companions
from training.context import encode_entities
from training.datasets import Dataset, fingerprint
from training.fit import Fit
from training.parallel import ALONE, Ranks
from training.presets import PRESETS, Preset
from training.sampling import WindowSampler
from training.scaling import Scaling, measure_scaling
from training.train_state import RunIdentity, TrainState, load_state, save_state

_REPORTS = 50
_PROBE_STEPS = 8

_log = structlog.get_logger(__name__)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is.

    losses: of every train step since the last report, so that all reports together are the loss curve; loss: their
    mean. validation: the averaged weights' loss on held-out rows.
    """

    train_step: int
    train_steps: int
    loss: float
    losses: list[float]
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
    companions: CompanionConfig | None = None


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
    ranks: Ranks = ALONE,
    warm: Mapping[str, Tensor] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """Fit a denoiser to a data set.

    The number of train steps is `train_steps`, else the preset's epochs, else what fits into `minutes`, which then are
    a hard limit. With `state_folder`, progress is kept there and a run of the same settings goes on where it stopped.
    The `joined` processes of `ranks` share the work and all return the same weights; the leading one alone reports and
    saves. warm: an earlier model's weights, to begin with where they fit held-out rows better than drawn ones.
    Raises FloatingPointError if the loss is no number any more.
    """
    label, plan = _choose(preset)
    geometry = geometry or plan.geometry
    config = plan.denoiser(len(dataset.numeric), len(dataset.commands), len(dataset.series), geometry.length)
    scaling = measure_scaling(dataset)
    sampler = WindowSampler(dataset, scaling, geometry, config.timesteps, contexts=encodes_entities(config))
    data_sha256 = fingerprint(dataset)
    settings = msgspec.json.encode([plan, geometry, config, *([_sha256(warm)] if warm else [])]).decode()
    identity = RunIdentity(data_sha256=data_sha256, preset=label, settings=settings, seed=seed)

    device = ranks.device(device)

    def start() -> Fit:
        return Fit(config, plan, sampler, seed, ranks, device)

    fit = start()
    if warm is not None:
        _log.info("training_begins", warm=fit.begin_from(warm))
    state = _resume(fit, state_folder, identity)
    budget_s = math.inf
    if state is None:
        total = train_steps or _epochs_steps(plan, fit)
        if total is None:
            budget_s = minutes * 60
            total = _affordable_steps(start(), budget_s)
        state = TrainState(identity=identity, train_step=0, train_steps=total, elapsed_s=0.0)
    state, metrics = _loop(fit, state, budget_s, state_folder, on_progress)
    ranks.agree(state.train_step, device)  # nobody leaves before the last state is saved
    record = TrainingRecord(
        preset=label,
        seed=seed,
        minutes=round(state.elapsed_s / 60, 3),
        train_steps=state.train_step,
        rows=dataset.rows,
        data_sha256=data_sha256,
        metrics=metrics,
    )
    scoring, weights, companions = plan.scoring_for(geometry), fit.averaged_weights(), plan.companions
    if encodes_entities(config):
        weights |= encode_entities(config, weights, sampler)
    if companions is not None:
        companions = companions_for(companions, config.numeric)
        weights |= fit_companions(companions, dataset, scaling, seed)
    return TrainedModel(name, dataset, scaling, geometry, config, scoring, weights, record, companions)


def _choose(preset: str | Preset) -> tuple[str, Preset]:
    if isinstance(preset, Preset):
        return "custom", preset
    if preset not in PRESETS:
        raise UsageError(f"preset wants one of {', '.join(PRESETS)}, got {preset!r}")
    return preset, PRESETS[preset]


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of what a run begins with: an interrupted run goes on only with the same."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _epochs_steps(plan: Preset, fit: Fit) -> int | None:
    """Return the preset's epochs as train steps."""
    return None if plan.epochs is None else max(1, round(plan.epochs * fit.epoch_steps))


def _affordable_steps(fit: Fit, budget_s: float) -> int:
    """Measure a few train steps on a network that is thrown away afterwards."""
    fit.train_step(1, _PROBE_STEPS)
    begin = time.perf_counter()
    for number in range(2, _PROBE_STEPS + 1):
        fit.train_step(number, _PROBE_STEPS)
    per_step = (time.perf_counter() - begin) / (_PROBE_STEPS - 1)
    return max(1, int(fit.ranks.agree(budget_s / per_step, fit.device)))


def _resume(fit: Fit, folder: Path | None, identity: RunIdentity) -> TrainState | None:
    found = load_state(folder, identity) if folder else None
    train_step = found[0].train_step if found else 0
    if train_step != fit.ranks.agree(train_step, fit.device):
        raise UsageError(f"{folder} holds another state than the leading process found; use a folder that all share")
    if found is None:
        return None
    state, tensors = found
    fit.restore(tensors, state.train_step)
    _log.info("training_resumed", train_step=state.train_step, train_steps=state.train_steps)
    return state


def _loop(
    fit: Fit, state: TrainState, budget_s: float, folder: Path | None, on_progress: Callable[[Progress], None]
) -> tuple[TrainState, dict[str, float]]:
    """Run the remaining train steps, reporting and saving now and then; stop early where the budget ends first."""
    total, before = state.train_steps, state.elapsed_s
    every = max(1, total // _REPORTS)
    begin, losses, metrics = time.perf_counter(), list[float](), dict[str, float]()
    for number in range(state.train_step + 1, total + 1):
        losses.append(fit.train_step(number, total))
        elapsed = before + time.perf_counter() - begin
        if math.isfinite(budget_s):
            elapsed = fit.ranks.agree(elapsed, fit.device)
        spent = elapsed >= budget_s
        if number % every and number != total and not spent:
            continue
        state = msgspec.structs.replace(state, train_step=number, elapsed_s=elapsed)
        if fit.ranks.leads:
            metrics = _report(fit, state, losses, on_progress)
        losses = []
        if folder and fit.ranks.leads:
            save_state(folder, state, fit.tensors())
        if spent:
            _log.warning("training_cut_short", train_step=number, train_steps=total, reason="the time budget ended")
            break
    return state, metrics


def _report(
    fit: Fit, state: TrainState, losses: list[float], on_progress: Callable[[Progress], None]
) -> dict[str, float]:
    validation = fit.validate()
    loss = sum(losses) / len(losses)
    progress = Progress(
        train_step=state.train_step,
        train_steps=state.train_steps,
        loss=loss,
        losses=losses,
        validation=validation,
        elapsed_s=state.elapsed_s,
    )
    figures = msgspec.structs.asdict(progress)
    del figures["losses"]
    _log.info("training", **figures)
    on_progress(progress)
    return {"loss": loss} | ({} if validation is None else {"validation": validation})
