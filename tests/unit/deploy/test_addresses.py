"""Where Kafka and Redis are: what is given wins, what runs fills in, what is missing is named."""

from itertools import product

import pytest
from pydantic import SecretStr

from deploy import addresses
from deploy.addresses import locate
from deploy.local_stack import ServerStatus, StackStatus
from stream.errors import UsageError
from stream.settings import KafkaSettings, RedisSettings, Settings, load_settings

LOCAL = {"kafka": "127.0.0.1:15001", "redis": "redis://127.0.0.1:15002/0"}
GIVEN = {"kafka": "broker:9092", "redis": "redis://user:secret@store:6379/1"}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    for name in ("TELLTALE_KAFKA__BOOTSTRAP", "TELLTALE_REDIS__URL", "TELLTALE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def server(name: str, state: str) -> ServerStatus:
    address = None if state == "never started" else LOCAL[name]
    running = state == "running"
    return ServerStatus(address=address, running=running, answering=running, pid=1, resident_mib=1, log="log")


def with_stack(monkeypatch: pytest.MonkeyPatch, kafka: str, redis: str) -> None:
    seen = StackStatus(state_dir="here", kafka=server("kafka", kafka), redis=server("redis", redis))
    monkeypatch.setattr(addresses, "status", lambda: seen)


def settings(*given: str) -> Settings:
    return load_settings(
        kafka=KafkaSettings(bootstrap=GIVEN["kafka"] if "kafka" in given else "", queue_mib=7),
        redis=RedisSettings(url=SecretStr(GIVEN["redis"] if "redis" in given else ""), prefix="mine"),
    )


STATES = ("running", "stopped", "never started")
EVERY_CASE = list(product(STATES, STATES, ((), ("kafka",), ("redis",), ("kafka", "redis"))))


@pytest.mark.parametrize(("kafka", "redis", "given"), EVERY_CASE)
def test_what_is_given_wins_and_what_runs_fills_in(monkeypatch, kafka, redis, given):
    with_stack(monkeypatch, kafka, redis)
    found = {
        name: GIVEN[name] if name in given else LOCAL[name] if state == "running" else None
        for name, state in (("kafka", kafka), ("redis", redis))
    }
    missing = [setting for name, setting in (("kafka", "kafka.bootstrap"), ("redis", "redis.url")) if not found[name]]
    if missing:
        with pytest.raises(UsageError, match="telltale up") as refused:
            locate(settings(*given))
        assert [one in str(refused.value).partition(",")[0] for one in ("kafka.bootstrap", "redis.url")] == [
            one in missing for one in ("kafka.bootstrap", "redis.url")
        ]
        assert "secret" not in str(refused.value)
        return
    located = locate(settings(*given))
    assert (located.kafka.bootstrap, located.redis.url.get_secret_value()) == (found["kafka"], found["redis"])


def test_nothing_else_changes(monkeypatch):
    with_stack(monkeypatch, "running", "running")
    before, after = settings(), locate(settings())
    assert after.kafka.model_copy(update={"bootstrap": ""}) == before.kafka
    assert after.redis.model_copy(update={"url": before.redis.url}) == before.redis
    rest = {"kafka", "redis"}
    assert after.model_dump(exclude=rest) == before.model_dump(exclude=rest)
