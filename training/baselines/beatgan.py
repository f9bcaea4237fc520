"""BeatGAN (Zhou et al. 2019): a convolutional autoencoder that a discriminator keeps realistic.

The generator minimises its squared error plus the distance between the discriminator's features of the window and of
its reconstruction (pairwise feature matching); the discriminator learns to tell them apart. Our reading: networks of a
telemetry window's size, commands go into both networks, and all entities train one pair.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.baselines.protocol import Scorer
from training.baselines.reconstruction import LENGTH, fit_reconstruction
from training.datasets import Dataset

# Weight of the adversarial feature matching, and Adam's settings, as in the paper.
_MATCHING = 1.0
_LEARNING_RATE = 1e-3
_BETAS = (0.5, 0.999)
_SLOPE = 0.2
# Three halvings leave so many positions of a window.
_CODE_LENGTH = LENGTH // 8


@dataclass(frozen=True)
class BeatGAN:
    """Residual of a window that has gone through the adversarially trained autoencoder."""

    seed: int = 0
    minutes: float = 2.0
    train_steps: int | None = None
    width: int = 24
    code: int = 16
    lookahead: int = LENGTH - 1

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_reconstruction(
            dataset,
            lambda inputs, outputs: _Network(inputs, outputs, self.width, self.code),
            seed=self.seed,
            minutes=self.minutes,
            train_steps=self.train_steps,
        )


def _halvings(channels: int, width: int) -> nn.Sequential:
    """Map windows (B, channels, L) to features (B, 4 width, L / 8)."""
    sizes = [channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Conv1d(before, after, 4, 2, 1), nn.GroupNorm(1, after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _doublings(channels: int, width: int) -> nn.Sequential:
    """Map features (B, 4 width, L / 8) to windows (B, channels, L)."""
    layers: list[nn.Module] = []
    for before, after in ((4 * width, 2 * width), (2 * width, width)):
        layers += [nn.ConvTranspose1d(before, after, 4, 2, 1), nn.GroupNorm(1, after), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers, nn.ConvTranspose1d(width, channels, 4, 2, 1))


class Discriminator(nn.Module):
    """Tell windows from reconstructions."""

    def __init__(self, channels: int, width: int) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.features = _halvings(channels, width)
        self.verdict = nn.Conv1d(4 * width, 1, _CODE_LENGTH)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit (B,) that windows (B, C + K, L) are real, and their features."""
        features = self.features(windows)
        return self.verdict(features)[:, 0, 0], features


class _Network:
    def __init__(self, inputs: int, outputs: int, width: int, code: int) -> None:
        self._generator = nn.Sequential(
            _halvings(inputs, width),
            nn.Conv1d(4 * width, code, _CODE_LENGTH),
            nn.ConvTranspose1d(code, 4 * width, _CODE_LENGTH),
            _doublings(outputs, width),
        )
        self._discriminator = Discriminator(inputs, width)
        self._outputs = outputs
        self._adam, self._adam_discriminator = (
            torch.optim.Adam(part.parameters(), lr=_LEARNING_RATE, betas=_BETAS)
            for part in (self._generator, self._discriminator)
        )

    def train_step(self, windows: Tensor) -> None:
        real = windows.transpose(1, 2)  # (B, C + K, L)
        numeric, commands = real[:, : self._outputs], real[:, self._outputs :]
        expected = self._generator(real)
        made = torch.cat([expected, commands], 1)
        self._train_discriminator(real, made.detach())
        matching = (self._discriminator(made)[1] - self._discriminator(real)[1].detach()).square().mean()
        loss: Tensor = (expected - numeric).square().mean() + _MATCHING * matching
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()

    def _train_discriminator(self, real: Tensor, made: Tensor) -> None:
        verdict_real, verdict_made = self._discriminator(real)[0], self._discriminator(made)[0]
        loss = F.softplus(-verdict_real).mean() + F.softplus(verdict_made).mean()
        self._adam_discriminator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam_discriminator.step()

    @torch.no_grad()
    def reconstruct(self, windows: Tensor) -> Tensor:
        expected: Tensor = self._generator(windows.transpose(1, 2)).transpose(1, 2)
        return expected
