"""Faults of the services themselves: killed, frozen, slow, too many, too few."""

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import psutil

from tests.chaos.rig import TRANSACTION_S
from tests.chaos.workload import count_rows
from tests.faults.live import SESSION_S, Crash
from tests.hard_faults.scene import Row, Scene, Stage
from tests.pipeline import wait_for

# A dead member is noticed after its session, and what it left open hides what comes after it until its time is over.
LIMIT_S = max(SESSION_S + 5.0, TRANSACTION_S + 1.0) + 2.0
_MEMORY_GROWTH_MIB = 60.0
# What the client is allowed between two polls, and what it takes; the instance, and its batch, that is late.
_POLL_S, _LATE_S = 7.0, 14.0
LATE, _LATE_BATCH = "1", 30
_LATE_NOW = "this batch was late"
_LEFT = "dropping all state and joining again"


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


def late_poll(stage: Stage, row: Row) -> None:
    """In a classic group one of two workers, then of two windowers, works on one batch beyond max.poll.interval.ms."""
    kafka = {"group_protocol": "classic", "session_timeout_ms": 6000}
    with stage.scene(prepare=make_late, kafka=kafka) as scene:
        for service in ("worker", "windower"):
            scene.services.start(f"{service}-{LATE}")
        for service in ("worker", "windower"):
            name = f"{service}-{LATE}"
            wait_for(lambda name=name: _why(scene.services.log(name)) != "", f"{name} to be thrown out", 120.0)
            row.details[service] = _why(scene.services.log(name))
        row.recovery_s = scene.recovery()
        row.limit_s = LIMIT_S + _LATE_S
        judge(scene, row)


def _why(log: str) -> str:
    """Return what a service that was late says for having dropped its state, nothing if it has not yet."""
    lines = log.partition(_LATE_NOW)[2].splitlines()
    return next((str(msgspec.json.decode(line)["error"]) for line in lines if _LEFT in line), "")


def make_late() -> None:
    """Let instance `LATE` take too long over one batch, awake all the time."""
    from detector.worker import Worker
    from stream import loop
    from stream.windower import Windower

    config, batches = loop.consumer_config, iter(range(1, 1_000_000))

    def impatient(*arguments: Any) -> dict[str, Any]:
        return config(*arguments) | {"max.poll.interval.ms": int(1000 * _POLL_S)}

    def late(process: Any) -> Any:
        def work(stage: Any, records: Any) -> Any:
            progress = process(stage, records)
            if next(batches) == _LATE_BATCH:
                time.sleep(_LATE_S)
                os.write(2, f"{_LATE_NOW}\n".encode())
            return progress

        return work

    loop.consumer_config = impatient
    if os.environ["TELLTALE_INSTANCE"] == LATE:
        Worker.process, Windower.process = late(Worker.process), late(Windower.process)


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
