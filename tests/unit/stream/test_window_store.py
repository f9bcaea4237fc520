"""What a failure of Redis means; what the store does with a server is in tests/contract."""

import pytest
import redis
from redis import exceptions

from stream.errors import AccessError, TransientError
from stream.settings import RedisSettings
from stream.window_store import connect


@pytest.fixture
def store():
    store = connect(RedisSettings(url="redis://127.0.0.1:1/0"))
    yield store
    store.close()


def failing_with(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("5 s"),
        redis.BusyLoadingError("loading"),
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.MasterDownError("Link with MASTER is down"),
        exceptions.ClusterDownError("Hash slot not served"),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_that_cannot_serve_now_is_worth_a_retry(store, error):
    with pytest.raises(TransientError, match="write_rows") as caught:
        store._call("write_rows", failing_with(error))
    assert str(error) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        redis.AuthenticationError("WRONGPASS invalid username-password pair or user is disabled."),
        exceptions.NoPermissionError("User worker has no permissions to run the 'setrange' command"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_told_and_not_retried(store, error):
    with pytest.raises(AccessError, match=r"user default at Redis at 127\.0\.0\.1:1") as caught:
        store._call("write_rows", failing_with(error))
    assert str(error) in str(caught.value)


@pytest.mark.parametrize("error", [redis.ResponseError("ERR syntax"), KeyError("x")])
def test_anything_else_is_a_bug(store, error):
    with pytest.raises(type(error)):
        store._call("write_rows", failing_with(error))
