"""A gateway's ports: callers from outside, told apart by Host, and by SNI where TLS ends here or passes through.

Which listener serves a name, and which routes, is the config's; certificates are live data (`Server.secrets`). A connection
is accepted under the config it draws; ports open and close with the configs that are served.
"""

import logging
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backstay.config.authorize import NOTHING_AROUND
from backstay.config.gateways import HTTPS_PORT, ListenerTable, forwarded, https_port, to_https
from backstay.config.match import HostTable, RouteTable, host_of
from backstay.config.model import GatewayListener
from backstay.redact import clean
from backstay.sidecar.engines.python.accept import Acceptor
from backstay.sidecar.engines.python.actions import with_fields
from backstay.sidecar.engines.python.framing import RequestHead
from backstay.sidecar.engines.python.hello import HELLO_BYTES, server_name
from backstay.sidecar.engines.python.listeners import Listener, Outbound, Refused, around, seen, use_tokens
from backstay.sidecar.engines.python.runtime import Lane, Runtime
from backstay.sidecar.engines.python.transport import TlsTransport

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.server import Server

_log: Final = logging.getLogger("backstay.sidecar.python")
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class GatewayPort:
    """What one config does at one port."""

    __slots__ = ("_redirects", "hosts", "listener_of", "no_route", "protocol")

    def __init__(self, runtime: Runtime, listeners: Sequence[GatewayListener], hosts: HostTable) -> None:
        table = ListenerTable(listeners)
        self.protocol = table.protocol
        self.listener_of = table.find
        self.hosts = hosts
        port = listeners[0].port
        self.no_route = runtime.counters("out", f"gateway/:{port}#", "")
        self._redirects = {
            target: runtime.answering(RouteTable(to_https(port, target)))
            for listener in listeners
            if listener.redirect_port
            for target in (listener.redirect_port, HTTPS_PORT)
        }

    def redirect(self, listener: GatewayListener, authority: bytes) -> Lane | None:
        """To https; None where plaintext is served."""
        return self._redirects[https_port(listener, authority)] if listener.redirect_port else None


class Ingress(Outbound):
    """One port of a gateway."""

    def __init__(self, server: "Server", port: int) -> None:
        super().__init__(server)
        self.port = port

    def asker(self, downstream: "Downstream") -> tuple[str, int] | None:
        return downstream.address, self.port

    def admit(self, exchange: "Exchange") -> None:
        head, downstream = exchange.head, exchange.downstream
        fields = forwarded(head.fields, downstream.address, secure=downstream.secure)
        head.block = with_fields(head, fields)
        head.fields = fields
        super().admit(exchange)

    def decide(self, runtime: Runtime, exchange: "Exchange") -> Lane | Refused:
        port = gateway_port(runtime, self.port)
        if port is None:
            return Refused(reason="no-route", counters=runtime.unknown_host)
        head = exchange.head
        refused = self._refused(runtime, port, exchange)
        if refused is not None:
            return refused
        listener = port.listener_of(host_of(head.authority))
        if listener is None:
            return Refused(reason="no-route", counters=port.no_route)
        return port.redirect(listener, head.authority) or super().decide(runtime, exchange)

    def _refused(self, runtime: Runtime, port: GatewayPort, exchange: "Exchange") -> Refused | None:
        authorization = runtime.authorization
        if runtime.tokens is not None or exchange.token is not None:
            refused = use_tokens(runtime, exchange, port.no_route)
            if refused is not None:
                return refused
        if authorization.decides_nothing:
            return None
        head = exchange.head
        about = around(runtime, exchange) if authorization.asks_around else NOTHING_AROUND
        decision = authorization.decide("", "", head.method, head.path, seen(exchange), self.port, about)
        if decision.allowed:
            return None
        return Refused(reason="denied", counters=port.no_route, policy=f"{decision.policy}#{decision.rule}")

    def table_of(self, runtime: Runtime, head: RequestHead) -> RouteTable | None:
        port = gateway_port(runtime, self.port)
        return port.hosts.find(host_of(head.authority)) if port is not None else None

    def _unknown(self, runtime: Runtime, authority: bytes) -> Lane | Refused:
        port = gateway_port(runtime, self.port)
        return Refused(reason="no-route", counters=port.no_route if port is not None else runtime.unknown_host)

    def connect(self, exchange: "Exchange") -> None:
        Listener.connect(self, exchange)


class Passthrough(Ingress):
    """One connection whose TLS is ended by the service behind: nothing of it is read."""

    def __init__(self, server: "Server", port: int, name: bytes) -> None:
        super().__init__(server, port)
        self._name = name

    def admit_connection(self, exchange: "Exchange", runtime: Runtime) -> bool:
        port = gateway_port(runtime, self.port)
        table = port.hosts.find(self._name) if port is not None and port.listener_of(self._name) else None
        if port is None or table is None:
            exchange.refuse("no-route", port.no_route if port is not None else runtime.unknown_host)
            return True
        decision = runtime.authorization.decide_connection("", "", self.port, exchange.downstream.address)
        if not decision.allowed:
            exchange.refuse("denied", port.no_route, f"{decision.policy}#{decision.rule}")
            return True
        rule = runtime.host(table).rules[0]
        lane = rule.only or rule.draw(self.server.random())
        if lane is None:
            exchange.refuse("no-backend", rule.counters)
        else:
            exchange.forward(lane)
        return True


def gateway_port(runtime: Runtime, port: int) -> GatewayPort | None:
    """A port as this config serves it; made when it is first asked for."""
    found: GatewayPort | None = runtime.gateway_ports.get(port)
    if found is None:
        listeners = [listener for listener in runtime.listeners.gateway if listener.port == port]
        if not listeners:
            return None
        found = runtime.gateway_ports[port] = GatewayPort(runtime, listeners, runtime.gateway_hosts[port])
    return found


# --- connections ---------------------------------------------------------------------------------------------------


class GatewayAcceptor(Acceptor):
    """Accepts at a gateway's port, by the protocol that the config drawn for the connection gives it."""

    def __init__(self, server: "Server", sock: socket.socket, listener: Ingress) -> None:
        super().__init__(server, sock, listener)
        self._ingress = listener
        self._ports: dict[Any, GatewayPort] = {}
        """By connection in its handshake: whose listeners choose the certificate."""
        self._context = _context()
        self._context.sni_callback = self._choose

    @property
    def is_inbound(self) -> bool:
        return True

    def _take(self, sock: socket.socket, address: str) -> None:
        draw = self._server.random()
        runtime = self._server.runtime_for(draw)
        port = gateway_port(runtime, self._ingress.port) if runtime is not None else None
        if port is None:
            sock.close()  # the other config's port
        elif port.protocol == "http":
            self._serve(sock, address, self._ingress, draw)
        elif port.protocol == "https":
            self._end_tls(sock, address, port, draw)
        else:
            self._peek(sock, address, draw)

    # --- TLS that ends here ---

    def _choose(self, sock: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
        """The certificate for the name that the caller asks for; an alert if there is none."""
        port = self._ports.get(sock)
        listener = port.listener_of((name or "").lower().encode()) if port is not None else None
        context = self._server.secrets.get((listener.secret, listener.min_tls)) if listener is not None else None
        if context is None:
            why = "no listener" if listener is None else f"secret {listener.secret} is not there"
            self._server.remark("gateway.no-certificate name=%r why=%s", name, why)
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        sock.context = context
        return None

    def _end_tls(self, sock: socket.socket, address: str, port: GatewayPort, draw: float) -> None:
        try:
            wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:  # the caller has gone already
            self._refuse_handshake(address, str(error))
            sock.close()
            return
        self._ports[wrapped] = port

        def ready(transport: TlsTransport, error: Exception | None) -> None:
            self._shaking.discard(transport)
            self._ports.pop(wrapped, None)
            if error is not None or _is_below(wrapped):
                self._refuse_handshake(address, str(error or "version"))
                transport.abort()
                return
            downstream = self._downstream(address, self._ingress, draw)
            downstream.secure = True
            transport.begin(downstream)

        transport = TlsTransport(self._server.loop, wrapped, ready)
        self._shaking.add(transport)
        transport.start()

    def _refuse_handshake(self, address: str, why: str) -> None:
        self._server.remark("handshake.failed address=%s error=%s", address, clean(why))
        self._server.ledger.note_refused(self._ingress.port, "handshake-refused")

    # --- TLS that passes through ---

    def _peek(self, sock: socket.socket, address: str, draw: float, pause: float = 0.0) -> None:
        """Read the name in the ClientHello without taking it, now or when it is there. `pause`: how long it was waited for."""
        loop = self._server.loop
        try:
            hello = sock.recv(HELLO_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            self._await_first_byte(sock, address, draw)
            return
        except OSError:
            self._drop(sock)
            return
        name = server_name(hello)
        if name is None and hello:
            self._await_hello(sock, address, draw, min(max(HELLO_LOOK, 2 * pause), HELLO_LOOK_MOST))
            return
        self._forget(sock)
        if not hello:
            sock.close()
            return
        listener = Passthrough(self._server, self._ingress.port, name or b"")
        loop.call_soon(self._serve, sock, address, listener, draw)

    def _await_first_byte(self, sock: socket.socket, address: str, draw: float) -> None:
        if sock not in self._waiting:
            self._waiting[sock] = self._server.loop.call_later(HELLO_WITHIN, self._drop, sock)
            self._server.loop.add_reader(sock.fileno(), self._peek, sock, address, draw)

    def _await_hello(self, sock: socket.socket, address: str, draw: float, pause: float) -> None:
        """Look again in a moment: bytes that are not taken wake nobody a second time. Each time the moment is twice as long:
        a thousand callers with half a greeting would keep a core busy otherwise."""
        loop = self._server.loop
        if sock not in self._waiting:
            self._waiting[sock] = loop.call_later(HELLO_WITHIN, self._drop, sock)
        loop.remove_reader(sock.fileno())
        loop.call_later(pause, self._look_again, sock, address, draw, pause)

    def _look_again(self, sock: socket.socket, address: str, draw: float, pause: float) -> None:
        if sock in self._waiting:
            self._peek(sock, address, draw, pause)


HELLO_WITHIN: Final = 10.0  # seconds, as for a request's head
HELLO_LOOK: Final = 0.01  # a ClientHello nearly always comes in one segment; the few others wait this long
HELLO_LOOK_MOST: Final = 1.0


def _is_below(sock: ssl.SSLSocket) -> bool:
    """OpenSSL settles the version before the name: a listener that wants more says so only now."""
    version = sock.version() or ""
    return version != "TLSv1.3" and sock.context.minimum_version is ssl.TLSVersion.TLSv1_3


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # a resumed session would skip the choice of the certificate's context
    context.set_alpn_protocols(["http/1.1"])
    return context


def load_secrets(
    files: Mapping[str, Path], former: Mapping[tuple[str, str], ssl.SSLContext]
) -> dict[tuple[str, str], ssl.SSLContext]:
    """Contexts by (secret, least version). One that cannot be read keeps its former certificate, and says so."""
    found: dict[tuple[str, str], ssl.SSLContext] = {}
    for name, path in files.items():
        for version, least in _VERSIONS.items():
            context = _context()
            context.minimum_version = least
            try:
                context.load_cert_chain(path)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                _log.warning("gateway.bad-secret secret=%s error=%s", name, clean(str(error)))
                if (name, version) in former:
                    found[name, version] = former[name, version]
                continue
            found[name, version] = context
    return found
