"""Faults of disks: full under a broker, and under the dump of Redis. Each has a small disk of its own, in memory."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy import local_redis
from deploy.processes import free_port, stop
from tests.hard_faults.cluster import cluster
from tests.hard_faults.processes import judge
from tests.hard_faults.scene import Row, Stage
from tests.pipeline import wait_for

_SIZE_MIB = 192
_FULL_S = 15.0
_READY_S = 60.0
_REFUSED = "Redis refused"


def broker_disk_full(stage: Stage, row: Row) -> None:
    """The disk of the only broker takes no more, which ends it; when there is room it is started again."""
    with (
        small_disk(stage.folder()) as disk,
        cluster(disk, 1) as brokers,
        stage.scene((brokers.bootstrap(), stage.redis_url())) as scene,
    ):
        with filled(disk):
            wait_for(lambda: brokers.ended(1), "the broker to notice", _READY_S)
            time.sleep(_FULL_S)
            row.details["restarts"] = scene.revive()
        brokers.kill(1)
        brokers.start(1)
        row.recovery_s = scene.recovery(look=scene.revive)
        judge(scene, row)


def redis_disk_full(stage: Stage, row: Row) -> None:
    """Redis can't write its dump and refuses all writes, until there is room for it."""
    bootstrap, port = stage.addresses()[0], free_port()
    folder = stage.folder()
    with small_disk(folder) as disk:
        options = {"dir": str(disk), "save": "1 1"}
        server = local_redis.launch(folder, port, more_options=options)
        url, log = f"redis://127.0.0.1:{port}/0", local_redis.log_path(folder)
        local_redis.wait_until_ready(url, deadline_s=_READY_S, process=server, log=log)
        try:
            with stage.scene((bootstrap, url)) as scene:
                with filled(disk):
                    wait_for(lambda: _REFUSED in scene.services.log("windower"), "writes to be refused", _READY_S)
                    time.sleep(_FULL_S)
                    scene.services.check()
                row.recovery_s = scene.recovery()
                judge(scene, row)
        finally:
            stop(server, grace_s=0)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of its own, which wants the rights of root."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        # Servers that were killed a moment ago may still hold it; it goes with the last of them.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Let something else take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(65_536))
    try:
        yield
    finally:
        ballast.unlink()
