"""The S4D layer beside a plain sequential scan and beside a public package's, forward and with gradients.

    python -m benchmarks.layers --lengths 512 2000 --json layers.json

Each opponent has our layer's weights, gives the same y (a test and the report say how near) and is timed in turns with
it, on one thread. lrnnx runs in the environment of `make peers` and is left out where that is missing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measure import Machine, Spread, describe_machine, spread
from benchmarks.opponents import MISSING, PYTHON, run_script
from benchmarks.turns import BOTH, FORWARD, Layer, in_turns, passes
from detector.manifest import DenoiserConfig
from detector.s4 import BidirectionalS4, CausalS4, S4DKernel

OURS = "ours"
_PATIENCE_S = 900.0


class PackageRun(msgspec.Struct, frozen=True, kw_only=True):
    """What `peers/s4_layer.py` says: CPU seconds by "ours forward" and so on, and the largest difference of y."""

    timings: dict[str, list[float]]
    difference: float
    version: str


class LayerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One opponent at one length. ours_ms, opponent_ms: CPU time of a call. ratio: opponent's median by ours.

    layer: causal, as the package has it, or both ways, as the network has it ("prepared" with its kernel's transform
    cached, as at inference). difference: largest |ours - opponent| of y.
    """

    opponent: str
    layer: str
    what: str
    length: int
    ours_ms: Spread
    opponent_ms: Spread
    ratio: float
    difference: float


class LayersReport(msgspec.Struct, frozen=True, kw_only=True):
    """All opponents. note: why the package is missing, if it is; package: its version."""

    layers: list[LayerFigures]
    batch: int
    width: int
    state: int
    rounds: int
    seed: int
    package: str
    note: str
    machine: Machine


class Contest(NamedTuple):
    """Our layer, the scan that gives the same, and which passes are timed."""

    name: str
    ours: nn.Module
    scan: Layer
    parts: tuple[str, ...]


def scan(kernel: S4DKernel, u: Tensor) -> Tensor:
    """Return K * u, (B, H, L), by the recurrence: x[l] = A_bar x[l - 1] + u[l], y[l] = 2 Re(C_bar x[l])."""
    log_A_bar, C_bar = kernel.discrete()
    A_bar, state, outputs = log_A_bar.exp(), kernel.initial_state(len(u)), list[Tensor]()
    for slot in u.unbind(-1):
        state = A_bar * state + slot[..., None]  # (B, H, N/2)
        outputs.append(2 * (C_bar * state).sum(-1).real)
    return torch.stack(outputs, -1)


def scan_causal(layer: CausalS4, u: Tensor) -> Tensor:
    """Return what the layer gives, slot by slot."""
    assert isinstance(layer.kernel, S4DKernel)
    return scan(layer.kernel, u) + layer.D[:, None] * u


def scan_both_ways(layer: BidirectionalS4, u: Tensor) -> Tensor:
    """Return what the layer gives, slot by slot: forward over the past, backward over what lies behind each slot."""
    assert isinstance(layer.past, S4DKernel)
    assert isinstance(layer.future, S4DKernel)
    later = scan(layer.future, u.flip(-1)).flip(-1)[..., 1:]  # (B, H, L - 1)
    return scan(layer.past, u) + nn.functional.pad(later, (0, 1)) + layer.D[:, None] * u


def measure_scan(batch: int, width: int, state: int, length: int, rounds: int) -> list[LayerFigures]:
    """Time the causal layer and the one that sees both ways against their scans."""
    causal, both = CausalS4(S4DKernel(width, state)), BidirectionalS4("s4d", width, state)
    prepared = BidirectionalS4("s4d", width, state).eval()
    prepared.load_state_dict(both.state_dict())
    prepared.prepare(length)
    u = torch.randn(batch, width, length)
    contests = (
        Contest("causal", causal, lambda u: scan_causal(causal, u), (FORWARD, BOTH)),
        Contest("both ways", both, lambda u: scan_both_ways(both, u), (FORWARD, BOTH)),
        Contest("both ways, prepared", prepared, lambda u: scan_both_ways(prepared, u), (FORWARD,)),
    )
    return [figures for contest in contests for figures in _time(contest, u, rounds)]


def _time(contest: Contest, u: Tensor, rounds: int) -> list[LayerFigures]:
    weights, length = list(contest.ours.parameters()), u.shape[-1]
    with torch.no_grad():
        difference = float((contest.ours(u) - contest.scan(u)).abs().max())
    called: dict[str, Layer] = {OURS: contest.ours, "scan": contest.scan}
    works = {
        f"{who} {part}": passes(layer, u, weights)[part] for who, layer in called.items() for part in contest.parts
    }
    timings = in_turns(works, rounds)
    return [compare("scan", contest.name, part, length, timings, difference) for part in contest.parts]


def measure_package(
    batch: int, width: int, state: int, length: int, rounds: int, seed: int
) -> tuple[list[LayerFigures], str]:
    """Time the causal layer against lrnnx's in the opponents' environment; also give its version."""
    arguments = [str(value) for value in (batch, width, state, length, rounds, seed)]
    run = run_script("s4_layer.py", arguments, _PATIENCE_S, PackageRun)
    parts = (FORWARD, BOTH)
    return [compare("lrnnx", "causal", part, length, run.timings, run.difference) for part in parts], run.version


def compare(
    opponent: str, layer: str, part: str, length: int, timings: dict[str, list[float]], difference: float
) -> LayerFigures:
    """Summarise CPU seconds of ours and of an opponent that were taken in turns."""
    ours, other = (spread([1000 * one for one in timings[f"{who} {part}"]], 3) for who in (OURS, opponent))
    return LayerFigures(
        opponent=opponent,
        layer=layer,
        what=part,
        length=length,
        ours_ms=ours,
        opponent_ms=other,
        ratio=round(other.median / ours.median, 2),
        difference=difference,
    )


def run(console: Console, batch: int, lengths: Sequence[int], rounds: int, seed: int) -> LayersReport:
    """Measure at the shipped network's width and state size, print and return the figures."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    shape = DenoiserConfig(numeric=1, commands=0, entities=0)
    machine, figures, package = describe_machine(), list[LayerFigures](), ""
    for length in lengths:
        found = measure_scan(batch, shape.width, shape.state, length, rounds)
        if PYTHON.exists():
            theirs, package = measure_package(batch, shape.width, shape.state, length, rounds, seed)
            found += theirs
        for one in found:
            console.print(
                f"L {length}, {one.layer}, {one.what}: {one.ours_ms.median:.2f} ms, {one.opponent} "
                f"{one.opponent_ms.median:.2f} ms, {one.ratio:.1f} times, difference {one.difference:.1e}"
            )
        figures += found
    return LayersReport(
        layers=figures,
        batch=batch,
        width=shape.width,
        state=shape.state,
        rounds=rounds,
        seed=seed,
        package=package and f"lrnnx {package}",
        note="" if PYTHON.exists() else MISSING,
        machine=machine,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2000])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    report = run(Console(), chosen.batch, chosen.lengths, chosen.rounds, chosen.seed)
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


if __name__ == "__main__":
    main()
