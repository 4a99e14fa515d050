"""The engine between two wires that are not sockets: what a client sends in, what an application gets and answers.

Everything is the engine's own (parsers, framing, lanes, exchanges, pools); only transports are replaced, so that a
thousand conversations take a second and every split of the bytes can be tried.
"""

import asyncio
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple

from backstay.config.model import (
    Backend,
    Config,
    HostRoutes,
    Listeners,
    Manifest,
    Rule,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.python.accesslog import AccessLog
from backstay.sidecar.engines.python.downstream import Downstream
from backstay.sidecar.engines.python.listeners import Outbound
from backstay.sidecar.engines.python.pool import Pool
from backstay.sidecar.engines.python.runtime import Runtime
from backstay.sidecar.engines.python.server import Server
from backstay.sidecar.engines.python.upstream import Upstream

PARTS: Final = (
    Listeners(namespace="shop", identity="spiffe://fuzz.mesh/ns/shop/sa/a", trust_domain="fuzz.mesh", egress="registry_only"),
    HostRoutes(host="web.shop", port=80, rules=(Rule(name="all", backends=(WeightedBackend(backend="web.shop:80"),)),)),
    Backend(service="web.shop", port=80),
)  # fmt: skip
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SPARE: Final = 3
_QUIET: Final = socket.socketpair()
"""A socket at which nothing ever arrives, for who asks whether a kept connection has."""


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)] or [b""]


class Request(NamedTuple):
    line: bytes
    fields: dict[bytes, list[bytes]]
    body: bytes | None
    """None while it is not there as a whole."""


class Malformed(AssertionError):
    """What the proxy wrote is not what a strict reader takes."""


class Wire(asyncio.Transport):
    """Keeps what is written; the other end is whoever feeds the protocol."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.reading = True
        self.asked: list[Request] = []

    def is_asked(self) -> bool:
        """Takes one whole request out of what was written, if there is one."""
        if not self.written:
            return False
        request, rest = read_request(bytes(self.written))
        if request.body is None:
            return False
        if rest:
            raise Malformed(f"a second request {rest[:200]!r} before the answer to the first")
        self.written.clear()
        self.asked.append(request)
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading and not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _QUIET[0] if name == "socket" else default


class Bench:
    """One server with one route to one endpoint, to which a single connection is kept ready."""

    def __init__(self) -> None:
        address = Address(host="127.0.0.1", inbound={}, outbound=1)
        self.server = Server(address, AccessLog(len), lambda: 0.5)
        digests = {part.key: digest_of(encode_part(part)) for part in PARTS}
        config = Config(manifest=Manifest(workload="shop/a", parts=digests), parts={part.key: part for part in PARTS})
        self.server.stable = Runtime(config, "digest", self.server)
        self.group = self.server.pools.group(PARTS[2], ())
        self.server.pools.update({"web.shop:80": [Endpoint(id="app", address="127.0.0.1", port=9)]}, full=True)
        self.below = Wire()
        self.client = Downstream(self.server, Outbound(self.server), "127.0.0.1")
        self.client.connection_made(self.below)
        self.above: list[tuple[Upstream, Wire]] = []

    @property
    def pool(self) -> Pool:
        return self.group.members[0]

    def connect(self) -> None:
        """Another kept connection to the application."""
        wire = Wire()
        upstream = Upstream(self.server, self.pool, self.group)
        self.group.count(self.pool, 1)
        upstream.connection_made(wire)
        self.pool.give(upstream, self.server.now)
        self.above.append((upstream, wire))

    def spare(self) -> None:
        """Connections for the next two requests: one may be used up before the next bytes come."""
        while sum(upstream.is_usable for upstream in self.pool.idle) < SPARE:
            self.connect()

    def deliver(self, pieces: Sequence[bytes]) -> None:
        """The client's bytes, as far as they are read; the application answers what it gets as a whole."""
        for piece in pieces:
            if not self.below.is_reading():
                return
            self.spare()
            self.client.data_received(piece)
            while self._answer_one():
                self.spare()

    def _answer_one(self) -> bool:
        for upstream, wire in self.above:
            if upstream.exchange is not None and not wire.closed and wire.is_asked():
                upstream.data_received(OK)
                return True
        return False

    def hang_up(self) -> None:
        """The application closes all its connections."""
        for upstream, wire in self.above:
            if upstream.transport is not None:
                wire.closed = True
                upstream.connection_lost(None)


@contextmanager
def bench() -> Iterator[Bench]:
    """Within a running loop."""
    made = Bench()
    try:
        yield made
    finally:
        made.client.connection_lost(None)
        made.server.stop()


# --- a second opinion ------------------------------------------------------------------------------------------------

_REQUEST_LINE: Final = re.compile(rb"[A-Z-]+ [!-~]+ HTTP/1\.1")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")


def read_head(data: bytes) -> tuple[bytes, dict[bytes, list[bytes]], bytes]:
    """(first line, fields, rest) of a head that must be there, and written as strictly as can be."""
    block, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        raise Malformed(f"no head in {data[:200]!r}")
    line, *lines = block.split(b"\r\n")
    fields: dict[bytes, list[bytes]] = {}
    for each in lines:
        match = _FIELD.fullmatch(each)
        if match is None:
            raise Malformed(f"bad field {each!r}")
        fields.setdefault(match[1].lower(), []).append(match[2])
    return line, fields, rest


def read_body(fields: dict[bytes, list[bytes]], rest: bytes) -> tuple[bytes | None, bytes]:
    """(body, what follows); None where it is not there as a whole."""
    lengths, encodings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if len(lengths) + len(encodings) > 1 or encodings not in ([], [b"chunked"]):
        raise Malformed(f"framing {lengths!r} {encodings!r}")
    if encodings:
        return read_chunks(rest)
    size = int(lengths[0]) if lengths else 0
    return (rest[:size], rest[size:]) if len(rest) >= size else (None, b"")


def read_chunks(rest: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None, b""
        if re.fullmatch(rb"[0-9a-f]+", line) is None:
            raise Malformed(f"chunk size {line!r}")
        size = int(line, 16)
        if len(rest) < size + 2:
            return None, b""
        if rest[size : size + 2] != b"\r\n":
            raise Malformed("chunk without its end")
        body, rest = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, rest


def read_request(data: bytes) -> tuple[Request, bytes]:
    line, fields, rest = read_head(data)
    if _REQUEST_LINE.fullmatch(line) is None or len(fields.get(b"host", [])) != 1:
        raise Malformed(f"request {line!r} for {fields.get(b'host')!r}")
    body, rest = read_body(fields, rest)
    return Request(line, fields, body), rest


def read_answer(data: bytes, *, without_body: bool = False) -> tuple[int, bytes | None, bytes]:
    line, fields, rest = read_head(data)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"status line {line!r}")
    status = int(match[1])
    if without_body or status in (204, 304) or status < 200:
        return status, b"", rest
    body, rest = read_body(fields, rest)
    return status, body, rest
