"""The full S4 kernel against the recurrence and the matrices of which it is the fast form, in double precision."""

# ruff: noqa: N806 (letters are the paper's)

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.s4_dplr import S4Kernel, cauchy, diagonalise_legs, hippo_legs

STATES = [2, 8, 64]
LENGTHS = [1, 2, 7, 64, 333, 2000]


def kernel(state: int, seed: int = 0, trained: bool = False) -> S4Kernel:
    """Build three state spaces; with `trained`, none of their parameters is what it was initialised to."""
    torch.manual_seed(seed)
    drawn = S4Kernel(width=3, state=state).double()
    if trained:
        with torch.no_grad():
            for parameter in drawn.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return drawn


def unrolled(drawn: S4Kernel, length: int) -> Tensor:
    A_bar, B_bar, C = drawn.discrete()
    state, outputs = B_bar, []
    for _ in range(length):
        outputs.append((C * state).sum(-1))
        state = (A_bar @ state[..., None])[..., 0]
    return torch.stack(outputs, -1)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("length", LENGTHS)
def test_kernel_is_the_unrolled_recurrence(length: int, state: int, trained: bool) -> None:
    drawn = kernel(state, trained=trained)
    torch.testing.assert_close(drawn(length), unrolled(drawn, length), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", LENGTHS)
def test_kernel_in_single_precision_is_that_in_double(length: int) -> None:
    double = kernel(64)
    single = kernel(64).float()
    torch.testing.assert_close(single(length).double(), double(length), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_longer_kernel_begins_with_the_shorter_one(length: int) -> None:
    drawn = kernel(16, trained=True)
    torch.testing.assert_close(drawn(2 * length)[:, :length], drawn(length), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("state", STATES)
def test_normal_plus_low_rank_form_is_hippo_legs(state: int) -> None:
    A, B = hippo_legs(state)
    V, eigenvalues, P, B_in_basis = diagonalise_legs(state)
    low_rank = np.outer(P, P.conj())
    np.testing.assert_allclose(V @ (np.diag(eigenvalues) - low_rank) @ V.conj().T, A, atol=1e-10)
    np.testing.assert_allclose(V @ B_in_basis, B, atol=1e-10)
    np.testing.assert_allclose(V @ V.conj().T, np.eye(state), atol=1e-12)
    np.testing.assert_allclose(eigenvalues, eigenvalues[::-1].conj(), atol=1e-9)


def test_hippo_legs_is_its_known_first_rows() -> None:
    A, B = hippo_legs(3)
    np.testing.assert_allclose(A, [[-1, 0, 0], [-np.sqrt(3), -2, 0], [-np.sqrt(5), -np.sqrt(15), -3]])
    np.testing.assert_allclose(B, np.sqrt([1, 3, 5]))


@pytest.mark.parametrize("coefficient", [0, 3, 7])
def test_initial_kernel_is_the_impulse_response_of_hippo_legs(coefficient: int) -> None:
    """C chosen so that it reads one coefficient of the Legendre basis off the state."""
    state, dt = 8, 0.05
    A, B = hippo_legs(state)
    backward = np.linalg.inv(np.eye(state) - dt / 2 * A)
    A_bar, x, expected = backward @ (np.eye(state) + dt / 2 * A), backward @ (dt * B), []
    for _ in range(50):
        expected.append(x[coefficient])
        x = A_bar @ x
    drawn = kernel(state)
    row = torch.tensor(diagonalise_legs(state).V[coefficient, : state // 2])
    with torch.no_grad():
        drawn.log_dt.fill_(np.log(dt))
        drawn.C.copy_(torch.view_as_real(row))
    torch.testing.assert_close(drawn(50), torch.tensor(expected).repeat(3, 1), atol=1e-6, rtol=1e-6)


def test_cauchy_sums_are_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    terms, eigenvalues, w, s = (
        torch.randn(*shape, dtype=torch.complex128, generator=generator) for shape in ((2, 3, 4), (2, 4), (5,), (5,))
    )
    both, conjugates = (torch.cat([x, x.conj()], -1) for x in (terms, eigenvalues))
    expected = (both[..., None] / (w - s * conjugates[:, None, :, None])).sum(-2)
    torch.testing.assert_close(cauchy(terms, eigenvalues, w, s), expected)


def test_every_parameter_is_learned() -> None:
    drawn = S4Kernel(width=3, state=8)
    drawn(20).square().sum().backward()
    for name, parameter in drawn.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_an_odd_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state wants an even size, got 7"):
        S4Kernel(width=3, state=7)
