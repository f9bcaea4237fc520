"""The closed loop live on one machine: a fleet changes its regime, is retrained, and two bad models get nowhere.

Owns servers, settings and services of the run, which are those of production; what is sped up are settings alone, and
`_settings` has them all.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from deploy.demo_view import DemoView
from deploy.local_stack import default_state_dir
from deploy.loop_acts import Acts, Size
from deploy.loop_report import LoopReport, show_report
from deploy.loop_source import RegimeSource
from deploy.loop_watch import LoopWatch
from deploy.servers import Servers, running_servers
from deploy.services import Services, service_environment
from detector.registry import Registry
from stream.kafka import make_admin
from stream.logs import configure_logging
from stream.service import stop_on_signals
from stream.settings import Settings, load_settings
from stream.topics import ensure_topics
from training.publish import train_and_publish


def _settings(servers: Servers, source: RegimeSource, home: Path, size: Size) -> Settings:
    """Write the settings file that the services read; every run has topics, keys and a registry of its own."""
    run = f"loop-{uuid.uuid4().hex[:8]}"
    folder = home / run
    folder.mkdir(parents=True)
    sections: dict[str, Any] = {
        "deployment": "loop-demo",
        "registry": str(folder / "registry"),
        "kafka": {"bootstrap": servers.bootstrap},
        "redis": {"url": servers.redis_url, "prefix": run},
        "topics": {"prefix": f"{run}.", "partitions": size.workers},
        "metrics": {"port": 0},
        "worker": {"threads": 1},
        "archive": {"url": str(folder / "archive"), "flush_s": 1.0},
        # After so few blocks ADWIN needs some twenty to see a change: the comparison with training is believed.
        "drift": {"window_blocks": 8, "min_blocks": 3, "persist_blocks": 5, "max_merged": 2},
        "retraining": {
            "work_dir": str(folder / "retraining"),
            "max_age_days": 0.0,
            "cool_down_minutes": 60.0,
            "minimum_rows": size.rows_to_train,
            "minutes": size.minutes,
            "nice": 0,
            "shadow_share": 0.5,
            "shadow_slots": 4000,
            "shadow_minutes": 1.0,
            "probation_slots": 10_000,
            "probation_minutes": 1.0,
        },
        "families": [family.model_dump() for family in source.families],
    }
    (folder / "telltale.toml").write_bytes(msgspec.toml.encode(sections))
    return load_settings(**sections)


def run_loop_demo(size: Size, *, seed: int, console: Console, stop: threading.Event) -> LoopReport:
    """Run the loop from a first model to a rollback, and report.

    Raises TransientError when a server or service fails; what is not reached in time is told in the report.
    """
    started = time.monotonic()
    view = DemoView(console)
    home = (default_state_dir() / "loop-demo").absolute()
    most_slots = round(size.most_s * size.rows_per_s / size.entities)
    source = RegimeSource(size.entities, size.geometry, size.slots_before, most_slots, seed)
    with ExitStack() as cleanup:
        servers = cleanup.enter_context(running_servers(view))
        settings = _settings(servers, source, home, size)
        _first_model(settings, source, size, seed, view)
        ensure_topics(make_admin(settings.kafka), settings.topics)
        services = cleanup.enter_context(_services(settings, size, view))
        watch = LoopWatch(settings, source, services, stop)
        acts = Acts(settings, source, watch, size, view, started + size.most_s)
        with watch.sending(size.rows_per_s):
            acts.play()
        report = acts.report(seed, time.monotonic() - started)
    show_report(console, report)
    return report


def _first_model(settings: Settings, source: RegimeSource, size: Size, seed: int, view: DemoView) -> None:
    registry, family = Registry(settings.registry), source.family
    with view.step("model of the usual regime") as step:
        manifest = train_and_publish(
            registry,
            source.training(size.training_rows),
            name=family.name,
            minutes=size.minutes,
            seed=seed,
            geometry=family.geometry,
            on_progress=lambda p: step.progress(f"loss {p.loss:.4f}", p.train_step, p.train_steps),
        )
        registry.promote(family.name, manifest.version)
        step.done(f"{manifest.version}, trained {manifest.training.minutes:.1f} min on {manifest.training.rows:,} rows")


@contextmanager
def _services(settings: Settings, size: Size, view: DemoView) -> Iterator[Services]:
    """Run all services of the loop until the block ends."""
    folder = Path(settings.registry).parent
    services = Services(folder, service_environment(folder / "telltale.toml"))
    try:
        with view.step("services") as step:
            for name in ("archiver", "windower", "drift", "retrainer"):
                services.start(name, name)
            for number in range(size.workers):
                services.start(f"worker-{number}", "worker", instance=str(number))
            services.check()
            step.done(f"archiver, windower, {size.workers} workers, drift and retrainer run; logs in {folder}")
        yield services
    finally:
        services.stop()


def _main(
    json: Annotated[Path | None, typer.Option(help="Write one JSON object with the figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    slowed: Annotated[float, typer.Option(help="Take so many times as long, on a busy machine.", min=1)] = 1.0,
) -> None:
    """Show the closed loop live on this machine, in at most eight minutes."""
    configure_logging(os.environ.get("TELLTALE_LOG_LEVEL", "warning"))
    if json is not None and not json.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {json.parent}")
    with stop_on_signals() as stop:
        report = run_loop_demo(Size.slowed(slowed), seed=seed, console=Console(soft_wrap=True), stop=stop)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


if __name__ == "__main__":
    typer.run(_main)
