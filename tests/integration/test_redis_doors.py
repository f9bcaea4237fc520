"""The ACL users of the window store on a real server: what they may is what they need, over TLS."""

import numpy as np
import pytest
import redis

from deploy.access import redis_rules, redis_user
from stream.errors import AccessError, UsageError
from stream.ring import Layout
from stream.settings import RedisSettings
from stream.window_store import RingRef, RingWrite, WindowRequest, connect
from tests.secured import CANARY, make_certificates, password
from tests.secured_redis import secured_redis

PREFIX = "door"
FIRST = 1000
RING = RingRef("e1", FIRST, Layout(12, 2))
RIGHTS = [(service, rule) for service in ("windower", "worker") for rule in redis_rules(RedisSettings(), service)[2:]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("redis-doors")
    with secured_redis(folder, make_certificates(folder)) as server:
        server.load(RedisSettings(prefix=PREFIX))
        yield server


def user(service):
    return redis_user(RedisSettings(prefix=PREFIX), service)


def settings(server, service, **more):
    return RedisSettings(**server.settings(user(service), prefix=PREFIX, **more))


def write(store):
    epoch = store.acquire(0)
    store.load(0)
    rows = RING.layout.encode(np.zeros(3, np.int64), FIRST + np.arange(3), np.arange(3), np.ones((3, 2), np.float32))
    store.write_rows(0, epoch, [RingWrite(RING.layout, 60_000, [RING], rows)])
    store.save_heads(0, epoch, 3, {"e1": b"head"})
    return store.read_indexes(0, [RING])


def read(store):
    return store.read_windows([WindowRequest(0, RING, FIRST + 2, 3)])


def work(server, service):
    """Do all that a service does with the store; scripts are not on the server yet."""
    with server.admin() as admin:
        admin.script_flush()
    store = connect(settings(server, service))
    try:
        store.check()
        return write(store) if service == "windower" else read(store)
    finally:
        store.close()


def test_both_do_their_work_over_tls_and_are_refused_nothing(server):
    with server.admin() as admin:
        admin.acl_log_reset()
        assert len(work(server, "windower")[0][0]) == 3
        np.testing.assert_array_equal(work(server, "worker")[0].values, np.ones((2, 3)))
        assert admin.acl_log() == []


@pytest.mark.parametrize(("service", "rule"), RIGHTS)
def test_without_one_command_the_work_fails_and_names_it(server, service, rule):
    command = rule.removeprefix("+")
    named = rf"user {user(service)} .*'{command.replace('|', '.')}'"
    with server.without(user(service), rule, f"-{command}"), pytest.raises(AccessError, match=named):
        work(server, service)
    work(server, service)


@pytest.mark.parametrize("service", ["windower", "worker"])
def test_without_its_keys_the_work_fails_and_names_them(server, service):
    keys = redis_rules(RedisSettings(prefix=PREFIX), service)[1]
    with server.without(user(service), keys, "resetkeys"), pytest.raises(AccessError, match=r"\{door:"):
        work(server, service)
    work(server, service)


@pytest.mark.parametrize(
    ("service", "command"),
    [
        ("worker", ("SETRANGE", "{door:0}:w:x:0", "0", "x")),
        ("windower", ("GET", "{other:0}:epoch")),
        ("windower", ("SET", "{other:0}:epoch", "1")),
        ("windower", ("DEL", "{door:0}:epoch")),
        ("windower", ("FLUSHALL",)),
        ("windower", ("CONFIG", "GET", "*")),
        ("windower", ("KEYS", "*")),
        ("windower", ("ACL", "LIST")),
        ("windower", ("EVAL", "return 1", "0")),
    ],
    ids=str,
)
def test_what_they_do_not_need_is_refused(server, service, command):
    certificate = str(server.certificates.authority)
    client = redis.Redis.from_url(server.url(user(service)), ssl_ca_certs=certificate)
    with client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def refused(configured):
    """Return why the store can't be used; no password is in it."""
    store = connect(configured)
    try:
        with pytest.raises(AccessError) as caught:
            store.check()
    finally:
        store.close()
    assert CANARY not in str(caught.value)
    return str(caught.value)


def test_a_wrong_password_is_refused_by_the_users_name(server):
    url = f"rediss://{user('worker')}:{password()}@localhost:{server.tls_port}/0"
    said = refused(RedisSettings(url=url, ca=str(server.certificates.authority)))
    assert "authentication failed for user door-worker at Redis at localhost" in said


def test_nobody_comes_in_without_a_name(server):
    url = f"rediss://localhost:{server.tls_port}/0"
    said = refused(RedisSettings(url=url, ca=str(server.certificates.authority)))
    assert "authentication failed for user default" in said


@pytest.mark.parametrize("authority", ["stranger", ""])
def test_a_server_whose_certificate_nobody_vouches_for_is_not_trusted(server, authority):
    ca = str(server.certificates.stranger) if authority else ""
    said = refused(RedisSettings(url=server.url(user("worker")), ca=ca))
    assert "no trust between this client and Redis at localhost" in said


def test_a_certificate_for_another_host_is_not_trusted(server):
    """The address resolves to the same server, whose certificate does not have it."""
    url = server.url(user("worker")).replace("localhost", "127.0.0.2")
    said = RedisSettings(url=url, ca=str(server.certificates.authority))
    with pytest.raises(AccessError, match="no trust"):
        connect(said).check()


def test_user_and_password_file_serve_as_well_as_the_url(server, tmp_path):
    file = tmp_path / "password"
    file.write_text(server.url(user("worker")).split(":")[2].rpartition("@")[0] + "\n")
    login = {"username": user("worker"), "password_file": str(file), "ca": str(server.certificates.authority)}
    store = connect(RedisSettings(url=f"rediss://localhost:{server.tls_port}/0", **login))
    store.check()
    store.close()
    file.unlink()
    with pytest.raises(UsageError, match="can't be read"):
        connect(RedisSettings(url=f"rediss://localhost:{server.tls_port}/0", **login))
