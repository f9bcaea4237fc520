"""Data-parallel training: which of torchrun's processes this is, and what they sum. Knows no network and no data.

Every process draws the same whole batch, computes the gradient of its own part and adds up; so all hold the same
weights, and they are those of one process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """One process's rank among `world_size` that train a network together; local_rank: its rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reports, saves, calibrates and publishes."""
        return self.rank == 0

    def device(self, kind: str) -> str:
        """Return the device of this process: each has a GPU of its own."""
        return f"cuda:{self.local_rank}" if kind.startswith("cuda") and self.world_size > 1 else kind

    def part(self, batch: int) -> slice:
        """Return this process's windows of a batch."""
        return slice(self.rank * batch // self.world_size, (self.rank + 1) * batch // self.world_size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size > 1:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def agree(self, value: float, device: str) -> float:
        """Return what the leading process has for `value`, in every process."""
        if self.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, src=0)
        return shared.item()


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; without torchrun this one is `ALONE`.

    device: as torch names it, cpu or cuda; of several GPUs each process takes its own. A process can join once.
    """
    rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world_size <= 1:
        yield ALONE
        return
    ranks = Ranks(rank, world_size, local_rank)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(ranks.device(device))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
