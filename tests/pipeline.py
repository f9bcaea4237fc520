"""A pipeline for tests: a published model, telemetry on a real topic, windower and worker running, scores read back."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from detector.checkpoint import Golden
from detector.engine import Detector
from detector.manifest import Manifest
from detector.models import Model
from detector.registry import Registry
from detector.worker import run_worker
from stream import subscriber
from stream.contracts import Alert, Sample, ScoreBlock
from stream.kafka import make_admin, make_producer, producer_config
from stream.settings import Settings, load_settings
from stream.topics import ALERTS, SCORES, TELEMETRY, Topic, ensure_topics, topic_name
from stream.windower import run_windower
from tests.builders import random_windows, untrained

WAIT_S = 60.0
_BLOCK = msgspec.json.Decoder(ScoreBlock)
_ALERT = msgspec.json.Decoder(Alert)


def publish(registry_path: Path, manifest: Manifest, weights: dict) -> Model:
    """Publish a model as champion and return it ready to score offline."""
    registry = Registry(registry_path)
    detector = Detector(manifest, weights)
    windows = random_windows(manifest, [entity.name for entity in manifest.entities])
    scores = detector.score(windows)
    golden = Golden(list(windows.entities), windows.end_slots, windows.values, scores.provisional, scores.final)
    version = registry.publish(manifest.name, manifest, weights, golden)
    registry.promote(manifest.name, version)
    bundle = registry.read(manifest.name, version)
    return Model(Detector(bundle.manifest, bundle.weights), np.arange(len(manifest.channels)))


def make_settings(manifest: Manifest, registry: Path, bootstrap: str, redis_url: str, prefix: str, **more) -> Settings:
    """Declare the manifest's family, with its channels in another order than the manifest's."""
    geometry = manifest.geometry
    family = {
        "name": manifest.name,
        "interval_ms": manifest.interval_ms,
        "numeric": [c.name for c in reversed(manifest.channels) if c.kind == "numeric"],
        "commands": [c.name for c in manifest.channels if c.kind == "command"],
        **msgspec.structs.asdict(geometry),
    }
    sections = {
        "registry": str(registry),
        "kafka": {"bootstrap": bootstrap},
        "redis": {"url": redis_url, "prefix": prefix.strip(".")},
        "topics": {"prefix": prefix, "partitions": 2},
        "metrics": {"port": 0},
        "worker": {"model_poll_s": 0.1, "batch_windows": 16},
        "families": [family],
    }
    settings = load_settings(**{**sections, **more})
    ensure_topics(make_admin(settings.kafka), settings.topics)
    return settings


def send(settings: Settings, messages: list[tuple[str, bytes]]) -> None:
    """Produce raw telemetry records."""
    producer = make_producer(producer_config(settings.kafka))
    topic = topic_name(settings.topics, TELEMETRY)
    for key, value in messages:
        producer.produce(topic, key=key.encode(), value=value)
        producer.poll(0)
    assert producer.flush(30) == 0


def sample(channels: list[str], entity: str, ts_ms: int, values: np.ndarray) -> tuple[str, bytes]:
    """Encode one row; NaN becomes null."""
    named = {c: None if np.isnan(v) else float(v) for c, v in zip(channels, values, strict=True)}
    return entity, msgspec.json.encode(Sample(entity, ts_ms, named))


@contextmanager
def running(settings: Settings, *services: Callable[[Settings, threading.Event], None]) -> Iterator[None]:
    """Run services in threads until the block ends; an error of one of them fails the test."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(service: Callable[[Settings, threading.Event], None]) -> None:
        try:
            service(settings, stop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(s,)) for s in services or (run_windower, run_worker)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
    if errors:
        raise errors[0]


def read_all(settings: Settings, topic: Topic) -> list:
    """Return every committed record of a topic."""
    return [*subscriber.read_all(settings, topic)]


def blocks(settings: Settings) -> list[ScoreBlock]:
    """Return every committed score block."""
    return [_BLOCK.decode(record.value) for record in read_all(settings, SCORES)]


def alerts(settings: Settings) -> list[Alert]:
    """Return every committed alert."""
    return [_ALERT.decode(record.value) for record in read_all(settings, ALERTS)]


def scores_by_slot(found: list[ScoreBlock], stage: str) -> dict[tuple[str, int], float | None]:
    """Return the score of each slot; a slot scored twice fails the test."""
    result: dict[tuple[str, int], float | None] = {}
    for block in found:
        if block.stage == stage:
            for i, score in enumerate(block.scores):
                key = block.entity, block.start_slot + i
                assert key not in result, f"slot {key} has two {stage} scores"
                result[key] = score
    return result


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds; fail saying what did not happen."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)


__all__ = ["untrained"]
