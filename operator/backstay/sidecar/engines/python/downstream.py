"""One connection from a client: parses requests, serves them in order, writes the responses.

Callbacks collect; `_pump` begins the next request when the one before it has ended. A read that breaks the framing of a
request nobody has begun yet sends nothing upstream. Reading stops while a pipelined request waits, while upstream's
buffer is full, and from an upgrade until its answer.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

import httptools

from backstay.sidecar.engines.python.clientcert import card
from backstay.sidecar.engines.python.failures import local_response
from backstay.sidecar.engines.python.flow import Exchange
from backstay.sidecar.engines.python.framing import (
    CHUNK_OVERHEAD_PER_BYTE,
    MAX_CHUNK_OVERHEAD,
    MAX_HEAD_BYTES,
    Fields,
    Refusal,
    check_connect,
    connection_options,
    read_request,
    wants_websocket,
)  # fmt: skip
from backstay.sidecar.engines.python.tls import speaks_mesh

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.listeners import Listener
    from backstay.sidecar.engines.python.peers import Peer
    from backstay.sidecar.engines.python.runtime import Runtime
    from backstay.sidecar.engines.python.server import Server

MAX_PIPELINED: Final = 256
"""Requests waiting behind one under way. They can only come in one read, whose bytes they outweigh thirty times; real
clients send a handful ahead (browsers none, wrk's scripts 16)."""
MAX_UNSENT: Final = 64 * 1024  # request bytes held while no connection is there yet
LINGER_SECONDS: Final = 1.0
"""After an answer that the client did not wait for: time to read it before the connection goes (RFC 9112, 9.6)."""
HEAD_SECONDS: Final = 10.0  # nginx 60 s, Envoy none by default, hyper 30 s; a mesh's clients are near
IDLE_SECONDS: Final = 75.0  # nginx keepalive_timeout
STALL_SECONDS: Final = 60.0  # without a byte of a request body, or of a response read: nginx's timeouts


class Downstream(asyncio.Protocol):
    __slots__ = (  # noqa: RUF023 - by lifetime
        "address", "authority", "card", "draw", "identity", "is_fresh", "leaving", "listener", "namespace", "peer", "secure", "server",
        "transport",  # connection
        "_fed", "_head_bytes", "_in_head", "_pumping", "_replay", "busy_since", "early", "fields", "full_since", "incoming",
        "parser", "target",  # parsing
        "exchange", "queue",  # requests
    )  # fmt: skip

    def __init__(self, server: "Server", listener: "Listener", address: str) -> None:
        self.server = server
        self.listener = listener
        self.address = address
        self.authority = listener.authority
        """What an explicit listener or a tunnel fixed; requests on this connection are for it whatever they say."""
        self.identity = ""
        self.namespace = ""
        self.peer: Peer | None = None
        """Who this is for metrics; found with the first request."""
        self.secure = False
        self.card = b""
        """What applications are told of the caller's certificate; read with the first request that tells it."""
        self.draw = 0.0
        """Which config decides about this connection: below the candidate's share is the candidate."""
        self.leaving = False
        self.is_fresh = True
        """No request has begun here yet."""
        self.transport: asyncio.Transport | None = None
        self.parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.fields: Fields = []
        self.target = b""
        self.incoming: Exchange | None = None
        self.exchange: Exchange | None = None
        self.queue: deque[Exchange] = deque()
        self.early = b""
        self.busy_since = server.now
        self.full_since = 0.0
        self._replay = b""
        self._in_head = False
        self._head_bytes = 0
        self._fed = 0
        self._pumping = False

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.downstreams.add(self)
        runtime = self.server.runtime_for(self.draw)
        if runtime is not None:
            self._take_whole(runtime)

    def _take_whole(self, runtime: "Runtime") -> None:
        """Serve a connection of a TCP port: it is one exchange, and nothing of it is parsed."""
        exchange = Exchange(self, b"CONNECT", b"", "", [], False)
        exchange.started = monotonic()
        exchange.runtime = runtime
        exchange.complete = True
        self.exchange = exchange
        if self.listener.admit_connection(exchange, runtime):
            self.parser = None
            self.update_reading()
        else:
            self.exchange = None

    def look_into(self, authority: bytes, established: bytes) -> None:
        """The tunnel that the client asked for ends here: what comes through it is HTTP for `authority`."""
        self.exchange = None
        self.authority = authority
        self.busy_since = self.server.now
        self.parser = httptools.HttpRequestParser(self)
        self.write(established)
        early, self.early = self.early, b""
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        parser = self.parser
        if parser is None:
            self._keep_unparsed(data)
            return
        self._fed = len(data)
        before = self.incoming
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._broken(400)
        if before is not None or self._in_head:
            self._limit(before, len(data))
        if self.exchange is None:
            self._pump()
        elif self.exchange is before:
            before.push()
        else:
            self.update_reading()

    def _keep_unparsed(self, data: bytes) -> None:
        """Bytes for a tunnel that does not stand yet. (uvloop starts to read after connection_made, paused or not.)"""
        if self.leaving or self.exchange is None:
            return
        self.early += data
        self.update_reading()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.server.downstreams.discard(self)
        self.transport = None
        self.parser = None
        self.queue.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self.full_since = self.server.now
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.pause()
        self.update_reading()

    def resume_writing(self) -> None:
        self.full_since = 0.0
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.resume()
        self._pump()
        self.update_reading()

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.fields = []
        self.target = b""
        self._in_head = True
        self._head_bytes = 0
        self.busy_since = self.server.now

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser: httptools.HttpRequestParser = self.parser  # type: ignore[assignment]
        self._in_head = False
        method, version, keep_alive = parser.get_method(), parser.get_http_version(), parser.should_keep_alive()
        if parser.should_upgrade() and method != b"CONNECT" and not wants_websocket(self.fields):
            self._replay = _without_upgrade(method, self.target, version, self.fields, keep_alive)
            return
        if len(self.queue) >= MAX_PIPELINED:
            raise ValueError("too many requests ahead of their answers")  # ends the parse: `_broken` refuses this one
        exchange = Exchange(self, method, self.target, version, self.fields, keep_alive)
        self.fields = []  # trailers come through on_header as well; they are dropped with this list
        self.incoming = exchange
        self.queue.append(exchange)
        if (
            self._fed > MAX_HEAD_BYTES
            and sum(len(name) + len(value) for name, value in exchange.fields) > MAX_HEAD_BYTES
        ):
            exchange.broken = 431

    def on_body(self, data: bytes) -> None:
        exchange = self.incoming
        if exchange is not None:
            exchange.body.append(data)
            exchange.size += len(data)

    def on_message_complete(self) -> None:
        if self.incoming is not None:
            self.incoming.complete = True
            self.incoming = None

    # --- parsing, the rare cases -----------------------------------------------------------------------------------

    def _upgraded(self, rest: bytes) -> None:
        """The parser stopped at an upgrade: parse again without it if it is one that a proxy ignores."""
        if self._replay:
            data, self._replay = self._replay + rest, b""
            self.parser = httptools.HttpRequestParser(self)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                self._broken(400)
            except httptools.HttpParserError:
                self._broken(400)
            return
        self.parser = None
        self.early = rest
        if self.queue:
            self.queue[-1].upgrade = True

    def _broken(self, status: int) -> None:
        """Nothing after this point can be trusted: answer what came before, then refuse and close."""
        self.parser = None
        exchange, self.incoming = self.incoming, None
        self.server.ledger.protocol_errors += 1
        if exchange is None:
            if not self._in_head and self._last_keeps_alive_not():
                return  # bytes after `Connection: close`
            exchange = Exchange(self, b"GET", b"/", "1.1", [], False)
            self.queue.append(exchange)
        exchange.broken = status
        exchange.keep_alive = False
        if exchange is self.exchange:
            exchange.fail("bad-request", status)

    def _last_keeps_alive_not(self) -> bool:
        last = self.queue[-1] if self.queue else self.exchange
        return last is not None and not last.keep_alive

    def _limit(self, before: Exchange | None, size: int) -> None:
        """Bound what one message may cost: bytes of its head, and bytes around its chunks."""
        if self._in_head:
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD_BYTES and self.parser is not None:
                self._broken(431)
        elif before is not None and before is self.incoming:
            before.raw = max(
                before.raw + size, before.size * (1 + CHUNK_OVERHEAD_PER_BYTE)
            )  # a large body saves nothing up
            if before.raw - before.size * (1 + CHUNK_OVERHEAD_PER_BYTE) > MAX_CHUNK_OVERHEAD:
                self._broken(400)

    # --- requests --------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin the next request if none is under way."""
        if self._pumping:
            return
        self._pumping = True
        while self.exchange is None and self.queue and not self.leaving and not self.full_since:
            self.exchange = self.queue.popleft()
            self._begin(self.exchange)
        self._pumping = False
        if self.queue or self.exchange is None or not self.exchange.complete:
            self.update_reading()

    def _begin(self, exchange: Exchange) -> None:
        exchange.started = monotonic()
        self.is_fresh = False
        if exchange.broken:
            self.answer(exchange, exchange.broken, "bad-request")
            return
        if exchange.method == b"CONNECT":
            refusal = check_connect(exchange.target, exchange.version, exchange.fields)
            if refusal is None:
                self.listener.connect(exchange)
            else:
                self._turn_away(exchange, refusal)
            return
        head = read_request(exchange.method, exchange.target, exchange.version, exchange.fields, self.authority)
        if isinstance(head, Refusal):
            self._turn_away(exchange, head)
            return
        exchange.head = head
        exchange.upgrade = head.upgrade
        self.listener.admit(exchange)

    def _turn_away(self, exchange: Exchange, refusal: Refusal) -> None:
        exchange.keep_alive = False
        exchange.broken = refusal.status
        self.answer(exchange, refusal.status, refusal.reason)

    def exchange_ended(self, exchange: Exchange) -> None:
        """The response is written."""
        self.exchange = None
        self.busy_since = self.server.now
        if not exchange.keep_alive or self.leaving or self.server.draining:
            # Closing while bytes are on their way makes the kernel send a reset, which can overtake the answer.
            self._leave(linger=not exchange.complete or exchange.upgrade or exchange.broken > 0)
        elif not exchange.complete:
            self._leave(linger=True)
        elif self.queue:
            self._pump()
        elif self.transport is not None and not self.full_since:
            self.transport.resume_reading()

    def answer(
        self, exchange: Exchange, status: int, reason: str, fields: Fields | None = None, body: bytes | None = None
    ) -> None:
        """Write an answer of the mesh's own and end the exchange; a connection nobody parses is just closed."""
        if not exchange.version:
            self.abort()
            return
        close = (
            not exchange.keep_alive or not exchange.complete or exchange.upgrade or self.server.draining or self.leaving
        )
        if close:
            exchange.keep_alive = False
        self.write(
            local_response(
                status, reason, close=close, with_body=exchange.method != b"HEAD", fields=fields or (), body=body
            )
        )
        self.exchange_ended(exchange)

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def update_reading(self) -> None:
        """Read exactly while somebody can take what is read."""
        if self.transport is None or self.transport.is_closing():
            return
        exchange = self.exchange
        upstream = exchange.upstream if exchange is not None else None
        held = (
            bool(self.queue)
            or (exchange is None and self.full_since > 0)  # who takes no answers may ask for no more of them
            or (exchange is not None and (exchange.upgrade or self.parser is None or exchange.unsent > MAX_UNSENT))
            or (upstream is not None and upstream.full)
        )
        if held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    @property
    def is_from_proxy(self) -> bool:
        """True if a proxy of the mesh asks for its application: it proved who it is, and offered the mesh's own protocol."""
        if not (self.identity and self.listener.is_inbound and self.transport is not None):
            return False
        return speaks_mesh(self.transport)

    def read_card(self) -> bytes:
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        found = self.card = card(tls) if tls is not None else b""
        return found

    def find_peer(self) -> "Peer":
        found = self.peer = self.server.peers.caller(self.identity, self.address)
        return found

    # --- ending ----------------------------------------------------------------------------------------------------

    def _leave(self, *, linger: bool) -> None:
        """Close; with time for the client to read the answer if it may still be sending."""
        self.leaving = True
        self.parser = None
        self.queue.clear()
        transport = self.transport
        if transport is None:
            return
        if not linger:
            transport.close()
            return
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        self.server.loop.call_later(LINGER_SECONDS, transport.close)

    def leave_when_idle(self) -> None:
        """Close now, or after the request under way."""
        self.leaving = True
        if self.exchange is None and self.transport is not None:
            self.transport.close()

    @property
    def is_beginning(self) -> bool:
        """True if a request is, or should be, on its way: closing now would lose it."""
        return self.exchange is None and (self.is_fresh or self._in_head)

    def leave_for_tunnel(self) -> bytes:
        """Give up the transport; returns the bytes that were read beyond the upgrade."""
        self.server.downstreams.discard(self)
        self.exchange = None
        self.parser = None
        early, self.early = self.early, b""
        return early

    def abort(self) -> None:
        """Cut the connection off; an exchange under way ends with it."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        if self.transport is not None:
            self.transport.abort()

    def check(self, now: float) -> None:
        """Time limits that need no precision, looked at about once a second (threats H17)."""
        exchange = self.exchange
        if self.full_since and now - self.full_since > STALL_SECONDS:
            self.abort()
        elif exchange is not None:
            self._check_body(exchange, now)
        elif self.leaving:
            if now - self.busy_since > STALL_SECONDS:
                self.abort()  # closing waits until all is taken, and less than a full buffer may never be
        elif self._in_head and now - self.busy_since > HEAD_SECONDS:
            self._broken(408)
            self._pump()
        elif not self._in_head and now - self.busy_since > IDLE_SECONDS:
            self.leave_when_idle()

    def _check_body(self, exchange: Exchange, now: float) -> None:
        if exchange.complete or exchange.broken:
            return
        if exchange.size != self._head_bytes:  # outside of a head this holds the size at the look before
            self._head_bytes = exchange.size
            self.busy_since = now
        elif now - self.busy_since > STALL_SECONDS and self.transport is not None and self.transport.is_reading():
            exchange.keep_alive = False
            self.parser = None
            exchange.fail("slow-request")

    def __repr__(self) -> str:
        return f"Downstream({self.address} {self.identity or 'plaintext'} exchange={self.exchange is not None})"


def _without_upgrade(method: bytes, target: bytes, version: str, fields: Fields, keep_alive: bool) -> bytes:
    """The head again as bytes, without the offer to upgrade (RFC 9110, 7.8: a server may ignore it)."""
    kept = [field for field in fields if field[0].lower() not in (b"upgrade", b"connection")]
    listed = connection_options([value for name, value in fields if name.lower() == b"connection"]) - {b"upgrade", b""}
    options = listed if keep_alive else listed | {b"close"}
    if options:  # what else it names must still end here
        kept.append((b"Connection", b", ".join(sorted(options))))
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode()), *(b"%b: %b" % field for field in kept)]
    return b"\r\n".join(lines) + b"\r\n\r\n"
