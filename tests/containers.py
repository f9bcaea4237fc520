"""Kafka and Redis in containers, for machines where Docker answers."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import docker
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

from deploy.local_kafka import FAST_FAILOVER_SETTINGS, SINGLE_BROKER_SETTINGS, wait_until_ready
from deploy.local_redis import identify
from deploy.processes import free_port
from deploy.versions import KAFKA_CONTROLLER_PORT, KAFKA_IMAGE, KAFKA_PORT, REDIS_PORT, VALKEY_IMAGE

_READY_S = 120.0


@cache
def docker_answers() -> bool:
    """Say whether a Docker engine can be used from here."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    # Asked by hand first: the client leaves its socket open when nobody answers.
    if host.startswith("unix://") and not _listens(host.removeprefix("unix://")):
        return False
    try:
        client = docker.from_env(timeout=3)
        client.close()
    except DockerException:
        return False
    return True


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(3)
        return probe.connect_ex(path) == 0


@contextmanager
def kafka_container() -> Iterator[str]:
    """Run the broker that the local stack would be and yield its bootstrap address."""
    port = free_port()
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@localhost:{KAFKA_CONTROLLER_PORT}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://:{KAFKA_PORT},CONTROLLER://:{KAFKA_CONTROLLER_PORT}",
        # Clients come in through the port of the host.
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **SINGLE_BROKER_SETTINGS,
        **FAST_FAILOVER_SETTINGS,
    }
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(KAFKA_PORT, port)
    for name, value in settings.items():
        container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
    with container:
        bootstrap = f"127.0.0.1:{port}"
        wait_until_ready(bootstrap, deadline_s=_READY_S, process=None, log=None)
        yield bootstrap


@contextmanager
def redis_container() -> Iterator[str]:
    """Run a server that evicts nothing and yield its URL."""
    port = free_port()
    command = ["valkey-server", "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
    with DockerContainer(VALKEY_IMAGE).with_bind_ports(REDIS_PORT, port).with_command(command):
        url = f"redis://127.0.0.1:{port}/0"
        deadline = time.monotonic() + _READY_S
        while identify(url) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"{VALKEY_IMAGE} does not answer at {url} in {_READY_S:.0f} s")
            time.sleep(0.1)
        yield url
