"""A pipeline under attack: servers of its own, services as child processes, a load, and the faults done to them."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import redis
import torch
from confluent_kafka import KafkaError, Message

from deploy.local_stack import LocalStack
from detector.manifest import DenoiserConfig, ScoringConfig
from detector.models import Model
from stream.contracts import Alert, ScoreBlock
from stream.grid import Geometry
from stream.kafka import consumer_config, make_consumer, make_producer, producer_config
from stream.settings import Settings
from stream.topics import ALERTS, DEAD_LETTERS, SCORES, TELEMETRY, topic_name
from tests.builders import untrained
from tests.chaos.oracle import Found
from tests.chaos.plan import Fault
from tests.chaos.workload import Sending
from tests.faults.live import Crash, Processes, processes
from tests.pipeline import make_settings, publish, read_all

# Little room beyond a window, so that a few seconds without the worker already pause the windower.
GEOMETRY = Geometry(length=64, hop=32, lateness=3, final_delay=16, slack=160)
TRANSACTION_S = 6.0
# With nothing left to do a service never reaches the batch in which it is to crash.
_CRASH_S = 20.0
_BLOCK = msgspec.json.Decoder(ScoreBlock)
_ALERT = msgspec.json.Decoder(Alert)


def publish_model(registry: Path) -> Model:
    """Publish a network that is quick to run: its scores only have to depend on every row of a window."""
    manifest, weights = untrained(
        numeric=1,
        commands=1,
        entities=("e-0", "e-1", "e-2"),
        geometry=GEOMETRY,
        scoring=ScoringConfig(starts=(5, 20), smoothing_size=31),
        denoiser=DenoiserConfig(numeric=1, commands=1, entities=3, layers=1, width=8, state=4),
    )
    return publish(registry, manifest, weights)


def declare(model: Model, registry: Path, bootstrap: str, redis_url: str, prefix: str) -> Settings:
    """Make topics and settings with short time-outs, so that every fault is noticed while it lasts."""
    more = {
        "kafka": {"bootstrap": bootstrap, "transaction_timeout_ms": int(1000 * TRANSACTION_S)},
        "worker": {"model_poll_s": 1.0, "batch_windows": 32, "threads": 1},
        "limits": {"dead_letters_per_s": 1e6},  # the oracle compares each of them
    }
    return make_settings(model.manifest, registry, bootstrap, redis_url, prefix, **more)


class Rig:
    """The running pipeline, and what can be done to it."""

    def __init__(self, stack: LocalStack, settings: Settings, services: Processes) -> None:
        """Start both services."""
        self.stack = stack
        self.settings = settings
        self.services = services
        services.start("windower")
        services.start("worker")

    def suffer(self, fault: Fault) -> None:
        """Do one fault from its beginning to its end."""
        match fault.kind:
            case "kill":
                self.services.kill(fault.victim)
                self._hold(fault)
                self.services.start(fault.victim)
            case "crash":
                self.services.kill(fault.victim)
                self.services.start(fault.victim, Crash(fault.point, fault.batch))
                if not self.services.crashed(fault.victim, _CRASH_S):
                    self.services.kill(fault.victim)
                self.services.start(fault.victim)
            case "zombie":
                self._zombie(fault)
            case "join":
                self.services.start(f"{fault.victim}-1")
                self._hold(fault)
                self._leave(f"{fault.victim}-1", hard=fault.hard)
            case "restart":
                self.services.terminate(fault.victim, grace_s=60.0)
                self._hold(fault)
                self.services.start(fault.victim)
            case "flush":
                self.flush()
            case "redis restart":
                self.stack.kill_redis()
                time.sleep(fault.hold_s)
                self.stack.start_redis()
            case "broker restart":
                self.stack.restart_kafka()

    def flush(self) -> None:
        """Empty Redis."""
        with redis.Redis.from_url(self.settings.redis.url.get_secret_value()) as client:
            client.flushall()

    def _zombie(self, fault: Fault) -> None:
        """Stop a service for longer than its session, let another take over, and let the first one go on."""
        self.services.pause(fault.victim)
        self.services.start(f"{fault.victim}-1")
        self._hold(fault)
        self.services.resume(fault.victim)
        time.sleep(1.0)
        self._leave(f"{fault.victim}-1", hard=fault.hard)

    def _hold(self, fault: Fault) -> None:
        if fault.meanwhile:
            time.sleep(fault.hold_s / 2)
            self.flush()
            time.sleep(fault.hold_s / 2)
        else:
            time.sleep(fault.hold_s)

    def _leave(self, name: str, *, hard: bool) -> None:
        if hard:
            self.services.kill(name)
        else:
            self.services.terminate(name, grace_s=60.0)


@contextmanager
def servers(kind: str) -> Iterator[tuple[LocalStack, Path]]:
    """Give servers of one run's own, not started yet, and a folder; both are gone after the block."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix=f"telltale-{kind}-") as name:
        stack = LocalStack(Path(name) / "stack")
        try:
            yield stack, Path(name)
        finally:
            stack.stop()


@contextmanager
def attacked(
    stack: LocalStack, settings: Settings, folder: Path, prepare: Callable[[], None] | None = None
) -> Iterator[Rig]:
    """Run windower and worker until the block ends; they must end in good order."""
    with processes(settings, folder, prepare) as services:
        yield Rig(stack, settings, services)


class Load:
    """Sends records from a thread at a rate, and must get all of them through."""

    def __init__(self, settings: Settings, records: Sequence[Sending], rows_per_s: float) -> None:
        """Send nothing yet."""
        self._settings = settings
        self._records = records
        self._rows_per_s = rows_per_s
        self._failed: list[str] = []
        self._given_up = False
        self._thread = threading.Thread(target=self._send, name="load")

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._given_up = kind is not None
        self._thread.join()
        lost = "" if self._given_up or not self._failed else f"{len(self._failed)} records, first: {self._failed[0]}"
        assert not lost, f"not delivered: {lost}"

    @property
    def running(self) -> bool:
        """Whether there are records still to be sent."""
        return self._thread.is_alive()

    def _send(self) -> None:
        producer = make_producer(producer_config(self._settings.kafka))
        topic = topic_name(self._settings.topics, TELEMETRY)
        began = time.monotonic()
        for count, one in enumerate(self._records):
            while (ahead := count / self._rows_per_s - (time.monotonic() - began)) > 0.02:
                producer.poll(min(ahead, 0.2))
            if self._given_up:
                return
            producer.produce(topic, one.payload, one.entity.encode(), headers=one.headers, on_delivery=self._delivered)
        if producer.flush(120):
            self._failed.append("no answer in time")

    def _delivered(self, error: KafkaError | None, _: "Message[bytes, bytes]") -> None:
        if error is not None:
            self._failed.append(error.str())


def wait_for_scores(settings: Settings, wanted: int, patience_s: float, look: Callable[[], None]) -> int:
    """Follow the scores until there are so many, or none has come for a while; return how many there are.

    look: called now and then, to raise if something has ended that must not.
    """
    consumer = make_consumer(
        consumer_config(settings.kafka, f"{settings.topics.prefix}follower") | {"auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic_name(settings.topics, SCORES)])
    count, last = 0, time.monotonic()
    try:
        while count < wanted and time.monotonic() - last < patience_s:
            look()
            for message in consumer.consume(500, timeout=0.5):
                if message.error() is None:
                    block = _BLOCK.decode(message.value() or b"")
                    count += len(block.scores) - block.scores.count(None)
                    last = time.monotonic()
    finally:
        consumer.close()
    return count


def read_found(settings: Settings) -> Found:
    """Read all that committed readers can see."""
    return Found(
        [_BLOCK.decode(record.value) for record in read_all(settings, SCORES)],
        [_ALERT.decode(record.value) for record in read_all(settings, ALERTS)],
        [record.value for record in read_all(settings, DEAD_LETTERS)],
    )
