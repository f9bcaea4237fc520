"""Kafka and Redis for the tests: those named in the environment, else containers, else the local stack; never none."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import msgspec
import psutil
import pytest

from deploy.local_stack import LocalStack
from deploy.processes import ServerProcess, is_alive
from tests.containers import docker_answers, kafka_container, redis_container

# As in `telltale.main`: threads of torch that spin while they wait would slow everything else here, servers included.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("telltale", deadline=None)
hypothesis.settings.load_profile("telltale")


@pytest.fixture(scope="session")
def _stack_folder() -> Iterator[Path]:
    """Give this run's stacks a home that the next run finds, should this one be killed."""
    home = Path(tempfile.gettempdir()) / f"telltale-tests-{os.getuid()}"
    for left in home.glob("*/owner.json"):
        if not is_alive(msgspec.json.decode(left.read_bytes(), type=ServerProcess)):
            _remove(left.parent)
    mine = home / uuid.uuid4().hex
    mine.mkdir(parents=True)
    owner = ServerProcess(os.getpid(), psutil.Process().create_time())
    (mine / "owner.json").write_bytes(msgspec.json.encode(owner))
    yield mine
    _remove(mine)


def _remove(folder: Path) -> None:
    for state_dir in folder.glob("*/stack.json"):
        LocalStack(state_dir.parent).stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _shared_stack(_stack_folder: Path) -> LocalStack:
    return LocalStack(_stack_folder / "shared")


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a broker that all tests share: make topics under `topic_prefix`, don't restart it."""
    with ExitStack() as cleanup:
        given = os.environ.get("TELLTALE_KAFKA__BOOTSTRAP")
        if given:
            yield given
        elif docker_answers():
            yield cleanup.enter_context(kafka_container())
        else:
            yield request.getfixturevalue("_shared_stack").start_kafka()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a Redis server that all tests share: keep to keys under `redis_prefix`, never flush it."""
    with ExitStack() as cleanup:
        given = os.environ.get("TELLTALE_REDIS__URL")
        if given:
            yield given
        elif docker_answers():
            yield cleanup.enter_context(redis_container())
        else:
            yield request.getfixturevalue("_shared_stack").start_redis()


@pytest.fixture(scope="module")
def fault_stack(_stack_folder: Path) -> Iterator[LocalStack]:
    """Yield a stack of this module's own that is not started yet: kill, restart and flush it as you like."""
    stack = LocalStack(_stack_folder / uuid.uuid4().hex)
    yield stack
    stack.stop()


@pytest.fixture
def topic_prefix() -> str:
    """Return a prefix for topics, groups and transactional ids that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture
def redis_prefix() -> str:
    """Return a prefix for keys that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}:"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of the public data sets, for the tests that are about real telemetry."""
    given = os.environ.get("TELLTALE_DATA")
    if not given:
        pytest.fail("this test wants real telemetry: set TELLTALE_DATA to the folder with MSL_train.parquet")
    return Path(given)
