"""The network of the paper's Figure 1: a DiffWave cascade with S4 layers that predicts the noise in a window.

Built from a `DenoiserConfig` alone. Knows no schedule, no scaling and no entity's name.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint as recomputed

from detector.manifest import DenoiserConfig
from detector.s4 import BidirectionalS4

UNSEEN_ENTITY = 0


class Denoiser(nn.Module):
    """Predict the noise in numeric channels, given the timestep and the condition.

    With `recompute` set, a backward pass computes each layer's activations again instead of keeping those of all.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        """Draw the weights from torch's global generator; the output starts at zero."""
        super().__init__()
        self.config = config
        self.recompute = False
        width = config.width
        self.condition = Condition(config)
        self.timestep = TimestepEmbedding(config)
        self.input = nn.Conv1d(2 * config.numeric, width, config.patch, stride=config.patch)
        self.layers = nn.ModuleList(
            CascadeLayer(config, dilation=2 ** (layer % config.dilation_cycle)) for layer in range(config.layers)
        )
        self.head = nn.Conv1d(width, width, 1)
        self.output = nn.ConvTranspose1d(width, config.numeric, config.patch, stride=config.patch)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def encode_condition(self, commands: Tensor, entity: Tensor) -> Tensor:
        """Encode what the reconstruction is conditioned on, once a window, for all timesteps.

        commands: (B, K, L) in {-1 off, 0 missing, 1 on}. entity: (B,) int64, 0 for one never seen.
        Returns the layers' gate inputs, (layers, B, 2 H, L / patch), or (layers, B, 2 H, 1) without commands.
        """
        gates: Tensor = self.condition(commands, entity)
        return gates

    def forward(self, x_t: Tensor, valid: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Return the predicted noise (S B, C, L).

        x_t: (S B, C, L), zero where missing. valid: same shape, 1 where present. timestep: (S B,) in 1..T.
        condition: of B windows; with S > 1 the batch axis holds S runs of the same windows.
        """
        x = F.relu(self.input(torch.cat([x_t, valid], 1)))  # (S B, H, L / patch)
        shifts = self.timestep(timestep)  # (layers, S B, H, 1)
        skips = torch.zeros_like(x)
        for layer, shift, gate in zip(self.layers, shifts, condition, strict=True):
            x, skip = self._run(layer, x, shift, gate)
            skips = skips + skip
        noise: Tensor = self.output(F.relu(self.head(skips / math.sqrt(len(self.layers)))))
        return noise

    def _run(self, layer: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.recompute and torch.is_grad_enabled():
            return recomputed(layer, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]

    def prepare(self, length: int) -> None:
        """Cache every convolution kernel for inference on windows of this length."""
        for module in self.modules():
            if isinstance(module, BidirectionalS4):
                module.prepare(length // self.config.patch)


class Condition(nn.Module):
    """Commands in a dense space plus the entity's embedding, projected to every layer's gate at once."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Leave out the parts that the config switches off."""
        super().__init__()
        width = config.width
        self.layers = config.layers
        self.use_entity = config.use_entity
        self.commands = (
            nn.Sequential(
                nn.Conv1d(config.commands, width, config.patch, config.patch), nn.SiLU(), nn.Conv1d(width, width, 1)
            )
            if config.use_commands and config.commands
            else None
        )
        self.entity = nn.Embedding(config.entities + 1, width)
        self.gates = nn.Conv1d(width, config.layers * 2 * width, 1)

    def forward(self, commands: Tensor, entity: Tensor) -> Tensor:
        """See `Denoiser.encode_condition`."""
        index = entity if self.use_entity else torch.full_like(entity, UNSEEN_ENTITY)
        dense = self.entity(index)[..., None]  # (B, H, 1)
        if self.commands is not None:
            dense = dense + self.commands(commands)  # (B, H, L)
        gates: Tensor = self.gates(F.silu(dense))
        return gates.view(len(gates), self.layers, -1, gates.shape[-1]).transpose(0, 1)  # (layers, B, 2 H, L)


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep through an MLP, one shift a layer (DiffWave, Section 3.1)."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Space the frequencies geometrically from 1 to 1 / 10,000."""
        super().__init__()
        width = config.width
        self.layers = config.layers
        frequency = torch.exp(-math.log(10_000) * torch.arange(width // 2) / max(width // 2 - 1, 1))
        self.register_buffer("frequency", frequency, persistent=False)
        self.frequency: Tensor
        self.mlp = nn.Sequential(
            nn.Linear(width // 2 * 2, 2 * width), nn.SiLU(), nn.Linear(2 * width, config.layers * width)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed timesteps (B,) as shifts (layers, B, H, 1)."""
        angle = timestep[:, None] * self.frequency
        shift: Tensor = self.mlp(torch.cat([angle.sin(), angle.cos()], -1))
        return shift.view(len(shift), self.layers, -1, 1).transpose(0, 1)


class CascadeLayer(nn.Module):
    """Dilated convolution, gate, S4 or its substitute, then a residual for the next layer and a skip for the head."""

    def __init__(self, config: DenoiserConfig, dilation: int) -> None:
        """Pad so that the window keeps its length and every slot sees both ways."""
        super().__init__()
        width, size = config.width, config.kernel_size
        self.dilated = nn.Conv1d(width, 2 * width, size, dilation=dilation, padding=dilation * (size // 2))
        self.s4 = (
            nn.Conv1d(width, width, size, dilation=dilation, padding=dilation * (size // 2))
            if config.layer == "res"
            else BidirectionalS4(config.layer, width, config.state)
        )
        self.out = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor, shift: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Return residual and skip, both (S B, H, L). shift: (S B, H, 1). gate: (B, 2 H, L or 1)."""
        h = self.dilated(x + shift)  # (S B, 2 H, L)
        h = h.view(-1, len(gate), *h.shape[1:]) + gate  # (S, B, 2 H, L)
        signal, opening = h.flatten(0, 1).chunk(2, 1)
        h = self.out(F.gelu(self.s4(_tanh(signal) * torch.sigmoid(opening))))
        residual, skip = h.chunk(2, 1)
        return (x + residual) * math.sqrt(0.5), skip


def _tanh(x: Tensor) -> Tensor:
    """Compute tanh by the sigmoid, which is several times faster on a CPU."""
    return 2 * torch.sigmoid(2 * x) - 1
