"""One fault's stage: a pipeline under load, a follower of its scores, and the oracle's verdict at the end."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from confluent_kafka import Consumer

from deploy.local_stack import LocalStack
from detector.models import Model
from stream.contracts import ScoreBlock
from stream.kafka import consumer_config, make_consumer
from stream.settings import Settings
from stream.topics import SCORES, topic_name
from tests.chaos.oracle import Difference, Found, Oracle
from tests.chaos.rig import (
    GEOMETRY,
    TRANSACTION_S,
    Load,
    Rig,
    attacked,
    publish_model,
    read_found,
    servers,
    wait_for_scores,
)
from tests.chaos.workload import Sending, Workload
from tests.pipeline import make_settings, wait_for

ENTITIES = 12
ROWS_PER_S = 400.0
PATIENCE_S = 60.0
_BLOCK = msgspec.json.Decoder(ScoreBlock)


class Row(msgspec.Struct, kw_only=True):
    """What one fault did. recovery_s: from its end, or from the kill, until all that was sent by then is scored.

    That includes the time until a window is full, about a second; the row `none` tells it without a fault.
    machine_load: mean number of processes that wanted a core in the minute before.
    """

    fault: str
    outcome: str = "kept"
    recovery_s: float | None = None
    limit_s: float | None = None
    samples: int = 0
    missing: int = 0
    repeated: int = 0
    wrong: int = 0
    seconds: float = 0.0
    machine_load: float = 0.0
    details: dict[str, float | str] = {}

    @property
    def passed(self) -> bool:
        """Whether the promises were kept, in time."""
        return self.outcome == "kept"


class Follower:
    """Reads committed scores from a thread, and knows up to which slot each entity is scored."""

    def __init__(self, settings: Settings) -> None:
        """Begin to read."""
        config = consumer_config(settings.kafka, f"{settings.topics.prefix}freshness")
        self._consumer: Consumer = make_consumer(config | {"auto.offset.reset": "earliest"})
        self._consumer.subscribe([topic_name(settings.topics, SCORES)])
        self.scored: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower")
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(100, timeout=0.05):
                if message.error() is None:
                    block = _BLOCK.decode(message.value() or b"")
                    if block.stage == "provisional":
                        self.scored[block.entity] = block.start_slot + len(block.scores) - 1


class StoppableLoad(Load):
    """A load that ends when it is told to, and remembers what it has sent."""

    def __init__(self, settings: Settings, records: Sequence[Sending], rows_per_s: float) -> None:
        """Send nothing yet."""
        self._all = records
        self.sent: list[Sending] = []
        self.newest: dict[str, int] = {}
        self._stop = threading.Event()
        super().__init__(settings, _Until(self), rows_per_s)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    def until_stopped(self) -> Iterator[Sending]:
        """Yield the records one by one as they are sent."""
        for one in self._all:
            if self._stop.is_set():
                return
            self.sent.append(one)
            if one.kind == "row":
                self.newest[one.entity] = max(self.newest.get(one.entity, 0), one.rows[-1][0])
            yield one
        self._failed.append("the scene took longer than its telemetry lasts")


class _Until:
    def __init__(self, load: StoppableLoad) -> None:
        self._load = load

    def __iter__(self) -> Iterator[Sending]:
        return self._load.until_stopped()


class Scene:
    """A running pipeline with its load."""

    def __init__(self, rig: Rig, model: Model, load: StoppableLoad, follower: Follower) -> None:
        """Wait until the pipeline has begun to score."""
        self.rig = rig
        self.services = rig.services
        self.settings = rig.settings
        self.model = model
        self.load = load
        self.follower = follower
        wait_for(lambda: len(follower.scored) == ENTITIES, "the pipeline to score every entity", 180.0)

    def recovery(self, limit_s: float = 180.0, look: Callable[[], None] = lambda: None) -> float:
        """Return how many seconds it takes from now on until all that was sent by now is scored."""
        began, wanted = time.monotonic(), dict(self.load.newest)
        while not all(self.follower.scored.get(entity, 0) >= slot for entity, slot in wanted.items()):
            look()
            if time.monotonic() - began > limit_s:
                behind = [entity for entity, slot in wanted.items() if self.follower.scored.get(entity, 0) < slot]
                raise AssertionError(f"{', '.join(behind)} not scored again within {limit_s:.0f} s")
            time.sleep(0.05)
        return round(time.monotonic() - began, 2)

    def revive(self) -> int:
        """Start again what has ended by itself, as an orchestrator would; return how many that were."""
        return self.services.revive()

    def verdict(
        self, *, only_scores: bool = False, select: Callable[[Found], Found] = lambda found: found
    ) -> Difference:
        """End the load, wait for what is still to come, end the services, and ask the oracle."""
        self.load.stop()
        self.load.__exit__()
        oracle = Oracle(self.model, self.load.sent)
        wait_for_scores(self.settings, oracle.scored_rows, PATIENCE_S, self.services.check)
        self.services.stop()
        return oracle.compare(select(read_found(self.settings)), only_scores=only_scores)


class Stage:
    """Where scenes are set: servers, and a folder for each scene."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        """Start the servers on first use."""
        self.stack = stack
        self._folder = folder
        self._scenes = 0

    @contextmanager
    def scene(
        self,
        addresses: tuple[str, str] | None = None,
        *,
        prepare: Callable[[], None] | None = None,
        partitions: int = 2,
        replication: int = 1,
        rows_per_s: float = ROWS_PER_S,
        seconds: float = 400.0,
        **sections: dict[str, object],
    ) -> Iterator[Scene]:
        """Give a pipeline on topics of its own. addresses: bootstrap and Redis URL, if not those of the stage."""
        bootstrap, redis_url = addresses or self.addresses()
        self._scenes += 1
        folder = self._folder / f"scene-{self._scenes}"
        folder.mkdir()
        prefix = f"scene{self._scenes}."
        model = publish_model(folder / "registry")
        topics = {"prefix": prefix, "partitions": partitions, "replication": replication}
        more = {"topics": topics, "worker": {"model_poll_s": 0.2, "batch_windows": 32, "threads": 1}} | sections
        more["kafka"] = {"bootstrap": bootstrap, "transaction_timeout_ms": int(1000 * TRANSACTION_S)} | more.get(
            "kafka", {}
        )
        settings = make_settings(model.manifest, folder / "registry", bootstrap, redis_url, prefix, **more)
        # What has recovered is told by slots that only grow.
        rows = int(rows_per_s * seconds)
        records = Workload(GEOMETRY, seed=self._scenes, entities=ENTITIES, rows=rows, jumping=False).records
        with attacked(self.stack, settings, folder, prepare) as rig:
            follower = Follower(settings)
            load = StoppableLoad(settings, records, rows_per_s)
            load.__enter__()
            try:
                yield Scene(rig, model, load, follower)
            finally:
                load.stop()
                follower.close()

    def addresses(self) -> tuple[str, str]:
        """Return the bootstrap address and the Redis URL of the stage's servers, which then run."""
        found = self.stack.start()
        return found.bootstrap, found.redis_url

    def redis_url(self) -> str:
        """Return the URL of the stage's Redis, which then runs."""
        return self.stack.start_redis()

    def folder(self) -> Path:
        """Return a folder for servers of one scene."""
        return Path(tempfile.mkdtemp(dir=self._folder))


@contextmanager
def stage() -> Iterator[Stage]:
    """Give servers of this run's own; they end with the block."""
    with servers("faults") as (stack, folder):
        yield Stage(stack, folder)
