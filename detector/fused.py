"""The denoiser as inference runs it: the function of `denoiser.Denoiser`, rearranged for few and large matrix products.

Activations are laid out (H, n R), positions before runs, with zeros before the first position and after the last. So a
tap of a dilated convolution is one product over all runs, read from shifted columns without a copy, the state space's
convolution is one product with a dense matrix a channel, and what a layer adds to the cascade and to the skips is
accumulated by the products themselves. Letters: n positions of a window, R = S B runs of B windows from S starts, p
slots of a patch. Knows no schedule and no entity's name.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from detector.denoiser import UNSEEN_ENTITY, CascadeLayer, Condition, Denoiser
from detector.s4 import BidirectionalS4

Precision = Literal["float32", "bfloat16"]
# Positions up to which a dense matrix is faster than FFTs (docs/experiments.md, "Speed").
DENSE_POSITIONS: dict[Precision, int] = {"float32": 128, "bfloat16": 512}


class _Layer(NamedTuple):
    """One cascade layer.

    The input of layer l is kept sqrt(2)^l times as large as in `CascadeLayer`, so that adding to it needs no scaling;
    what is constant over positions is kept apart from it. gate: (2 H, H), of the condition. bias: (2 H, 1), of gate and
    dilated convolution. taps: (k, 2 H, H), for that scale. offsets: by how many positions each tap looks ahead. kernel:
    (H, n, n), with D. to_next, to_skips: (H, H). growth: sqrt(2)^l. constant: (H,).
    """

    gate: Tensor
    bias: Tensor
    taps: Tensor
    offsets: tuple[int, ...]
    kernel: Tensor
    to_next: Tensor
    to_skips: Tensor
    growth: float
    constant: Tensor


class FusedDenoiser:
    """Stands in for a `Denoiser` on windows of one length, with the weights that it has when this is built."""

    @torch.no_grad()
    def __init__(self, denoiser: Denoiser, length: int, precision: Precision = "float32") -> None:
        """Rearrange the weights. Raises ValueError for a network that `can_fuse` refuses."""
        if not can_fuse(denoiser, length, precision):
            raise ValueError("only networks of state spaces on short windows can be fused")
        config = denoiser.config
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._patch, self._positions, self._width = config.patch, length // config.patch, config.width
        self._timestep = denoiser.timestep
        self._condition = _Condition(denoiser, self._dtype)
        weight = denoiser.input.weight.to(self._dtype)
        self._values, self._mask = (part.flatten(1).clone() for part in weight.chunk(2, 1))  # (H, C p)
        self._input_bias = self._column(_bias(denoiser.input))
        self._layers, skipped = self._cascade(denoiser)
        self._margin = max(abs(offset) for layer in self._layers for offset in layer.offsets)
        head = denoiser.head.weight[..., 0] / math.sqrt(len(self._layers))
        self._head = head.to(self._dtype)
        self._head_bias = self._column(_bias(denoiser.head) + head @ skipped)
        self._output = denoiser.output.weight.flatten(1).T.to(self._dtype).contiguous()  # (C p, H)
        self._output_bias = self._column(_bias(denoiser.output).repeat_interleave(self._patch))

    def encode_condition(self, commands: Tensor, entity: Tensor) -> Tensor:
        """Encode the condition as what the layers' gates are products of, (H, n or 1, B); see the `Denoiser`'s."""
        return self._condition.encode(commands, entity)

    def __call__(self, x_t: Tensor, valid: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """See `Denoiser.forward`; the runs from one start have one timestep and the same windows in the same order."""
        batch = condition.shape[-1]
        starts, size = len(x_t) // batch, self._positions * len(x_t)
        shape = self._positions, starts, batch
        margin = self._margin * len(x_t)
        shifts = self._timestep(timestep[::batch])[..., 0]  # (layers, S, H)
        mask = torch.addmm(self._input_bias, self._mask, self._patches(valid[None, :batch]))
        values = self._values @ self._patches(x_t.view(starts, batch, *x_t.shape[1:]))  # (H, n R)
        values.view(-1, *shape).add_(mask.view(-1, self._positions, 1, batch))
        cascade = F.pad(values.clamp_(min=0), (margin, margin))
        inner = cascade[:, margin : margin + size]
        skips = torch.zeros_like(values)
        for index, (layer, shift) in enumerate(zip(self._layers, shifts, strict=True)):
            h = self._opened(layer, cascade, shift, condition, shape).sigmoid_()  # (2 H, n R)
            u = h[: self._width].sub_(0.5).mul_(h[self._width :])
            y = torch.bmm(layer.kernel, u.view(self._width, self._positions, -1))
            g = F.gelu(y).view(self._width, -1)
            skips.addmm_(layer.to_skips, g)
            if index + 1 < len(self._layers):
                inner.addmm_(layer.to_next, g)
        head = torch.addmm(self._head_bias, self._head, skips).clamp_(min=0)
        noise = torch.addmm(self._output_bias, self._output, head).view(-1, self._patch, *shape)
        return noise.permute(3, 4, 0, 2, 1).reshape(x_t.shape).float()

    def _opened(
        self, layer: _Layer, cascade: Tensor, shift: Tensor, condition: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        """Return the dilated convolution and the gate's input together, (2 H, n R).

        What the timestep adds to a layer's input is zero, too, beyond the window's ends.
        """
        positions, starts, batch = shape
        runs = starts * batch
        pushed = layer.taps @ (layer.growth * shift + layer.constant).T.to(self._dtype)  # (k, 2 H, S)
        h = _gated(layer, condition, pushed.sum(0), shape)  # (2 H, n, S, B)
        pushed = pushed[:, :, None, :, None]
        for push, offset in zip(pushed, layer.offsets, strict=True):
            if offset < 0:
                h[:, :-offset].sub_(push)
            elif offset > 0:
                h[:, positions - offset :].sub_(push)
        h = h.flatten(1)
        for tap, offset in zip(layer.taps, layer.offsets, strict=True):
            first = (self._margin + offset) * runs
            h.addmm_(tap, cascade[:, first : first + positions * runs])
        return h

    def _cascade(self, denoiser: Denoiser) -> tuple[list[_Layer], Tensor]:
        """Return the layers and what their biases add to the skips, (H,)."""
        constant, skipped = (torch.zeros_like(_bias(denoiser.input)) for _ in range(2))
        layers, count = list[_Layer](), len(denoiser.layers)
        signal = _doubled_signal(self._width, constant)
        gates = denoiser.condition.gates.weight.view(count, -1, self._width)  # (layers, 2 H, H)
        gate_bias = _bias(denoiser.condition.gates).view(count, -1)
        for index, layer in enumerate(denoiser.layers):
            assert isinstance(layer, CascadeLayer)
            growth = math.sqrt(2) ** index
            gate, bias = gates[index] * signal, (gate_bias[index] + _bias(layer.dilated))[:, None] * signal
            layers.append(self._layer(layer, gate, bias, growth, constant))
            to_next, to_skips = _bias(layer.out).chunk(2)
            constant, skipped = constant + growth * to_next, skipped + to_skips
        return layers, skipped

    def _layer(self, layer: CascadeLayer, gate: Tensor, bias: Tensor, growth: float, constant: Tensor) -> _Layer:
        assert isinstance(layer.s4, BidirectionalS4)
        taps = layer.dilated.weight.permute(2, 0, 1) * _doubled_signal(self._width, constant) / growth  # (k, 2 H, H)
        to_next, to_skips = layer.out.weight[..., 0].chunk(2)
        return _Layer(
            gate=gate.to(self._dtype),
            bias=bias.to(self._dtype),
            taps=taps.to(self._dtype).contiguous(),
            offsets=tuple((tap - len(taps) // 2) * layer.dilated.dilation[0] for tap in range(len(taps))),
            kernel=(2 * layer.s4.matrix(self._positions)).to(self._dtype),  # 2: the rest of tanh, see _doubled_signal
            to_next=(growth * to_next).to(self._dtype),
            to_skips=to_skips.to(self._dtype).clone(),
            growth=growth,
            constant=constant,
        )

    def _patches(self, x: Tensor) -> Tensor:
        """Lay windows out as columns of patches: (S, B, C, L) to (C p, n S B)."""
        patches = x.to(self._dtype).reshape(*x.shape[:3], self._positions, self._patch).permute(2, 4, 3, 0, 1)
        return patches.reshape(x.shape[2] * self._patch, self._positions * len(x) * x.shape[1])

    def _column(self, bias: Tensor) -> Tensor:
        return bias.to(self._dtype)[:, None]


class _Condition:
    """The condition's encoder, up to what every layer's gate is a product of."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        self._module: Condition = denoiser.condition
        self._dtype, self._patch = dtype, denoiser.config.patch
        commands = self._module.commands
        self._commands = None if commands is None else [_rowwise(part, dtype) for part in (commands[0], commands[2])]

    def encode(self, commands: Tensor, entity: Tensor) -> Tensor:
        """Encode commands (B, K, L) and entities (B,), (H, n or 1, B).

        Patches are rows here, which takes no copy of commands whose channels lie side by side in memory.
        """
        index = entity if self._module.use_entity else torch.full_like(entity, UNSEEN_ENTITY)
        dense = self._module.entity(index)[:, None].to(self._dtype)  # (B, 1, H)
        if self._commands is not None:
            (first, first_bias), (second, second_bias) = self._commands
            patches = (
                commands.transpose(1, 2).to(self._dtype).reshape(-1, self._patch * commands.shape[1])
            )  # (B n, p K)
            hidden = F.silu(torch.addmm(first_bias, patches, first), inplace=True)
            dense = torch.addmm(second_bias, hidden, second).view(len(entity), -1, len(second)) + dense
        return F.silu(dense).permute(2, 1, 0).contiguous()


def _gated(layer: _Layer, condition: Tensor, pushed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the gate's input with what the timesteps add, pushed (2 H, S), (2 H, n, S, B)."""
    positions, starts, batch = shape
    if starts == 1 and condition.shape[1] == positions:
        return torch.addmm(layer.bias + pushed, layer.gate, condition.flatten(1)).view(-1, *shape)
    gate = torch.addmm(layer.bias, layer.gate, condition.flatten(1)).view(len(layer.gate), -1, 1, batch)
    return (gate + pushed[:, None, :, None]).expand(-1, positions, -1, -1).contiguous()


def can_fuse(denoiser: Denoiser, length: int, precision: Precision = "float32") -> bool:
    """Say whether a network is made of state spaces, and its windows are short enough for dense matrices."""
    return denoiser.config.layer != "res" and length // denoiser.config.patch <= DENSE_POSITIONS[precision]


def _doubled_signal(width: int, like: Tensor) -> Tensor:
    """Return what the gate's two halves are multiplied by, (2 H, 1): tanh(a) is 2 (sigmoid(2 a) - 1 / 2)."""
    return torch.cat([like.new_full((width, 1), 2.0), like.new_ones(width, 1)])


def _rowwise(convolution: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the matrix (p K, H) and bias (H,) that patches of slots, then channels, are multiplied by."""
    assert isinstance(convolution, nn.Conv1d)
    matrix = convolution.weight.permute(2, 1, 0).flatten(0, 1)
    return matrix.to(dtype).contiguous(), _bias(convolution).to(dtype)


def _bias(convolution: nn.Module) -> Tensor:
    assert isinstance(convolution, nn.Conv1d | nn.ConvTranspose1d)
    assert convolution.bias is not None
    return convolution.bias
