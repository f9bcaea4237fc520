"""Local Kafka and Redis without Docker: started once, found again, stopped for good.

Owns the state directory: `stack.json` (ports and processes), one folder a server for data and log, and the lock under
which all of this changes. Knows no topic and no record.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from deploy import local_kafka, local_redis, processes
from deploy.kafka_jars import Progress, default_cache_dir, ensure_jars
from deploy.processes import ServerProcess
from deploy.versions import KAFKA_VERSION
from stream.errors import TransientError, UsageError

_READY_S = 90.0
_LOCK_S = 300.0
_GRACE_S = 20.0


class StackAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running stack answers, and with what."""

    bootstrap: str
    redis_url: str
    kafka_version: str
    redis_kind: local_redis.Kind
    redis_version: str


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server as seen now. running: the process is there. answering: a client got an answer."""

    address: str | None
    running: bool
    answering: bool
    pid: int | None
    resident_mib: int
    log: str


class StackStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Both servers as seen now."""

    state_dir: str
    kafka: ServerStatus
    redis: ServerStatus


class _Kafka(msgspec.Struct):
    port: int
    controller_port: int
    process: ServerProcess | None = None


class _Redis(msgspec.Struct):
    port: int
    process: ServerProcess | None = None


class _StackFile(msgspec.Struct):
    kafka: _Kafka | None = None
    redis: _Redis | None = None


class LocalStack:
    """Kafka and Redis of one state directory. Any number of processes may use it at once."""

    def __init__(self, state_dir: Path, *, cache_dir: Path | None = None) -> None:
        """Name the directories; nothing is created or started yet."""
        self.state_dir = state_dir.absolute()
        self._cache_dir = cache_dir or default_cache_dir()
        self._kafka_dir = self.state_dir / "kafka"
        self._redis_dir = self.state_dir / "redis"

    def start(
        self,
        *,
        kafka_port: int | None = None,
        redis_port: int | None = None,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> StackAddresses:
        """Start what does not run yet and return where both answer. fresh: stop them and drop their data first.

        Raises TransientError with the end of the log if one does not come up, UsageError for a port that is taken.
        """
        with self._locked():
            if fresh:
                self._drop()
            bootstrap = self.start_kafka(port=kafka_port, progress=progress)
            redis_url = self.start_redis(port=redis_port)
            found = local_redis.identify(redis_url)
        if found is None:
            raise TransientError(f"Redis at {redis_url} has gone right after its start")
        return StackAddresses(
            bootstrap=bootstrap,
            redis_url=redis_url,
            kafka_version=KAFKA_VERSION,
            redis_kind=found.kind,
            redis_version=found.version,
        )

    def start_kafka(self, *, port: int | None = None, progress: Progress | None = None) -> str:
        """Start the broker unless it runs; return its bootstrap address."""
        with self._locked() as stack:
            known = stack.kafka
            if known is None or not processes.is_alive(known.process):
                jars = ensure_jars(self._cache_dir, progress=progress)
                chosen = _choose_port("Kafka", port, known.port if known else None)
                controller_port = _choose_port("Kafka", None, known.controller_port if known else None)
                process = local_kafka.launch(self._kafka_dir, chosen, controller_port, jars)
                known = stack.kafka = _Kafka(chosen, controller_port, process)
                self._write(stack)
            _refuse_other_port("Kafka", port, known.port)
            bootstrap = f"127.0.0.1:{known.port}"
            log = local_kafka.log_path(self._kafka_dir)
            with self._ending_on_failure(stack, known):
                local_kafka.wait_until_ready(bootstrap, deadline_s=_READY_S, process=known.process, log=log)
        return bootstrap

    def start_redis(self, *, port: int | None = None) -> str:
        """Start the Redis server unless it runs; return its URL."""
        with self._locked() as stack:
            known = stack.redis
            if known is None or not processes.is_alive(known.process):
                chosen = _choose_port("Redis", port, known.port if known else None)
                known = stack.redis = _Redis(chosen, local_redis.launch(self._redis_dir, chosen))
                self._write(stack)
            _refuse_other_port("Redis", port, known.port)
            url = f"redis://127.0.0.1:{known.port}/0"
            assert known.process is not None
            log = local_redis.log_path(self._redis_dir)
            with self._ending_on_failure(stack, known):
                local_redis.wait_until_ready(url, deadline_s=_READY_S, process=known.process, log=log)
            # Read at the start; left there, a later crash would bring back data of long ago.
            local_redis.dump_path(self._redis_dir).unlink(missing_ok=True)
        return url

    def stop(self) -> bool:
        """Stop both servers, keeping Kafka's data; return whether any ran. No process remains."""
        with self._locked() as stack:
            ran = [self._end(stack, server, _GRACE_S) for server in (stack.redis, stack.kafka)]
        return any(ran)

    def stop_kafka(self) -> None:
        """Shut the broker down in good order."""
        with self._locked() as stack:
            self._end(stack, stack.kafka, _GRACE_S)

    def kill_kafka(self) -> None:
        """Kill the broker without a warning (SIGKILL)."""
        with self._locked() as stack:
            self._end(stack, stack.kafka, 0)

    def restart_kafka(self) -> str:
        """Shut the broker down in good order and start it again at the same address."""
        with self._locked():
            self.stop_kafka()
            return self.start_kafka()

    def kill_redis(self) -> None:
        """Kill the Redis server without a warning (SIGKILL); its data is lost."""
        with self._locked() as stack:
            self._end(stack, stack.redis, 0)

    def restart_redis(self, *, keep_data: bool) -> str:
        """Start the Redis server again at the same address, empty or with what it held."""
        with self._locked() as stack:
            if keep_data and stack.redis is not None:
                local_redis.save(f"redis://127.0.0.1:{stack.redis.port}/0")
            self._end(stack, stack.redis, _GRACE_S)
            return self.start_redis()

    def status(self) -> StackStatus:
        """Look at both servers without changing anything."""
        stack = self._read()
        kafka, redis = stack.kafka, stack.redis
        bootstrap = f"127.0.0.1:{kafka.port}" if kafka else None
        url = f"redis://127.0.0.1:{redis.port}/0" if redis else None
        return StackStatus(
            state_dir=str(self.state_dir),
            kafka=_seen(
                kafka.process if kafka else None,
                bootstrap,
                local_kafka.log_path(self._kafka_dir),
                answering=bootstrap is not None and local_kafka.answers(bootstrap),
            ),
            redis=_seen(
                redis.process if redis else None,
                url,
                local_redis.log_path(self._redis_dir),
                answering=url is not None and local_redis.identify(url) is not None,
            ),
        )

    @contextmanager
    def _locked(self) -> Iterator[_StackFile]:
        """Hold the directory's lock; nested calls of one stack share it and what it read."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.state_dir / "stack.lock", timeout=_LOCK_S, is_singleton=True):
                yield self._read()
        except Timeout as error:
            raise TransientError(f"another process has held {self.state_dir}/stack.lock for {_LOCK_S:.0f} s") from error

    def _read(self) -> _StackFile:
        file = self.state_dir / "stack.json"
        if not file.exists():
            return _StackFile()
        try:
            return msgspec.json.decode(file.read_bytes(), type=_StackFile)
        except msgspec.DecodeError as error:
            raise UsageError(f"{file} is damaged ({error}): end its servers by hand and delete the folder") from error

    def _write(self, stack: _StackFile) -> None:
        fresh = self.state_dir / "stack.json.new"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(stack)))
        fresh.replace(self.state_dir / "stack.json")

    def _end(self, stack: _StackFile, server: _Kafka | _Redis | None, grace_s: float) -> bool:
        if server is None:
            return False
        ran = processes.stop(server.process, grace_s=grace_s)
        server.process = None
        self._write(stack)
        return ran

    @contextmanager
    def _ending_on_failure(self, stack: _StackFile, server: _Kafka | _Redis) -> Iterator[None]:
        """Leave no server behind that has not become ready."""
        try:
            yield
        except TransientError:
            self._end(stack, server, 0)
            raise

    def _drop(self) -> None:
        self.stop()
        for folder in (self._kafka_dir, self._redis_dir):
            if folder.exists():
                shutil.rmtree(folder)


def default_state_dir() -> Path:
    """Return TELLTALE_STATE_DIR, else `.telltale` in the current directory."""
    return Path(os.environ.get("TELLTALE_STATE_DIR") or ".telltale")


def up(
    state_dir: Path | None = None,
    *,
    kafka_port: int | None = None,
    redis_port: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> StackAddresses:
    """Bring the local stack up, or find it running."""
    stack = LocalStack(state_dir or default_state_dir())
    return stack.start(kafka_port=kafka_port, redis_port=redis_port, fresh=fresh, progress=progress)


def down(state_dir: Path | None = None) -> bool:
    """Stop the local stack; return whether any of it ran."""
    directory = state_dir or default_state_dir()
    return LocalStack(directory).stop() if directory.exists() else False


def status(state_dir: Path | None = None) -> StackStatus:
    """Look at the local stack."""
    return LocalStack(state_dir or default_state_dir()).status()


def _choose_port(server: str, asked: int | None, kept: int | None) -> int:
    """Return the port asked for, else the one of last time if it is still free, else another free one."""
    if asked is not None and not processes.port_is_free(asked):
        raise UsageError(f"port {asked} for {server} is taken: name another one")
    if asked is None and kept is not None and processes.port_is_free(kept):
        return kept
    return asked if asked is not None else processes.free_port()


def _refuse_other_port(server: str, asked: int | None, running: int) -> None:
    if asked is not None and asked != running:
        raise UsageError(f"{server} runs on port {running}, not {asked}: stop it first")


def _seen(process: ServerProcess | None, address: str | None, log: Path, *, answering: bool) -> ServerStatus:
    running = processes.is_alive(process)
    return ServerStatus(
        address=address,
        running=running,
        answering=running and answering,
        pid=process.pid if process and running else None,
        resident_mib=processes.resident_bytes(process) // 2**20,
        log=str(log),
    )
