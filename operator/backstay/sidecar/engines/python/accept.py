"""Listening sockets: accepts, looks at the first byte where a port takes TLS and plaintext, and starts the protocol.

What a port accepts is drawn per connection from the two configs. Refused connections are counted and logged here; nobody
else sees them. Plaintext at a port that is STRICT is closed without an answer: whoever speaks it may not speak HTTP, and
an answer would tell a stranger that something is there. The caller's address is in the access log.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from backstay.config.authorize import namespace_of
from backstay.config.model import InboundPort
from backstay.redact import clean
from backstay.sidecar.engines.python.downstream import HEAD_SECONDS, Downstream
from backstay.sidecar.engines.python.failures import FAILURES
from backstay.sidecar.engines.python.listeners import Inbound, Listener
from backstay.sidecar.engines.python.split import Asked, is_expected
from backstay.sidecar.engines.python.tls import Contexts, TlsTransport, check_peer, set_nodelay
from backstay.tasks import spawn

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.runtime import Runtime
    from backstay.sidecar.engines.python.server import Server

BACKLOG: Final = 1024  # the kernel cuts it to net.core.somaxconn
ACCEPT_BURST: Final = 64  # connections per wake-up, so that a flood does not starve those already open
ACCEPT_PAUSE: Final = 0.1  # seconds without accepting when the process has no descriptors left
TLS_RECORD: Final = 0x16
_NO_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_log: Final = logging.getLogger("backstay.sidecar.python")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
        self._take: Callable[[socket.socket, str], None] = (
            self._look if isinstance(listener, Inbound) else self._take_plain
        )
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._shaking: set[TlsTransport] = set()
        self._resume: asyncio.TimerHandle | None = None
        server.loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nothing new; connections that have not said anything yet are closed."""
        if self._sock.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._server.loop.remove_reader(self._sock.fileno())
        self._sock.close()
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

    def _pause(self, error: OSError) -> None:
        if error.errno not in _NO_DESCRIPTORS:
            raise error
        _log.error("accept.paused error=%s", error)
        loop = self._server.loop
        loop.remove_reader(self._sock.fileno())
        self._resume = loop.call_later(ACCEPT_PAUSE, loop.add_reader, self._sock.fileno(), self._accept)

    # --- plaintext or TLS ------------------------------------------------------------------------------------------

    def _look(self, sock: socket.socket, address: str) -> None:
        """Decide by the first byte, now or when it arrives."""
        loop = self._server.loop
        try:
            first = sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            if sock not in self._waiting:
                self._waiting[sock] = loop.call_later(HEAD_SECONDS, self._drop, sock)
                loop.add_reader(sock.fileno(), self._look, sock, address)
            return
        except OSError:
            self._drop(sock)
            return
        self._forget(sock)
        if not first:
            sock.close()
        elif first[0] == TLS_RECORD:
            self._take_tls(sock, address)
        else:
            self._take_plain(sock, address)

    def _forget(self, sock: socket.socket) -> None:
        timer = self._waiting.pop(sock, None)
        if timer is not None:
            timer.cancel()
            self._server.loop.remove_reader(sock.fileno())

    def _drop(self, sock: socket.socket) -> None:
        self._forget(sock)
        sock.close()

    def _take_plain(self, sock: socket.socket, address: str) -> None:
        draw = self._server.random()
        if isinstance(self._listener, Inbound) and refuses_plaintext(self._server, self._listener.port, draw):
            count_refusal(self._server, self._listener.port, draw, "plaintext-refused", address)
            sock.close()
            return
        downstream = self._downstream(address, draw)
        spawn(self._start(downstream, sock), name=f"accept {address}")

    async def _start(self, downstream: Downstream, sock: socket.socket) -> None:
        try:
            await self._server.loop.connect_accepted_socket(lambda: downstream, sock)
        except OSError:
            sock.close()  # the client is gone already

    def _downstream(self, address: str, draw: float) -> Downstream:
        downstream = Downstream(self._server, self._listener, address)
        downstream.draw = draw
        return downstream

    def _take_tls(self, sock: socket.socket, address: str) -> None:
        listener: Inbound = self._listener  # type: ignore[assignment]  # only inbound ports look
        contexts, draw = self._server.contexts, self._server.random()
        if contexts is None or refuses_tls(self._server, listener.port, draw):
            count_refusal(self._server, listener.port, draw, "handshake-refused", address)
            sock.close()
            return
        try:
            wrapped = contexts.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            sock.close()
            return
        self._shake(wrapped, contexts, address, draw)

    def _shake(self, wrapped: ssl.SSLSocket, contexts: Contexts, address: str, draw: float) -> None:
        listener: Inbound = self._listener  # type: ignore[assignment]

        def ready(transport: TlsTransport, error: Exception | None) -> None:
            self._shaking.discard(transport)
            downstream = self._downstream(address, draw)
            try:
                if error is not None:
                    raise error
                downstream.identity = check_peer(wrapped, contexts)
            except (OSError, ValueError) as problem:  # ssl.SSLError and TimeoutError are OSErrors
                why = clean(str(problem))
                _log.info("handshake.refused address=%s error=%s", address, why)
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
    compiled = runtime.ports.get(port) if runtime is not None else None
    return compiled.mtls if compiled is not None else InboundPort(port=port).mtls


def refuses_plaintext(server: "Server", port: int, draw: float) -> bool:
    return _mode(server.runtime_for(draw), port) == "strict"


def refuses_tls(server: "Server", port: int, draw: float) -> bool:
    return _mode(server.runtime_for(draw), port) == "disable"


def count_refusal(
    server: "Server", port: int, draw: float, reason: str, address: str, *, whoever: bool = False, error: str = ""
) -> None:
    """Count one refused connection. `whoever`: no config would have taken it (a bad certificate proves nothing)."""
    server.ledger.note_refused(port, reason)
    runtime = server.runtime_for(draw)
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


def _stable_refuses(server: "Server", port: int, reason: str) -> bool:
    refused_by = "strict" if reason == "plaintext-refused" else "disable"
    return server.contexts is None if reason == "handshake-refused" and server.contexts is None else (
        _mode(server.stable, port) == refused_by
    )  # fmt: skip


def _announced(server: "Server", address: str) -> bool:
    return is_expected(server.expected, Asked(source="", address=address, host="", path=""))
