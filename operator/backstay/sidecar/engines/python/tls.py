"""TLS on the data path: a transport that reads and writes through `SSLSocket` itself, and the contexts it uses.

The loops' own TLS goes through memory BIOs and costs 1.5 times as much per message (measured on relays of 1 KiB).
Contexts belong to one generation of identity and trust: a new generation means new contexts, so that nothing of an old
one (session tickets, roots) can be resumed. Who the peer is comes from its certificate's only URI name.
"""

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from backstay.sidecar.engine import IdentityFiles
from backstay.sidecar.engines.python.leaf import complaint

READ_BYTES: Final = 16 * 1024  # the most one TLS record holds, so that nothing stays pending inside OpenSSL
HIGH_WATER: Final = 64 * 1024  # asyncio's default for transports
LOW_WATER: Final = 16 * 1024
HANDSHAKE_SECONDS: Final = 10.0  # Envoy's transport_socket_connect_timeout default is none, Istio's 15 s, nginx's 60 s
MESH_PROTOCOL: Final = "backstay"
"""What our proxies offer and agree to by ALPN, so that at a port where the application speaks TLS itself the two can be told
apart, and so that proxies know each other from whatever else holds a certificate."""
MAX_ID_BYTES: Final = 2048  # SPIFFE ID, 2.3
_SPIFFE_ID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}((/[A-Za-z0-9._-]+)+)")


class PeerRefused(ssl.SSLError):
    """The handshake went through, but this peer is not who it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """One generation of identity and trust."""

    server: ssl.SSLContext
    client: Mapping[str, ssl.SSLContext]
    """By trust domain of the peer: a chain to another domain's root proves nothing (threats S3)."""
    revoked: frozenset[str]
    roots: Mapping[str, frozenset[bytes]]
    """Trust domain -> its roots (DER)."""


def make_contexts(files: IdentityFiles, bundles: Mapping[str, str], revoked: frozenset[str]) -> Contexts:
    """Raises OSError (ssl.SSLError included) for a certificate, key or bundle that cannot be used."""
    server = _context(ssl.PROTOCOL_TLS_SERVER, files, "\n".join(bundles.values()))
    server.num_tickets = 0  # a resumed session would outlive the trust it was made under
    server.set_alpn_protocols([MESH_PROTOCOL])  # agreed to where a client offers it; others may still offer nothing
    client = {domain: _context(ssl.PROTOCOL_TLS_CLIENT, files, bundle) for domain, bundle in bundles.items()}
    for context in client.values():
        context.set_alpn_protocols([MESH_PROTOCOL])
    roots = {domain: frozenset(context.get_ca_certs(binary_form=True)) for domain, context in client.items()}
    return Contexts(server=server, client=client, revoked=revoked, roots=roots)


def _context(protocol: int, files: IdentityFiles, bundle: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # peers are checked by SPIFFE ID, not by DNS name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(cadata=bundle)
    return context


def speaks_mesh(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end of a connection of ours is a proxy of the mesh."""
    tls = transport.get_extra_info("ssl_object")
    return isinstance(tls, ssl.SSLSocket) and tls.selected_alpn_protocol() == MESH_PROTOCOL


def trust_domain_of(identity: str) -> str:
    return identity.removeprefix("spiffe://").partition("/")[0]


def peer_identity(certificate: Mapping[str, Any] | None) -> str:
    """SPIFFE ID of a verified leaf: its only URI name. Raises PeerRefused if there is not exactly one good one."""
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1 or not is_workload_id(uris[0]):
        raise PeerRefused(f"peer certificate names {uris!r}, expected one SPIFFE ID")
    return str(uris[0])


def is_workload_id(identity: str) -> bool:
    """SPIFFE ID grammar with a path; dot segments and every other spelling of one ID are refused (threats S2)."""
    match = _SPIFFE_ID.fullmatch(identity)
    return match is not None and len(identity) <= MAX_ID_BYTES and {".", ".."}.isdisjoint(match[1].split("/"))


def check_peer(sock: ssl.SSLSocket, contexts: Contexts, expected: str = "") -> str:
    """The peer's SPIFFE ID after a handshake. Raises PeerRefused if it is revoked, foreign, not the expected one or no workload."""
    identity = peer_identity(sock.getpeercert())
    wrong = complaint(sock.getpeercert(binary_form=True) or b"")
    if wrong:
        raise PeerRefused(f"certificate of {identity!r} is no workload's: {wrong}")
    if expected and identity != expected:
        raise PeerRefused(f"peer is {identity!r}, expected {expected!r}")
    if identity in contexts.revoked:
        raise PeerRefused(f"peer {identity!r} is revoked")
    roots = contexts.roots.get(trust_domain_of(identity))
    if roots is None:
        raise PeerRefused(f"peer {identity!r} is of a trust domain that is not trusted")
    if len(contexts.roots) > 1 and not roots.intersection(_chain(sock)):
        raise PeerRefused(f"peer {identity!r} has a certificate of another trust domain's root")
    return identity


def _chain(sock: ssl.SSLSocket) -> list[bytes]:
    """The verified chain in DER. The public method came with Python 3.13; the one beneath it is there since 3.10."""
    public = getattr(sock, "get_verified_chain", None)
    if public is not None:
        return list(public())
    chain = sock._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    return [certificate.public_bytes(2) for certificate in chain]  # 2: _ssl.ENCODING_DER


class TlsTransport(asyncio.Transport):
    """A transport over a non-blocking SSLSocket. `ready` is called once: with None after the handshake, else with why not.

    `ready` must call `begin(protocol)` to start reading, or `abort()`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: ssl.SSLSocket,
        ready: "Callable[[TlsTransport, Exception | None], None]",
    ) -> None:
        super().__init__()
        self.sock = sock
        self._loop = loop
        self._fd = sock.fileno()
        self._ready = ready
        self._protocol: asyncio.Protocol | None = None
        self._read = sock.read
        self._write = sock.write
        self._buffer: deque[bytes | memoryview] = deque()
        self._buffered = 0
        self._failed: Exception | None = None
        """Why nothing can be written any more."""
        self._reading = self._writing = self._closing = self._lost = self._pressed = False
        self._timer = loop.call_later(
            HANDSHAKE_SECONDS, self._handshake_failed, TimeoutError("TLS handshake took too long")
        )

    # --- handshake -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._loop.add_reader(self._fd, self._shake)
        self._shake()

    def _shake(self) -> None:
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._fd, self._shake_after_write)
            return
        except (ssl.SSLError, OSError, ValueError) as error:
            self._handshake_failed(error)
            return
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._ready(self, None)

    def _shake_after_write(self) -> None:
        self._loop.remove_writer(self._fd)
        self._shake()

    def _handshake_failed(self, error: Exception) -> None:
        if self._lost:
            return
        self._release()
        self._ready(self, error)

    def begin(self, protocol: asyncio.Protocol) -> None:
        """Hand the connection to its protocol and read from now on."""
        self._protocol = protocol
        self.resume_reading()
        protocol.connection_made(self)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self._read(READ_BYTES)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLWantWriteError:
            self._want_writer()
            return
        except (ssl.SSLError, OSError) as error:
            self._end(error)
            return
        if data:
            self._deliver(data)
        else:
            self._eof()

    def _deliver(self, data: bytes) -> None:
        try:
            self._protocol.data_received(data)  # type: ignore[union-attr]
        except BaseException:
            self.abort()  # as the loops' own transports: a connection in an unknown state is not used again
            raise

    def _eof(self) -> None:
        protocol = self._protocol
        if protocol is not None and protocol.eof_received():
            self.pause_reading()
            return
        self.close()

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing and not self._lost:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def is_reading(self) -> bool:
        return self._reading

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._lost or self._failed is not None or not data:
            return
        if self._buffer:
            self._keep(bytes(data))
            return
        try:
            sent = self._write(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except (ssl.SSLError, OSError) as error:
            self._write_failed(error)
            return
        if sent < len(data):
            self._keep(memoryview(bytes(data))[sent:])
            if sent:
                self._flush()  # one call takes one record (16 KiB); go on until the socket is full

    def _keep(self, data: bytes | memoryview) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        self._want_writer()
        if self._buffered > HIGH_WATER and not self._pressed:
            self._pressed = True
            self._protocol.pause_writing()  # type: ignore[union-attr]

    def _want_writer(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._flush)

    def _flush(self) -> None:
        """Write what is kept. A refused piece is offered again with the same bytes: OpenSSL insists on that."""
        if self._lost:
            return
        try:
            while self._buffer:
                self._write_first()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._relieve()
            return
        except (ssl.SSLError, OSError) as error:
            self._write_failed(error)
            return
        self._stop_writing()
        self._relieve()
        if self._closing:
            self._end(None)

    def _write_first(self) -> None:
        piece = self._buffer[0]
        sent = self._write(piece)
        self._buffered -= sent
        if sent == len(piece):
            self._buffer.popleft()
        else:
            self._buffer[0] = memoryview(piece)[sent:]

    def _write_failed(self, error: Exception) -> None:
        """The peer does not take any more. What it said before (an answer, or the alert that says why) may still be there
        to be read; the loop finds that, and then the end."""
        if self._reading and self._failed is None and isinstance(error, ConnectionError | ssl.SSLEOFError):
            self._failed = error
            self._buffer.clear()
            self._buffered = 0
            self._stop_writing()
            self._relieve()
            return
        self._end_soon(error)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _relieve(self) -> None:
        if self._pressed and self._buffered <= LOW_WATER:
            self._pressed = False
            self._protocol.resume_writing()  # type: ignore[union-attr]

    def get_write_buffer_size(self) -> int:
        return self._buffered

    def can_write_eof(self) -> bool:
        return False

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closing or self._lost:
            return
        self._closing = True
        self.pause_reading()
        if not self._buffer:
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        self._closing = True
        self._end_soon(None)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def _end_soon(self, error: Exception | None) -> None:
        """End after the current callback: a protocol must not lose its connection in the middle of its own write."""
        self._closing = True
        self.pause_reading()
        self._loop.call_soon(self._end, error)

    def _end(self, error: Exception | None) -> None:
        if self._lost:
            return
        if error is None and not self._buffer:
            self._say_goodbye()
        self._release()
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def _say_goodbye(self) -> None:
        """Send close_notify. The peer's own is not waited for: message framing says what is complete."""
        try:
            self.sock._sslobj.shutdown()  # type: ignore[attr-defined]  # unwrap() would detach the socket
        except (ssl.SSLError, OSError, ValueError):
            return

    def _release(self) -> None:
        self._lost = True
        self._closing = True
        self._reading = False
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._buffer.clear()
        self.sock.close()

    # --- the rest of the transport interface ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name in ("socket", "ssl_object") else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None  # noqa: S101 - callers hold a transport only after begin()
        return self._protocol


def set_nodelay(sock: socket.socket) -> None:
    """A proxy writes whole messages; waiting to fill a segment only adds latency."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def is_alert(error: Exception | None) -> bool:
    """True for a TLS alert. Before any byte it says that the handshake was refused: with TLS 1.3 a client learns only after
    its own part that its certificate was not liked."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
