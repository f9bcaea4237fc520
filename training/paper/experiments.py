"""Every experiment by name, and how its outcome is kept."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import torch

from training.paper.figure6 import figure6
from training.paper.lab import Lab
from training.paper.layers import figure5, table5, table6
from training.paper.outcome import Outcome, Record
from training.paper.table3 import table3
from training.paper.table4 import table4

# What takes longest comes last; each makes use of what those before it trained.
EXPERIMENTS: Mapping[str, Callable[[Lab], Outcome]] = {
    "table5": table5,
    "figure5": figure5,
    "table6": table6,
    "table4": table4,
    "figure6": figure6,
    "table3": table3,
}


def run(name: str, lab: Lab, command: str) -> tuple[Outcome, Record]:
    """Run one experiment. command: the command line that does so again."""
    begin = time.perf_counter()
    outcome = EXPERIMENTS[name](lab)
    record = Record(
        experiment=name,
        command=command,
        seed=lab.seed,
        device=lab.device,
        threads=torch.get_num_threads(),
        wall_s=round(time.perf_counter() - begin, 1),
        scale=lab.scale,
        notes=outcome.notes,
        figures=outcome.figures,
    )
    return outcome, record


def run_all(lab: Lab, folder: Path, command: str) -> Iterator[Outcome]:
    """Run every experiment and write each one's record, and its plot if it has one, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXPERIMENTS:
        outcome, record = run(name, lab, command)
        write_record(folder / f"{name}.json", record)
        if outcome.svg:
            (folder / f"{name}.svg").write_text(outcome.svg)
        yield outcome


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
