"""Two connections joined into one pipe, after a 101, a CONNECT or on a TCP port. Bytes only; slow readers hold back."""

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from backstay.sidecar.engines.python.stats import Streams
from backstay.sidecar.engines.python.tls import is_alert

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.upstream import Upstream

UNTAKEN_SECONDS: Final = 60.0
"""How long the rest of a tunnel that has ended waits for its reader to take any of it; as `STALL_SECONDS` of answers."""
QUIET_SECONDS: Final = 300
"""After so long without a byte the kernel asks whether the other end is still there: machines vanish without a word, and a
tunnel has no other limit. Linux asks after two hours unless told."""
_TCP_OPTIONS: Final = {
    "TCP_KEEPIDLE": QUIET_SECONDS,
    "TCP_KEEPALIVE": QUIET_SECONDS,  # the same on macOS
    "TCP_KEEPINTVL": 15,
    "TCP_KEEPCNT": 4,
}
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _TCP_OPTIONS.items()
        if hasattr(socket, name)
    ),
)


class Pipe(asyncio.Protocol):
    """One side of a tunnel: what it reads, the other side writes."""

    __slots__ = ("_closing", "_tunnel", "moved", "other", "received", "transport")

    def __init__(self, transport: asyncio.Transport, tunnel: "Tunnel") -> None:
        self.transport = transport
        self._tunnel = tunnel
        self._closing: asyncio.TimerHandle | None = None
        self.received = False
        self.moved = 0
        """Bytes read here that metrics have not been told of."""
        self.other: Pipe

    def data_received(self, data: bytes) -> None:
        self.received = True
        self.moved += len(data)
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        """Half-close goes through where the other side can do it; TLS cannot, so there the tunnel ends."""
        if self.other.transport.can_write_eof() and not self._tunnel.half_closed:
            self._tunnel.half_closed = True
            self.other.transport.write_eof()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._tunnel.lost(self, error)

    def close(self) -> None:
        """Close once the rest is taken. A reader that takes none of it would keep the connection for ever."""
        self.transport.close()
        self._look_again_at(self.transport.get_write_buffer_size())

    def _look_again_at(self, left: int) -> None:
        if left:
            self._closing = self._tunnel.loop.call_later(UNTAKEN_SECONDS, self.cut_if_stuck, left)

    def cut_if_stuck(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._look_again_at(left)


class Tunnel:
    """Both pipes, until one of them ends."""

    __slots__ = ("_digest", "_pipes", "_upstream", "began", "client", "half_closed", "loop", "peers", "streams")

    def __init__(self, client: asyncio.Transport, upstream: "Upstream", identity: str, digest: str) -> None:
        self.client: Downstream | None = None
        """Whose connection it was."""
        self.began: Exchange | None = None
        """The request or the connection that it came from, so that new rules can be asked about it."""
        self.peers = (identity, upstream.peer)
        """SPIFFE IDs of both ends (empty: plaintext), so that a revoked one can be cut off."""
        assert upstream.transport is not None  # noqa: S101 - `splice` is called with both ends open
        first, second = Pipe(client, self), Pipe(upstream.transport, self)
        first.other, second.other = second, first
        self._pipes = (first, second)
        self._upstream = upstream
        self.loop = upstream.server.loop
        self._digest = digest
        self.half_closed = False
        self.streams: Streams | None = None
        """Where its bytes are counted."""

    def count_into(self, streams: Streams, early: int) -> None:
        """Count this tunnel, of which so many bytes of the client have gone on already."""
        self.streams = streams
        self._pipes[0].moved += early
        streams.opened += 1

    def tell(self) -> None:
        """Count what moved since the last time."""
        streams, (client, upstream) = self.streams, self._pipes
        if streams is not None:
            streams.received += client.moved
            streams.sent += upstream.moved
            client.moved = upstream.moved = 0

    def _close_count(self) -> None:
        self.tell()
        if self.streams is not None:
            self.streams.closed += 1
            self.streams = None

    def start(self) -> None:
        for pipe in self._pipes:
            pipe.transport.set_protocol(pipe)
            _notice_when_gone(pipe.transport)
            pipe.transport.resume_reading()

    def lost(self, pipe: Pipe, error: Exception | None) -> None:
        """One side is gone: the other goes too, and what was kept for the upstream side is given back."""
        upstream = self._upstream
        if pipe is self._pipes[1]:
            upstream.transport = None
            if upstream.never_spoke and not pipe.received and is_alert(error):
                upstream.server.ledger.peer_failed_late(upstream.pool.key.id, self._digest)
            upstream.forget()
        self.end()

    def end(self) -> None:
        self._close_count()
        self._upstream.server.tunnels.discard(self)
        for pipe in self._pipes:
            if not pipe.transport.is_closing():
                pipe.close()

    def abort(self) -> None:
        self._close_count()
        self._upstream.server.tunnels.discard(self)
        for pipe in self._pipes:
            pipe.transport.abort()


def _notice_when_gone(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # it has gone already; its transport hears of that by itself
            for option in _KEEPALIVE:
                sock.setsockopt(*option)


def splice(client: "Downstream", upstream: "Upstream", early: bytes, digest: str) -> Tunnel:
    """Join two connections; `early` is what the client had already sent for the other side."""
    assert client.transport is not None and upstream.transport is not None  # noqa: S101, PT018 - callers hold both open
    tunnel = Tunnel(client.transport, upstream, client.identity, digest)
    tunnel.client = client
    if early:
        upstream.transport.write(early)
    if upstream.early:
        client.transport.write(upstream.early)
    tunnel.start()
    return tunnel
