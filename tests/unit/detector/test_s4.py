from typing import Literal

import pytest
import torch
from torch import Tensor

from detector.s4 import BidirectionalS4, CausalS4, S4DKernel
from detector.s4_dplr import S4Kernel

Kind = Literal["s4d", "s4"]
KINDS: dict[Kind, type[S4DKernel] | type[S4Kernel]] = {"s4d": S4DKernel, "s4": S4Kernel}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(kernel: S4DKernel | S4Kernel, u: Tensor) -> Tensor:
    """Run the recurrence over a window, (B, H, L)."""
    state, outputs = kernel.initial_state(len(u)), []
    for slot in range(u.shape[-1]):
        y, state = kernel.step(u[..., slot], state)
        outputs.append(y)
    return torch.stack(outputs, -1)


def eigenvalues(kernel: S4DKernel | S4Kernel) -> Tensor:
    if isinstance(kernel, S4DKernel):
        return kernel.discrete()[0].exp()
    found: Tensor = torch.linalg.eigvals(kernel.discrete()[0])
    return found


@pytest.mark.parametrize("length", [1, 2, 7, 64, 130])
def test_kernel_is_its_definition(length: int) -> None:
    kernel = S4DKernel(width=3, state=8).double()
    A = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
    dt = kernel.log_dt.exp()[:, None]
    C_bar = torch.view_as_complex(kernel.C) * (torch.exp(dt * A) - 1) / A
    expected = [2 * (C_bar * torch.exp(dt * A) ** slot).sum(-1).real for slot in range(length)]
    torch.testing.assert_close(kernel(length), torch.stack(expected, -1))


@each_kind
def test_convolution_and_recurrence_agree(kind: Kind) -> None:
    layer = CausalS4(KINDS[kind](5, 16)).double()
    u = torch.randn(2, 5, 100, dtype=torch.float64)
    state, outputs = layer.initial_state(2), []
    for slot in range(100):
        y, state = layer.step(u[..., slot], state)
        outputs.append(y)
    torch.testing.assert_close(layer(u), torch.stack(outputs, -1))


@each_kind
def test_causal_layer_does_not_see_the_future(kind: Kind) -> None:
    layer = CausalS4(KINDS[kind](4, 8))
    u = torch.randn(1, 4, 60)
    changed = u.clone()
    changed[..., 40:] += 1
    torch.testing.assert_close(layer(u)[..., :40], layer(changed)[..., :40], atol=1e-5, rtol=1e-5)


@each_kind
def test_bidirectional_layer_is_a_recurrence_and_one_run_backwards(kind: Kind) -> None:
    layer = BidirectionalS4(kind, width=4, state=8).double()
    u = torch.randn(3, 4, 50, dtype=torch.float64)
    ahead, behind = (run(kernel, u) for kernel, u in ((layer.past, u), (layer.future, u.flip(-1))))
    later = torch.nn.functional.pad(behind.flip(-1)[..., 1:], (0, 1))
    torch.testing.assert_close(layer(u), ahead + layer.D[:, None] * u + later)


@each_kind
def test_prepared_layer_is_the_plain_one(kind: Kind) -> None:
    layer = BidirectionalS4(kind, width=4, state=8).eval()
    u, longer = torch.randn(2, 4, 33), torch.randn(2, 4, 47)
    plain, plain_longer = layer(u), layer(longer)
    layer.prepare(33)
    torch.testing.assert_close(layer(u), plain, atol=0, rtol=0)
    torch.testing.assert_close(layer(longer), plain_longer, atol=0, rtol=0)


@each_kind
def test_training_never_uses_a_prepared_kernel(kind: Kind) -> None:
    layer = BidirectionalS4(kind, width=4, state=8)
    layer.prepare(33)
    layer(torch.randn(2, 4, 33)).sum().backward()
    assert layer.past.C.grad is not None


@each_kind
def test_kernels_keep_their_precision_under_autocast(kind: Kind) -> None:
    layer = BidirectionalS4(kind, width=4, state=8)
    u = torch.randn(2, 4, 33).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under = layer(u)
    torch.testing.assert_close(under, layer(u.float()), atol=0, rtol=0)


@each_kind
def test_state_forgets_however_the_kernel_is_trained(kind: Kind) -> None:
    kernel = KINDS[kind](3, 8).double()
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(torch.randn_like(parameter) * 3)
    assert (eigenvalues(kernel).abs() < 1).all()
