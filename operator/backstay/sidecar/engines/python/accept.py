"""Listening sockets: accepts, looks at the first byte where a port takes TLS and plaintext, and starts the protocol.

What a port accepts is drawn per connection from the two configs. Refused connections are counted and logged here; nobody
else sees them. Plaintext at a port that is STRICT is closed without an answer: whoever speaks it may not speak HTTP, and
an answer would tell a stranger that something is there. The caller's address is in the access log.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Final

from backstay.config.authorize import namespace_of
from backstay.config.model import InboundPort
from backstay.redact import clean
from backstay.sidecar.engines.python.downstream import HEAD_SECONDS, Downstream
from backstay.sidecar.engines.python.failures import FAILURES
from backstay.sidecar.engines.python.listeners import Inbound, Listener
from backstay.sidecar.engines.python.redirected import (
    OFFER,
    SPEAKS_SECONDS,
    RedirectedInbound,
    RedirectedOutbound,
    ToApplication,
    hello_size,
)
from backstay.sidecar.engines.python.split import Asked, is_expected
from backstay.sidecar.engines.python.tls import Contexts, check_peer, set_nodelay
from backstay.sidecar.engines.python.transport import TlsTransport
from backstay.tasks import spawn

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.runtime import Runtime
    from backstay.sidecar.engines.python.server import Server

BACKLOG: Final = 1024  # the kernel cuts it to net.core.somaxconn
ACCEPT_BURST: Final = 64  # connections per wake-up, so that a flood does not starve those already open
ACCEPT_PAUSE: Final = 0.1  # seconds without accepting when the process has no descriptors left
TLS_RECORD: Final = 0x16
FIRST_BYTES: Final = 8  # the longest method of HTTP with its blank
MAX_HELLO: Final = 16 * 1024  # the most a TLS record holds; a ClientHello has 0.3 to 2 KiB
_NO_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_log: Final = logging.getLogger("backstay.sidecar.python")


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket. `shared`: one of several of this port, among which the kernel spreads connections. Raises OSError
    that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # `::` must not take IPv4's port
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


class Acceptor:
    """One listening socket and what becomes of its connections."""

    def __init__(self, server: "Server", sock: socket.socket, listener: Listener) -> None:
        self._server = server
        self._sock = sock
        self._listener = listener
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._shaking: set[TlsTransport] = set()
        self._resume: asyncio.TimerHandle | None = None
        server.loop.add_reader(sock.fileno(), self._accept)

    @property
    def is_inbound(self) -> bool:
        return isinstance(self._listener, Inbound | ToApplication)

    def share(self) -> None:
        """Let another socket listen at the same place; Linux takes that from a socket that listens already."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def stop_accepting(self) -> None:
        """Accept nothing new; connections that have not said anything yet may still."""
        if self._sock.fileno() < 0:
            return
        with contextlib.suppress(OSError):  # it ends anyway
            self._accept()  # what the kernel has taken already it would reset
        if self._resume is not None:
            self._resume.cancel()
        self._server.loop.remove_reader(self._sock.fileno())
        self._sock.close()

    @property
    def is_beginning(self) -> bool:
        """True while connections that were accepted have not said enough to be served."""
        return bool(self._waiting or self._shaking)

    def close(self) -> None:
        """Accept nothing new, and give up connections that have not said anything yet."""
        self.stop_accepting()
        for sock in list(self._waiting):
            self._drop(sock)
        for transport in list(self._shaking):
            transport.abort()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            sock.setblocking(False)
            set_nodelay(sock)
            self._take(sock, address[0])

    def _take(self, sock: socket.socket, address: str) -> None:
        listener = self._listener.taking(sock)
        if listener is None:
            self._server.remark("accept.not-redirected address=%s", address)
            sock.close()
        elif listener.looks:
            self._look(sock, address, listener)
        else:
            self._take_plain(sock, address, listener)

    def _pause(self, error: OSError) -> None:
        if error.errno not in _NO_DESCRIPTORS:
            raise error
        _log.error("accept.paused error=%s", error)
        loop = self._server.loop
        loop.remove_reader(self._sock.fileno())
        self._resume = loop.call_later(ACCEPT_PAUSE, loop.add_reader, self._sock.fileno(), self._accept)

    # --- plaintext or TLS ------------------------------------------------------------------------------------------

    def _look(self, sock: socket.socket, address: str, listener: Listener) -> None:
        """Decide by the first bytes, now or when they arrive."""
        try:
            first = sock.recv(FIRST_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            self._wait_for_bytes(sock, address, listener)
            return
        except OSError:
            self._drop(sock)
            return
        self._forget(sock)
        if not first:
            sock.close()
        elif isinstance(listener, RedirectedOutbound):
            listener.opened(first)
            self._take_plain(sock, address, listener)
        elif first[0] == TLS_RECORD:
            self._take_tls(sock, address, listener)  # type: ignore[arg-type]  # all others that look are inbound
        else:
            self._take_plain(sock, address, listener)

    def _wait_for_bytes(self, sock: socket.socket, address: str, listener: Listener) -> None:
        if sock in self._waiting:
            return
        loop = self._server.loop
        if isinstance(listener, RedirectedOutbound):
            self._waiting[sock] = loop.call_later(SPEAKS_SECONDS, self._silent, sock, address, listener)
        else:
            self._waiting[sock] = loop.call_later(HEAD_SECONDS, self._drop, sock)
        loop.add_reader(sock.fileno(), self._look, sock, address, listener)

    def _silent(self, sock: socket.socket, address: str, listener: Listener) -> None:
        """The client waits for the other side to speak, as no client of HTTP does."""
        self._forget(sock)
        self._take_plain(sock, address, listener)

    def _forget(self, sock: socket.socket) -> None:
        timer = self._waiting.pop(sock, None)
        if timer is not None:
            timer.cancel()
            self._server.loop.remove_reader(sock.fileno())

    def _drop(self, sock: socket.socket) -> None:
        self._forget(sock)
        sock.close()

    def _take_plain(self, sock: socket.socket, address: str, listener: Listener) -> None:
        draw = self._server.random()
        if isinstance(listener, Inbound) and refuses_plaintext(self._server, listener.port, draw):
            count_refusal(self._server, listener.port, draw, "plaintext-refused", address)
            sock.close()
            return
        if isinstance(listener, Inbound):
            note_plaintext(self._server, listener.port, draw, address)
        self._serve(sock, address, listener, draw)

    def _serve(self, sock: socket.socket, address: str, listener: Listener, draw: float) -> None:
        downstream = self._downstream(address, listener, draw)
        spawn(self._start(downstream, sock), name=f"accept {address}")

    async def _start(self, downstream: Downstream, sock: socket.socket) -> None:
        try:
            await self._server.loop.connect_accepted_socket(lambda: downstream, sock)
        except OSError:
            sock.close()  # the client is gone already

    def _downstream(self, address: str, listener: Listener, draw: float) -> Downstream:
        downstream = Downstream(self._server, listener, address)
        downstream.draw = draw
        return downstream

    def _take_tls(self, sock: socket.socket, address: str, listener: Inbound) -> None:
        draw = self._server.random()
        if isinstance(listener, RedirectedInbound) and not refuses_plaintext(self._server, listener.port, draw):
            self._read_hello(sock, address, listener, draw)
        else:
            self._take_mesh_tls(sock, address, listener, draw)

    def _read_hello(self, sock: socket.socket, address: str, listener: RedirectedInbound, draw: float) -> None:
        """Tell TLS of the mesh from the application's own, which is passed on untouched, by what its client offers."""
        try:
            hello = sock.recv(MAX_HELLO, socket.MSG_PEEK)
            wanted = min(hello_size(hello), MAX_HELLO)
            is_short = len(hello) < wanted and sock not in self._waiting
            # Woken when all of it is there; or when its sender has gone, and nothing more will come.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted if is_short else 1)
        except OSError:
            self._drop(sock)
            return
        if is_short:
            loop = self._server.loop
            self._waiting[sock] = loop.call_later(HEAD_SECONDS, self._drop, sock)
            loop.add_reader(sock.fileno(), self._read_hello, sock, address, listener, draw)
            return
        self._forget(sock)
        if OFFER in hello:
            self._take_mesh_tls(sock, address, listener, draw)
        else:
            listener.is_opaque = True
            note_plaintext(self._server, listener.port, draw, address)
            self._serve(sock, address, listener, draw)

    def _take_mesh_tls(self, sock: socket.socket, address: str, listener: Inbound, draw: float) -> None:
        contexts = self._server.contexts
        if contexts is None or refuses_tls(self._server, listener.port, draw):
            count_refusal(self._server, listener.port, draw, "handshake-refused", address)
            sock.close()
            return
        try:
            wrapped = contexts.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            sock.close()
            return
        self._shake(wrapped, contexts, address, listener, draw)

    def _shake(self, wrapped: ssl.SSLSocket, contexts: Contexts, address: str, listener: Inbound, draw: float) -> None:
        def ready(transport: TlsTransport, error: Exception | None) -> None:
            self._shaking.discard(transport)
            downstream = self._downstream(address, listener, draw)
            try:
                if error is not None:
                    raise error
                downstream.identity = check_peer(wrapped, contexts)
            except (OSError, ValueError) as problem:  # ssl.SSLError and TimeoutError are OSErrors
                why = clean(str(problem))
                self._server.remark("handshake.refused address=%s error=%s", address, why)
                count_refusal(self._server, listener.port, draw, "handshake-refused", address, whoever=True, error=why)
                transport.abort()
                return
            downstream.namespace = namespace_of(downstream.identity)
            downstream.secure = True
            transport.begin(downstream)

        transport = TlsTransport(self._server.loop, wrapped, ready)
        self._shaking.add(transport)
        transport.start()


def _mode(runtime: "Runtime | None", port: int) -> str:
    return runtime.mtls_of(port) if runtime is not None else InboundPort(port=port).mtls


def refuses_plaintext(server: "Server", port: int, draw: float) -> bool:
    return _mode(server.runtime_for(draw), port) == "strict"


def refuses_tls(server: "Server", port: int, draw: float) -> bool:
    return _mode(server.runtime_for(draw), port) == "disable"


def count_refusal(
    server: "Server", port: int, draw: float, reason: str, address: str, *, whoever: bool = False, error: str = ""
) -> None:
    """Count one refused connection. `whoever`: no config would have taken it (a bad certificate proves nothing)."""
    runtime = server.runtime_for(draw)
    server.ledger.note_refused(_named(runtime, port), reason)
    if reason == "plaintext-refused":
        server.ledger.note_plaintext(_named(runtime, port), address, refused=1)
    if runtime is not None and runtime.logs != "off":
        server.log.refused(address, port, reason, runtime.digest, error)
    if runtime is None or port not in runtime.ports:
        return
    counters = runtime.ports[port].counters
    counters.finish(0.0, 0)
    if whoever or runtime is server.stable or _stable_refuses(server, port, reason) or _announced(server, address):
        counters.excused += 1
    else:
        counters.blame(FAILURES[reason].bad)


def note_plaintext(server: "Server", port: int, draw: float, address: str) -> None:
    """Count a connection that was taken although its caller showed no certificate of the mesh."""
    server.ledger.note_plaintext(_named(server.runtime_for(draw), port), address, accepted=1)


def _named(runtime: "Runtime | None", port: int) -> int:
    """0 for whatever ports a stranger tries."""
    return port if runtime is None or port in runtime.ports else 0


def _stable_refuses(server: "Server", port: int, reason: str) -> bool:
    refused_by = "strict" if reason == "plaintext-refused" else "disable"
    return server.contexts is None if reason == "handshake-refused" and server.contexts is None else (
        _mode(server.stable, port) == refused_by
    )  # fmt: skip


def _announced(server: "Server", address: str) -> bool:
    return is_expected(server.expected, Asked(source="", address=address, host="", path=""))
