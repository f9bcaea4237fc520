"""Redis behind closed doors, for tests: TLS in front, the users of an ACL file."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from deploy import local_redis, processes
from deploy.access import render_redis
from stream.settings import RedisSettings
from tests.pipeline import wait_for
from tests.secured import ADMIN, READY_S, Certificates, password


class SecuredRedis:
    """A server that knows the users of an ACL file only, behind a proxy that ends TLS for it."""

    def __init__(self, port: int, tls_port: int, certificates: Certificates, admin_password: str) -> None:
        self.certificates = certificates
        self._port = port
        self.tls_port = tls_port
        self._passwords = {ADMIN: admin_password}

    def url(self, user: str, *, tls: bool = True) -> str:
        """Return a user's URL; rediss:// unless asked otherwise."""
        scheme, port = ("rediss", self.tls_port) if tls else ("redis", self._port)
        return f"{scheme}://{user}:{self._passwords[user]}@localhost:{port}/0"

    def settings(self, user: str, **more: Any) -> dict[str, Any]:
        """Return the section `redis` of a user's settings."""
        return {"url": self.url(user), "ca": str(self.certificates.authority), **more}

    def admin(self) -> redis.Redis:
        return redis.Redis.from_url(self.url(ADMIN, tls=False))

    def load(self, settings: RedisSettings) -> None:
        """Do what the rendered file says, line by line, and give the users passwords."""
        with self.admin() as admin:
            for line in render_redis(settings).splitlines():
                _, user, *rules = line.split()
                if user != "default":
                    self._passwords[user] = password()
                    rules.append(f">{self._passwords[user]}")
                admin.execute_command("ACL", "SETUSER", user, *rules)

    @contextmanager
    def without(self, user: str, rule: str, taken: str) -> Iterator[None]:
        """Take a right from a user while the block runs. taken: the rule that undoes it."""
        with self.admin() as admin:
            admin.execute_command("ACL", "SETUSER", user, taken)
            try:
                yield
            finally:
                admin.execute_command("ACL", "SETUSER", user, rule)


@contextmanager
def secured_redis(folder: Path, certificates: Certificates) -> Iterator[SecuredRedis]:
    """Run a server of this block's own, with an administrator and no other user."""
    port, admin_password = processes.free_port(), password()
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser {ADMIN} on >{admin_password} ~* &* +@all\n")
    process = local_redis.launch(folder / "redis", port, more_options={"aclfile": str(users)})
    try:
        with _tls_in_front_of(port, certificates) as tls_port:
            server = SecuredRedis(port, tls_port, certificates, admin_password)
            wait_for(lambda: processes.accepts_connections(port), "a Redis that listens", READY_S)
            yield server
    finally:
        processes.stop(process, grace_s=0)


@contextmanager
def _tls_in_front_of(port: int, certificates: Certificates) -> Iterator[int]:
    """Run a proxy that ends TLS: the server in the wheel is built without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    tls_port, ready = processes.free_port(), threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side has gone, so the other goes too
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda *_: None)  # handshakes that a test makes fail
        running.append((loop, stop))
        server = await asyncio.start_server(connect, ["127.0.0.1", "127.0.0.2"], tls_port, ssl=context)
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="tls")
    thread.start()
    try:
        assert ready.wait(READY_S)
        yield tls_port
    finally:
        loop, stop = running[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(READY_S)
