import pytest
import torch

from detector.s4 import S4D, BidirectionalS4D, S4DKernel


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 130])
def test_kernel_is_its_definition(length: int) -> None:
    kernel = S4DKernel(width=3, state=8).double()
    A = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
    dt = kernel.log_dt.exp()[:, None]
    C_bar = torch.view_as_complex(kernel.C) * (torch.exp(dt * A) - 1) / A
    expected = [2 * (C_bar * torch.exp(dt * A) ** slot).sum(-1).real for slot in range(length)]
    torch.testing.assert_close(kernel(length), torch.stack(expected, -1))


def test_convolution_and_recurrence_agree() -> None:
    layer = S4D(width=5, state=16)
    u = torch.randn(2, 5, 100)
    state, outputs = layer.initial_state(2), []
    for slot in range(100):
        y, state = layer.step(u[..., slot], state)
        outputs.append(y)
    torch.testing.assert_close(layer(u), torch.stack(outputs, -1), atol=1e-4, rtol=1e-4)


def test_causal_layer_does_not_see_the_future() -> None:
    layer = S4D(width=4, state=8)
    u = torch.randn(1, 4, 60)
    changed = u.clone()
    changed[..., 40:] += 1
    torch.testing.assert_close(layer(u)[..., :40], layer(changed)[..., :40], atol=1e-5, rtol=1e-5)


def test_bidirectional_layer_is_a_causal_one_and_one_run_backwards() -> None:
    layer = BidirectionalS4D(width=4, state=8)
    u = torch.randn(3, 4, 50)
    past, future = S4D(4, 8), S4D(4, 8)
    past.kernel, past.D = layer.past, layer.D
    future.kernel, future.D = layer.future, torch.nn.Parameter(torch.zeros(4))
    behind = torch.nn.functional.pad(future(u.flip(-1)).flip(-1)[..., 1:], (0, 1))
    torch.testing.assert_close(layer(u), past(u) + behind, atol=1e-5, rtol=1e-5)


def test_prepared_layer_is_the_plain_one() -> None:
    layer = BidirectionalS4D(width=4, state=8).eval()
    u, longer = torch.randn(2, 4, 33), torch.randn(2, 4, 47)
    plain, plain_longer = layer(u), layer(longer)
    layer.prepare(33)
    torch.testing.assert_close(layer(u), plain, atol=0, rtol=0)
    torch.testing.assert_close(layer(longer), plain_longer, atol=0, rtol=0)


def test_training_never_uses_a_prepared_kernel() -> None:
    layer = BidirectionalS4D(width=4, state=8)
    layer.prepare(33)
    layer(torch.randn(2, 4, 33)).sum().backward()
    assert layer.past.C.grad is not None


def test_kernel_decays_however_it_is_trained() -> None:
    kernel = S4DKernel(width=3, state=8)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(torch.randn_like(parameter) * 3)
    log_A_bar, _ = kernel.discrete()
    assert (log_A_bar.real < 0).all()
