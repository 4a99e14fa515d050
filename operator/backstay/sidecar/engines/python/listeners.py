"""What each listening port does with a request: which lane it goes down, or why not.

`decide` has no effects, so that a refusal under the candidate can be checked against stable. `admit` draws the config,
decides, and lets the exchange act.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backstay.config.actions import sticky_point, sticky_value
from backstay.config.addresses import remote_address
from backstay.config.authorize import NOTHING_AROUND, Around
from backstay.sidecar.engines.python.actions import with_fields
from backstay.sidecar.engines.python.clientcert import introduce
from backstay.sidecar.engines.python.framing import is_authority
from backstay.sidecar.engines.python.runtime import CompiledPort, CompiledRule, Lane, Runtime
from backstay.sidecar.engines.python.stats import Counters

if TYPE_CHECKING:
    import socket

    from backstay.config.match import RouteTable
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.framing import Fields, RequestHead
    from backstay.sidecar.engines.python.server import Server

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    reason: str
    counters: Counters
    policy: str = ""
    """`<namespace>/<name>#<rule>` that decided; for the log only."""


class Listener(ABC):
    """A port of the proxy."""

    authority = b""
    is_inbound = False
    """The application is asked here, not asking."""

    def __init__(self, server: "Server") -> None:
        self.server = server

    def asker(self, downstream: "Downstream") -> tuple[str, int] | None:
        """(address, port) of who asks, for samples: nothing for the application itself; None where the caller's own proxy
        samples."""
        return "", 0

    @abstractmethod
    def decide(self, runtime: Runtime, exchange: "Exchange") -> Lane | Refused:
        """The lane of a request under one config, or why it has none. No effects."""

    def admit(self, exchange: "Exchange") -> None:
        """Decide by the config that this request draws, and act."""
        server = self.server
        runtime = server.stable
        candidate = server.candidate
        if candidate is not None and server.random() < server.share:
            runtime = candidate
        if runtime is None:
            exchange.fail("not-ready")
            return
        exchange.runtime = runtime
        if runtime.tracer is not None:
            exchange.begin_trace(runtime.tracer)
        chosen = self.decide(runtime, exchange)
        if runtime.authorization.audits:
            self.audit(runtime, exchange)
        if type(chosen) is Lane:
            if exchange.token is not None:
                exchange.token.settle(exchange.head)
            if self.is_inbound:
                introduce(exchange, runtime)
            exchange.forward(chosen)
        else:
            exchange.refuse(chosen.reason, chosen.counters, chosen.policy)  # type: ignore[union-attr]

    @property
    def looks(self) -> bool:
        """True if the client's first bytes must be seen before a connection is served."""
        return False

    def taking(self, sock: "socket.socket") -> "Listener | None":
        """Who serves a connection that was accepted here; None: nobody may."""
        return self

    def audit(self, runtime: Runtime, exchange: "Exchange") -> None:  # noqa: B027 - only one kind of port audits
        """Note the audit policies that this request matches; they are about what comes in."""

    def admit_connection(self, exchange: "Exchange", runtime: Runtime) -> bool:
        """Take a whole connection whose bytes are not read; False if its requests are."""
        return False

    def connect(self, exchange: "Exchange") -> None:
        exchange.keep_alive = False
        exchange.downstream.answer(exchange, 405, "method not allowed")


class TokenUse(NamedTuple):
    """What one config makes of the tokens of a request."""

    fields: "Fields"
    """What is forwarded, and so what policies see."""
    query: bytes
    claims: Mapping[str, Any] | None

    def settle(self, head: "RequestHead") -> None:
        """Change the request into what is forwarded."""
        if self.fields != head.fields or self.query != head.query:
            head.block = with_fields(head, self.fields, self.query)
            head.fields, head.query = self.fields, self.query


def use_tokens(runtime: Runtime, exchange: "Exchange", counters: Counters) -> Refused | None:
    """Judge the tokens of a request, and note at the exchange what of it is forwarded."""
    verifier = runtime.tokens
    if verifier is None:
        exchange.token = None
        return None
    head = exchange.head
    verdict = verifier.judge(head.fields, head.path, head.query, exchange.server.key_sets, time.time())
    forwarded = verifier.table.forwarded(head.fields, head.query, verdict.found, verdict.claims)
    exchange.token = TokenUse(forwarded.fields, forwarded.query, verdict.claims)
    return Refused(reason=verdict.reason, counters=counters, policy=verdict.detail) if verdict.reason else None


def seen(exchange: "Exchange") -> "Fields":
    """The fields that policies are asked about: those that are forwarded."""
    return exchange.head.fields if exchange.token is None else exchange.token.fields


def around(runtime: Runtime, exchange: "Exchange") -> Around:
    """What policies may ask besides the request itself."""
    head, address, token = exchange.head, exchange.downstream.address, exchange.token
    return Around(
        authority=head.authority,
        address=address,
        remote=remote_address(head.fields, address, runtime.listeners.trusted_hops),
        claims=None if token is None else token.claims,
    )


class Inbound(Listener):
    """The mesh's side of one application port."""

    is_inbound = True

    def __init__(self, server: "Server", port: int) -> None:
        super().__init__(server)
        self.port = port

    @property
    def looks(self) -> bool:
        return True

    def asker(self, downstream: "Downstream") -> tuple[str, int] | None:
        return None if downstream.identity else (downstream.address, self.port)

    def port_of(self, runtime: Runtime) -> CompiledPort:
        return runtime.ports[self.port]

    def reads_requests(self, port: CompiledPort) -> bool:
        return port.protocol != "tcp"

    def decide(self, runtime: Runtime, exchange: "Exchange") -> Lane | Refused:
        port = self.port_of(runtime)
        authorization = runtime.authorization
        if runtime.tokens is not None or exchange.token is not None:
            refused = use_tokens(runtime, exchange, port.counters)
            if refused is not None:
                return refused
        if authorization.decides_nothing:
            return port.lane
        head, downstream = exchange.head, exchange.downstream
        decision = authorization.decide(
            downstream.identity, downstream.namespace, head.method, head.path, seen(exchange), self.port,
            around(runtime, exchange) if authorization.asks_around else NOTHING_AROUND,
        )  # fmt: skip
        if decision.allowed:
            return port.lane
        return Refused(reason="denied", counters=port.counters, policy=f"{decision.policy}#{decision.rule}")

    def still_admits(self, runtime: Runtime, exchange: "Exchange") -> bool:
        """Whether these rules would let in what has become a tunnel. Its token was judged when it began."""
        authorization, downstream, head = runtime.authorization, exchange.downstream, exchange.head
        if authorization.decides_nothing:
            return True
        if head is None:
            return authorization.decide_connection(
                downstream.identity, downstream.namespace, self.port, downstream.address
            ).allowed
        return authorization.decide(
            downstream.identity, downstream.namespace, head.method, head.path, head.fields, self.port,
            around(runtime, exchange),
        ).allowed  # fmt: skip

    def audit(self, runtime: Runtime, exchange: "Exchange") -> None:
        head, downstream = exchange.head, exchange.downstream
        exchange.audited = runtime.authorization.audited(
            downstream.identity, downstream.namespace, head.method, head.path, seen(exchange), self.port,
            around(runtime, exchange),
        )  # fmt: skip
        self.server.ledger.note_audited(exchange.audited)

    def admit_connection(self, exchange: "Exchange", runtime: Runtime) -> bool:
        port = self.port_of(runtime)
        if self.reads_requests(port):
            return False
        downstream, authorization = exchange.downstream, runtime.authorization
        if authorization.audits:
            exchange.audited = authorization.audited_connection(
                downstream.identity, downstream.namespace, self.port, downstream.address
            )
            self.server.ledger.note_audited(exchange.audited)
        decision = authorization.decide_connection(
            downstream.identity, downstream.namespace, self.port, downstream.address
        )
        if decision.allowed:
            exchange.forward(port.lane)
        else:
            exchange.refuse("denied", port.counters, f"{decision.policy}#{decision.rule}")
        return True


class Outbound(Listener):
    """The application's side: an HTTP proxy port."""

    def table_of(self, runtime: Runtime, head: "RequestHead") -> "RouteTable | None":
        """The routes that decide about a request; None if the mesh knows none."""
        return runtime.hosts.find(head.authority)

    def decide(self, runtime: Runtime, exchange: "Exchange") -> Lane | Refused:
        head = exchange.head
        table = self.table_of(runtime, head)
        if table is None:
            return self._unknown(runtime, head.authority)
        index = table.pick(head.method, head.path, head.query, head.fields, head.authority)
        host = runtime.host(table)
        if index is None:
            return Refused(reason="no-route", counters=host.no_route)
        rule = host.rules[index]
        lane = rule.only or rule.draw(
            self.server.random() if rule.sticky is None else self._sticky_draw(rule, exchange)
        )
        return lane or Refused(reason="no-backend", counters=rule.counters)

    def _sticky_draw(self, rule: CompiledRule, exchange: "Exchange") -> float:
        """A draw that follows from what the request carries; by chance if it carries nothing."""
        assert rule.sticky is not None  # noqa: S101 - the caller looks
        header, cookie, ttl = rule.sticky
        value = sticky_value(exchange.head.fields, header, cookie) or exchange.cookie
        if not value:
            value = b"%016x" % int(self.server.random() * 2**64)
            if ttl >= 0:
                exchange.cookie = value
        return sticky_point(value)

    def _unknown(self, runtime: Runtime, authority: bytes) -> Lane | Refused:
        if not runtime.lets_out(authority):
            return Refused(reason="unknown-host", counters=runtime.unknown_host)
        lane = self.server.external_lane(runtime, authority)
        return lane or Refused(reason="loop", counters=runtime.unknown_host)

    def connect(self, exchange: "Exchange") -> None:
        """CONNECT: look into tunnels to mesh hosts, pipe those to others, refuse what the config does not let out."""
        downstream = exchange.downstream
        authority = exchange.target
        runtime = self.server.draw_runtime()
        if runtime is None:
            exchange.fail("not-ready")
        elif not is_authority(authority) or b":" not in authority:
            downstream.answer(exchange, 400, "bad-target")
        elif self.server.knows(authority):
            self._connect_mesh(exchange, runtime)
        elif not runtime.lets_out(authority):
            exchange.runtime = runtime
            exchange.refuse("unknown-host", runtime.unknown_host)
        else:
            self._tunnel(exchange, runtime)

    def _connect_mesh(self, exchange: "Exchange", runtime: Runtime) -> None:
        """HTTP inside the tunnel follows the same rules as outside of one; a TCP backend is piped to."""
        lane = self.raw_lane(runtime, exchange.target)
        if lane is None:
            exchange.downstream.look_into(exchange.target, ESTABLISHED)
            return
        exchange.runtime = runtime
        exchange.forward(lane)

    def raw_lane(self, runtime: Runtime, authority: bytes) -> Lane | None:
        """The lane of a connection to a TCP backend; None where the backend speaks HTTP."""
        table = runtime.hosts.find(authority)
        index = table.pick(b"", b"/", b"", ()) if table is not None else None
        if table is None or index is None:
            return None
        rule = runtime.host(table).rules[index]
        lane = rule.only or rule.draw(self.server.random())
        return lane if lane is not None and lane.group.is_tcp else None

    def _tunnel(self, exchange: "Exchange", runtime: Runtime) -> None:
        lane = self.server.external_lane(runtime, exchange.target)
        if lane is None:
            exchange.fail("loop")
            return
        exchange.runtime = runtime
        exchange.forward(lane)


class Explicit(Outbound):
    """A port on which the application finds one host."""

    def admit_connection(self, exchange: "Exchange", runtime: Runtime) -> bool:
        lane = self.raw_lane(runtime, self.authority)
        if lane is not None:
            exchange.forward(lane)
        return lane is not None

    def __init__(self, server: "Server", host: str, port: int) -> None:
        super().__init__(server)
        self.authority = f"{host}:{port}".encode()

    def connect(self, exchange: "Exchange") -> None:
        Listener.connect(self, exchange)
