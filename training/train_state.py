"""What an interrupted training run needs to go on: one safetensors file, replaced as a whole. Knows no loop."""

import os
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from stream.errors import UsageError

STATE_FILE = "train_state.safetensors"


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal for a run to be the same run."""

    data_sha256: str
    preset: str
    settings: str
    seed: int


class TrainState(msgspec.Struct, frozen=True, kw_only=True):
    """A run after `train_step` train steps of `train_steps`; elapsed_s: seconds spent so far."""

    identity: RunIdentity
    train_step: int
    train_steps: int
    elapsed_s: float


def save_state(folder: Path, state: TrainState, tensors: dict[str, Tensor]) -> None:
    """Write the state so that a crash leaves either the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STATE_FILE}.part"
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(own, part, metadata={"state": msgspec.json.encode(state).decode()})
    os.replace(part, folder / STATE_FILE)


def load_state(folder: Path, identity: RunIdentity) -> tuple[TrainState, dict[str, Tensor]] | None:
    """Read the state of this run, None where there is none. Raises UsageError if the folder holds another run's."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        state = msgspec.json.decode(file.metadata()["state"], type=TrainState)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if state.identity != identity:
        raise UsageError(f"{path} belongs to a run on other data or with other settings; name another folder")
    return state, tensors
