"""One config made ready to serve: tables, lanes and counters, so that a request only looks things up.

A *lane* is one way a request can go: the group of endpoints it is sent to, under which limits, counted where. A swap costs
what changed: tables of equal parts are taken over from the configs served before, and the lanes of a host (they count
under this config's digest) are made when its first request comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from backstay.config.authorize import AuthorizationTable
from backstay.config.match import HostTable, RouteTable, is_let_out
from backstay.config.model import (
    Authorization,
    Backend,
    Config,
    Fault,
    HostRoutes,
    InboundPort,
    Jwt,
    Listeners,
    Mirror,
    Part,
    RateLimit,
    Retry,
    Rule,
    Sticky,
    WeightedBackend,
)  # fmt: skip
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.python.actions import Actions, Copies, has_actions
from backstay.sidecar.engines.python.balance import weighted
from backstay.sidecar.engines.python.limits import Bucket
from backstay.sidecar.engines.python.pool import Group, group_key
from backstay.sidecar.engines.python.stats import Counters, Direction
from backstay.sidecar.engines.python.trace import Tracer

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.jwt import Verifier
    from backstay.sidecar.engines.python.server import Deadlines, Server

MAX_PORTS: Final = 1024  # of the application, as seen from outside; one pod has a handful
OTHER_PORTS: Final = "inbound:other"
"""Row name for ports that the config does not name: one row, whatever ports a client tries."""
UNKNOWN_ROUTE: Final = "#"
"""Row name for hosts that no config knows: one row, whatever names a client invents."""


class Lane:
    __slots__ = (
        "actions",
        "answers_plainly",
        "counters",
        "deadlines",
        "digest",
        "fault",
        "group",
        "idle_seconds",
        "is_plain",
        "retry",
        "try_seconds",
    )

    def __init__(
        self,
        *,
        digest: str,
        counters: Counters,
        group: "Group",
        deadlines: "Deadlines",
        try_seconds: float = 0.0,
        retry: Retry | None = None,
        fault: Fault | None = None,
        actions: Actions | None = None,
        idle_seconds: float = 0.0,
    ) -> None:
        self.digest = digest
        self.counters = counters
        self.group = group
        self.deadlines = deadlines
        self.try_seconds = try_seconds
        self.retry = retry if retry is not None and retry.attempts > 0 else None
        self.fault = fault
        self.actions = actions
        self.idle_seconds = idle_seconds
        self.answers_plainly = actions is None and group.outlier is None
        """True: an answer is passed on as it is, and nobody keeps count of failures."""
        self.is_plain = fault is None and actions is None and not idle_seconds
        """True: a request only has to be sent."""


class CompiledRule:
    """A rule's lanes with the running sum of their weights."""

    __slots__ = ("_cumulative", "_lanes", "counters", "only", "sticky")

    def __init__(
        self, weights: Sequence[int], lanes: Sequence[Lane], counters: Counters, sticky: Sticky | None = None
    ) -> None:
        self._lanes = tuple(lanes)
        self._cumulative = tuple(accumulate(weights)) or (0,)
        usable = [lane for lane, weight in zip(lanes, weights, strict=True) if weight > 0]
        self.only = usable[0] if len(usable) == 1 else None
        """The lane of a rule that has just one, so that most requests need no draw."""
        self.counters = counters
        """For requests that no lane takes (all weights 0)."""
        self.sticky = (sticky.header.encode(), sticky.cookie.encode(), sticky.cookie_ttl_s) if sticky else None
        """(header, cookie, life of a cookie made here) by which callers keep their lane."""

    def draw(self, draw: float) -> Lane | None:
        index = weighted(self._cumulative, draw)
        return self._lanes[index] if index >= 0 else None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return self._lanes


class CompiledPort:
    """One inbound port of this config."""

    __slots__ = ("counters", "lane", "mtls", "protocol")

    def __init__(self, port: InboundPort, lane: Lane) -> None:
        self.mtls = port.mtls
        self.protocol = port.protocol
        self.lane = lane
        self.counters = lane.counters


class CompiledHost:
    """The rules of one host under one config."""

    __slots__ = ("no_route", "rules")

    def __init__(self, rules: Sequence[CompiledRule], no_route: Counters) -> None:
        self.rules = tuple(rules)
        self.no_route = no_route


class Runtime:
    """Everything a request needs to know of one config. Raises ContentRefused for a config that cannot be served."""

    def __init__(self, config: Config, digest: str, server: "Server", former: "Sequence[Runtime]" = ()) -> None:
        """`former` are runtimes whose parts may be shared."""
        self.config = config
        self.digest = digest
        self._server = server
        parts = _by_kind(config.parts.values())
        self.listeners = next(iter(parts.listeners), _NO_LISTENERS)
        self.backends = {f"{backend.service}:{backend.port}": backend for backend in parts.backends}
        mesh_routes = [routes for routes in parts.routes if not routes.gateway]
        self.hosts: HostTable = HostTable(
            self.listeners.namespace, mesh_routes, [runtime.hosts for runtime in former], config.manifest.workload
        )
        self.gateway_hosts = self._gateway_hosts(parts.routes, former)
        """The routes of each gateway port."""
        self.gateway_ports: dict[int, Any] = {}
        """Made by ingress.py when a port is first asked for."""
        self._buckets: WeakValueDictionary[tuple[str, RateLimit], Bucket] = (
            former[0]._buckets if former else WeakValueDictionary()
        )
        self._check(former)
        self.authorization = _authorization(next(iter(parts.authorizations), Authorization()), former)
        self.tokens = _tokens(self.listeners.jwt, former)
        """None: tokens are not looked at."""
        self._compiled: dict[RouteTable, CompiledHost] = {}
        self._at: dict[tuple[str, int], CompiledPort] = {}
        self._services: dict[str, Lane] = {}
        self._http_ports: frozenset[int] | None = None
        self.unknown_host = self._counters("out", UNKNOWN_ROUTE, "")
        self.ports = self._compile_ports()
        self.registry_only = self.listeners.egress == "registry_only"
        self._let_out = frozenset(self.listeners.egress_hosts)
        self.logs = self.listeners.access_log
        self.log_share = self.listeners.log_percent / 100
        self.by = f"By={self.listeners.identity};".encode()
        """How this proxy names itself where it introduces callers."""
        tracing = self.listeners.tracing
        self.tracer = Tracer(tracing, server.random) if tracing is not None else None

    def time_limits(self) -> set[float]:
        """Seconds that whole exchanges may take, of all rules."""
        parts = (part for part in self.config.parts.values() if isinstance(part, HostRoutes))
        return {rule.timeout_ms / 1000 for part in parts for rule in part.rules}

    def lets_out(self, authority: bytes) -> bool:
        """Whether requests and connections to a host outside of the mesh may leave."""
        return not self.registry_only or (bool(self._let_out) and is_let_out(self._let_out, authority))

    def _gateway_hosts(self, routes: Iterable[HostRoutes], former: "Sequence[Runtime]") -> dict[int, HostTable]:
        workload, namespace = self.config.manifest.workload, self.listeners.namespace
        by_port: dict[int, list[HostRoutes]] = {listener.port: [] for listener in self.listeners.gateway}
        for each in routes:
            if each.gateway:
                by_port.setdefault(each.port, []).append(each)
        return {
            port: HostTable(
                namespace,
                found,
                [runtime.gateway_hosts[port] for runtime in former if port in runtime.gateway_hosts],
                workload,
            )
            for port, found in by_port.items()
        }

    @property
    def tables(self) -> tuple[RouteTable, ...]:
        """Of all hosts, in the mesh and at gateway ports."""
        at_gateways = (table for hosts in self.gateway_hosts.values() for table in hosts.tables)
        return (*self.hosts.tables, *at_gateways)

    def _check(self, former: "Sequence[Runtime]") -> None:
        """Every backend and subset that a rule names is there. What was checked with the same backends is not looked at."""
        same = (runtime.tables for runtime in former if runtime.backends == self.backends)
        for table in set(self.tables).difference(*same):
            _check_host(table, self.backends)

    def host(self, table: RouteTable) -> CompiledHost:
        """What this config does with requests for one of its hosts."""
        return self._compiled.get(table) or self._compile_host(table)

    def _compile_host(self, table: RouteTable) -> CompiledHost:
        rules = [self._compile_rule(table, index, rule) for index, rule in enumerate(table.routes.rules)]
        made = self._compiled[table] = CompiledHost(rules, self._counters("out", f"{table.key}#", ""))
        return made

    def _compile_rule(self, table: RouteTable, index: int, rule: Rule) -> CompiledRule:
        route = f"{table.key}#{rule.name}"
        actions = self._actions(table, index, rule, route) if has_actions(rule) else None
        counters = self._counters("out", route, "")
        if rule.redirect is not None or rule.direct is not None:
            return CompiledRule((1,), (self._own_lane(counters, actions),), counters)
        lanes = [self._lane(route, rule, target, actions) for target in rule.backends]
        return CompiledRule([target.weight for target in rule.backends], lanes, counters, rule.sticky)

    def answering(self, table: RouteTable) -> Lane:
        """The lane of a table with one rule, which answers itself."""
        lane = self.host(table).rules[0].only
        assert lane is not None  # noqa: S101 - the rule has one
        return lane

    def counters(self, direction: Direction, route: str, backend: str) -> Counters:
        return self._counters(direction, route, backend)

    def _own_lane(self, counters: Counters, actions: Actions | None) -> Lane:
        """Of a rule that answers itself: it leads to no endpoint."""
        group = Group(Backend(service="", port=0), (), self._server.random)
        return Lane(
            digest=self.digest,
            counters=counters,
            group=group,
            deadlines=self._server.deadlines_of(0.0),
            actions=actions,
        )

    def _actions(self, table: RouteTable, index: int, rule: Rule, route: str) -> Actions:
        copies = [Copies(self._mirror_lane(route, rule, mirror), mirror.percent / 100) for mirror in rule.mirrors]
        bucket = self._bucket(route, rule.rate_limit) if rule.rate_limit is not None else None
        return Actions(rule, table, index, bucket, copies)

    def _bucket(self, route: str, limit: RateLimit) -> Bucket:
        """One for all configs that say the same: a swap fills no bucket."""
        found = self._buckets.get((route, limit))
        if found is None:
            found = self._buckets[route, limit] = Bucket(limit, monotonic())
        return found

    def _mirror_lane(self, route: str, rule: Rule, mirror: Mirror) -> Lane:
        backend = self.backends[mirror.backend]
        return Lane(
            digest=self.digest,
            counters=self._server.ledger.copies(route, f"{mirror.backend}/{mirror.subset}"),
            group=self._server.pools.group(backend, _labels(backend, mirror.subset) or ()),
            deadlines=self._server.deadlines_of(rule.timeout_ms / 1000),
        )

    def _lane(self, route: str, rule: Rule, target: WeightedBackend, actions: Actions | None) -> Lane:
        backend = self.backends[target.backend]
        labels = _labels(backend, target.subset) or ()
        return Lane(
            digest=self.digest,
            counters=self._counters("out", route, f"{target.backend}/{target.subset}"),
            group=self._server.pools.group(backend, labels),
            deadlines=self._server.deadlines_of(rule.timeout_ms / 1000),
            try_seconds=rule.try_timeout_ms / 1000,
            retry=rule.retry,
            fault=rule.fault,
            actions=actions,
            idle_seconds=rule.idle_timeout_ms / 1000,
        )

    def _compile_ports(self) -> dict[int, CompiledPort]:
        """Ports of the config, and those the platform opened that it does not name: a config that forgets a port must
        not cut it off."""
        named = {port.port: port for port in self.listeners.inbound}
        known = self._server.app_groups.keys() | named.keys()
        return {port: self._compile_port(named.get(port, InboundPort(port=port))) for port in known}

    def _compile_port(self, port: InboundPort) -> CompiledPort:
        lane = Lane(
            digest=self.digest,
            counters=self._counters("in", f"inbound:{port.port}", ""),
            group=self._server.app_group(port.port),
            deadlines=self._server.deadlines_of(0.0),  # the caller's proxy owns the time limit
        )
        return CompiledPort(port, lane)

    # --- where connections are redirected ---

    def port_at(self, address: str, port: int) -> CompiledPort:
        """What a connection meets that was meant for this port of the application at one of its own addresses."""
        found = self._at.get((address, port))
        if found is None:
            if len(self._at) >= MAX_PORTS:
                self._at.clear()  # somebody tries all of them
            found = self._at[address, port] = self._port_at(address, port)
        return found

    def _port_at(self, address: str, port: int) -> CompiledPort:
        known = self.ports.get(port)
        named = InboundPort(port=port, protocol="tcp", mtls=self.listeners.other_ports) if known is None else (
            InboundPort(port=port, protocol=known.protocol, mtls=known.mtls)
        )  # fmt: skip
        counters = self._counters("in", OTHER_PORTS, "") if known is None else known.counters
        lane = Lane(
            digest=self.digest,
            counters=counters,
            group=self._server.app_group_at(address, port),
            deadlines=self._server.deadlines_of(0.0),
        )
        return CompiledPort(named, lane)

    def mtls_of(self, port: int) -> str:
        known = self.ports.get(port)
        return known.mtls if known is not None else self.listeners.other_ports

    def service_lane(self, backend: Backend) -> Lane:
        """The way of whole connections to a service port that no rule is about."""
        lane = self._services.get(backend.key)
        if lane is None:
            key = f"{backend.service}:{backend.port}"
            lane = self._services[backend.key] = Lane(
                digest=self.digest,
                counters=self._counters("out", f"routes/{key}#default", f"{key}/"),
                group=self._server.pools.group(backend, ()),
                deadlines=self._server.deadlines_of(0.0),
            )
        return lane

    @property
    def http_ports(self) -> frozenset[int]:
        """Ports at which there is any host whose requests are routed."""
        if self._http_ports is None:
            self._http_ports = frozenset(table.routes.port for table in self.hosts.tables)
        return self._http_ports

    def _counters(self, direction: Direction, route: str, backend: str) -> Counters:
        return self._server.ledger.counters(self.digest, direction, route, backend)

    def wants(self, group: "Group") -> bool:
        """True if this config may send requests to that group."""
        backend = self.backends.get(group.service)
        if backend is None or group.key != group_key(backend, group.labels):
            return False
        return not group.labels or any(subset.labels == group.labels for subset in backend.subsets)

    def __repr__(self) -> str:
        return f"Runtime({self.config.manifest.workload} {self.digest[:12]} hosts={len(self.hosts)})"


_NO_LISTENERS: Final = Listeners(namespace="", identity="", trust_domain="")


class _Parts:
    """The parts of a config by kind."""

    __slots__ = ("authorizations", "backends", "listeners", "routes")

    def __init__(self) -> None:
        self.routes: list[HostRoutes] = []
        self.backends: list[Backend] = []
        self.authorizations: list[Authorization] = []
        self.listeners: list[Listeners] = []


def _by_kind(parts: Iterable[Part]) -> _Parts:
    found = _Parts()
    kinds: dict[type, list[Any]] = {
        HostRoutes: found.routes, Backend: found.backends, Authorization: found.authorizations,
        Listeners: found.listeners,
    }  # fmt: skip
    for part in parts:
        kinds[type(part)].append(part)
    return found


def _authorization(part: Authorization, former: Iterable[Runtime]) -> AuthorizationTable:
    for runtime in former:
        if runtime.authorization.authorization == part:
            return runtime.authorization
    return AuthorizationTable(part)


def _tokens(jwt: Jwt | None, former: Iterable[Runtime]) -> "Verifier | None":
    """With what the config before has verified, where it says the same."""
    if jwt is None:
        return None
    for runtime in former:
        if runtime.tokens is not None and runtime.tokens.table.jwt == jwt:
            return runtime.tokens
    from backstay.sidecar.engines.python.jwt import Verifier  # noqa: PLC0415 - 8 MiB that most proxies never need

    return Verifier(jwt)


def _check_host(table: RouteTable, backends: Mapping[str, Backend]) -> None:
    for rule in table.routes.rules:
        targets: tuple[WeightedBackend | Mirror, ...] = (*rule.backends, *rule.mirrors)
        for target in targets:
            backend, route = backends.get(target.backend), f"{table.key}#{rule.name}"
            if backend is None:
                raise ContentRefused(
                    "MissingBackend", f"{route} sends to {target.backend!r}, which is not in this config"
                )
            if _labels(backend, target.subset) is None:
                raise ContentRefused(
                    "UnknownSubset", f"{route} sends to subset {target.subset!r}, which {backend.key} does not define"
                )


def _labels(backend: Backend, subset: str) -> tuple[tuple[str, str], ...] | None:
    """The labels of a subset, none for the whole backend; None if there is no such subset."""
    if not subset:
        return ()
    return next((known.labels for known in backend.subsets if known.name == subset), None)
