"""One run's network, averaged network, optimiser and train step (paper, Algorithm 1). Knows no budget and no files.

Every train step draws from a generator of its own, seeded by (seed, train step), so that a run depends neither on its
interruptions nor on the number of processes that share it.
"""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.denoiser import Denoiser
from detector.diffusion import NoiseSchedule
from detector.manifest import DenoiserConfig
from stream.errors import UsageError
from training.parallel import Ranks
from training.presets import LearningRate, Preset
from training.sampling import TrainingBatch, WindowSampler

GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.25
EMA_DECAY = 0.998
_VALIDATION_WINDOWS = 64
# No train step's generator is seeded so.
_VALIDATION_STEP = 2**62


class Fit:
    """Network, averaged network and optimiser of one run, in one of the processes that share it."""

    def __init__(
        self, config: DenoiserConfig, plan: Preset, sampler: WindowSampler, seed: int, ranks: Ranks, device: str
    ) -> None:
        """Draw the first weights from the seed, leaving torch's global generator as it was.

        Raises UsageError if the batch has fewer windows than there are processes.
        """
        if plan.batch < ranks.world_size:
            raise UsageError(f"{ranks.world_size} processes want a batch of as many windows, got {plan.batch}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.denoiser = Denoiser(config).to(device)
        self.denoiser.recompute = plan.recompute
        self.schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last).to(device)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.average = {name: tensor.clone() for name, tensor in self.denoiser.state_dict().items()}
        self._frames = None if plan.hop_ratio is None else sampler.frames(plan.hop_ratio)
        self.ranks, self.device = ranks, device
        self._plan, self._sampler, self._seed = plan, sampler, seed

    def begin_from(self, weights: Mapping[str, Tensor]) -> bool:
        """Take these weights to begin with if they fit held-out rows better than the drawn ones; say whether they do.

        They are not taken where there is nothing to compare on or the network is another one.
        """
        drawn = {name: tensor.clone() for name, tensor in self.average.items()}
        if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in drawn.items()}:
            return False
        before = self.validate()
        self.average = {name: tensor.to(self.device).clone() for name, tensor in weights.items()}
        after = self.validate()
        better = before is not None and after is not None and after < before
        self.average = self.average if better else drawn
        self.denoiser.load_state_dict(self.average)
        return better

    @property
    def epoch_steps(self) -> float:
        """Train steps of an epoch: it shows every frame once or, cut at random, as many slots as there are rows."""
        if self._frames is not None:
            return math.ceil(len(self._frames) / self._plan.batch)
        return self._sampler.rows / (self._plan.batch * self._sampler.length)

    def train_step(self, number: int, total: int) -> float:
        """Run the train step of this number, counted from 1, and return its loss."""
        share = learning_rate_share(number, total, self._plan.learning_rate_course)
        for group in self.optimizer.param_groups:
            group["lr"] = self._plan.learning_rate * share
        self.optimizer.zero_grad()
        loss = self._descend(self._draw(number))
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss is {loss} at train step {number}; lower the learning rate")
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self._follow(number)
        return loss

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the averaged network's loss on held-out rows, always the same ones; None without such rows."""
        batch = self._sampler.validation(self._generator(_VALIDATION_STEP), _VALIDATION_WINDOWS)
        if batch is None:
            return None
        averaged = copy.deepcopy(self.denoiser)
        averaged.load_state_dict(self.average)
        return (self._squared_error(averaged.eval(), batch) / batch.present()).item()

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
        self.average = {name: tensors[f"average.{name}"].to(self.device) for name in self.average}
        for name, parameter in self.denoiser.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(train_step)),
                "exp_avg": tensors[f"exp_avg.{name}"].to(self.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.device),
            }

    def _draw(self, number: int) -> TrainingBatch:
        """Draw the whole batch of a train step, the same in every process."""
        generator = self._generator(number)
        if self._frames is None:
            return self._sampler.training(generator, self._plan.batch)
        return self._sampler.framed(generator, self._turn(self._frames, number))

    def _turn(self, frames: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Return the frames of a train step; the last batch of an epoch is filled up with the epoch's first frames."""
        steps, batch = int(self.epoch_steps), self._plan.batch
        epoch, place = divmod(number - 1, steps)
        shuffled = np.random.default_rng([self._seed, epoch, steps]).permutation(len(frames))
        return frames[np.resize(shuffled, steps * batch)[place * batch : (place + 1) * batch]]

    def _descend(self, batch: TrainingBatch) -> float:
        """Leave the whole batch's gradient in the parameters and return its loss: the paper's MSE (Eq. 3)."""
        part = batch.part(self.ranks.part(len(batch.x)))
        loss = self._squared_error(self.denoiser, part) / batch.present()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        gradients = [parameter.grad for parameter in self.denoiser.parameters() if parameter.grad is not None]
        self.ranks.sum([loss, *gradients])
        return loss.item()

    def _squared_error(self, denoiser: Denoiser, batch: TrainingBatch) -> Tensor:
        """Sum the squared error of the predicted noise over present values."""
        batch = batch.to(self.device)
        x_t = self.schedule.q_sample(batch.x, batch.timestep, batch.noise) * batch.valid
        lower = self._plan.precision == "bfloat16"
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=lower):
            condition = denoiser.encode_condition(batch.commands, batch.entity, batch.context)
            noise = denoiser(x_t, batch.valid, batch.timestep, condition)
        error: Tensor = ((noise.float() - batch.noise).square() * batch.valid).sum()
        return error

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Let the average follow, faster in the beginning, when the weights are still far from anything."""
        decay = min(EMA_DECAY, number / (number + 10))
        for name, tensor in self.denoiser.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number])


def learning_rate_share(number: int, total: int, course: LearningRate = "warm_up") -> float:
    """Return the share of the full learning rate: up for a quarter of the run, then a cosine to zero (section 4.4)."""
    if course == "constant":
        return 1.0
    peak = max(1, round(WARM_UP_SHARE * total))
    if number <= peak:
        return number / peak
    return 0.5 * (1 + math.cos(math.pi * (number - peak) / max(1, total - peak)))
