"""What all connections of one engine share: the configs being served, pools, counters, trust, limits, and the sweep.

Rule: a swap replaces references (`stable`, `candidate`, `contexts`) and never changes what they point to; whoever began
under the old ones finishes under them.
"""

import asyncio
import logging
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from random import random as system_random
from time import monotonic
from typing import TYPE_CHECKING, Final

from backstay import __version__
from backstay.config.model import Backend
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.redact import clean
from backstay.sidecar.engine import APP_SOURCES, Address
from backstay.sidecar.engines.python.accesslog import AccessLog
from backstay.sidecar.engines.python.checks import Checks
from backstay.sidecar.engines.python.framing import split_authority
from backstay.sidecar.engines.python.listeners import Inbound
from backstay.sidecar.engines.python.nobody import Nobody
from backstay.sidecar.engines.python.outside import Outside
from backstay.sidecar.engines.python.peers import Peers
from backstay.sidecar.engines.python.pool import MAX_PENDING, Group, Pool, PoolKey, Pools
from backstay.sidecar.engines.python.runtime import Lane, Runtime
from backstay.sidecar.engines.python.sampling import Sampler
from backstay.sidecar.engines.python.spans import Spans
from backstay.sidecar.engines.python.split import Asked, is_expected
from backstay.sidecar.engines.python.stats import Ledger
from backstay.sidecar.engines.python.tls import Contexts
from backstay.sidecar.heap import Tide, give_back

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.downstream import Downstream
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.tunnel import Tunnel
    from backstay.sidecar.engines.python.upstream import Upstream

SWEEP_SECONDS: Final = 0.5  # limits of seconds and log lines are looked at this often
OPEN_TOLD_EVERY: Final = 600.0
"""Seconds between notes of open plaintext connections: who asks for the last day needs no better."""
MANY_DEADLINES: Final = 64
"""Different time limits from which on those that no config has any more are looked for. Meshes have a handful at a time."""
MOST_REMARKS: Final = 5
"""Lines of the log about strangers in one sweep: a port scan, or an attack, must not become a flood of the log."""
MAX_EXTERNAL: Final = 1024  # hosts outside of the mesh whose connections are kept
_LOCAL_NAMES: Final = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0"))  # noqa: S104 - compared, not bound

_log: Final = logging.getLogger("backstay.sidecar.python")


class Deadlines:
    """Open exchanges with the same time limit, oldest first: one timer for the oldest, none per request.

    (A timer per request costs 1.5 of about 40 us; most never fire.)
    """

    __slots__ = ("_loop", "_timer", "after", "open")

    def __init__(self, loop: asyncio.AbstractEventLoop, after: float) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.after = after
        """Seconds; 0 is no limit."""
        self.open: dict[Exchange, None] = {}

    def add(self, exchange: "Exchange") -> None:
        self.open[exchange] = None
        if self._timer is None and self.after:
            self._timer = self._loop.call_later(self.after, self._fire)

    def remove(self, exchange: "Exchange") -> None:
        self.open.pop(exchange, None)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        now = monotonic()
        for oldest in list(self.open):
            left = oldest.started + self.after - now
            if left > 0.0005:
                self._timer = self._loop.call_later(left, self._fire)
                return
            if oldest in self.open:  # and has not ended meanwhile, because another did
                del self.open[oldest]
                oldest.expire()


class Server:
    def __init__(self, address: Address, log: AccessLog, random: Callable[[], float] = system_random) -> None:
        self.loop = asyncio.get_running_loop()
        self.address = address
        self.random = random
        self.log = log
        self.ledger = Ledger()
        self.spans = Spans(__version__)
        self.sampler = Sampler(random)
        self.nobody = Nobody(self)
        self.pools = Pools(random, by_address=address.redirected is not None)
        self.peers = Peers(lambda: self.pools.known)
        self.app_groups = {port: self._make_app_group(port) for port in address.inbound}
        self.stable: Runtime | None = None
        self.candidate: Runtime | None = None
        self.share = 0.0
        self.expected: Sequence[RefusalExpected] = ()
        self.contexts: Contexts | None = None
        self.secrets: dict[tuple[str, str], ssl.SSLContext] = {}
        """What a gateway shows callers from outside, by secret and least TLS version."""
        self.key_sets: Mapping[str, str] = {}
        """Keys of who issues tokens, by the address that the control plane fetched them from; replaced, never changed."""
        self.services: Mapping[str, str] = {}
        """Virtual address -> `service.namespace`."""
        self.draining = False
        self.max_pending = MAX_PENDING
        self.now = self.loop.time()
        """Coarse clock, as old as the last sweep: good enough for limits of seconds, and free to read."""
        self.downstreams: set[Downstream] = set()
        self.upstreams: set[Upstream] = set()
        self.tunnels: set[Tunnel] = set()
        redirected = (address.redirected.outbound,) if address.redirected is not None else ()
        self._outbound_ports = frozenset((address.outbound, *redirected))
        self._deadlines: dict[float, Deadlines] = {}
        self._idle: dict[Exchange, tuple[int, float]] = {}
        """Exchanges with an idle limit: bytes seen, and since when there were no more."""
        self._external: OrderedDict[bytes, Group] = OrderedDict()
        self.pools.zone = address.zone
        self.outside = Outside()
        self.checks = Checks(self)
        self._open_told_at = self.now
        self._remarks = 0
        self._tide = Tide()
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    # --- configs ---------------------------------------------------------------------------------------------------

    def runtime_for(self, draw: float) -> Runtime | None:
        """The config that decides about a connection with this draw."""
        return self.candidate if self.candidate is not None and draw < self.share else self.stable

    def draw_runtime(self) -> Runtime | None:
        return self.runtime_for(self.random())

    def knows(self, authority: bytes) -> bool:
        """True for hosts that any config being served routes."""
        return any(
            runtime is not None and runtime.hosts.find(authority) is not None
            for runtime in (self.stable, self.candidate)
        )

    def is_excused(self, exchange: "Exchange") -> bool:
        """True if a refusal proves nothing against the candidate: stable refuses the same, or it was announced."""
        if self.candidate is None or exchange.runtime is not self.candidate or self.stable is None:
            return True
        if self.expected and is_expected(self.expected, asked(exchange)):
            return True
        if exchange.head is None:
            return False
        chosen = exchange.downstream.listener.decide(self.stable, exchange)
        if exchange.reason == "rate-limited":
            return isinstance(chosen, Lane) and _shares_bucket(chosen, exchange.lane)
        if exchange.reason != "fault":
            return not isinstance(chosen, Lane)
        return isinstance(chosen, Lane) and _aborts_at_least(chosen, exchange.lane)

    # --- lanes that no rule made -----------------------------------------------------------------------------------

    def deadlines_of(self, seconds: float) -> Deadlines:
        found = self._deadlines.get(seconds)
        if found is None:
            found = self._deadlines[seconds] = Deadlines(self.loop, seconds)
        return found

    def forget_deadlines(self) -> None:
        """Of time limits that no config has any more and nobody is under: each takes 240 bytes, for ever otherwise."""
        if len(self._deadlines) <= MANY_DEADLINES:
            return
        served = [runtime for runtime in (self.stable, self.candidate) if runtime is not None]
        wanted = {0.0}.union(*(runtime.time_limits() for runtime in served))
        self._deadlines = {
            seconds: deadlines for seconds, deadlines in self._deadlines.items() if seconds in wanted or deadlines.open
        }

    def open_exchanges(self) -> "Iterator[Exchange]":
        return (exchange for deadlines in self._deadlines.values() for exchange in deadlines.open)

    def app_group(self, port: int) -> Group:
        found = self.app_groups.get(port)
        if found is None:
            found = self.app_groups[port] = self._make_app_group(port)
        return found

    def _make_app_group(self, port: int) -> Group:
        return fixed_group(self.address.app_host, self.address.app_ports.get(port, port), self.random)

    def app_group_at(self, address: str, port: int) -> Group:
        """The application at one of the addresses this proxy stands at; asked from an address that is not redirected."""
        name = b"app %b:%d" % (address.encode(), port)
        group = self._external.get(name)
        if group is None:
            group = self._external[name] = fixed_group(address, port, self.random)
            if not ip_address(address).is_loopback:
                group.members[0].source = APP_SOURCES[6 if ":" in address else 4]
            self._forget_external()
        return group

    def endpoint_lane(self, runtime: Runtime, endpoint: Endpoint, *, mesh: bool) -> Lane:
        """The way to one endpoint of the mesh, for who asked for it and no other."""
        identity = endpoint.identity if mesh else ""
        name = f"endpoint {endpoint.id} {endpoint.address}:{endpoint.port} {identity}".encode()
        group = self._external.get(name)
        if group is None:
            group = fixed_group(endpoint.address, endpoint.port, self.random)
            group.members = (Pool(PoolKey(endpoint.id, endpoint.address, endpoint.port, identity)),)
            self._external[name] = group
            self._forget_external()
        return Lane(digest=runtime.digest, counters=runtime.unknown_host, group=group, deadlines=self.deadlines_of(0.0))

    def external_lane(self, runtime: Runtime, authority: bytes) -> Lane | None:
        """The way to a host outside of the mesh; None if that is this proxy itself."""
        group = self._external.get(authority)
        if group is None:
            host, port = split_authority(authority)
            own = host in _LOCAL_NAMES or host == self.address.app_host
            if own and port in self._outbound_ports:
                return None
            group = self._external[authority] = fixed_group(host, port, self.random)
            self._forget_external()
        return Lane(digest=runtime.digest, counters=runtime.unknown_host, group=group, deadlines=self.deadlines_of(0.0))

    def _forget_external(self) -> None:
        while len(self._external) > MAX_EXTERNAL:
            _, group = self._external.popitem(last=False)
            close_all(upstream for pool in group.members for upstream in pool.retire())

    # --- care ------------------------------------------------------------------------------------------------------

    def remark(self, text: str, *values: object) -> None:
        """Log what a stranger did, unless others did as much in the same half second; counters know of all."""
        self._remarks += 1
        if self._remarks <= MOST_REMARKS:
            _log.info(text, *values)

    def _tell_remarks_left_out(self) -> None:
        if self._remarks > MOST_REMARKS:
            _log.info("connections.more-refused not-shown=%d", self._remarks - MOST_REMARKS)
        self._remarks = 0

    def note_connect_failure(self, pool: Pool | None, error: Exception) -> None:
        if pool is not None:
            _log.debug(
                "upstream.connect-failed address=%s:%d error=%s", pool.key.address, pool.key.port, clean(str(error))
            )

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self.now = self.loop.time()
        for downstream in list(self.downstreams):
            downstream.check(now)
        if self._idle:
            self._check_idle(now)
        self.pools.settle(now)
        self.checks.sweep(now)
        for pool in self.every_pool():
            close_all(pool.stale(now))
        self.log.flush()
        self._tell_remarks_left_out()
        self.spans.sweep(now)
        if self._tide.has_ebbed(len(self.downstreams) + len(self.upstreams)):
            give_back()

    def tell_open_plaintext(self) -> None:
        """Once in a while, note who has had a connection without a certificate open all the time."""
        if self.now < self._open_told_at + OPEN_TOLD_EVERY:
            return
        self._open_told_at = self.now
        tunnelled = (tunnel.client for tunnel in self.tunnels)
        for downstream in (*self.downstreams, *(client for client in tunnelled if client is not None)):
            listener = downstream.listener
            if isinstance(listener, Inbound) and not downstream.identity:
                known = self.stable is None or listener.port in self.stable.ports
                self.ledger.note_plaintext(listener.port if known else 0, downstream.address)

    def watch_idle(self, exchange: "Exchange") -> None:
        self._idle[exchange] = (0, self.loop.time())

    def _check_idle(self, now: float) -> None:
        for exchange, (seen, since) in list(self._idle.items()):
            if exchange.has_ended:
                del self._idle[exchange]
            elif exchange.moved != seen:
                self._idle[exchange] = (exchange.moved, now)
            elif exchange.lane is not None and now - since > exchange.lane.idle_seconds:
                del self._idle[exchange]
                exchange.expire()

    def every_pool(self) -> list[Pool]:
        fixed = (*self.app_groups.values(), *self._external.values())
        return [*self.pools.all(), *(pool for group in fixed for pool in group.members)]

    def stop(self) -> None:
        """Close everything that is left."""
        self._sweeper.cancel()
        for downstream in list(self.downstreams):
            downstream.abort()
        for tunnel in list(self.tunnels):
            tunnel.abort()
        close_all(list(self.upstreams))
        for deadlines in self._deadlines.values():
            deadlines.stop()
        self.log.flush()

    @property
    def is_serving_inbound(self) -> bool:
        return any(
            downstream.exchange is not None and isinstance(downstream.listener, Inbound)
            for downstream in self.downstreams
        )

    @property
    def is_idle(self) -> bool:
        return not self.tunnels and all(downstream.exchange is None for downstream in self.downstreams)


def fixed_group(host: str, port: int, random: Callable[[], float]) -> Group:
    """A group of one address that is no endpoint of the mesh: the application itself, or a host outside."""
    group = Group(Backend(service=host, port=port, tls="disable"), (), random)
    group.members = (Pool(PoolKey("", host, port, "")),)
    return group


def close_all(upstreams: "Iterator[Upstream] | Sequence[Upstream]") -> None:
    for upstream in upstreams:
        upstream.close()


def asked(exchange: "Exchange") -> Asked:
    head, downstream = exchange.head, exchange.downstream
    return Asked(
        source=downstream.identity,
        address=downstream.address,
        host=head.authority.partition(b":")[0].decode("latin-1") if head is not None else "",
        path=head.path.decode("latin-1") if head is not None else "",
    )


def _aborts_at_least(stable: Lane, candidate: Lane | None) -> bool:
    """True if stable injects this fault as often."""
    if stable.fault is None or candidate is None or candidate.fault is None:
        return False
    return stable.fault.abort_status > 0 and stable.fault.abort_percent >= candidate.fault.abort_percent


def _shares_bucket(stable: Lane, candidate: Lane | None) -> bool:
    """True if stable would have counted this request in the same bucket, and refused it as well."""
    if stable.actions is None or candidate is None or candidate.actions is None:
        return False
    return stable.actions.bucket is candidate.actions.bucket
