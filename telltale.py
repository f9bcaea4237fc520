"""The command line: every verb calls one function elsewhere.

Exit codes: 0 done, 1 failed with a reason on stderr, 2 bad usage. Imports are inside the verbs, so that a stream
service carries no torch.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli import bench, paper
from deploy.cli.options import JsonFile, Seed, in_a_folder, out, print_json, write_json
from stream.errors import TelltaleError, UsageError
from stream.logs import configure_logging, redacted
from stream.service import stop_on_signals
from stream.settings import FamilySettings, Settings, load_settings

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.trainer import Progress

app = typer.Typer(
    help="Live anomaly detection for spacecraft and server telemetry.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The model registry.", no_args_is_help=True)
config_app = typer.Typer(help="The settings in force.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(bench.app, name="bench")
app.add_typer(paper.app, name="paper")


def _there(data: str) -> str:
    """Refuse a path that is not there; whether a URL is there, its storage says."""
    if "://" not in data and not Path(data).exists():
        raise typer.BadParameter(f"there is no {data}")
    return data


DataFile = Annotated[Path, typer.Option(help="Parquet file of telemetry.", exists=True, dir_okay=False)]
RegistryPath = Annotated[str, typer.Option(help="Folder or URL of the model registry.")]
Interval = Annotated[str | None, typer.Option(help="Distance of two rows, such as 1s; told from `ts` if left out.")]
OtherRegistry = Annotated[str | None, typer.Option("--registry", help="Registry; the configured one if left out.")]


def main() -> None:
    """Run the command line and exit."""
    # OpenMP's threads would spin while they wait: on a machine with other work that makes torch several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        configure_logging(os.environ.get("TELLTALE_LOG_LEVEL", "info"))
        app()
    except UsageError as error:
        sys.stderr.write(f"telltale: {redacted(str(error))}\n")
        sys.exit(2)
    except TelltaleError as error:
        sys.stderr.write(f"telltale: {redacted(str(error))}\n")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


@app.command()
def demo(
    source: Annotated[str, typer.Option(help="simulator, or a Parquet file of telemetry.")] = "simulator",
    seconds: Annotated[float, typer.Option(help="Stream for so long, then compare and stop.", min=1)] = 120.0,
    console: Annotated[bool, typer.Option(help="Open the console in the browser (not built yet).")] = False,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Run the whole product live on this machine: Kafka, Redis, model, telemetry, alerts."""
    from deploy.demo import run_demo

    configure_logging(os.environ.get("TELLTALE_LOG_LEVEL", "warning"))
    if console:
        raise UsageError("there is no browser console yet; run the demo with --no-console")
    with stop_on_signals() as stop:
        report = run_demo(source, seconds, seed=seed, console=out, stop=stop)
    write_json(json, report)


@app.command()
def up() -> None:
    """Start the local Kafka and Redis, or find them running."""
    from deploy.local_stack import up as start

    with _bar("Kafka's jars") as show:
        addresses = start(progress=show)
    out.print(f"Apache Kafka {addresses.kafka_version} at {addresses.bootstrap}", highlight=False)
    out.print(f"{addresses.redis_kind} {addresses.redis_version} at {addresses.redis_url}", highlight=False)


@app.command()
def down() -> None:
    """Stop the local Kafka and Redis."""
    from deploy.local_stack import down as stop

    out.print("stopped" if stop() else "nothing was running")


@app.command()
def status() -> None:
    """Say whether the local Kafka and Redis run and answer; exit 1 if they don't."""
    from deploy.local_stack import status as look

    stack = look()
    for name, server in (("kafka", stack.kafka), ("redis", stack.redis)):
        state = "answering" if server.answering else "running, not answering" if server.running else "not running"
        where = f" at {server.address}, {server.resident_mib} MiB, log {server.log}" if server.running else ""
        out.print(f"{name}: {state}{where}", highlight=False)
    if not (stack.kafka.answering and stack.redis.answering):
        raise typer.Exit(1)


@app.command()
def windower() -> None:
    """Serve: telemetry into windows in Redis, and notices of those that are final."""
    from stream.windower import run_windower

    _serve(run_windower)


@app.command()
def worker() -> None:
    """Serve: score announced windows, publish scores and alerts."""
    from detector.worker import run_worker

    _serve(run_worker)


@app.command()
def retrainer() -> None:
    """Serve: train new models when they are due, prove them, promote them and take them back."""
    from training.retrainer_service import run_retrainer

    _serve(run_retrainer)


@app.command()
def retrain(name: Annotated[str, typer.Argument(help="Family.")], registry: OtherRegistry = None) -> None:
    """Ask the retrainer for a new model now, whatever its cool-down."""
    from deploy.model_decisions import request

    request(_located_if_up(), _registry(registry), name, _note)
    out.print(f"asked for a new model of {name}", highlight=False)


@app.command()
def archiver() -> None:
    """Serve: telemetry into the Parquet archive, each row once."""
    from stream.archiver import run_archiver

    _serve(run_archiver)


@app.command()
def drift() -> None:
    """Serve: watch how families move away from their training data, publish drift events."""
    from stream.drift import run_drift

    _serve(run_drift)


@app.command()
def train(
    data: Annotated[
        str, typer.Option(help="Parquet file of telemetry, or folder or URL of an archive.", callback=_there)
    ],
    registry: RegistryPath,
    name: Annotated[str | None, typer.Option(help="Name of the model; the family's if left out.")] = None,
    family: Annotated[str | None, typer.Option(help="Family; the model's name if left out.")] = None,
    preset: Annotated[str, typer.Option(help="small (CPU) or paper (GPU).")] = "small",
    minutes: Annotated[float, typer.Option(help="Time budget of the training loop.", min=0.01)] = 5.0,
    seed: Seed = 0,
    promote: Annotated[bool, typer.Option(help="Make the new version the champion.")] = True,
    alarms_per_week: Annotated[
        float | None, typer.Option(help="Budget of false alarms an entity, from which thresholds follow.", min=0.001)
    ] = None,
    interval: Interval = None,
    resume: Annotated[Path | None, typer.Option(help="Folder where an interrupted run is kept and goes on.")] = None,
    json: JsonFile = None,
) -> None:
    """Train a model and publish it as a new version."""
    from detector.models import choose_device
    from detector.registry import Registry, check_name
    from training.archive import read_any
    from training.datasets import warn_of_still_channels
    from training.parallel import joined
    from training.publish import publish_trained
    from training.trainer import train as fit

    settings = load_settings(registry=registry)
    name = check_name(_either(name, family))
    declared = next((one for one in settings.families if one.name == (family or name)), None)
    dataset = read_any(data, declared or family or name, interval_ms=_interval_ms(interval))
    if declared is not None:
        _check_fits(declared, dataset)
    warn_of_still_channels(dataset, data)
    target, device = Registry(registry), choose_device(settings.worker.device)
    with joined(device) as ranks, _bar(f"training {name}") as show:

        def on_progress(p: "Progress") -> None:
            show(f"loss {p.loss:.4f}", p.train_step, p.train_steps)

        trained = fit(
            dataset,
            name=name,
            preset=preset,
            minutes=minutes,
            seed=seed,
            geometry=declared.geometry if declared else None,
            state_folder=resume,
            device=device,
            ranks=ranks,
            on_progress=on_progress,
        )
    if not ranks.leads:
        return
    manifest = publish_trained(target, trained, device=device, alarms_per_week=alarms_per_week)
    if promote:
        target.promote(name, manifest.version)
    out.print(f"{name}@{manifest.version}{' is now champion' if promote else ''}", highlight=False)
    write_json(json, {"name": name, "version": manifest.version, "training": manifest.training})


@app.command()
def score(
    data: DataFile,
    model: Annotated[str, typer.Option(help="REGISTRY/NAME or REGISTRY/NAME@VERSION.")],
    output: Annotated[
        Path,
        typer.Option(
            "--out", help="Parquet file to write, one row per row of the data.", callback=in_a_folder, dir_okay=False
        ),
    ],
    explain: Annotated[
        bool, typer.Option("--explain", help="Write every channel's residual and expected value too.")
    ] = False,
) -> None:
    """Score recorded telemetry by the live path's own code."""
    from detector.models import choose_device
    from training.score_file import load_model, score_file

    loaded = load_model(model, choose_device(load_settings().worker.device))
    with _bar("scoring") as show:

        def on_series(done: int, total: int) -> None:
            show(f"{done} of {total}", done, total)

        unscored = score_file(data, loaded, output, on_series, explain=explain)
    remark = f"; {unscored} rows have no value to score" if unscored else ""
    out.print(f"wrote {output}, scored by {loaded.manifest.name}@{loaded.manifest.version}{remark}", highlight=False)


@app.command()
def evaluate(
    scores: Annotated[Path, typer.Option(help="File written by `telltale score`.", exists=True, dir_okay=False)],
    labels: Annotated[Path, typer.Option(help="Parquet file with a column label.", exists=True, dir_okay=False)],
    interpretation: Annotated[
        Path | None,
        typer.Option(
            help="JSON: which channels caused each event, {entity: [[first row, last row, [number, ...]], ...]}.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    frame_rows: Annotated[int, typer.Option(help="Rows of a frame, for the IOU of frames.", min=1)] = 100,
    seed: Seed = 0,
    json: JsonFile = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a report with plots, one file.", callback=in_a_folder, dir_okay=False),
    ] = None,
) -> None:
    """Measure scores against labels: honest figures first, adjusted ones beside a random score's."""
    from training.evaluation import evaluate_joined
    from training.evaluation_table import render
    from training.labelled_scores import join

    series = join(scores, labels, with_channels=bool(html or interpretation))
    evaluation = evaluate_joined(
        series, scores, labels, seed, interpretation_path=interpretation, frame_rows=frame_rows
    )
    out.print(render(evaluation))
    write_json(json, evaluation)
    if html is not None:
        from training.report import write_report

        write_report(html, evaluation, series)


@app.command()
def replay(
    data: DataFile,
    rate: Annotated[str, typer.Option(help="Rows per second, or max.")] = "max",
    interval: Interval = None,
    columns: Annotated[bool, typer.Option("--columns", help="Put a hop's rows of an entity into one record.")] = False,
) -> None:
    """Put a data set onto the telemetry topic."""
    from deploy.replay import replay as send

    rows_per_s, interval_ms = _rate(rate), _interval_ms(interval)
    with stop_on_signals() as stop:
        sent = send(_located(), data, rows_per_s=rows_per_s, interval_ms=interval_ms, stop=stop, columns=columns)
    out.print(f"{sent.rows:,} rows in {sent.seconds:.1f} s", highlight=False)


@app.command()
def alerts(
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes; else print what there is.")] = False,
    json_lines: Annotated[bool, typer.Option("--json-lines", help="One JSON object a line.")] = False,
) -> None:
    """Read the alerts topic."""
    from deploy.alert_reader import read_alerts

    with stop_on_signals() as stop:
        read_alerts(_located(), out, follow=follow, json_lines=json_lines, stop=stop)


@app.command()
def doctor() -> None:
    """Check that everything is reachable and sane; exit 1 if not."""
    from deploy.doctor import examine

    findings = examine(_located())
    for finding in findings:
        mark = "[green]✓[/]" if finding.good else "[red]✗[/]"
        out.print(f"{mark} {finding.what}: {finding.detail}", highlight=False)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@config_app.command("show")
def config_show() -> None:
    """Print the effective settings as JSON, secrets redacted."""
    print_json(redacted(load_settings().model_dump(mode="json")))


@config_app.command("access")
def config_access(
    kafka: Annotated[bool, typer.Option("--kafka", help="A shell script: topics, and ACLs of each service.")] = False,
    redis: Annotated[bool, typer.Option("--redis", help="An ACL file: a user for each service.")] = False,
) -> None:
    """Print the least rights that the services need, to be loaded by an administrator; docs/security.md says how."""
    from deploy.access import render_kafka, render_redis

    if kafka == redis:
        raise UsageError("config access wants --kafka or --redis")
    settings = load_settings()
    sys.stdout.write(render_kafka(settings.topics) if kafka else render_redis(settings.redis))


@models_app.command("list")
def models_list(registry: OtherRegistry = None) -> None:
    """List versions, oldest first, with their aliases."""
    from deploy.model_table import model_table

    out.print(model_table(_registry(registry)))


@models_app.command("show")
def models_show(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS.")],
    registry: OtherRegistry = None,
) -> None:
    """Print a version's manifest as JSON, with its gates and what was decided of it."""
    from deploy.model_table import model_report

    source = _registry(registry)
    print_json(model_report(source, *source.resolve(model)))


@models_app.command("diff")
def models_diff(
    one: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS.")],
    other: Annotated[str, typer.Argument(help="The same.")],
    registry: OtherRegistry = None,
) -> None:
    """Show in what two versions differ: configuration, data, metrics, gates."""
    from deploy.model_table import model_diff

    source = _registry(registry)
    out.print(model_diff(source, source.resolve(one), source.resolve(other)))


@models_app.command("promote")
def models_promote(
    model: Annotated[str, typer.Argument(help="NAME@VERSION, or NAME for its challenger.")],
    registry: OtherRegistry = None,
) -> None:
    """Make a version the champion; running workers take it between two batches."""
    from deploy.model_decisions import promote

    version = promote(_located_if_up(), _registry(registry), model, _note)
    out.print(f"{model.partition('@')[0]}@{version} is now champion", highlight=False)


@models_app.command("rollback")
def models_rollback(
    name: Annotated[str, typer.Argument(help="Family.")],
    registry: OtherRegistry = None,
) -> None:
    """Make the previous champion champion again."""
    from deploy.model_decisions import rollback

    version = rollback(_located_if_up(), _registry(registry), name, _note)
    out.print(f"{name}@{version} is champion again", highlight=False)


@models_app.command("enrol")
def models_enrol(
    data: Annotated[
        Path, typer.Option(help="Parquet file of normal rows of new entities.", exists=True, dir_okay=False)
    ],
    model: Annotated[str, typer.Option(help="REGISTRY/NAME or REGISTRY/NAME@VERSION.")],
    promote: Annotated[bool, typer.Option(help="Make the new version the champion.")] = False,
) -> None:
    """Make entities known that training never saw, without training; publish the model as a new version."""
    from detector.models import choose_device
    from training.datasets import read_dataset
    from training.enrol import enrol_and_publish
    from training.score_file import find_model

    registry, name, version = find_model(model)
    dataset = read_dataset(data, interval_ms=registry.manifest(name, version).interval_ms)
    enrolled = enrol_and_publish(registry, name, version, dataset, device=choose_device(load_settings().worker.device))
    promoted = promote or registry.alias(name, "champion") is None
    if promoted:
        registry.promote(name, enrolled)
    count = f"{len(dataset.series)} new {'entity' if len(dataset.series) == 1 else 'entities'}"
    out.print(f"{name}@{enrolled}{' is now champion' if promoted else ''}, with {count}", highlight=False)


def _serve(run: Callable[[Settings, threading.Event], None]) -> None:
    settings = _located()
    with stop_on_signals(settings.stop_deadline_s) as stop:
        run(settings, stop)


def _located() -> Settings:
    """Return the settings with the addresses of the local stack where none are given."""
    settings = load_settings()
    if settings.kafka.bootstrap and settings.redis.url.get_secret_value():
        return settings
    from deploy.addresses import locate

    return locate(settings)


def _located_if_up() -> Settings:
    """Return the settings, with the local stack's addresses where it runs: what must also be possible without Kafka."""
    try:
        return _located()
    except TelltaleError:
        return load_settings()


def _note(text: str) -> None:
    sys.stderr.write(f"telltale: {redacted(text)}\n")


def _registry(path: str | None) -> Any:
    from detector.registry import Registry

    return Registry(path or load_settings().registry)


def _check_fits(family: FamilySettings, dataset: "Dataset") -> None:
    """Refuse data whose model no worker would take for the declared family, before hours go into it."""
    declared = {*((name, "numeric") for name in family.numeric), *((name, "command") for name in family.commands)}
    odd = sorted(f"{name} ({kind})" for name, kind in declared ^ {(c.name, c.kind) for c in dataset.channels})
    if odd:
        raise UsageError(f"data and declared family {family.name} differ in channels: {', '.join(odd[:6])}")
    if dataset.interval_ms != family.interval_ms:
        raise UsageError(
            f"declared family {family.name} has interval_ms {family.interval_ms}, the data {dataset.interval_ms}"
        )


def _either(name: str | None, family: str | None) -> str:
    if (given := name or family) is None:
        raise UsageError("--name or --family is wanted")
    return given


def _rate(text: str) -> float | None:
    if text == "max":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise UsageError(f"--rate wants rows per second above 0, or max, got {text!r}")
    return rate


def _interval_ms(text: str | None) -> int | None:
    if text is None:
        return None
    for suffix, factor in (("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)):
        number = text.removesuffix(suffix)
        if number != text and number.replace(".", "", 1).isdigit() and float(number) * factor >= 1:
            return round(float(number) * factor)
    raise UsageError(f"--interval wants a duration such as 500ms, 1s or 1m, got {text!r}")


@contextmanager
def _bar(name: str) -> Iterator[Callable[[str, float, float], None]]:
    from deploy.demo_view import DemoView

    with DemoView(out).step(name) as step:
        yield step.progress
        step.done("done")


if __name__ == "__main__":
    main()
