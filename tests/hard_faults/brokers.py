"""Faults of Kafka: brokers killed, and the way to them slow, silent or broken."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stream.topics import TELEMETRY, group_name, topic_name
from tests.hard_faults.cluster import Cluster, behind_proxy, cluster
from tests.hard_faults.processes import judge
from tests.hard_faults.proxy import Proxy
from tests.hard_faults.scene import Row, Scene, Stage

_AWAY_S = 6.0
_HELD_BACK = "records wait behind a transaction that nobody ends"


def leader_killed(stage: Stage, row: Row) -> None:
    """Of three brokers the one that leads a partition of telemetry is killed, and comes back."""
    _killed(stage, row, lambda brokers, scene: brokers.leader(topic_name(scene.settings.topics, TELEMETRY), 0))


def transaction_coordinator_killed(stage: Stage, row: Row) -> None:
    """The one that looks after the worker's transactions."""
    _killed(stage, row, lambda brokers, scene: brokers.transaction_coordinator(f"{_group(scene, 'worker')}-0"))


def group_coordinator_killed(stage: Stage, row: Row) -> None:
    """The one that looks after the worker's group."""
    _killed(stage, row, lambda brokers, scene: brokers.group_coordinator(_group(scene, "worker")))


def _group(scene: Scene, service: str) -> str:
    return group_name(scene.settings.topics, service)


def _killed(stage: Stage, row: Row, victim: Callable[[Cluster, Scene], int]) -> None:
    with (
        cluster(stage.folder(), 3) as brokers,
        stage.scene((brokers.bootstrap(), stage.redis_url()), replication=3) as scene,
    ):
        for _ in range(2):
            number = victim(brokers, scene)
            brokers.kill(number)
            row.recovery_s = max(row.recovery_s or 0.0, scene.recovery())
            time.sleep(_AWAY_S)
            brokers.start(number)
            row.details["after_return_s"] = scene.recovery()
        row.details["held_back"] = sum(_HELD_BACK in scene.services.log(s) for s in ("windower", "worker"))
        judge(scene, row)


def network_slow(stage: Stage, row: Row) -> None:
    """Every chunk to and from the broker takes 200 ms for half a minute."""
    with _through_proxy(stage) as (scene, proxy):
        proxy.delay_s = 0.2
        time.sleep(30.0)
        proxy.delay_s = 0.0
        row.recovery_s = scene.recovery()
        judge(scene, row)


def network_reset(stage: Stage, row: Row) -> None:
    """All connections to the broker are broken, ten times in ten seconds."""
    with _through_proxy(stage) as (scene, proxy):
        for _ in range(10):
            proxy.reset()
            time.sleep(1.0)
        row.recovery_s = scene.recovery()
        judge(scene, row)


def network_partition(stage: Stage, row: Row) -> None:
    """The broker is silent for half a minute while connections stay open."""
    with _through_proxy(stage) as (scene, proxy):
        proxy.silence(30.0)
        row.recovery_s = scene.recovery()
        judge(scene, row)


@contextmanager
def _through_proxy(stage: Stage) -> Iterator[tuple[Scene, Proxy]]:
    with (
        behind_proxy(stage.folder()) as (brokers, proxy),
        stage.scene((brokers.bootstrap(), stage.redis_url())) as scene,
    ):
        yield scene, proxy
