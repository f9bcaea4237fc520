"""The LSTM encoder-decoder of Malhotra et al. (2016).

Our reading: the decoder sees the encoder's last state alone and not its own last output, windows of all entities train
one network, and a residual counts in units of what is usual for its entity and channel rather than by a Gaussian.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.baselines.protocol import Scorer
from training.baselines.reconstruction import LENGTH, fit_reconstruction
from training.datasets import Dataset

_LEARNING_RATE = 3e-3
_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class LSTMAutoencoder:
    """Residual of a window that has gone through one state vector."""

    seed: int = 0
    minutes: float = 2.0
    train_steps: int | None = None
    width: int = 48
    lookahead: int = LENGTH - 1

    def fit(self, dataset: Dataset) -> Scorer:
        """See `Baseline`."""
        return fit_reconstruction(
            dataset,
            lambda inputs, outputs: _Network(inputs, outputs, self.width),
            seed=self.seed,
            minutes=self.minutes,
            train_steps=self.train_steps,
        )


class EncoderDecoder(nn.Module):
    """Encode a window forwards, decode it backwards."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.encoder = nn.LSTM(inputs, width, batch_first=True)
        self.decoder = nn.LSTM(width, width, batch_first=True)
        self.output = nn.Linear(width, outputs)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the numeric channels (B, L, C) of windows (B, L, C + K)."""
        _, state = self.encoder(windows)
        code = state[0].transpose(0, 1).expand(-1, windows.shape[1], -1)  # (B, L, H)
        backwards, _ = self.decoder(code, state)
        expected: Tensor = self.output(backwards).flip(1)
        return expected


class _Network:
    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        self._model = EncoderDecoder(inputs, outputs, width)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=_LEARNING_RATE)
        self._outputs = outputs

    def train_step(self, windows: Tensor) -> None:
        loss = (self._model(windows) - windows[..., : self._outputs]).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), _GRADIENT_NORM)
        self._optimizer.step()

    @torch.no_grad()
    def reconstruct(self, windows: Tensor) -> Tensor:
        expected: Tensor = self._model(windows)
        return expected
