"""Connections that the kernel redirected here (iptables REDIRECT): what they were meant for, and which way they go.

Outbound, the destination says which service was meant (its virtual address is live data), and with it which protocol; in
HTTP the Host header decides, as on every other port, and what it does not decide goes where it was going. Inbound, the port
says which of the application's ports was meant.

Rule: a connection that nobody redirected is never followed: it was made to the redirect's port itself, and would lead straight
back here. Inbound it is refused; outbound it speaks to an HTTP proxy.
"""

import socket
import struct
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from backstay.config.match import RouteTable, host_of
from backstay.config.model import Backend
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.framing import RequestHead
from backstay.sidecar.engines.python.listeners import Inbound, Listener, Outbound, Refused
from backstay.sidecar.engines.python.runtime import CompiledPort, Lane, Runtime
from backstay.sidecar.engines.python.tls import MESH_PROTOCOL

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.server import Server

SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h, and the same number for IPv6
SPEAKS_SECONDS: Final = 0.5
"""Wait for a client's first bytes where they decide whether HTTP is read. Clients of protocols in which the server speaks
first wait this long once a connection, at ports where the mesh has HTTP hosts and nowhere else."""
OFFER: Final = bytes([len(MESH_PROTOCOL)]) + MESH_PROTOCOL.encode()
"""How our proxies show themselves in a ClientHello: other TLS at a port is the application's own."""
_METHODS: Final = tuple(
    method + b" "
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE")
)


class Origin(NamedTuple):
    """Where a connection was going."""

    address: str
    port: int

    @property
    def authority(self) -> bytes:
        name = f"[{self.address}]" if ":" in self.address else self.address
        return f"{name}:{self.port}".encode()


def origin_of(sock: socket.socket) -> Origin | None:
    """Where this connection was going before it was redirected; None if it was not."""
    is_v6 = sock.family == socket.AF_INET6
    try:
        if is_v6:
            found = _unpack_v6(sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
        else:
            found = _unpack_v4(sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16))
        own = sock.getsockname()
    except OSError:
        return None  # the kernel tracks no such connection
    return None if found == (own[0], own[1]) else found


def _unpack_v4(data: bytes) -> Origin:
    port, packed = struct.unpack("!2xH4s", data[:8])  # struct sockaddr_in
    return Origin(socket.inet_ntop(socket.AF_INET, packed), port)


def _unpack_v6(data: bytes) -> Origin:
    port, packed = struct.unpack("!2xH4x16s", data[:24])  # struct sockaddr_in6
    return Origin(socket.inet_ntop(socket.AF_INET6, packed), port)


def speaks_http(first: bytes) -> bool:
    """True if a client's first bytes begin a request of HTTP/1."""
    return bool(first) and any(method.startswith(first) or first.startswith(method) for method in _METHODS)


def hello_size(first: bytes) -> int:
    """Bytes of the TLS record that begins here, its own five included; 5 until those are there."""
    return 5 + int.from_bytes(first[3:5]) if len(first) >= 5 else 5


# --- inbound ------------------------------------------------------------------------------------------------------


class RedirectedInbound(Inbound):
    """One connection to the application, whichever of its ports it was meant for."""

    def __init__(self, server: "Server", origin: Origin) -> None:
        super().__init__(server, origin.port)
        self.origin = origin
        self.is_opaque = False
        """True: the application's own TLS, to be passed on as it is."""

    def port_of(self, runtime: Runtime) -> CompiledPort:
        return runtime.port_at(self.origin.address, self.origin.port)

    def reads_requests(self, port: CompiledPort) -> bool:
        return not self.is_opaque and super().reads_requests(port)


class RedirectedPort(Listener):
    """A port that connections are redirected to. It serves nothing itself."""

    def decide(self, runtime: Runtime, exchange: "Exchange") -> Lane | Refused:
        raise TypeError(f"{type(self).__name__} has no requests of its own")

    def taking(self, sock: socket.socket) -> Listener | None:
        origin = origin_of(sock)
        return None if origin is None else self.of(origin)

    @abstractmethod
    def of(self, origin: Origin) -> Listener:
        """Who serves a connection that was going there."""


class ToApplication(RedirectedPort):
    def of(self, origin: Origin) -> Listener:
        return RedirectedInbound(self.server, origin)


class FromApplication(RedirectedPort):
    """Where nobody redirected a connection, it is for the HTTP proxy that this port is in pods without a redirect."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self._proxy = Outbound(server)

    def taking(self, sock: socket.socket) -> Listener | None:
        return super().taking(sock) or self._proxy

    def of(self, origin: Origin) -> Listener:
        return RedirectedOutbound(self.server, origin)


# --- outbound -----------------------------------------------------------------------------------------------------


class RedirectedOutbound(Outbound):
    """One connection of the application to wherever it was going."""

    def __init__(self, server: "Server", origin: Origin) -> None:
        super().__init__(server)
        self.origin = origin
        service = server.services.get(origin.address)
        self.service = f"{service}:{origin.port}" if service else ""
        """Key of the service port that was meant, if its virtual address was asked."""
        self.place: tuple[str, Endpoint] | None = None
        """Service port and endpoint, if an endpoint itself was asked."""
        if not service:
            self.place = server.pools.endpoint_at(origin.address, origin.port)
        self.is_http = False
        """The client's first bytes were those of a request."""

    @property
    def looks(self) -> bool:
        """True where only the first bytes can tell what this is: an unknown destination at a port of HTTP hosts."""
        runtimes = [runtime for runtime in (self.server.stable, self.server.candidate) if runtime is not None]
        return (
            self.place is None
            and any(self.origin.port in runtime.http_ports for runtime in runtimes)
            and not any(self.service in runtime.backends for runtime in runtimes)
        )

    def opened(self, first: bytes) -> None:
        self.is_http = speaks_http(first)

    # --- connections as a whole ---

    def admit_connection(self, exchange: "Exchange", runtime: Runtime) -> bool:
        chosen = self._whole(runtime)
        if chosen is None:
            return False
        if isinstance(chosen, Lane):
            exchange.forward(chosen)
        else:
            exchange.refuse(chosen.reason, chosen.counters)
        return True

    def _whole(self, runtime: Runtime) -> Lane | Refused | None:
        """The way of this connection; None if its requests are read."""
        backend = runtime.backends.get(self.service)
        if backend is not None:
            return self._to_service(runtime, backend) if backend.protocol == "tcp" else None
        if self.place is not None:
            known = runtime.backends.get(self.place[0])
            return None if known is not None and known.protocol == "http" else self._onward(runtime)
        return None if self.is_http else self._onward(runtime)

    def _to_service(self, runtime: Runtime, backend: Backend) -> Lane:
        return self.raw_lane(runtime, self.service.encode()) or runtime.service_lane(backend)

    def _onward(self, runtime: Runtime, *, is_let_out: bool = False) -> Lane | Refused:
        """To where it was going: as itself to an endpoint of the mesh, else if the mesh lets it go outside."""
        if self.place is not None:
            service, endpoint = self.place
            backend = runtime.backends.get(service)
            return self.server.endpoint_lane(runtime, endpoint, mesh=backend is None or backend.tls == "mesh")
        if not is_let_out and not runtime.lets_out(self.origin.authority):
            return Refused(reason="unknown-host", counters=runtime.unknown_host)
        lane = self.server.external_lane(runtime, self.origin.authority)
        return lane or Refused(reason="loop", counters=runtime.unknown_host)

    # --- requests ---

    def table_of(self, runtime: Runtime, head: RequestHead) -> RouteTable | None:
        """By the Host header, at the port that was really asked; else by the service whose address was asked."""
        name = host_of(head.authority)
        found = runtime.hosts.find(b"%b:%d" % (name, self.origin.port))
        if found is None and self.service:
            found = runtime.hosts.find(self.service.encode())
        return found

    def _unknown(self, runtime: Runtime, authority: bytes) -> Lane | Refused:
        named = b"%b:%d" % (host_of(authority), self.origin.port)
        return self._onward(runtime, is_let_out=runtime.registry_only and runtime.lets_out(named))

    def connect(self, exchange: "Exchange") -> None:
        Listener.connect(self, exchange)
