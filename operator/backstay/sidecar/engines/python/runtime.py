"""One config made ready to serve: tables, lanes and counters, all built at load so that a request only looks things up.

A *lane* is one way a request can go: the group of endpoints it is sent to, under which limits, counted where.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeVar

from backstay.config.authorize import AuthorizationTable
from backstay.config.match import HostTable, RouteTable
from backstay.config.model import (
    Authorization,
    Backend,
    Config,
    Fault,
    HostRoutes,
    InboundPort,
    Listeners,
    Retry,
    Rule,
    WeightedBackend,
)  # fmt: skip
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.python.balance import weighted
from backstay.sidecar.engines.python.stats import Counters, Direction

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.pool import Group
    from backstay.sidecar.engines.python.server import Deadlines, Server

UNKNOWN_ROUTE: Final = "#"
"""Row name for hosts that no config knows: one row, whatever names a client invents."""


PartT = TypeVar("PartT")


class Lane:
    __slots__ = ("counters", "deadlines", "digest", "fault", "group", "retry", "try_seconds")

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
    ) -> None:
        self.digest = digest
        self.counters = counters
        self.group = group
        self.deadlines = deadlines
        self.try_seconds = try_seconds
        self.retry = retry if retry is not None and retry.attempts > 0 else None
        self.fault = fault


class CompiledRule:
    """A rule's lanes with the running sum of their weights."""

    __slots__ = ("_cumulative", "_lanes", "counters", "only")

    def __init__(self, rule: Rule, lanes: Sequence[Lane], counters: Counters) -> None:
        self._lanes = tuple(lanes)
        self._cumulative = tuple(accumulate(backend.weight for backend in rule.backends)) or (0,)
        usable = [lane for lane, backend in zip(lanes, rule.backends, strict=True) if backend.weight > 0]
        self.only = usable[0] if len(usable) == 1 else None
        """The lane of a rule that has just one, so that most requests need no draw."""
        self.counters = counters
        """For requests that no lane takes (all weights 0)."""

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


class Runtime:
    """Everything a request needs to know of one config. Read-only after construction."""

    def __init__(self, config: Config, server: "Server") -> None:
        self.config = config
        self.digest = config.digest
        self._server = server
        self._backends = {part.key.removeprefix("backend/"): part for part in _parts(config, Backend)}
        self.listeners = next(_parts(config, Listeners), _NO_LISTENERS)
        self.hosts = HostTable(self.listeners.namespace, _parts(config, HostRoutes))
        self.authorization = AuthorizationTable(next(_parts(config, Authorization), Authorization()))
        self.rules = [self._compile_host(table) for table in self.hosts.tables]
        """By position of the host's table, then by index of the rule."""
        self.no_route = [self._counters("out", f"{table.routes.key}#", "") for table in self.hosts.tables]
        self.unknown_host = self._counters("out", UNKNOWN_ROUTE, "")
        self.ports = self._compile_ports()
        self.registry_only = self.listeners.egress == "registry_only"
        self.logs = self.listeners.access_log

    def _compile_host(self, table: RouteTable) -> list[CompiledRule]:
        return [self._compile_rule(f"{table.routes.key}#{rule.name}", rule) for rule in table.routes.rules]

    def _compile_rule(self, route: str, rule: Rule) -> CompiledRule:
        lanes = [self._lane(route, rule, target) for target in rule.backends]
        return CompiledRule(rule, lanes, self._counters("out", route, ""))

    def _lane(self, route: str, rule: Rule, target: WeightedBackend) -> Lane:
        backend = self._backends.get(target.backend)
        if backend is None:
            raise ContentRefused("MissingBackend", f"{route} sends to {target.backend!r}, which is not in this config")
        return Lane(
            digest=self.digest,
            counters=self._counters("out", route, f"{target.backend}/{target.subset}"),
            group=self._server.pools.group(backend, _labels(backend, target.subset, route)),
            deadlines=self._server.deadlines_of(rule.timeout_ms / 1000),
            try_seconds=rule.try_timeout_ms / 1000,
            retry=rule.retry,
            fault=rule.fault,
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

    def _counters(self, direction: Direction, route: str, backend: str) -> Counters:
        return self._server.ledger.counters(self.digest, direction, route, backend)

    def groups(self) -> "Iterator[Group]":
        return (lane.group for rules in self.rules for rule in rules for lane in rule.lanes)

    def __repr__(self) -> str:
        return f"Runtime({self.config.manifest.workload} {self.digest[:12]} hosts={len(self.hosts)})"


_NO_LISTENERS: Final = Listeners(namespace="", identity="", trust_domain="")


def _parts(config: Config, kind: type[PartT]) -> Iterator[PartT]:
    return (part for part in config.parts.values() if isinstance(part, kind))


def _labels(backend: Backend, subset: str, route: str) -> tuple[tuple[str, str], ...]:
    if not subset:
        return ()
    for known in backend.subsets:
        if known.name == subset:
            return known.labels
    raise ContentRefused("UnknownSubset", f"{route} sends to subset {subset!r}, which {backend.key} does not define")
