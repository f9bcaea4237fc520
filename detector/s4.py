"""State space layers, and the diagonal kernel (S4D: Gu et al. 2022, "On the Parameterization ... of Diagonal SSMs").

Owns the layers, whatever their kernel, and that kernel (the full S4's is in `s4_dplr`); knows nothing of diffusion or
telemetry. Letters are the papers': A, B (fixed to 1 in S4D), C, D, dt, K. H is the width, N the state size, of which
N / 2 conjugate pairs are kept.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from detector.s4_dplr import S4Kernel


class S4DKernel(nn.Module):
    """The convolution kernel of H independent diagonal state spaces, initialised as S4D-Lin."""

    def __init__(self, width: int, state: int, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        """Draw dt log-uniformly between its bounds, in slots."""
        super().__init__()
        pairs = state // 2
        self.log_dt = nn.Parameter(torch.rand(width) * math.log(dt_max / dt_min) + math.log(dt_min))  # (H,)
        self.log_A_real = nn.Parameter(torch.full((width, pairs), math.log(0.5)))  # (H, N/2)
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs).float().repeat(width, 1))  # (H, N/2)
        self.C = nn.Parameter(torch.randn(width, pairs, 2) * math.sqrt(0.5))  # (H, N/2, re im)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return log A_bar and C_bar, into which B is folded, both (H, N/2) complex (zero-order hold)."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        log_A_bar = A * self.log_dt.exp()[:, None]
        return log_A_bar, torch.view_as_complex(self.C) * (log_A_bar.exp() - 1) / A

    def forward(self, length: int) -> Tensor:
        """Return K[l] = 2 Re(sum over n of C_n exp(l dt A_n)), shape (H, L).

        l is split into `block * rows + column`, so that the exponentials are an outer product and the sum a matmul.
        """
        log_A_bar, C_bar = self.discrete()
        block = math.isqrt(length - 1) + 1
        position = torch.arange(block, device=log_A_bar.device)
        rows = C_bar[:, None] * torch.exp(log_A_bar[:, None] * (position * block)[:, None])  # (H, rows, N/2)
        columns = torch.exp(log_A_bar[:, :, None] * position)  # (H, N/2, block)
        real = torch.cat([rows.real, -rows.imag], -1) @ torch.cat([columns.real, columns.imag], 1)
        return 2 * real.flatten(1)[:, :length]

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first slot, (B, H, N/2) complex."""
        return torch.zeros(batch, *self.A_imag.shape, dtype=self.discrete()[0].dtype, device=self.A_imag.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the recurrence by one slot: u (B, H) and the state before it, to K * u (B, H) and the state after."""
        log_A_bar, C_bar = self.discrete()
        state = log_A_bar.exp() * state + u[..., None]  # (B, H, N/2)
        return 2 * (C_bar * state).sum(-1).real, state


class CausalS4(nn.Module):
    """The causal layer, y = K * u + D u: a convolution over a window, or a recurrence slot by slot."""

    def __init__(self, kernel: S4DKernel | S4Kernel) -> None:
        """Draw D from a normal distribution."""
        super().__init__()
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(len(kernel.log_dt)))  # (H,)

    def forward(self, u: Tensor) -> Tensor:
        """Convolve a window, (B, H, L) to (B, H, L)."""
        length = u.shape[-1]
        transform = torch.fft.rfft(self.kernel(length), n=2 * length)
        return convolve(u, transform) + self.D[:, None] * u

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first slot; its shape is the kernel's."""
        return self.kernel.initial_state(batch)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the recurrence by one slot: u (B, H) and the state before it, to y (B, H) and the state after."""
        y, state = self.kernel.step(u, state)
        return y + self.D * u, state


class BidirectionalS4(nn.Module):
    """A layer that sees both ways: one kernel over the past with the present, one reversed over the future.

    `prepare` caches the kernels' transform for inference; the plain path rebuilds it in every call. Computes in its
    parameters' precision under autocast too: kernels and their transforms don't bear less.
    """

    def __init__(self, kind: Literal["s4d", "s4"], width: int, state: int) -> None:
        """Draw the two kernels independently."""
        super().__init__()
        kernel = S4DKernel if kind == "s4d" else S4Kernel
        self.past = kernel(width, state)
        self.future = kernel(width, state)
        self.D = nn.Parameter(torch.randn(width))  # (H,)
        self._prepared: dict[int, Tensor] = {}

    def forward(self, u: Tensor) -> Tensor:
        """Convolve a window with both kernels, (B, H, L) to (B, H, L)."""
        length = u.shape[-1]
        with torch.autocast(u.device.type, enabled=False):
            transform = None if self.training else self._prepared.get(length)
            return convolve(u.to(self.D.dtype), self.transform(length) if transform is None else transform)

    def transform(self, length: int) -> Tensor:
        """Return the transform of both kernels and D on a circle of 2 L slots, (H, L + 1) complex."""
        past = self.past(length)
        past = torch.cat([past[:, :1] + self.D[:, None], past[:, 1:]], -1)
        circle: Tensor = torch.fft.rfft(torch.cat([past, self.future(length).flip(-1)], -1))
        return circle

    def matrix(self, length: int) -> Tensor:
        """Return the layer as a dense matrix a channel, (H, L, L): y = matrix @ u."""
        past, future = self.past(length), self.future(length)
        lags = torch.cat([future.flip(-1), past[:, :1] + self.D[:, None], past[:, 1:]], -1)  # (H, 2 L), lag -L first
        slot = torch.arange(length, device=lags.device)
        return lags[:, slot[:, None] - slot + length]

    @torch.no_grad()
    def prepare(self, length: int) -> None:
        """Cache the transform for windows of this length; call it after the last change of the weights."""
        self._prepared = {length: self.transform(length)}


def convolve(u: Tensor, transform: Tensor) -> Tensor:
    """Convolve u (B, H, L) with a kernel given by its transform on a circle of 2 L slots, without wrapping around."""
    length = u.shape[-1]
    y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * transform, n=2 * length)
    return y[..., :length]  # (B, H, L)
