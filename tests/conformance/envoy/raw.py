"""An Envoy before an application of raw bytes: what a client's bytes become, and what of them arrives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from backstay.sidecar.engines.envoy import EnvoyEngine
from conformance.http.test_requests import PARTS, merged, raw
from e2e.engine.mesh import LOCALHOST

from .cases import before

ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SILENCE: Final = 5.0  # seconds after which a proxy that said nothing has failed the case
__all__ = ["Application", "Relay", "merged", "raw", "relay"]


@dataclass
class Application:
    """Writes down what arrives and answers each message that is complete."""

    seen: bytearray = field(default_factory=bytearray)

    async def take(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen += head
        await self._body(reader, head.lower())
        writer.write(ANSWER)

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> None:
        if b"\r\ntransfer-encoding:" in head:
            size = -1
            while size:
                line = await reader.readuntil(b"\r\n")
                size = int(line, 16)
                self.seen += line
                self.seen += await reader.readexactly(size + 2)
        elif b"\r\ncontent-length:" in head:
            length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            for _ in range(length):
                self.seen += await reader.readexactly(1)


@dataclass
class Server:
    """One port; each case has an application of its own, so that nothing late is taken for the next one's."""

    application: Application = field(default_factory=Application)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self.application.take(head, reader, writer)
        writer.close()


@dataclass
class Relay:
    engine: EnvoyEngine
    port: int
    server: "Server"

    async def ask(self, pieces: list[bytes]) -> tuple[int, bytes]:
        """(status, what the application saw); 0 for a proxy that closed without a word."""
        reader, writer = await asyncio.open_connection(LOCALHOST, self.port)
        application = self.server.application = Application()
        head = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            for piece in pieces:
                writer.write(piece)
                if len(pieces) > 1:
                    await asyncio.sleep(0)
            async with asyncio.timeout(SILENCE):
                head = await reader.readline()
                if head.split(b" ")[1:2] == [b"100"]:
                    await reader.readuntil(b"HTTP/1.")  # the answer itself: then all has arrived
        writer.close()
        status = int(head.split(b" ")[1]) if head.startswith(b"HTTP/1.") else 0
        return status, bytes(application.seen)


@contextlib.asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    application = Server()
    async with before(application.serve, PARTS) as (running, port):
        yield Relay(running, port, application)
