"""Services under measurement: real child processes on topics and keys of their own, which are removed afterwards."""

import http.client
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import Watch
from deploy.processes import free_port
from deploy.servers import Servers
from deploy.services import Services, service_environment
from stream.errors import TransientError
from stream.kafka import consumer_config, make_admin, make_consumer
from stream.settings import FamilySettings, Settings, load_settings
from stream.topics import ALL, Topic, ensure_topics, group_name, partition_counts, topic_name

_READY_S = 60.0
_TIMEOUT_S = 10.0
_TAKING_S = 120.0
_TAKING_POLL_S = 0.02
# What a broker answers that has only just begun to keep groups; the client does not call all of them retriable.
_NO_HOME_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class Rig:
    """One run's settings, and the folder with their file and the services' logs."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Belong to topics that exist."""
        self.settings = settings
        self.folder = folder
        self.config = folder / "telltale.toml"

    def serve(self, name: str, *, module: str = "telltale", **environment: str) -> "RunningService":
        """Give a service of this run, to be started by `with`. module: the command line it is run by."""
        return RunningService(name, self.folder, service_environment(self.config) | environment, module)

    @contextmanager
    def follow(self, service: str, topic: Topic) -> Iterator[Callable[[], int]]:
        """Give a function that tells how many records of a topic a service's group is done with.

        Right for topics without transaction markers only, which count as records.
        """
        name = topic_name(self.settings.topics, topic)
        count = partition_counts(make_admin(self.settings.kafka), self.settings.topics, _TIMEOUT_S)[name]
        places = [TopicPartition(name, partition) for partition in range(count)]
        consumer = make_consumer(consumer_config(self.settings.kafka, group_name(self.settings.topics, service)))
        try:
            yield lambda: _committed(consumer, places)
        finally:
            consumer.close()


class Taken(NamedTuple):
    """Records that services took from a topic, and the time it cost: by the clock, and CPU of all of them."""

    records: int
    wall_s: float
    cpu_s: float


class RunningService:
    """A service as a child process, with its metrics and what it takes of the machine."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], module: str = "telltale") -> None:
        """Start nothing yet. module: the command line it is run by."""
        self.name = name
        self._module = module
        self._port = free_port()
        self._services = Services(folder, environment | {"TELLTALE_METRICS__PORT": str(self._port)})
        self.watch: Watch

    def __enter__(self) -> Self:
        self._services.start(self.name, self.name, module=self._module)
        self.watch = Watch(self._services.pid(self.name)).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watch.__exit__(kind, error, trace)
        self._services.stop()

    def wait_ready(self) -> None:
        """Wait until it has its partitions; raise TransientError if it ends or takes too long."""
        self.wait_until(lambda: self._get("/readyz")[0] == 200, _READY_S, "to be ready")

    def wait_until(self, condition: Callable[[], bool], limit_s: float, what: str, poll_s: float = 0.1) -> None:
        """Wait for a condition while the service runs; raise TransientError if it ends or time runs out."""
        end = time.monotonic() + limit_s
        while not condition():
            self._services.check()
            if time.monotonic() > end:
                raise TransientError(f"waited {limit_s:.0f} s for {self.name} {what}")
            time.sleep(poll_s)

    def metric(self, name: str) -> float:
        """Return a counter's or gauge's value, summed over its labels."""
        return sum(value for sample, _, value in self._samples() if sample == name)

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """Return a histogram's upper bounds and cumulative counts, ascending."""
        found = [
            (float(labels["le"]), value) for sample, labels, value in self._samples() if sample == f"{name}_bucket"
        ]
        return sorted(found)

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for family in text_string_to_metric_families(self._get("/metrics")[1]):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()


def measure_taking(services: Sequence[RunningService], done: Callable[[], int], total: int, after: int = 0) -> Taken:
    """Measure from the first commit seen until all records of a topic are taken; raise TransientError if that fails.

    after: so many records are taken before it is looked at.
    """
    services[0].wait_until(lambda: done() > after, _TAKING_S, "to begin", _TAKING_POLL_S)
    first, wall = done(), time.perf_counter()
    cpu = sum(one.watch.cpu_s() for one in services)
    services[0].wait_until(lambda: done() >= total, _TAKING_S, "to take all rows", _TAKING_POLL_S)
    wall, cpu = time.perf_counter() - wall, sum(one.watch.cpu_s() for one in services) - cpu
    if first >= total:
        raise TransientError("all rows were taken before they could be measured: put more rows into the load")
    return Taken(total - first, wall, cpu)


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, so that no service and no server is left behind."""

    def unwind(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def make_rig(servers: Servers, family: FamilySettings, *, partitions: int = 4, **sections: Any) -> Iterator[Rig]:
    """Make topics, keys and a settings file that nobody else uses, for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="telltale-bench-"))
    run = f"bench-{uuid.uuid4().hex[:8]}"
    settings = _settings(servers, family, run, folder, partitions, sections)
    ensure_topics(make_admin(settings.kafka), settings.topics)
    try:
        yield Rig(settings, folder)
    finally:
        _remove(settings)
        shutil.rmtree(folder)


def _settings(
    servers: Servers, family: FamilySettings, run: str, folder: Path, partitions: int, more: dict[str, Any]
) -> Settings:
    sections: dict[str, Any] = {
        "deployment": "bench",
        "kafka": {"bootstrap": servers.bootstrap},
        "redis": {"url": servers.redis_url, "prefix": run},
        "topics": {"prefix": f"{run}.", "partitions": partitions},
        "metrics": {"port": 0},
        "families": [family.model_dump()],
        **more,
    }
    (folder / "telltale.toml").write_bytes(msgspec.toml.encode(sections))
    return load_settings(**sections)


def _committed(consumer: Consumer, places: list[TopicPartition]) -> int:
    """Return how many records a group is done with; none while the broker is still making its group's home."""
    try:
        return sum(max(0, place.offset) for place in consumer.committed(places, timeout=_TIMEOUT_S))
    except KafkaException as error:
        if error.args[0].code() in _NO_HOME_YET:
            return 0
        raise TransientError(f"how far {places[0].topic} is worked on: {error.args[0].str()}") from error


def _remove(settings: Settings) -> None:
    """Drop the run's topics and Redis keys."""
    names = [topic_name(settings.topics, topic) for topic in ALL]
    admin = make_admin(settings.kafka)  # kept: its futures end with it
    for future in admin.delete_topics(names, operation_timeout=_TIMEOUT_S).values():
        future.result(_TIMEOUT_S)
    client = redis.Redis.from_url(settings.redis.url.get_secret_value())
    keys = list(client.scan_iter(match=f"{{{settings.redis.prefix}:*", count=1000))
    if keys:
        client.unlink(*keys)
    client.close()
