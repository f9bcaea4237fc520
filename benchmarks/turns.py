"""Times a layer's passes in turns, so that other work on the machine meets all alike. Knows torch alone."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]
FORWARD, BOTH = "forward", "forward and backward"


def passes(layer: Layer, u: Tensor, weights: Sequence[Tensor]) -> dict[str, Callable[[], object]]:
    """Return the forward pass of u (B, H, L) without gradients, and the one with gradients of u and the weights."""
    differentiable = u.clone().requires_grad_()
    trained = [differentiable, *(one for one in weights if one.requires_grad)]

    def forward() -> object:
        with torch.no_grad():
            return layer(u)

    def both() -> object:
        return torch.autograd.grad(layer(differentiable).sum(), trained, allow_unused=True)

    return {FORWARD: forward, BOTH: both}


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of every call, round by round; one round before them warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begin = time.process_time()
            work()
            if number:
                found[name].append(time.process_time() - begin)
    return found
