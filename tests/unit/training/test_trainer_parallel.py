"""Two processes under torchrun, each with half of every batch, against one with the whole of it.

Run as a module under torchrun, this file is one of the processes.
"""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from stream.errors import UsageError
from tests.unit.training.made_up import TINY, waves
from training.fit import Fit
from training.parallel import ALONE, Ranks, joined
from training.sampling import WindowSampler
from training.scaling import measure_scaling
from training.trainer import Progress, train

ROOT = Path(__file__).parents[3]
# An odd batch, so that the parts differ in size; missing values, so that they differ in what counts.
PRESET = msgspec.structs.replace(TINY, batch=7, hop_ratio=0.5, learning_rate=1e-3)


def first_gradients(ranks: Ranks) -> dict[str, Tensor]:
    dataset = waves()
    sampler = WindowSampler(dataset, measure_scaling(dataset), PRESET.geometry, PRESET.timesteps)
    fit = Fit(PRESET.denoiser(2, 1, 2, PRESET.geometry.length), PRESET, sampler, 0, ranks, "cpu")
    torch.nn.init.ones_(fit.denoiser.output.weight)
    loss = fit.train_step(1, 10)
    gradients = {f"gradient.{name}": p.grad for name, p in fit.denoiser.named_parameters() if p.grad is not None}
    return gradients | {"loss": torch.tensor(loss)}


def run(ranks: Ranks, folder: Path) -> None:
    """Leave gradients, weights and the reported train steps of this process, and those of a run that was resumed."""
    seen: list[Progress] = []
    settings = {"name": "test", "preset": PRESET, "train_steps": 6, "ranks": ranks, "state_folder": folder / "state"}
    trained = train(waves(), on_progress=seen.append, **settings)  # type: ignore[arg-type]
    again = train(waves(), on_progress=seen.append, **settings)  # type: ignore[arg-type]
    limited = train(waves(), name="test", preset=PRESET, minutes=0.002, ranks=ranks)
    figures = {"steps": [p.train_step for p in seen], "limited": [limited.training.train_steps]}
    tensors = first_gradients(ranks) | trained.weights | {f"again.{k}": v for k, v in again.weights.items()}
    tensors |= {f"limited.{name}": weight for name, weight in limited.weights.items()}
    tensors |= {name: torch.tensor(values) for name, values in figures.items()}
    safetensors.torch.save_file(tensors, folder / f"rank{ranks.rank}.safetensors")


def torchrun(*command: str) -> None:
    """Run two processes; the agent that is asked to end also ends them."""
    agent = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, complaints = agent.communicate(timeout=200)
    finally:
        agent.terminate()
        agent.wait()
    assert agent.returncode == 0, complaints


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], ...]:
    """Return what one process left, then what each of two did."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    run(ALONE, alone)
    torchrun("-m", "tests.unit.training.test_trainer_parallel", str(together))
    files = [alone / "rank0.safetensors", together / "rank0.safetensors", together / "rank1.safetensors"]
    return tuple(safetensors.torch.load_file(file) for file in files)


def test_two_processes_have_one_process_gradients_and_weights(results: tuple[dict[str, Tensor], ...]) -> None:
    alone, *both = results
    for rank in both:
        assert rank.keys() == alone.keys()
        for name in alone:
            if not name.startswith(("steps", "limited")):
                torch.testing.assert_close(rank[name], alone[name], atol=1e-5, rtol=1e-5, msg=name)


def test_processes_hold_the_same_weights_to_the_bit(results: tuple[dict[str, Tensor], ...]) -> None:
    """And they take the same number of train steps when time decides it."""
    _, first, second = results
    for name in first.keys() - {"steps"}:
        assert torch.equal(first[name], second[name]), name


def test_the_leading_process_alone_reports(results: tuple[dict[str, Tensor], ...]) -> None:
    assert [rank["steps"].tolist() for rank in results] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], []]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [7, 8, 32])
def test_parts_make_up_the_batch(batch: int, world_size: int) -> None:
    parts = [Ranks(rank, world_size).part(batch) for rank in range(world_size)]
    assert [window for part in parts for window in range(batch)[part]] == list(range(batch))
    sizes = [len(range(batch)[part]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_windows_are_refused() -> None:
    dataset = waves()
    sampler = WindowSampler(dataset, measure_scaling(dataset), PRESET.geometry, PRESET.timesteps)
    with pytest.raises(UsageError, match="8 processes want a batch of as many windows, got 7"):
        Fit(PRESET.denoiser(2, 1, 2, 64), PRESET, sampler, 0, Ranks(0, 8), "cpu")


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as ranks:
        assert ranks == ALONE


def test_each_process_has_a_gpu_of_its_own() -> None:
    assert [Ranks(3, 4, 1).device(kind) for kind in ("cpu", "cuda", "cuda:0")] == ["cpu", "cuda:1", "cuda:1"]
    assert ALONE.device("cuda") == "cuda"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as mine:
        run(mine, Path(sys.argv[1]))
