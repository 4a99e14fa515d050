"""The bundled data plane: HTTP/1.1 and TCP with mTLS, on uvloop (asyncio where there is none) and httptools.

`PythonEngine` is the `Engine` that the agent drives; it composes and swaps, the modules beside it do the traffic.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import random as system_random
from time import monotonic
from typing import Final

from backstay.config.model import Config
from backstay.config.regex import BadPattern
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.sidecar.engine import Address, ContentRefused, IdentityFiles, Observed, Redirected
from backstay.sidecar.engines.python.accept import Acceptor, bind, count_refusal, refuses_plaintext, refuses_tls
from backstay.sidecar.engines.python.accesslog import AccessLog
from backstay.sidecar.engines.python.clusters import clusters_text
from backstay.sidecar.engines.python.downstream import Downstream
from backstay.sidecar.engines.python.flow import Exchange
from backstay.sidecar.engines.python.ingress import GatewayAcceptor, Ingress, load_secrets
from backstay.sidecar.engines.python.listeners import Explicit, Inbound, Listener, Outbound
from backstay.sidecar.engines.python.metrics import Own, render
from backstay.sidecar.engines.python.places import gateway_host, redirected_places
from backstay.sidecar.engines.python.redirected import FromApplication, ToApplication
from backstay.sidecar.engines.python.runtime import Runtime
from backstay.sidecar.engines.python.server import Server, close_all
from backstay.sidecar.engines.python.sink import Sink, StdoutSink
from backstay.sidecar.engines.python.tls import make_contexts, trust_domain_of

__all__ = ["PythonEngine", "new_event_loop"]

NO_IPV6: Final = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))
FIRST_REQUEST_SECONDS: Final = 1.0
"""Of a drain, for connections that were accepted and have not asked yet; a client that connects asks within a round trip."""
LAST_SPANS_SECONDS: Final = 2.0  # at the end, for a collector to take what is left
DRAIN_LOOK_SECONDS: Final = 0.02  # between looks at whether the last request has ended

_log: Final = logging.getLogger("backstay.sidecar.python")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest loop there is here."""
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _runtime(config: Config, server: Server, served: Sequence[Runtime]) -> Runtime:
    """The runtime of a config: one that is there, or a new one that takes over what did not change."""
    for runtime in served:
        if runtime.config is config:  # saves the digest, which costs a millisecond for a thousand routes
            return runtime
    digest = config.digest
    known = next((runtime for runtime in served if runtime.digest == digest), None)
    try:
        return known or Runtime(config, digest, server, served)
    except BadPattern as error:
        raise ContentRefused("BadPattern", f"not a regular expression: {error}") from error


class PythonEngine:
    """Implements `backstay.sidecar.engine.Engine`."""

    name = "python"
    capabilities: tuple[str, ...] = ("split",)

    def __init__(
        self,
        *,
        log: Sink | None = None,
        random: Callable[[], float] = system_random,
        open_port: Callable[[str, int], socket.socket] = bind,
        beside: bool = False,
    ) -> None:
        """`log` takes lines of the access log; standard output if there is none. `open_port` makes listening sockets.
        `beside`: its ports are another engine's as well, which it takes over from."""
        self._make_port = partial(bind, shared=True) if beside else open_port
        self._opened: dict[tuple[str, int], socket.socket] = {}
        self._log_to = log or StdoutSink()
        self._random = random
        self._acceptors: list[Acceptor] = []
        self._gateways: dict[int, GatewayAcceptor] = {}
        self._bundles: dict[str, str] = {}
        self._revoked: frozenset[str] = frozenset()
        self._files: IdentityFiles | None = None
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """What the connections share; there once started."""
        if self._server is None:
            raise RuntimeError("the engine was not started")
        return self._server

    @property
    def ports(self) -> dict[tuple[str, int], socket.socket]:
        """What it listens on."""
        return {place: sock for place, sock in self._opened.items() if sock.fileno() >= 0}

    def _open_port(self, host: str, port: int) -> socket.socket:
        self._opened[host, port] = sock = self._make_port(host, port)
        return sock

    async def start(self, address: Address) -> None:
        server = Server(address, AccessLog(self._log_to), self._random)
        wanted: list[tuple[str, int, Listener]] = [
            *((address.host, listen, Inbound(server, port)) for port, listen in address.inbound.items()),
            *((address.app_host, entry.listen, Explicit(server, entry.host, entry.port)) for entry in address.explicit),
        ]
        if address.outbound:
            wanted.append((address.app_host, address.outbound, Outbound(server)))
        try:
            for host, port, listener in wanted:
                self._acceptors.append(Acceptor(server, self._open_port(host, port), listener))
            if address.redirected is not None:
                self._listen_redirected(server, address.redirected)
        except OSError:
            self._close_acceptors()
            server.stop()
            raise
        self._server = server

    def share_ports(self) -> None:
        """From now on another engine may open the same ports."""
        for acceptor in (*self._acceptors, *self._gateways.values()):
            acceptor.share()

    def _listen_redirected(self, server: Server, ports: Redirected) -> None:
        serving: list[Listener] = [
            ToApplication(server), FromApplication(server), ToApplication(server), FromApplication(server),
        ]  # fmt: skip
        wanted = [(*place, listener) for place, listener in zip(redirected_places(ports), serving, strict=True)]
        for host, port, listener in wanted:
            try:
                self._acceptors.append(Acceptor(server, self._open_port(host, port), listener))
            except OSError as error:
                if ":" not in host or error.errno not in NO_IPV6:
                    raise

    def apply(
        self, stable: Config, candidate: Config | None, share: float, expect_refused: Sequence[RefusalExpected] = ()
    ) -> None:
        server = self.server
        served = [runtime for runtime in (server.stable, server.candidate) if runtime is not None]
        new_stable = _runtime(stable, server, served)
        new_candidate = None
        if candidate is not None and share > 0:
            new_candidate = _runtime(candidate, server, [*served, new_stable])
        self._open_gateway_ports(server, (new_stable, new_candidate))
        is_other = server.candidate is not new_candidate or server.stable is not new_stable
        share_grew = share > server.share
        server.stable, server.candidate, server.share = new_stable, new_candidate, share if new_candidate else 0.0
        server.expected = tuple(expect_refused)
        tracing = new_stable.listeners.tracing
        server.spans.send_to(tracing.endpoint if tracing is not None else "", stable.manifest.workload)
        if is_other:
            self._forget_unused_groups()
        if is_other or share_grew:
            self._look_again(redraw=is_other)
        self._close_gateway_ports(server)

    def _open_gateway_ports(self, server: Server, runtimes: Iterable[Runtime | None]) -> None:
        """All or none: a port that is taken by somebody else refuses the config."""
        wanted = {
            listener.port for runtime in runtimes if runtime is not None for listener in runtime.listeners.gateway
        }
        opened: dict[int, GatewayAcceptor] = {}
        host = gateway_host(server.address)
        try:
            for port in sorted(wanted - self._gateways.keys()):
                opened[port] = GatewayAcceptor(server, self._open_port(host, port), Ingress(server, port))
        except OSError as error:
            for acceptor in opened.values():
                acceptor.close()
            raise ContentRefused("PortUnavailable", str(error)) from error
        self._gateways |= opened

    def _close_gateway_ports(self, server: Server) -> None:
        """Of ports that no config has any more; what is open there ends with its request."""
        served = [runtime for runtime in (server.stable, server.candidate) if runtime is not None]
        wanted = {listener.port for runtime in served for listener in runtime.listeners.gateway}
        for port in self._gateways.keys() - wanted:
            self._gateways.pop(port).close()
            self._leave(lambda d, port=port: isinstance(d.listener, Ingress) and d.listener.port == port)  # type: ignore[misc]

    def secrets(self, files: Mapping[str, Path]) -> None:
        self.server.secrets = load_secrets(files, self.server.secrets)

    def key_sets(self, known: Mapping[str, str]) -> None:
        self.server.key_sets = dict(known)

    def _forget_unused_groups(self) -> None:
        runtimes = [runtime for runtime in (self.server.stable, self.server.candidate) if runtime is not None]
        close_all(self.server.pools.keep(lambda group: any(runtime.wants(group) for runtime in runtimes)))
        self.server.forget_deadlines()

    def _look_again(self, *, redraw: bool) -> None:
        """Close open inbound connections that the config they now draw does not accept."""
        server = self.server
        for downstream in list(server.downstreams):
            if not isinstance(downstream.listener, Inbound) or downstream.leaving:
                continue
            if redraw:
                downstream.draw = server.random()
            port = downstream.listener.port
            refuses = refuses_tls if downstream.secure else refuses_plaintext
            if refuses(server, port, downstream.draw):
                reason = "handshake-refused" if downstream.secure else "plaintext-refused"
                count_refusal(server, port, downstream.draw, reason, downstream.address)
                downstream.leave_when_idle()
        for tunnel in list(server.tunnels):
            if tunnel.began is not None and self._refuses_now(tunnel.began, redraw=redraw):
                tunnel.abort()

    def _refuses_now(self, began: Exchange, *, redraw: bool) -> bool:
        """Whether what has become a tunnel would not be let in by the config that it now draws; counted if so."""
        server, downstream = self.server, began.downstream
        listener = downstream.listener
        if not isinstance(listener, Inbound):
            return False
        if redraw:
            downstream.draw = server.random()
        refuses = refuses_tls if downstream.secure else refuses_plaintext
        runtime, reason = server.runtime_for(downstream.draw), ""
        if refuses(server, listener.port, downstream.draw):
            reason = "handshake-refused" if downstream.secure else "plaintext-refused"
        elif runtime is not None and not listener.still_admits(runtime, began):
            reason = "denied"
        if reason:
            known = server.stable is not None and not listener.still_admits(server.stable, began)
            count_refusal(
                server, listener.port, downstream.draw, reason, downstream.address, whoever=reason == "denied" and known
            )
        return bool(reason)

    def endpoints(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> None:
        close_all(self.server.pools.update(changed, full=full))
        self.server.peers.forget_places()

    def place(self, zone: str) -> None:
        self.server.pools.place(zone)

    def addresses(self, services: Mapping[str, Sequence[str]]) -> None:
        self.server.services = {address: service for service, found in services.items() for address in found}

    def trust(self, bundles: Mapping[str, str], revoked: Sequence[str]) -> None:
        wanted, refused = dict(bundles), frozenset(revoked)
        self._renew_contexts(self._files, wanted, refused)  # what cannot be used is not kept either
        self._bundles, self._revoked = wanted, refused
        self._cut_off(refused)

    def identity(self, files: IdentityFiles) -> None:
        self._renew_contexts(files, self._bundles, self._revoked)
        self._files = files

    def _renew_contexts(self, files: IdentityFiles | None, bundles: dict[str, str], revoked: frozenset[str]) -> None:
        """Raises OSError for what cannot be used."""
        if files is not None and bundles:
            self.server.contexts = make_contexts(files, bundles, revoked)

    def _cut_off(self, revoked: frozenset[str]) -> None:
        """Close every connection to or from a revoked identity, and from domains that are not trusted any more."""
        server = self.server
        for downstream in list(server.downstreams):
            if downstream.identity and self._is_cut_off(downstream.identity, revoked):
                downstream.abort()
        for upstream in list(server.upstreams):
            if upstream.secure and self._is_cut_off(upstream.peer, revoked):
                upstream.cut()
        for tunnel in list(server.tunnels):
            if any(peer and self._is_cut_off(peer, revoked) for peer in tunnel.peers):
                tunnel.abort()

    def _is_cut_off(self, identity: str, revoked: frozenset[str]) -> bool:
        return identity in revoked or trust_domain_of(identity) not in self._bundles

    def collect(self) -> Observed:
        server = self.server
        serving = self._serving()
        rows, peers = server.ledger.collect(server.open_exchanges(), monotonic(), serving)
        open_requests = sum(1 for _ in server.open_exchanges())
        sent = sum(row.total for row in rows if row.direction == "out")
        samples = server.sampler.collect(sent, sum(row.total for row in rows))
        server.tell_open_plaintext()
        return Observed(
            rows=rows, peers=peers, serving=serving, open_requests=open_requests, samples=samples,
            plaintext=server.ledger.take_plaintext(), missing_keys=self._missing_keys(),
        )  # fmt: skip

    def _missing_keys(self) -> list[str]:
        runtimes = (runtime for runtime in (self.server.stable, self.server.candidate) if runtime is not None)
        verifiers = [runtime.tokens for runtime in runtimes if runtime.tokens is not None]
        return sorted({address for verifier in verifiers for address in verifier.take_missing()})

    def sample(self, most: int) -> None:
        self.server.sampler.allow(most)

    def _serving(self) -> dict[str, float]:
        server = self.server
        if server.stable is None:
            return {}
        if server.candidate is None:
            return {server.stable.digest: 1.0}
        shares = {server.stable.digest: 1.0 - server.share}
        shares[server.candidate.digest] = shares.get(server.candidate.digest, 0.0) + server.share
        return shares

    def metrics(self, *, exemplars: bool = False) -> bytes:
        """Prometheus text; with exemplars, OpenMetrics."""
        server = self.server
        for tunnel in server.tunnels:
            tunnel.tell()
        gauges = [
            ("backstay_downstream_connections", float(len(server.downstreams))),
            ("backstay_upstream_connections", float(len(server.upstreams))),
            ("backstay_endpoints_out", float(server.pools.count_out())),
            ("backstay_tunnels", float(len(server.tunnels))),
            ("backstay_candidate_share", server.share),
            ("backstay_protocol_errors", float(server.ledger.protocol_errors)),
            ("backstay_illegal_transitions", float(server.ledger.illegal_transitions)),
            ("backstay_access_log_dropped", float(server.log.dropped)),
            ("backstay_spans_sent", float(server.spans.sent)),
            ("backstay_spans_dropped", float(server.spans.dropped)),
        ]
        ledger = server.ledger
        return render(
            ledger.sums(), own=self._own(), gauges=gauges, configs=self._configs(), audited=ledger.audited,
            refused=ledger.refused, copies=ledger.all_copies(), exemplars=exemplars,
        )  # fmt: skip

    def clusters(self) -> str:
        """All endpoints with what is under way at each, one fact a line, as Envoy's page of this name."""
        return clusters_text(self.server.pools)

    def _own(self) -> Own:
        """The workload beside this proxy, as metrics name it."""
        server, runtime = self.server, self.server.stable
        if runtime is None:
            return Own(workload="unknown/unknown")
        address, peers = server.address, server.peers
        labels = peers.labels_at(address.host)
        ports = {port: address.inbound.get(port, port) for port in runtime.ports}
        services = {port: peers.service_at(address.host, listen) for port, listen in ports.items()}
        return Own(
            workload=runtime.config.manifest.workload,
            identity=runtime.listeners.identity,
            app=labels.get("app", ""),
            version=labels.get("version", ""),
            services={port: service for port, service in services.items() if service},
        )

    def _configs(self) -> list[tuple[str, str]]:
        served = (("stable", self.server.stable), ("candidate", self.server.candidate))
        return [(role, runtime.digest) for role, runtime in served if runtime is not None]

    async def drain(self, timeout: float) -> None:
        server = self.server
        server.draining = True
        began = monotonic()
        ends, first_requests_until = began + timeout, began + min(timeout, FIRST_REQUEST_SECONDS)
        # What came in may still need what goes out: the application answers it with the help of others.
        incoming = [*self._gateways.values(), *(each for each in self._acceptors if each.is_inbound)]
        for acceptor in incoming:
            acceptor.stop_accepting()
        self._leave(lambda downstream: isinstance(downstream.listener, Inbound | Ingress))
        await self._wait(lambda: not server.is_serving_inbound, incoming, first_requests_until, ends)
        for acceptor in self._acceptors:
            acceptor.stop_accepting()
        self._leave(lambda _: True)
        await self._wait(lambda: server.is_idle, self._acceptors, first_requests_until, ends)
        self._close_acceptors()
        for gateway in self._gateways.values():
            gateway.close()
        self._gateways.clear()
        server.stop()
        await server.log.finish()
        await server.spans.finish(min(timeout, LAST_SPANS_SECONDS))
        await asyncio.sleep(0)

    def _leave(self, goes: Callable[[Downstream], bool]) -> None:
        """Close what is idle; a connection whose first request is on its way closes after it, because we drain."""
        for downstream in list(self.server.downstreams):
            if goes(downstream) and not downstream.is_beginning:
                downstream.leave_when_idle()

    async def _wait(
        self,
        is_over: Callable[[], bool],
        acceptors: Sequence[Acceptor | GatewayAcceptor],
        beginning: float,
        ends: float,
    ) -> None:
        """Until all is over, and, for a shorter time, until what has just been accepted has said what it wants."""
        while monotonic() < ends:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
            if is_over() and (monotonic() >= beginning or not self._is_anything_beginning(acceptors)):
                return

    def _is_anything_beginning(self, acceptors: Sequence[Acceptor | GatewayAcceptor]) -> bool:
        return any(acceptor.is_beginning for acceptor in acceptors) or any(
            downstream.is_beginning for downstream in self.server.downstreams
        )

    def _close_acceptors(self, closes: Callable[[Acceptor], bool] = lambda _: True) -> None:
        for acceptor in filter(closes, self._acceptors):
            acceptor.close()
        self._acceptors = [acceptor for acceptor in self._acceptors if not closes(acceptor)]
