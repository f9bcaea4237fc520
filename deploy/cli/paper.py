"""`telltale paper`: the paper's experiments, its figures beside ours."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import JsonFile, Seed, in_a_folder, out, write_json
from stream.logs import configure_logging
from stream.settings import load_settings

if TYPE_CHECKING:
    from training.paper.lab import Lab

app = typer.Typer(help="The paper's experiments, its figures beside ours.", no_args_is_help=True)

DataFolder = Annotated[
    Path,
    typer.Option(help="Folder with SMAP_train.parquet, SMAP_test.parquet and so on.", exists=True, file_okay=False),
]
Scale = Annotated[str, typer.Option(help="quick (minutes on two cores) or full (the paper's preset, for a GPU).")]
Families = Annotated[str, typer.Option(help="Data sets, separated by commas.")]
TrainSteps = Annotated[int | None, typer.Option(help="Train steps of every network; the scale's if left out.", min=1)]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", help="SVG file to write.", callback=in_a_folder, dir_okay=False)
]


@app.command("table3")
def table3(
    data: DataFolder,
    scale: Scale = "quick",
    families: Families = "SMAP,MSL,SMD",
    train_steps: TrainSteps = None,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Table 3: every method under one protocol, beside random and honest figures."""
    _paper("table3", _lab(data, scale, families, train_steps, seed), json)


@app.command("table4")
def table4(
    data: DataFolder,
    scale: Scale = "quick",
    families: Families = "SMAP,MSL",
    train_steps: TrainSteps = None,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Table 4: IOU of frames by smoothing kernel and size."""
    _paper("table4", _lab(data, scale, families, train_steps, seed), json)


@app.command("table5")
def table5(
    data: DataFolder, scale: Scale = "quick", train_steps: TrainSteps = None, seed: Seed = 0, json: JsonFile = None
) -> None:
    """Table 5: convergence, reconstruction and speed by number of layers."""
    _paper("table5", _lab(data, scale, "SMAP", train_steps, seed), json)


@app.command("table6")
def table6(
    data: DataFolder, scale: Scale = "quick", train_steps: TrainSteps = None, seed: Seed = 0, json: JsonFile = None
) -> None:
    """Table 6: S4 layers beside dilated convolutions alone."""
    _paper("table6", _lab(data, scale, "SMAP", train_steps, seed), json)


@app.command("figure5")
def figure5(
    data: DataFolder,
    scale: Scale = "quick",
    train_steps: TrainSteps = None,
    seed: Seed = 0,
    json: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Figure 5: loss curves with and without warm-up, and by number of layers."""
    _paper("figure5", _lab(data, scale, "SMAP", train_steps, seed), json, plot)


@app.command("figure6")
def figure6(
    data: DataFolder,
    scale: Scale = "quick",
    families: Families = "SMAP,MSL",
    train_steps: TrainSteps = None,
    seed: Seed = 0,
    json: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Figure 6: ROC of the smoothed distance."""
    _paper("figure6", _lab(data, scale, families, train_steps, seed), json, plot)


@app.command("all")
def everything(
    data: DataFolder,
    folder: Annotated[Path, typer.Option(help="Folder for a JSON file of each, and the plots.", file_okay=False)],
    scale: Scale = "quick",
    families: Families = "SMAP,MSL,SMD",
    train_steps: TrainSteps = None,
    seed: Seed = 0,
) -> None:
    """Run all of them; networks that several need are trained once."""
    from training.paper.experiments import run_all
    from training.paper.outcome import render

    for outcome in run_all(_lab(data, scale, families, train_steps, seed), folder, _command_line()):
        out.print(render(outcome))


def _lab(data: Path, scale: str, families: str, train_steps: int | None, seed: int) -> "Lab":
    """Prepare the experiments; of training's log only warnings are told, since every line would be."""
    from detector.models import choose_device
    from training.paper.lab import open_lab

    configure_logging(os.environ.get("TELLTALE_LOG_LEVEL", "warning"))
    device = choose_device(load_settings().worker.device)
    return open_lab(data, scale, families, train_steps, seed, device, lambda what: out.print(f"… {what}"))


def _paper(name: str, lab: "Lab", json: Path | None, plot: Path | None = None) -> None:
    from training.paper.experiments import run
    from training.paper.outcome import render

    outcome, record = run(name, lab, _command_line())
    out.print(render(outcome))
    write_json(json, record)
    if plot is not None and outcome.svg is not None:
        plot.write_text(outcome.svg)


def _command_line() -> str:
    return shlex.join(["telltale", *sys.argv[1:]])
