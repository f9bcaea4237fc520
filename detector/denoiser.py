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

    def encode_condition(self, commands: Tensor, entity: Tensor, context: Tensor | None = None) -> Tensor:
        """Encode what the reconstruction is conditioned on, once a window, for all timesteps.

        commands: (B, K, L) in {-1 off, 0 missing, 1 on}. entity: (B,) int64, 0 for one never seen. context:
        (B, 2 C + K, L'), other stretches of the windows' entities; where given, a network that encodes entities from
        their data takes the vectors of known ones from it, not from its table.
        Returns the layers' gate inputs, (layers, B, 2 H, L / patch), or (layers, B, 2 H, 1) without commands.
        """
        gates: Tensor = self.condition(commands, entity, context)
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
    """Commands in a dense space plus the entity's vector, projected to every layer's gate at once.

    `entity` is the table of vectors. It is learned, or, but for the unseen entity's row 0, filled after training with
    what `encoder` says of every entity's training data.
    """

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
        self.encoder = ContextEncoder(config) if encodes_entities(config) else None

    def forward(self, commands: Tensor, entity: Tensor, context: Tensor | None) -> Tensor:
        """See `Denoiser.encode_condition`."""
        index = entity if self.use_entity else torch.full_like(entity, UNSEEN_ENTITY)
        vector = self.entity(index)  # (B, H)
        if self.encoder is not None and context is not None:
            vector = torch.where((index == UNSEEN_ENTITY)[:, None], vector, self.encoder(context))
        dense = vector[..., None]  # (B, H, 1)
        if self.commands is not None:
            dense = dense + self.commands(commands)  # (B, H, L)
        gates: Tensor = self.gates(F.silu(dense))
        return gates.view(len(gates), self.layers, -1, gates.shape[-1]).transpose(0, 1)  # (layers, B, 2 H, L)


class ContextEncoder(nn.Module):
    """Say in one vector what an entity is like, from a stretch of its normal data."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Stride so that the mean over time weighs some summaries of 16 slots each."""
        super().__init__()
        self.numeric, width = config.numeric, config.width
        self.inputs = 2 * config.numeric + config.commands * config.use_commands
        self.summaries = nn.Sequential(
            nn.Conv1d(self.inputs, width, 7, stride=4, padding=3),
            nn.SiLU(),
            nn.Conv1d(width, width, 5, stride=4, padding=2),
            nn.SiLU(),
        )
        self.out = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        """Encode x, valid and commands of the stretches, (B, 2 C + K, L), as (B, H)."""
        summaries = self.summaries(context[:, : self.inputs])  # (B, H, L / 16)
        present = context[:, self.numeric : 2 * self.numeric].amax(1, keepdim=True)  # (B, 1, L)
        share = F.adaptive_avg_pool1d(present, summaries.shape[-1])  # (B, 1, L / 16)
        mean = (summaries * share).sum(-1) / share.sum(-1).clamp(min=1e-6)
        vector: Tensor = self.out(mean)
        return vector


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


def encodes_entities(config: DenoiserConfig) -> bool:
    """Say whether the network takes an entity's vector from its data."""
    return config.use_entity and config.entity_source == "context"


def _tanh(x: Tensor) -> Tensor:
    """Compute tanh by the sigmoid, which is several times faster on a CPU."""
    return 2 * torch.sigmoid(2 * x) - 1
