"""One connection to an endpoint: reads responses and tells the exchange that uses it; opened by dial.py, kept by a pool.

Callbacks only note what was parsed; the exchange looks at it once per read, so that a head and the framing errors behind
it are judged together, and one read downstream is one write upstream.
"""

import asyncio
import select
from typing import TYPE_CHECKING, Final

import httptools

from backstay.sidecar.engines.python.framing import (
    CHUNK_OVERHEAD_PER_BYTE,
    MAX_CHUNK_OVERHEAD,
    MAX_HEAD_BYTES,
    MAX_INTERIM_RESPONSES,
    Fields,
)  # fmt: skip
from backstay.sidecar.engines.python.pool import Group, Pool
from backstay.sidecar.engines.python.tls import is_alert

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.server import Server

CONTINUE: Final = 100
SWITCHING: Final = 101
FIRST_FINAL: Final = 200
MIN_UNPARSED: Final = 64 * 1024
"""Bytes of body from which on a new parser for the next response (1 us) is less than copying what is left of this one."""
_NO_FIELDS: Final[Fields] = []


class Upstream(asyncio.Protocol):
    __slots__ = (  # noqa: RUF023 - by lifetime
        "group", "pool", "secure", "server", "transport",  # connection
        "early", "idle_since", "paused", "parser", "peer", "received", "served",
        "around", "body", "broken", "complete", "continued", "exchange", "fields", "full", "head_only", "interims", "keep_alive",
        "left", "raw", "status", "surplus", "tail", "upgraded",  # one response
        "_is_parser_spent",
    )  # fmt: skip

    def __init__(self, server: "Server", pool: Pool, group: Group) -> None:
        self.server = server
        self.pool = pool
        self.group = group
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.peer = ""
        self.secure = bool(pool.key.identity)
        self.received = False
        """True once any byte arrived: before that a TLS alert still means that the handshake was refused."""
        self.served = 0
        self.idle_since = 0.0
        self.full = False
        self.paused = False
        self.upgraded = False
        self.surplus = False
        self.early: bytes | None = None
        """What came before anybody took the connection, where it is for a tunnel: there the other end may speak first."""
        self._is_parser_spent = False
        self._reset(head_only=False)

    def _reset(self, *, head_only: bool) -> None:
        self.fields: Fields = []
        self.body: list[bytes] = []
        self.status = 0
        self.complete = False
        self.keep_alive = False
        self.continued = False
        self.broken = False
        self.tail = b""
        self.interims = 0
        self.raw = 0
        self.around = 0
        """Bytes of chunk lines, extensions and trailers, beyond what the body beside them accounts for."""
        self.left = 0
        """Bytes of the body that come without a look at them."""
        self.head_only = head_only

    # --- what the exchange calls -----------------------------------------------------------------------------------

    def begin(self, exchange: "Exchange", *, head_only: bool) -> None:
        """Serve this exchange: the next response is its own."""
        # llhttp cannot know that a response to HEAD has no body, nor of bytes that it was not shown: then it is not used again.
        if self.head_only or self._is_parser_spent:
            self.parser = httptools.HttpResponseParser(self)
            self._is_parser_spent = False
        self.exchange = exchange
        self._reset(head_only=head_only)

    def write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]  # set in connection_made, before any exchange sees this

    def expect(self, length: int) -> None:
        """So many bytes of body were announced. A large rest of it goes by the parser, which would copy every byte."""
        left = length - sum(map(len, self.body))
        if left >= MIN_UNPARSED and not self.complete:
            self.left = left
            self._is_parser_spent = True

    def take_body(self) -> list[bytes]:
        body, self.body = self.body, []
        return body

    def release(self, *, reusable: bool) -> None:
        """The exchange is done with this connection."""
        self.exchange = None
        self.served += 1
        if self.paused:  # the response is read, though its client has not taken all of it: the next one must be read
            self.resume()
        if not (reusable and not self.surplus and self.is_usable):
            self.close()
            return
        if self.pool.waiting and self._serve_next():
            return
        if not self.pool.give(self, self.server.now):
            self.close()
            return
        if self.group.quota.pending:
            self.group.quota.wake()

    def _serve_next(self) -> bool:
        """Carry the request that waits longest for a connection to this endpoint; False if none can use this one."""
        seeker = self.pool.next_for_kept(self)
        if seeker is None:
            return False
        seeker.connected(self)
        return True

    def cut(self) -> None:
        """End the connection, and with it whatever uses it."""
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """End the connection; its exchange, if any, has let go of it."""
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        if self.transport is not None:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def is_usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def is_quiet(self) -> bool:
        """False if something is there to be read on an idle connection: its end, or bytes nobody asked for. Costs a
        system call, so only requests that cannot be sent twice ask."""
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.upstreams.add(self)

    def data_received(self, data: bytes) -> None:
        self.received = True
        exchange = self.exchange
        if exchange is None:
            self._keep(data)
            return
        if self.left:
            self._take_unparsed(data)
            exchange.response_progress(self)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.upgraded = True
            self.tail = data[upgrade.args[0] :]
        except httptools.HttpParserError:
            # What follows a complete response is surplus: it reaches nobody, and the connection is not used again.
            self.surplus = True
            self.broken = self.broken or not self.complete
        if not self.status:
            self.raw += len(data)
            self.broken = self.broken or self.raw > MAX_HEAD_BYTES or self.interims > MAX_INTERIM_RESPONSES
        elif not self.complete:
            self._limit_around(len(data))
        exchange.response_progress(self)

    def _limit_around(self, size: int) -> None:
        """An application may send chunk lines and trailers for ever, too (threats H13). The read that ended the head counts."""
        self.around = max(self.around + size - sum(map(len, self.body)) * (1 + CHUNK_OVERHEAD_PER_BYTE), 0)
        if self.around > MAX_CHUNK_OVERHEAD + MAX_HEAD_BYTES:
            self.broken = True

    def _take_unparsed(self, data: bytes) -> None:
        if (
            len(data) > self.left
        ):  # what follows a complete response reaches nobody, and the connection is not used again
            self.surplus = True
            data = data[: self.left]
        self.left -= len(data)
        self.body.append(data)
        self.complete = self.left == 0

    def _keep(self, data: bytes) -> None:
        """Bytes that no request asked for."""
        if self.early is not None:
            self.early += data
            return
        self.surplus = True
        self.close()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        exchange, self.exchange = self.exchange, None
        self.forget()  # first: its place is free for the try that may follow
        if exchange is not None:
            exchange.upstream_lost(self, refused=not self.received and is_alert(error))

    def forget(self) -> None:
        """The connection is gone, whoever had it in the end: an exchange, a pool or a tunnel."""
        self.server.upstreams.discard(self)
        self.pool.forget(self)
        self.group.count(self.pool, -1)
        self.group.quota.wake()

    @property
    def never_spoke(self) -> bool:
        """True for a new mTLS connection of whose other end nothing was ever heard."""
        return self.secure and self.served == 0 and not self.received

    def pause_writing(self) -> None:
        self.full = True
        if self.exchange is not None:
            self.exchange.downstream.update_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.exchange is not None:
            self.exchange.downstream.update_reading()

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a response that nobody asked for")  # ends the parse: `data_received` counts it as surplus

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # what comes after the head is a trailer, and ends here (threats H9)
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < FIRST_FINAL and status != SWITCHING:
            self.interims += 1
            self.continued = self.continued or status == CONTINUE
            self.fields = []
            return
        self.status = status
        self.keep_alive = self.parser.should_keep_alive()
        if not self.keep_alive:  # llhttp takes 0.9 and 2.0 for versions too, and keeps no connection of theirs
            self.broken = self.parser.get_http_version() not in ("1.1", "1.0")
        self.complete = self.head_only

    def on_body(self, data: bytes) -> None:
        if self.complete:
            self.surplus = True
            return
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True

    def __repr__(self) -> str:
        return f"Upstream({self.pool.key.address}:{self.pool.key.port} status={self.status} complete={self.complete})"
