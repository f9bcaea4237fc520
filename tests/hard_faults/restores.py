"""How long a new windower takes to hold what its predecessor held: from Redis, and from Kafka where Redis is empty."""

import time
from collections.abc import Iterator
from datetime import datetime

import msgspec
import redis

from stream.contracts import Sample
from stream.grid import Geometry
from stream.settings import Settings
from stream.topics import TELEMETRY, topic_name
from stream.window_store import connect
from tests.builders import untrained
from tests.chaos.workload import COMMAND, FIRST_SLOT, INTERVAL_MS, NUMERIC
from tests.faults.live import Processes, processes
from tests.hard_faults.scene import Row, Stage
from tests.pipeline import make_settings, send, wait_for

ENTITIES, ROWS, PARTITIONS = 1000, 512, 2
LIMIT_S = 5.0
_TOOK_OVER = "took over a partition"


def restore(stage: Stage, row: Row) -> None:
    """A thousand entities with full windows of 512 rows: a successor must have them within five seconds."""
    folder = stage.folder()
    bootstrap, url = stage.addresses()
    manifest, _ = untrained(numeric=1, commands=1, geometry=Geometry(length=512, hop=64, final_delay=100, slack=1024))
    settings = make_settings(manifest, folder, bootstrap, url, "restore.")
    send(settings, list(_telemetry()))
    with processes(settings, folder) as services:
        services.start("windower")
        wait_for(lambda: _applied(settings) == ENTITIES * ROWS, f"all rows of {topic_name(settings.topics, TELEMETRY)}")
        row.recovery_s = _restart(services)
        services.terminate("windower")
        with redis.Redis.from_url(url) as client:
            client.flushall()
        services.start("windower")
        _wait_until_taken_over(services, 3 * PARTITIONS)
        began = time.monotonic()
        wait_for(lambda: _applied(settings) == ENTITIES * ROWS, "windows to be rebuilt")
        row.details["from_kafka_s"] = round(time.monotonic() - began, 2)
    row.samples, row.limit_s = ENTITIES * ROWS, LIMIT_S
    row.outcome = "kept" if row.recovery_s <= LIMIT_S else "late"


def _telemetry() -> Iterator[tuple[str, bytes]]:
    for slot in range(FIRST_SLOT, FIRST_SLOT + ROWS):
        for number in range(ENTITIES):
            sample = Sample(f"e-{number}", slot * INTERVAL_MS, {NUMERIC: number / 7, COMMAND: True})
            yield sample.entity, msgspec.json.encode(sample)


def _applied(settings: Settings) -> int:
    """Return how many rows the snapshots in Redis stand for."""
    store = connect(settings.redis, layout=settings.layout)
    try:
        return sum(store.load(partition).next_offset or 0 for partition in range(PARTITIONS))
    finally:
        store.close()


def _restart(services: Processes) -> float:
    """Restart the windower in good order; return how long its successor took to restore all partitions."""
    services.terminate("windower")
    services.start("windower")
    _wait_until_taken_over(services, 2 * PARTITIONS)
    lines = [msgspec.json.decode(line) for line in services.log("windower").splitlines() if line.startswith("{")]
    started = [line["timestamp"] for line in lines if line["event"] == "started"][-1]
    taken = [line["timestamp"] for line in lines if line["event"] == _TOOK_OVER][-1]
    return round((datetime.fromisoformat(taken) - datetime.fromisoformat(started)).total_seconds(), 2)


def _wait_until_taken_over(services: Processes, times: int) -> None:
    wait_for(lambda: services.log("windower").count(_TOOK_OVER) == times, f"{times} partitions taken over")
