"""The full S4 kernel (Gu et al. 2022, "Efficiently Modeling Long Sequences with Structured State Spaces").

Owns the HiPPO-LegS matrix, its normal plus low-rank form and the convolution kernel of such state spaces. Knows no
layer. A = Lambda - P P* is diagonal plus low rank (Q is tied to P, so that A stays stable however it is trained); of
its N conjugate eigenvalues N / 2 are kept. Real vectors of the state hold N / 2 real parts, then the imaginary ones.
"""

# ruff: noqa: N803, N806 (letters are the paper's)

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Legs(NamedTuple):
    """HiPPO-LegS in the basis V of its normal part: A = V (diag(Lambda) - P P*) V*, B = V B, all of size N."""

    V: NDArray[np.complex128]
    Lambda: NDArray[np.complex128]
    P: NDArray[np.complex128]
    B: NDArray[np.complex128]


def hippo_legs(state: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return A (N, N) and B (N,) of HiPPO-LegS (Eq. 2)."""
    root = np.sqrt(2 * np.arange(state) + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(np.arange(state) + 1.0), root


def diagonalise_legs(state: int) -> Legs:
    """Write HiPPO-LegS as normal plus low rank (Appendix C.1), eigenvalues by descending imaginary part.

    Raises ValueError if the state size is odd: its eigenvalues come in conjugate pairs.
    """
    if state % 2:
        raise ValueError(f"state wants an even size, got {state}")
    A, B = hippo_legs(state)
    P = np.sqrt(np.arange(state) + 0.5)
    skew = A + np.outer(P, P) + 0.5 * np.eye(state)
    frequency, V = np.linalg.eigh(1j * skew)
    return Legs(V, -0.5 - 1j * frequency, V.conj().T @ P, V.conj().T @ B.astype(complex))


class S4Kernel(nn.Module):
    """The convolution kernel of H independent DPLR state spaces, initialised as HiPPO-LegS."""

    def __init__(self, width: int, state: int, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        """Draw dt log-uniformly between its bounds, in slots, and C from a normal distribution."""
        super().__init__()
        pairs = state // 2
        legs = diagonalise_legs(state)
        self.log_dt = nn.Parameter(torch.rand(width) * math.log(dt_max / dt_min) + math.log(dt_min))  # (H,)
        self.log_A_real = nn.Parameter(torch.full((width, pairs), math.log(0.5)))  # (H, N/2)
        self.A_imag = nn.Parameter(torch.tensor(legs.Lambda.imag[:pairs]).float().repeat(width, 1))  # (H, N/2)
        self.P = nn.Parameter(_parts(legs.P[:pairs]).repeat(width, 1, 1))  # (H, N/2, re im)
        self.B = nn.Parameter(_parts(legs.B[:pairs]).repeat(width, 1, 1))  # (H, N/2, re im)
        self.C = nn.Parameter(torch.randn(width, pairs, 2) * math.sqrt(0.5))  # (H, N/2, re im)

    def forward(self, length: int) -> Tensor:
        """Return K[l] = C A_bar^l B_bar, shape (H, L) (Algorithm 1).

        The transform of K is the generating function of the truncated kernel at the roots of unity.
        """
        Lambda, P, B = self._scaled()
        C = self._truncated(length)  # (H, N/2)
        terms = torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)  # (H, 4, N/2)
        angle = torch.arange(length // 2 + 1, device=P.device, dtype=self.log_dt.dtype) * (-2 * math.pi / length)
        z = torch.polar(torch.ones_like(angle), angle)
        CB, CP, PB, PP = cauchy(terms, Lambda, 2 * (1 - z), 1 + z).unbind(1)  # (H, L / 2 + 1)
        transform = 2 * (CB - (1 + z) * CP * PB / (1 + (1 + z) * PP))
        K: Tensor = torch.fft.irfft(transform, n=length)
        return K

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return A_bar (H, N, N), B_bar (H, N) and C (H, N), real (bilinear transform, Eq. 3)."""
        Lambda, P, B = self._scaled()
        p = torch.cat([P.real, P.imag], -1)
        re, im = torch.diag_embed(Lambda.real), torch.diag_embed(Lambda.imag)
        A = torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2) - 2 * p[..., :, None] * p[..., None, :]
        one = torch.eye(A.shape[-1], device=A.device, dtype=A.dtype)
        right = torch.cat([one + A / 2, torch.cat([B.real, B.imag], -1)[..., None]], -1)
        solved = torch.linalg.solve(one - A / 2, right)  # (H, N, N + 1)
        return solved[..., :-1], solved[..., -1], 2 * torch.cat([self.C[..., 0], -self.C[..., 1]], -1)

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first slot, (B, H, N)."""
        width, pairs = self.A_imag.shape
        return torch.zeros(batch, width, 2 * pairs, dtype=self.log_dt.dtype, device=self.log_dt.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the recurrence by one slot: u (B, H) and the state before it, to K * u (B, H) and the state after."""
        A_bar, B_bar, C = self.discrete()
        state = (A_bar @ state[..., None])[..., 0] + B_bar * u[..., None]  # (B, H, N)
        return (C * state).sum(-1), state

    def _scaled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Lambda, P, B, each (H, N/2), of the state space whose dt is one slot."""
        dt = self.log_dt.exp()[:, None]
        Lambda = torch.complex(-self.log_A_real.exp(), self.A_imag) * dt
        return Lambda, torch.view_as_complex(self.P) * dt.sqrt(), torch.view_as_complex(self.B) * dt

    def _truncated(self, length: int) -> Tensor:
        """Return C (I - A_bar^L), whose generating function is a polynomial of degree L - 1, as (H, N/2)."""
        power, _, C = self.discrete()
        row, remaining = C[:, None], length  # (H, 1, N)
        while remaining:
            if remaining % 2:
                row = row @ power
            remaining //= 2
            power = power @ power if remaining else power
        re, im = (C - row[:, 0]).chunk(2, -1)
        return torch.complex(re, -im) / 2


def cauchy(terms: Tensor, Lambda: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Sum term / (w - s Lambda) over all N conjugate eigenvalues, of which half are given.

    terms: (H, K, N/2) complex. Lambda: (H, N/2). w, s: (M,). Returns (H, K, M). A pair's two terms have the real
    coefficients 2 Re(term) w - 2 Re(term conj(Lambda)) s over one denominator, so the sums are a real matmul.
    """
    left, right = (w - s * part[..., None] for part in (Lambda, Lambda.conj()))  # (H, N/2, M)
    inverse = 1 / (left * right)
    inverse = torch.cat([inverse.real, inverse.imag], -1)  # (H, N/2, 2 M)
    coefficients = torch.cat([terms.real, (terms * Lambda.conj()[:, None]).real], 1)  # (H, 2 K, N/2)
    with_w, with_s = torch.complex(*(2 * coefficients @ inverse).chunk(2, -1)).chunk(2, 1)
    return with_w * w - with_s * s


def _parts(values: NDArray[np.complex128]) -> Tensor:
    return torch.tensor(np.stack([values.real, values.imag], -1)).float()
