"""`telltale bench`: speed, measured on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import JsonFile, Seed, out, write_json

app = typer.Typer(help="Speed, measured on this machine.", no_args_is_help=True)


@app.command("pipeline")
def pipeline(json: JsonFile = None) -> None:
    """Measure rows per second, latency from produce to alert and memory, on the local stack."""
    from benchmarks.pipeline import run

    write_json(json, run(out))


@app.command("ingest")
def ingest(json: JsonFile = None) -> None:
    """Measure the windower: samples of 25 channels per second and core into Redis."""
    from benchmarks.ingest import run

    write_json(json, run(out))


@app.command("growth")
def growth(json: JsonFile = None) -> None:
    """Measure the windower with 10 to 10,000 entities, and with 1 to 4 partitions."""
    from benchmarks.growth import run

    write_json(json, run(out))


@app.command("archive")
def archive(json: JsonFile = None) -> None:
    """Measure the archiver without a broker: rows per second and core written, merged and read, bytes a row."""
    from benchmarks.archive import run

    write_json(json, run(out))


@app.command("inference")
def inference(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with MSL_train.parquet and so on; made-up telemetry if left out.", exists=True),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="REGISTRY/NAME[@VERSION] of a family's model, once a family; trained anew if left out."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training of each family without a model.", min=0.01)] = 0.5,
    rows: Annotated[int, typer.Option(help="Test rows of each family, about.", min=1)] = 60_000,
    json: JsonFile = None,
) -> None:
    """Measure the detector: rows scored per second, against the paper's sampler, and what the speed costs."""
    from benchmarks.inference import Load, run

    write_json(
        json,
        run(out, Load(data=None if data is None else str(data), models=tuple(model or ()), minutes=minutes, rows=rows)),
    )


@app.command("training")
def training(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with SMAP_train.parquet; made-up telemetry if left out.", exists=True),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes of training.", min=0.01)] = 5.0,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Measure training: seconds until the reconstruction is as near as the paper's, and samples per second."""
    from benchmarks.training import Load, run

    write_json(json, run(out, Load(data=None if data is None else str(data), minutes=minutes, seed=seed)))
