"""Kafka brokers of a test's own: several that keep copies of each other, or one that is reached through a proxy."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient

from deploy import local_kafka
from deploy.kafka_jars import default_cache_dir, ensure_jars
from deploy.processes import ServerProcess, accepts_connections, free_port, is_alive, stop
from tests.hard_faults.proxy import Proxy

_READY_S = 90.0


class Cluster:
    """Brokers that are controllers too, each with a number from 1."""

    def __init__(self, folder: Path, size: int, advertised: Mapping[int, int] | None = None) -> None:
        """Choose ports. advertised: by number, the port that clients are told instead of the broker's own."""
        self._folder = folder
        self._jars = ensure_jars(default_cache_dir())
        self.ports = {number: free_port() for number in range(1, size + 1)}
        self._controllers = {number: free_port() for number in self.ports}
        self._advertised = dict(advertised or {})
        self._cluster_id = local_kafka.new_cluster_id()
        self._running: dict[int, ServerProcess] = {}

    def bootstrap(self) -> str:
        """Return the address that clients begin with."""
        ports = {**self.ports, **self._advertised}
        return ",".join(f"127.0.0.1:{port}" for port in ports.values())

    def advertise(self, number: int, port: int) -> None:
        """Tell clients another port than the broker's own; to be called before it is started."""
        self._advertised[number] = port

    def start(self, *numbers: int) -> None:
        """Start brokers, all unless some are named, and wait until they answer and keep copies."""
        for number in numbers or self.ports:
            self._running[number] = self._launch(number)
        end = time.monotonic() + _READY_S
        while not self._complete():
            assert time.monotonic() < end, f"the brokers are not ready in {_READY_S:.0f} s, see {self._folder}"
            time.sleep(0.2)

    def kill(self, number: int) -> None:
        """Kill a broker without a warning (SIGKILL)."""
        stop(self._running.pop(number), grace_s=0)

    def ended(self, number: int) -> bool:
        """Say whether a broker has ended by itself."""
        return not is_alive(self._running[number])

    def stop(self) -> None:
        """End all brokers."""
        for process in self._running.values():
            stop(process, grace_s=0)
        self._running = {}

    def leader(self, topic: str, partition: int) -> int:
        """Return the number of the broker that leads a partition."""
        return int(self._admin().list_topics(topic, timeout=10).topics[topic].partitions[partition].leader)

    def group_coordinator(self, group: str) -> int:
        """Return the broker that looks after a consumer group."""
        return self.leader("__consumer_offsets", _java_hash(group) % 4)

    def transaction_coordinator(self, transactional_id: str) -> int:
        """Return the broker that looks after a transactional id."""
        return self.leader("__transaction_state", _java_hash(transactional_id) % 4)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap(), "log_level": 0})

    def _complete(self) -> bool:
        if not all(accepts_connections(self.ports[number]) for number in self._running):
            return False
        found = self._admin().list_topics(timeout=5)
        partitions = [p for topic in found.topics.values() for p in topic.partitions.values()]
        return len(found.brokers) == len(self._running) and all(len(p.isrs) == len(p.replicas) for p in partitions)

    def _launch(self, number: int) -> ServerProcess:
        return local_kafka.launch(
            self._folder / f"broker-{number}",
            self.ports[number],
            self._controllers[number],
            self._jars,
            more_settings=self._changes(number),
            cluster_id=self._cluster_id,
        )

    def _changes(self, number: int) -> dict[str, str]:
        copies = str(len(self.ports))
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in self._controllers.items())
        advertised = self._advertised.get(number, self.ports[number])
        changes = {
            "node.id": str(number),
            "controller.quorum.voters": voters,
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{advertised}",
            "min.insync.replicas": str(max(1, len(self.ports) - 1)),
            "transaction.state.log.min.isr": str(max(1, len(self.ports) - 1)),
        }
        names = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        return changes | {f"{name}.replication.factor": copies for name in (*names, "default")}


def _java_hash(text: str) -> int:
    """Return Java's String.hashCode, as a number without its sign bit, which Kafka takes for its own topics."""
    value = 0
    for char in text:
        value = (31 * value + ord(char)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF


@contextmanager
def cluster(folder: Path, size: int) -> Iterator[Cluster]:
    """Give running brokers."""
    brokers = Cluster(folder, size)
    try:
        brokers.start()
        yield brokers
    finally:
        brokers.stop()


@contextmanager
def behind_proxy(folder: Path) -> Iterator[tuple[Cluster, Proxy]]:
    """Give one running broker that clients know by the proxy's port only."""
    brokers = Cluster(folder, 1)
    with ExitStack() as cleanup:
        proxy = cleanup.enter_context(Proxy(brokers.ports[1]))
        brokers.advertise(1, proxy.port)
        cleanup.callback(brokers.stop)
        brokers.start()
        yield brokers, proxy
