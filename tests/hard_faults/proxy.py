"""A TCP proxy on the loopback address that can be slow, silent, or break its connections. Knows no protocol."""

import asyncio
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from deploy.processes import free_port

_CHUNK = 65_536
# SO_LINGER with no time: closing sends RST and throws away what was not sent.
_AT_ONCE = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes on from its port to another one. delay_s: how long each chunk waits on its way, both ways."""

    def __init__(self, target_port: int) -> None:
        """Listen at a free port."""
        self.port = free_port()
        self.delay_s = 0.0
        self._target = target_port
        self._open = threading.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def silence(self, seconds: float) -> None:
        """Pass nothing on for so long, without closing anything; then everything, what was held back first."""
        self._open.clear()
        time.sleep(seconds)
        self._open.set()

    def reset(self) -> None:
        """Break all connections with RST."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> None:
        await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _reset(self) -> None:
        for writer in list(self._writers):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while not self._open.is_set():
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side has broken off, so does the other
        writer.close()
