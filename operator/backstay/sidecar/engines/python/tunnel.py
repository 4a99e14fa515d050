"""Two connections joined into one pipe, after a 101, a CONNECT or on a TCP port. Bytes only; slow readers hold back."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.server import Server
    from backstay.sidecar.engines.python.upstream import Upstream


class Pipe(asyncio.Protocol):
    """One side of a tunnel: what it reads, the other side writes."""

    __slots__ = ("_tunnel", "other", "transport")

    def __init__(self, transport: asyncio.Transport, tunnel: "Tunnel") -> None:
        self.transport = transport
        self._tunnel = tunnel
        self.other: Pipe

    def data_received(self, data: bytes) -> None:
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
        self._tunnel.end()


class Tunnel:
    """Both pipes, until one of them ends."""

    __slots__ = ("_pipes", "_server", "half_closed", "peers")

    def __init__(
        self, one: asyncio.Transport, other: asyncio.Transport, server: "Server", peers: tuple[str, str]
    ) -> None:
        self.peers = peers
        """SPIFFE IDs of both ends (empty: plaintext), so that a revoked one can be cut off."""
        first, second = Pipe(one, self), Pipe(other, self)
        first.other, second.other = second, first
        self._pipes = (first, second)
        self._server = server
        self.half_closed = False

    def start(self) -> None:
        for pipe in self._pipes:
            pipe.transport.set_protocol(pipe)
            pipe.transport.resume_reading()

    def end(self) -> None:
        self._server.tunnels.discard(self)
        for pipe in self._pipes:
            if not pipe.transport.is_closing():
                pipe.transport.close()

    def abort(self) -> None:
        self._server.tunnels.discard(self)
        for pipe in self._pipes:
            pipe.transport.abort()


def splice(client: "Downstream", upstream: "Upstream", server: "Server", early: bytes) -> Tunnel:
    """Join two connections; `early` is what the client had already sent for the other side."""
    assert client.transport is not None and upstream.transport is not None  # noqa: S101, PT018 - callers hold both open
    tunnel = Tunnel(client.transport, upstream.transport, server, (client.identity, upstream.peer))
    if early:
        upstream.transport.write(early)
    tunnel.start()
    return tunnel
