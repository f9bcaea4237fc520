"""Faults of Redis: away, slow, full."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis

from tests.hard_faults.processes import judge
from tests.hard_faults.proxy import Proxy
from tests.hard_faults.scene import Row, Scene, Stage

DOWN_S = 120.0


def redis_down(stage: Stage, row: Row) -> None:
    """Redis is killed and away for two minutes: services end with a reason, are started again, and rebuild."""
    with stage.scene() as scene:
        scene.rig.stack.kill_redis()
        revived, end = 0, time.monotonic() + DOWN_S
        while time.monotonic() < end:
            revived += scene.revive()
            time.sleep(1.0)
        scene.rig.stack.start_redis()
        row.details["restarts"] = revived
        row.recovery_s = scene.recovery(look=scene.revive)
        judge(scene, row)


def redis_slow(stage: Stage, row: Row) -> None:
    """Every answer of Redis takes half a second longer for half a minute."""
    with through_proxy(stage) as (scene, proxy):
        proxy.delay_s = 0.25
        time.sleep(30.0)
        scene.services.check()
        proxy.delay_s = 0.0
        row.recovery_s = scene.recovery()
        judge(scene, row)


def redis_partition(stage: Stage, row: Row) -> None:
    """Redis is silent for 20 seconds, which is longer than a command may take."""
    with through_proxy(stage) as (scene, proxy):
        proxy.silence(20.0)
        row.recovery_s = scene.recovery()
        judge(scene, row)


def redis_out_of_memory(stage: Stage, row: Row) -> None:
    """Redis takes no more data for 20 seconds: writes fail, nothing is evicted, and it goes on when there is room."""
    with stage.scene() as scene, client(scene) as admin:
        admin.config_set("maxmemory", "1mb")
        began = time.monotonic()
        while "Redis refused" not in scene.services.log("windower"):
            assert time.monotonic() - began < 20, "the windower has not noticed that Redis is full"
            time.sleep(0.5)
        time.sleep(20.0)
        scene.services.check()
        admin.config_set("maxmemory", "0")
        row.recovery_s = scene.recovery()
        judge(scene, row)


@contextmanager
def through_proxy(stage: Stage) -> Iterator[tuple[Scene, Proxy]]:
    """Give a scene whose services reach Redis through a proxy."""
    bootstrap, url = stage.addresses()
    port = urlsplit(url).port
    assert port is not None
    with Proxy(port) as proxy, stage.scene((bootstrap, f"redis://127.0.0.1:{proxy.port}/0")) as scene:
        yield scene, proxy


def client(scene: Scene) -> redis.Redis:
    """Return a connection to the scene's Redis."""
    return redis.Redis.from_url(scene.settings.redis.url.get_secret_value())
