"""A very small HTTP/1.1 server for health, metrics and dumps: GET only, one answer per connection, nothing secret.

Listens where the platform says (the loopback by default). aiohttp would cost this process 20 MB for three pages.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeAlias

Answer: TypeAlias = tuple[int, str, bytes]
"""Status, content type, body."""
Page: TypeAlias = Callable[[], Answer | Coroutine[Any, Any, Answer]]
"""An answer that must be waited for has a time limit of its own."""

REQUEST_WITHIN: Final = 5.0
MAX_HEAD: Final = 8 * 1024  # as the hot path's request line limit; a probe sends 200 bytes
_REASONS: Final = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    400: "Bad Request",
    503: "Service Unavailable",
}
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


class AdminServer:
    """Pages by path on one or more listeners."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []

    async def listen(self, host: str, port: int, pages: Mapping[str, Page]) -> int:
        """Serve these pages; returns the port. Raises OSError that names address and port."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _serve(reader, writer, pages)

        try:
            server = await asyncio.start_server(serve, host, port, limit=MAX_HEAD)
        except OSError as error:
            raise OSError(error.errno, f"port {host}:{port}: {error.strerror or error}") from error
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        for server in self._servers:
            server.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Page]) -> None:
    try:
        async with asyncio.timeout(REQUEST_WITHIN):
            head = await reader.readuntil(b"\r\n\r\n")
        found = answer(head, pages)
        shown = found if isinstance(found, tuple) else await found
        writer.write(encode(shown, head_only=head.startswith(b"HEAD ")))
        async with asyncio.timeout(REQUEST_WITHIN):
            await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # a prober that went away or never asked
    finally:
        writer.close()


def answer(head: bytes, pages: Mapping[str, Page]) -> Answer | Coroutine[Any, Any, Answer]:
    """The answer to one request head."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return 400, TEXT, b"bad request\n"
    if words[0] not in (b"GET", b"HEAD"):
        return 405, TEXT, b"only GET\n"
    page = pages.get(words[1].split(b"?", 1)[0].decode("ascii", "replace"))
    return page() if page else (404, TEXT, "".join(f"{path}\n" for path in pages).encode())


def encode(given: Answer, *, head_only: bool = False) -> bytes:
    status, content_type, body = given
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)
