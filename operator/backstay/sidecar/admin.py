"""A very small HTTP/1.1 server for health, metrics and dumps: one answer per connection, nothing secret.

Pages are for GET; what changes something is an `Act`, for POST, and never for a page of a browser.

Listens where the platform says (the loopback by default). aiohttp would cost this process 20 MB for three pages.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

Answer: TypeAlias = tuple[int, str, bytes]
"""Status, content type, body."""
Page: TypeAlias = Callable[[], Answer | Coroutine[Any, Any, Answer]]
"""An answer that must be waited for has a time limit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request for a page says besides which page."""

    method: str = "GET"
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Act:
    """A page that looks at what is asked."""

    call: Callable[[Asked], Answer | Coroutine[Any, Any, Answer]]
    methods: tuple[str, ...] = ("GET", "HEAD")


Pages: TypeAlias = Mapping[str, Page | Act]

REQUEST_WITHIN: Final = 5.0
MAX_HEAD: Final = 8 * 1024  # as the hot path's request line limit; a probe sends 200 bytes
_REASONS: Final = {
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    400: "Bad Request",
    503: "Service Unavailable",
}
_READING: Final = ("GET", "HEAD")
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class AdminServer:
    """Pages by path on one or more listeners."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []

    async def listen(self, host: str, port: int, pages: Pages) -> int:
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


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages) -> None:
    try:
        async with asyncio.timeout(REQUEST_WITHIN):
            head = await reader.readuntil(b"\r\n\r\n")
        found = answer(head, pages)
        shown = found if isinstance(found, tuple) else await found
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all of it is taken
        writer.write(encode(shown, head_only=head.startswith(b"HEAD ")))
        async with asyncio.timeout(REQUEST_WITHIN):
            await writer.drain()
    except TimeoutError:
        writer.transport.abort()  # it never asked, or takes nothing: `close` would wait for it
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # a prober that went away
    finally:
        writer.close()


def answer(head: bytes, pages: Pages) -> Answer | Coroutine[Any, Any, Answer]:
    """The answer to one request head."""
    line, *lines = head.split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return 400, TEXT, b"bad request\n"
    path, _, query = words[1].decode("ascii", "replace").partition("?")
    page = pages.get(path)
    method = words[0].decode("ascii", "replace")
    methods = page.methods if isinstance(page, Act) else _READING
    if method not in (methods if page else _READING):
        return 405, TEXT, f"only {methods[0]}\n".encode()
    if page is None:
        return 404, TEXT, "".join(f"{path}\n" for path in pages).encode()
    if not isinstance(page, Act):
        return page()
    asked = Asked(method=method, query=dict(parse_qsl(query)), headers=_headers(lines))
    if method not in _READING and "origin" in asked.headers:
        return 403, TEXT, b"not for browsers\n"  # a page of any site may post to the loopback of who looks at it
    return page.call(asked)


def _headers(lines: list[bytes]) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def encode(given: Answer, *, head_only: bool = False) -> bytes:
    status, content_type, body = given
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else body)
