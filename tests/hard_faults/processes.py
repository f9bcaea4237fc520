"""Faults of the services themselves: killed, frozen, slow, too many, too few."""

import time
from collections.abc import Sequence
from typing import Any

import psutil

from tests.chaos.rig import TRANSACTION_S
from tests.chaos.workload import count_rows
from tests.faults.live import SESSION_S, Crash
from tests.hard_faults.scene import Row, Scene, Stage

# A dead member is noticed after its session, and what it left open hides what comes after it until its time is over.
LIMIT_S = max(SESSION_S + 5.0, TRANSACTION_S + 1.0) + 2.0
_MEMORY_GROWTH_MIB = 60.0


def nothing(stage: Stage, row: Row) -> None:
    """No fault at all, for comparison."""
    with stage.scene() as scene:
        row.recovery_s = scene.recovery()
        judge(scene, row)


def killed_worker(stage: Stage, row: Row) -> None:
    """One of two workers is killed inside a transaction and stays away: the other one takes over."""
    _killed_beside_another("worker", stage, row)


def killed_windower(stage: Stage, row: Row) -> None:
    """The same with a windower."""
    _killed_beside_another("windower", stage, row)


def _killed_beside_another(victim: str, stage: Stage, row: Row) -> None:
    with stage.scene() as scene:
        scene.services.start(f"{victim}-1", Crash("inside the transaction", 20))
        scene.services.wait_for_crash(f"{victim}-1")
        row.recovery_s = scene.recovery()
        row.limit_s = LIMIT_S
        judge(scene, row)


def zombie_worker(stage: Stage, row: Row) -> None:
    """A worker is frozen beyond its session (and max.poll.interval.ms), replaced, and goes on."""
    _zombie("worker", stage, row)


def zombie_windower(stage: Stage, row: Row) -> None:
    """The same with a windower."""
    _zombie("windower", stage, row)


def _zombie(victim: str, stage: Stage, row: Row) -> None:
    # With the classic protocol max.poll.interval.ms is told by the client itself; frozen it can tell nothing.
    with stage.scene() as scene:
        scene.services.start(f"{victim}-1")
        time.sleep(3.0)
        for _ in range(3):
            scene.services.pause(victim)
            row.recovery_s = max(row.recovery_s or 0.0, scene.recovery())
            scene.services.resume(victim)
            time.sleep(4.0)
        row.limit_s = LIMIT_S
        judge(scene, row)


def slow_worker(stage: Stage, row: Row) -> None:
    """The network can't keep up: the windower waits, memory stays, and nobody is thrown out of the group."""
    with stage.scene(prepare=make_slow) as scene:
        before = memory_mib(scene)
        time.sleep(30.0)
        row.details["memory_growth_mib"] = round(memory_mib(scene) - before, 1)
        assert row.details["memory_growth_mib"] < _MEMORY_GROWTH_MIB, row.details
        row.details["rebalances"] = scene.services.log("worker").count("took over a partition") - 2
        assert not row.details["rebalances"], row.details
        began = time.monotonic()
        judge(scene, row)
        row.details["drained_s"] = round(time.monotonic() - began, 1)


def make_slow() -> None:
    """Let every pass of the network take three seconds longer, so that it takes fewer windows than there are."""
    from detector.worker import Worker

    run = Worker._run

    def slowly(worker: Worker, model: Any, notices: Sequence[Any], windows: Sequence[Any]) -> Any:
        time.sleep(3.0)
        return run(worker, model, notices, windows)

    Worker._run = slowly


def scaling(stage: Stage, row: Row) -> None:
    """Both services go from one instance to four and down to two under load, half of them by SIGKILL."""
    with stage.scene(partitions=4) as scene:
        for service in ("windower", "worker"):
            for number in (1, 2, 3):
                scene.services.start(f"{service}-{number}")
        row.details["up_s"] = scene.recovery()
        time.sleep(8.0)
        for service in ("windower", "worker"):
            scene.services.kill(f"{service}-3")
            scene.services.terminate(f"{service}-2", grace_s=60.0)
        row.recovery_s = scene.recovery()
        row.limit_s = LIMIT_S
        judge(scene, row)


def memory_mib(scene: Scene) -> float:
    """Return the resident memory of both services."""
    return sum(psutil.Process(scene.services.pid(s)).memory_info().rss for s in ("windower", "worker")) / 2**20


def judge(scene: Scene, row: Row, **how: Any) -> None:
    """Fill in the oracle's verdict."""
    difference = scene.verdict(**how)
    row.samples = count_rows(scene.load.sent)
    row.missing, row.repeated, row.wrong = (difference.counts[kind] for kind in ("missing", "repeated", "wrong"))
    assert difference.none, "; ".join(difference.examples)
    row.outcome = "kept"
    if row.recovery_s is not None and row.limit_s is not None and row.recovery_s > row.limit_s:
        row.outcome = "late"
