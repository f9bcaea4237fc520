"""What closing the loop is worth: the same telemetry under a model kept, one trained on a timer, and one by drift.

Offline, in one process; drift, rules, gates, training and scores are those of the services.
`python -m benchmarks.closed_loop year` simulates a year of a spacecraft fleet, one row in ten minutes;
`python -m benchmarks.closed_loop recorded --data FOLDER` takes SMAP and MSL, trained on their training sets.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console

from benchmarks.measure import Machine, describe_machine
from benchmarks.policies import Course, Policy, Run, Telemetry
from deploy.demo_sources import declare
from deploy.fault_plan import plan_faults
from deploy.faults import labels
from deploy.simulator import fleets, simulate
from detector.registry import Registry
from stream.grid import Geometry
from stream.logs import configure_logging
from stream.retraining_settings import GateSettings, RetrainingSettings
from training.datasets import Dataset, Series, read_dataset
from training.publish import train_and_publish

POLICIES: tuple[Policy, ...] = ("never", "timer", "drift")


class LoopWorth(msgspec.Struct, frozen=True, kw_only=True):
    """All policies on the same telemetry. change_slot: when it changed for good, counted from the first row."""

    data: str
    entities: int
    rows: int
    change_slot: int | None
    courses: list[Course]
    seed: int
    minutes: float
    machine: Machine


def year(entities: int, slots: int, seed: int) -> Telemetry:
    """Simulate a year whose fleet changes its regime half-way, with faults all along. slots: of each entity."""
    (usual,) = fleets(entities, 0)
    first, rows = 10**6, 6000
    change = first + slots // 2
    fleet = usual.moved(change)
    faults = plan_faults(fleet, seed, first + 600, first + slots - 1, max(2, slots // 600))
    values = simulate(fleet, seed, first, slots, faults)
    live = [
        Series(e, np.arange(first, first + slots), one, labels(faults, e, first, slots).astype(np.uint8))
        for e, one in values.items()
    ]
    before = simulate(usual, seed, first - rows, rows)
    training = [Series(e, np.arange(first - rows, first), one, None) for e, one in before.items()]
    interval_ms = 600_000
    dataset = Dataset(fleet.channels, interval_ms, training)
    family = declare(dataset, fleet.family, "*", Geometry(length=256, hop=32, final_delay=32, slack=512))
    return Telemetry("simulated year", family, dataset, replace(dataset, series=live), change)


def recorded(folder: Path, name: str) -> Telemetry:
    """Read a recorded data set; its test rows follow its training rows in time."""
    training = read_dataset(folder / f"{name}_train.parquet")
    test = read_dataset(folder / f"{name}_test.parquet", interval_ms=training.interval_ms)
    family = declare(training, name.lower(), "*", Geometry(length=256, hop=32, final_delay=32, slack=512))
    return Telemetry(name, family, training, test, None)


def compare(telemetry: Telemetry, settings: RetrainingSettings, timer_days: float, console: Console) -> LoopWorth:
    """Run every policy from the same first model on the same rows."""
    courses: list[Course] = []
    with tempfile.TemporaryDirectory() as folder:
        name = telemetry.family.name
        for policy in POLICIES:
            registry = Path(folder) / policy
            if not courses:
                first = train_and_publish(
                    Registry(Path(folder) / "first"),
                    telemetry.training,
                    name=name,
                    minutes=settings.minutes,
                    seed=settings.seed,
                    geometry=telemetry.family.geometry,
                )
            shutil.copytree(Path(folder) / "first", registry)
            Registry(registry).promote(name, first.version)
            policed = settings.model_copy(
                update={"on_drift": policy == "drift", "max_age_days": timer_days if policy == "timer" else 0.0}
            )
            run = Run(telemetry, registry, policy, policed)
            run.run(Path(folder) / "work")
            courses.append(run.course())
            console.print(msgspec.json.encode(courses[-1]).decode(), highlight=False)
    return LoopWorth(
        data=telemetry.name,
        entities=len(telemetry.live.series),
        rows=telemetry.live.rows,
        change_slot=telemetry.change_slot and telemetry.change_slot - int(telemetry.live.series[0].slots[0]),
        courses=courses,
        seed=settings.seed,
        minutes=settings.minutes,
        machine=describe_machine(),
    )


app = typer.Typer(add_completion=False)
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write one JSON object with the figures.")]
Minutes = Annotated[float, typer.Option(help="Minutes of each training.", min=0.01)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def _settings(minutes: float, seed: int, minimum_rows: int) -> RetrainingSettings:
    return RetrainingSettings(
        minutes=minutes,
        seed=seed,
        minimum_rows=minimum_rows,
        new_entities=0.0,
        history_days=36_500.0,
        cool_down_minutes=0.0,
        gates=GateSettings(entities=6),
    )


@app.command("year")
def year_command(
    json: JsonFile = None,
    minutes: Minutes = 0.5,
    seed: Seed = 0,
    entities: Annotated[int, typer.Option(help="Spacecraft.", min=2)] = 6,
    slots: Annotated[int, typer.Option(help="Rows of each, one in ten minutes.", min=6000)] = 52_560,
    timer_days: Annotated[float, typer.Option(help="Age at which the timer trains.", min=1)] = 60.0,
) -> None:
    """Simulate a year whose fleet changes its regime half-way."""
    _report([compare(year(entities, slots, seed), _settings(minutes, seed, 2000), timer_days, Console())], json)


@app.command("recorded")
def recorded_command(
    data: Annotated[Path, typer.Option(help="Folder with SMAP_train.parquet and so on.", exists=True)],
    json: JsonFile = None,
    minutes: Minutes = 2.0,
    seed: Seed = 0,
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "SMAP,MSL",
) -> None:
    """Take recorded telemetry whose test rows are shifted against its training rows."""
    every = [
        compare(recorded(data, name), _settings(minutes, seed, 1000), 4000 / 86_400, Console())
        for name in sets.split(",")
    ]
    _report(every, json)


def _report(every: list[LoopWorth], json: Path | None) -> None:
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(every)) + b"\n")


if __name__ == "__main__":
    configure_logging("error")
    app()
