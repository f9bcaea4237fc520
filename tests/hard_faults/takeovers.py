"""Two bounds of recovery, each measured by itself: until a successor's first output, and until a dead one's is undone.

The rows `worker killed` and `windower killed` tell when everything has been caught up with, which includes both.
"""

import threading
import time
from types import TracebackType
from typing import Self

import msgspec
from confluent_kafka import OFFSET_END, TopicPartition

from stream.kafka import consumer_config, make_consumer
from stream.settings import Settings
from stream.topics import SCORES, WINDOWS, Topic, topic_name
from tests.chaos.rig import TRANSACTION_S
from tests.faults.live import SESSION_S, Crash, Point
from tests.hard_faults.processes import judge
from tests.hard_faults.scene import Row, Scene, Stage
from tests.pipeline import wait_for

# A silent member's session runs out, its partitions are given away, their windows restored, a window filled, committed.
TAKEOVER_S = SESSION_S + 5.0
# The broker of the local stack looks once a second for transactions that have run out.
UNDONE_S = TRANSACTION_S + 2.0
_OUTPUTS = {"windower": WINDOWS, "worker": SCORES}
_PARTITIONS = 2


def worker_takeover(stage: Stage, row: Row) -> None:
    """One of two workers is killed between two transactions: the other one's first scores of its partition."""
    _killed("worker", "after the commit", TAKEOVER_S, stage, row)


def windower_takeover(stage: Stage, row: Row) -> None:
    """The same with a windower and its notices."""
    _killed("windower", "after the commit", TAKEOVER_S, stage, row)


def dead_transaction(stage: Stage, row: Row) -> None:
    """One of two workers is killed inside a transaction: what the other one writes behind it can be seen again."""
    _killed("worker", "inside the transaction", UNDONE_S, stage, row)


def _killed(victim: str, point: Point, limit_s: float, stage: Stage, row: Row) -> None:
    with stage.scene(partitions=_PARTITIONS) as scene, Witness(scene.settings, _OUTPUTS[victim]) as witness:
        scene.services.start(f"{victim}-1", Crash(point, 20))
        scene.services.wait_for_crash(f"{victim}-1")
        killed = time.time()
        lost = _owned(scene, f"{victim}-1")
        wait_for(lambda: all(witness.first_since(p, killed) for p in lost), "a successor's output", 60.0)
        row.recovery_s = round(max(witness.first_since(p, killed) for p in lost) - killed, 2)
        row.limit_s = limit_s
        row.details["partitions"] = len(lost)
        judge(scene, row)


def _owned(scene: Scene, name: str) -> list[int]:
    """Return the partitions that an instance took over; it dies with all of them."""
    lines = [msgspec.json.decode(line) for line in scene.services.log(name).splitlines() if line.startswith("{")]
    lost = [line["partition"] for line in lines if line["event"] == "took over a partition"]
    assert lost, f"{name} had no partition"
    return lost


class Witness:
    """A reader of committed records that notes when they can be seen."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        """Read what comes from now on."""
        name = topic_name(settings.topics, topic)
        self._consumer = make_consumer(consumer_config(settings.kafka, f"{settings.topics.prefix}witness"))
        self._consumer.assign([TopicPartition(name, p, OFFSET_END) for p in range(_PARTITIONS)])
        self._seen: list[tuple[int, float, float]] = []  # partition, when it was written, when it was seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="witness")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def first_since(self, partition: int, since: float) -> float:
        """Return when the first record written after a time could be seen on a partition, 0 if none could yet."""
        return next((seen for p, at, seen in list(self._seen) if p == partition and at > since), 0.0)

    def _follow(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(100, timeout=0.02):
                if message.error() is None:
                    partition = message.partition()
                    assert partition is not None
                    self._seen.append((partition, message.timestamp()[1] / 1000, time.time()))
