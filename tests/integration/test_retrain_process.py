"""Training as a process of its own: killed and gone on with, held to its limits, gone when its parent is."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from detector.registry import Registry
from stream.retraining_settings import GateSettings, RetrainingSettings
from tests.pipeline import wait_for
from tests.unit.training.test_new_model import AFTER_MS, FAMILY, recent_waves, write
from training.retrain_job import ORPHANED, OUTCOME, Job
from training.retrain_process import ProcessJobs
from training.retraining import Outcome
from training.train_state import STATE_FILE


@pytest.fixture
def jobs(tmp_path):
    jobs = ProcessJobs(tmp_path / "work", 300.0)
    yield jobs
    jobs.close()


def job(tmp_path: Path, **settings: object) -> Job:
    data = write(tmp_path / "waves.parquet", recent_waves(700, 600))
    gates = GateSettings(entities=1)
    retraining = RetrainingSettings(
        data=str(data), gates=gates, minutes=0.1, minimum_rows=300, history_days=10_000.0, nice=0
    )
    return Job(
        registry=str(tmp_path / "registry"),
        family=FAMILY.model_dump(),
        retraining=retraining.model_copy(update=settings).model_dump(),
        at_ms=AFTER_MS,
        start_ms=0,
        exclude={},
        champion=None,
        device="cpu",
    )


def end_of(jobs: ProcessJobs, one: Job) -> Outcome:
    found: list[Outcome] = []

    def ended() -> bool:
        outcome = jobs.outcome(one)
        found.extend([outcome] if outcome else [])
        return bool(found)

    wait_for(ended, "the end of training", 300.0)
    return found[0]


def test_a_process_that_is_killed_is_gone_on_with_and_publishes_once(jobs, tmp_path):
    one = job(tmp_path)
    state = tmp_path / "work" / "waves" / str(AFTER_MS) / "state" / STATE_FILE
    assert jobs.outcome(one) is None
    wait_for(state.exists, "a state to go on from")
    jobs.stop("waves")
    assert Registry(tmp_path / "registry").versions("waves") == []
    other = ProcessJobs(tmp_path / "work", 300.0)
    outcome = end_of(other, one)
    other.close()
    assert Registry(tmp_path / "registry").versions("waves") == [outcome.version]
    assert {gate.name for gate in outcome.gates} >= {"alarm_rate", "golden_windows"}
    jobs.forget("waves")
    assert list((tmp_path / "work" / "waves").iterdir()) == []


def test_one_that_takes_too_much_memory_or_time_fails_and_publishes_nothing(jobs, tmp_path):
    assert end_of(jobs, job(tmp_path, memory_mib=256)).failure == "training took more than 256 MiB of memory"
    hasty = ProcessJobs(tmp_path / "hasty", 0.5)
    assert end_of(hasty, job(tmp_path, minutes=5.0)).failure == "training took longer than 0.00833333 minutes"
    assert Registry(tmp_path / "registry").versions("waves") == []


def test_one_without_data_says_so(jobs, tmp_path):
    assert "too little data" in end_of(jobs, job(tmp_path, minimum_rows=10_000)).failure


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """Else a killed retrainer's training would go on beside that of its successor."""
    argv = [sys.executable, "-m", "training.retrain_job", str(tmp_path)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    process.stdin.write(msgspec.json.encode(job(tmp_path, minutes=5.0)) + b"\n")
    process.stdin.close()
    assert process.wait(60) == ORPHANED
    assert not (tmp_path / OUTCOME).exists()
