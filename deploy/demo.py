"""The whole product live on one machine: stack, model, telemetry, services, alerts, and what they were worth.

Owns the order of the demo and its report; every part it starts is the one that runs in production.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog
from rich.console import Console

from deploy.demo_report import DemoReport, Tally, compare
from deploy.demo_sources import Source, choose_source
from deploy.demo_view import DemoView
from deploy.local_stack import default_state_dir
from deploy.replay import send
from deploy.servers import Servers, running_servers
from deploy.services import Services, service_environment
from detector.manifest import Manifest
from detector.models import prove
from detector.registry import Registry
from stream.errors import CheckpointError, TransientError
from stream.kafka import make_admin
from stream.settings import FamilySettings, Settings, load_settings
from stream.subscriber import Subscriber, decode_alert, decode_block
from stream.topics import ALERTS, SCORES, ensure_topics, topic_name
from training.datasets import fingerprint
from training.publish import train_and_publish

_log = structlog.get_logger()

_DRAIN_S = 60.0
_POLL_S = 0.1


def run_demo(source: str, seconds: float, *, seed: int, console: Console, stop: threading.Event) -> DemoReport:
    """Run the demo for `seconds` of streaming, or less if `stop` is set, and report.

    Raises UsageError for a source that can't be used, TransientError when a server or service fails.
    """
    started = time.monotonic()
    view = DemoView(console)
    chosen = choose_source(source, seconds, seed)
    home = default_state_dir() / "demo"
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        servers = cleanup.enter_context(running_servers(view))
        models = [_model(home / "registry", chosen, family, seed, view) for family in chosen.families]
        settings = _settings(servers, chosen, home)
        ensure_topics(make_admin(settings.kafka), settings.topics)
        services = cleanup.enter_context(_services(settings, home, view))
        run = _Run(settings, chosen, services, view, started)
        run.stream(seconds, stop)
        memory = services.memory_mib()
    report = compare(chosen, run.tally, (servers.broker, servers.redis), models, memory)
    view.summary(report)
    return report


def _model(registry_path: Path, source: Source, family: FamilySettings, seed: int, view: DemoView) -> Manifest:
    """Return the champion of a family: the one trained on the same data before, or a new one."""
    registry = Registry(registry_path)
    dataset = source.training(family)
    with view.step(f"model of {family.name}") as step:
        kept = _kept(registry, family, fingerprint(dataset))
        if kept is not None:
            step.done(f"{kept.version}, trained before on the same data")
            return kept
        manifest = train_and_publish(
            registry,
            dataset,
            name=family.name,
            train_steps=source.train_steps,
            seed=seed,
            geometry=family.geometry,
            on_progress=lambda p: step.progress(f"loss {p.loss:.4f}", p.train_step, p.train_steps),
        )
        registry.promote(family.name, manifest.version)
        minutes, rows = manifest.training.minutes, manifest.training.rows
        step.done(f"{manifest.version}, trained {minutes:.1f} min on {rows:,} rows")
    return manifest


def _kept(registry: Registry, family: FamilySettings, data_sha256: str) -> Manifest | None:
    """Return the champion if it was trained on this data for these windows and still scores as it did then."""
    version = registry.alias(family.name, "champion")
    if version is None:
        return None
    try:
        bundle = registry.read(family.name, version)
        if bundle.manifest.training.data_sha256 != data_sha256 or bundle.manifest.geometry != family.geometry:
            return None
        return prove(bundle).manifest
    except CheckpointError as error:
        _log.warning("training anew", family=family.name, version=version, reason=str(error))
        return None


def _settings(servers: Servers, source: Source, home: Path) -> Settings:
    """Write the settings file that the services read; every run has topics and keys of its own."""
    run = f"demo-{uuid.uuid4().hex[:8]}"
    sections: dict[str, Any] = {
        "deployment": "demo",
        "registry": str(home / "registry"),
        "kafka": {"bootstrap": servers.bootstrap},
        "redis": {"url": servers.redis_url, "prefix": run},
        "topics": {"prefix": f"{run}."},
        "metrics": {"port": 0},
        "families": [family.model_dump() for family in source.families],
    }
    _config_file(home).write_bytes(msgspec.toml.encode(sections))
    return load_settings(**sections)


def _config_file(home: Path) -> Path:
    return home / "telltale.toml"


@contextmanager
def _services(settings: Settings, home: Path, view: DemoView) -> Iterator[Services]:
    """Run windower and worker until the block ends."""
    services = Services(home, service_environment(_config_file(home)))
    try:
        with view.step("services") as step:
            for name in ("windower", "worker"):
                services.start(name, name)
            services.check()
            step.done(f"windower and worker run; logs in {home}, topics {settings.topics.prefix}*")
        yield services
    finally:
        services.stop()


class _Run:
    """One stretch of streaming: a thread sends rows, this one reads what comes out."""

    def __init__(self, settings: Settings, source: Source, services: Services, view: DemoView, started: float) -> None:
        self.tally = Tally(source.families)
        self._settings = settings
        self._source = source
        self._services = services
        self._view = view
        self._started = started
        self._failure: list[TransientError] = []

    def stream(self, seconds: float, stop: threading.Event) -> None:
        """Stream until the time is up, the source ends or `stop` is set; then wait until all that can be is scored."""
        ended = threading.Event()
        subscriber = Subscriber(self._settings, SCORES, ALERTS, from_beginning=True)
        sender = threading.Thread(target=self._send, args=(ended,), name="send")
        begun = time.monotonic()
        sender.start()
        try:
            while sender.is_alive() and time.monotonic() - begun < seconds and not stop.is_set():
                self._read(subscriber, begun)
            ended.set()
            sender.join()
            self._drain(subscriber, begun, stop)
        finally:
            ended.set()
            sender.join()
            subscriber.close()
        self.tally.seconds = time.monotonic() - begun
        if self._failure:
            raise self._failure[0]

    def _send(self, ended: threading.Event) -> None:
        source = self._source
        try:
            send(self._settings, source.rows(), rows_per_s=source.rows_per_s, stop=ended, on_sent=self.tally.sent)
        except TransientError as error:
            self._failure.append(error)

    def _drain(self, subscriber: Subscriber, begun: float, stop: threading.Event) -> None:
        end = time.monotonic() + _DRAIN_S
        scorable = self.tally.rows_scorable
        while self.tally.rows_scored < scorable and time.monotonic() < end and not stop.is_set():
            self._read(subscriber, begun)

    def _read(self, subscriber: Subscriber, begun: float) -> None:
        self._services.check()
        alerts = topic_name(self._settings.topics, ALERTS)
        for record in subscriber.poll(_POLL_S):
            if record.topic != alerts:
                self.tally.scored(decode_block(record))
                continue
            now = time.monotonic()
            if not self.tally.alerts:
                self.tally.first_alert_s = round(now - self._started, 1)
                self.tally.first_alert_stream_s = round(now - begun, 1)
            alert = decode_alert(record).alert
            self.tally.alerts.append(alert)
            self._view.alert(alert)
