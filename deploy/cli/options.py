"""What verbs of the command line have in common: option types, the console they print to, their JSON files."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

out = Console(soft_wrap=True)


def in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file to write whose folder is not there, before any work is done for it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Write one JSON object with the figures.", callback=in_a_folder, dir_okay=False),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def write_json(path: Path | None, figures: object) -> None:
    """Write figures as indented JSON, if there is a file to write them to."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


def print_json(value: object) -> None:
    """Print a value as indented JSON, unstyled."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
