"""A config and the live data around it as everything that Envoy reads: clusters, listeners, routes, endpoints, secrets. Pure.

`render` is the only way from our types to Envoy's; what it makes depends on nothing but its argument, so that golden files can
hold it. Raises ContentRefused for what this engine cannot serve.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from backstay.config.match import HostTable, RouteTable, is_let_out
from backstay.config.model import Authorization, Backend, Config, HostRoutes, Listeners, Rule
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.envoy import (
    clusters,
    gateway,
    intercept,
    listeners,
    outside,
    rbac,
    routes,
    supported,
    tls,
    tokens,
)
from backstay.sidecar.engines.envoy.api import Json, message
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.names import cluster_name
from backstay.sidecar.engines.envoy.routes import Shop

NO_LISTENERS: Final = Listeners(namespace="", identity="", trust_domain="")
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that Envoy's files follow from."""

    address: Address
    folder: Folder
    config: Config | None = None
    slot: int = 0
    endpoints: Mapping[str, Sequence[Endpoint]] = field(default_factory=dict)
    identity: str = ""
    """PEM of the own certificate and key; empty: there is none yet."""
    trust: Mapping[str, str] = field(default_factory=dict)
    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Virtual addresses by service, where connections are redirected."""
    has_ipv6: bool = True
    revoked: tuple[str, ...] = ()
    key_sets: Mapping[str, str] = field(default_factory=dict)
    """Keys of who issues tokens, by their address."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """What a gateway shows: PEM by name."""
    expected: tuple[RefusalExpected, ...] = ()
    """Refusals that a document has announced."""
    roots: str = "/etc/ssl/certs/ca-certificates.crt"
    """The file of who the system trusts, for hosts outside of the mesh."""

    @property
    def has_identity(self) -> bool:
        return bool(self.identity and self.trust)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    listeners: list[Json]
    clusters: list[Json]
    routes: dict[str, Json]
    endpoints: dict[str, Json]
    secrets: dict[str, Json]
    filters: dict[str, Json]
    """Those that listeners name and read from a file."""


def render(world: World) -> Rendered:
    if world.config is not None:
        supported.check(world.config)
    parts = Parts(world.config)
    shop = Shop(parts.backends, parts.listeners.namespace, parts.workload, world.slot)
    return Rendered(
        listeners=_listeners(world, parts, shop),
        clusters=_clusters(world, parts),
        routes=_routes(world, parts, shop),
        endpoints=_endpoints(world, parts),
        secrets=_secrets(world),
        filters=_filters(world, parts),
    )


class Parts:
    """The parts of a config by kind; all empty before there is one."""

    def __init__(self, config: Config | None) -> None:
        every = config.parts.values() if config is not None else ()
        self.is_there = config is not None
        self.workload = config.manifest.workload if config is not None else ""
        self.listeners = next(_of(Listeners, every), NO_LISTENERS)
        self.authorization = next(_of(Authorization, every), Authorization())
        self.routes = sorted(_of(HostRoutes, every), key=lambda found: found.key)
        self.backends = {f"{found.service}:{found.port}": found for found in _of(Backend, every)}
        mesh = [found for found in self.routes if not found.gateway]
        self.hosts = HostTable(self.listeners.namespace, mesh, (), self.workload)

    def at_gateway(self, port: int) -> HostTable:
        found = [routes for routes in self.routes if routes.gateway and routes.port == port]
        return HostTable(self.listeners.namespace, found, (), self.workload)

    @property
    def issuers(self) -> tuple[str, ...]:
        jwt = self.listeners.jwt
        return tuple(provider.issuer for provider in jwt.providers) if jwt is not None else ()

    @property
    def gateway_ports(self) -> list[int]:
        return sorted({listener.port for listener in self.listeners.gateway})


def _of(kind: type[_Kind], parts: Iterable[object]) -> "Iterator[_Kind]":
    return (part for part in parts if isinstance(part, kind))


# --- routes --------------------------------------------------------------------------------------------------------


def _routes(world: World, parts: Parts, shop: Shop) -> dict[str, Json]:
    found: dict[str, Sequence[Json]] = {listeners.outbound_routes(): _outbound(world, parts, shop)}
    for entry in world.address.explicit:
        asked = f"{entry.host}:{entry.port}".encode()
        table = parts.hosts.find(asked)
        found[listeners.explicit_routes(entry.listen)] = [_explicit(table, asked, parts, shop)]
    for port in _application_ports(world, parts):
        found[listeners.inbound_routes(port)] = [_inbound(port, world, parts, shop)]
    redirected = {port: list(_redirected(port, world, parts, shop)) for port in _http_ports(world, parts)}
    for port in parts.gateway_ports:
        found[listeners.gateway_routes(port)] = _gateway(port, world, parts, shop)
    gateways = {listeners.gateway_routes(port) for port in parts.gateway_ports}
    every = {name: routes.configuration(name, hosts, any_port=name in gateways) for name, hosts in found.items()}
    for port, hosts in redirected.items():
        name = intercept.redirected_routes(port)
        every[name] = routes.configuration(name, hosts, any_port=True, removed=[intercept.DESTINATION])
    return every


def _application_ports(world: World, parts: Parts) -> list[int]:
    named = [port.port for port in parts.listeners.inbound] if world.address.redirected is not None else []
    return sorted({*world.address.inbound, *named})


def _http_ports(world: World, parts: Parts) -> list[int]:
    """At which connections are looked into that the kernel redirected."""
    return sorted({table.routes.port for table in parts.hosts.tables}) if world.address.redirected is not None else []


def _redirected(port: int, world: World, parts: Parts, shop: Shop) -> list[Json]:
    services = ((name, parts.hosts.find(f"{name}:{port}".encode())) for name in world.addresses)
    meant = {address: table for name, table in services if table is not None for address in world.addresses[name]}
    closed, let_out = parts.listeners.egress == "registry_only", parts.listeners.egress_hosts
    return intercept.virtual_hosts(port, parts.hosts.tables, meant, let_out, shop, is_closed=closed)


def _ways(world: World, parts: Parts, shop: Shop) -> intercept.Ways | None:
    """None until there is a config: what nobody can decide is not taken."""
    if world.address.redirected is None or not parts.is_there:
        return None
    return intercept.Ways(
        ports=world.address.redirected,
        http_ports=tuple(_http_ports(world, parts)),
        raw=(*_to_services(world, parts, shop), *_to_endpoints(world, parts), *_let_out(parts)),
        lets_out=parts.listeners.egress != "registry_only",
        has_ipv6=world.has_ipv6,
    )


def _to_services(world: World, parts: Parts, shop: Shop) -> Iterator[intercept.Raw]:
    """Virtual addresses of services whose connections nobody reads."""
    for key, backend in sorted(parts.backends.items()):
        addresses = tuple(sorted(world.addresses.get(backend.service, ())))
        if backend.protocol != "tcp" or not addresses:
            continue
        table = parts.hosts.find(key.encode())
        targets = raw_targets(table, parts, shop) if table is not None else []
        route = table.key if table is not None and targets else key
        yield intercept.Raw(
            route=route, addresses=addresses, port=backend.port, targets=targets or [(cluster_name(key, ""), 1)]
        )


def _to_endpoints(world: World, parts: Parts) -> Iterator[intercept.Raw]:
    """Endpoints with an identity that are asked themselves. An address that several services have belongs to the first."""
    taken: set[tuple[str, int]] = set()
    for key in _asked_directly(world, parts):
        found: dict[int, list[str]] = {}
        for each in world.endpoints[key]:
            if each.identity and (each.address, each.port) not in taken:
                taken.add((each.address, each.port))
                found.setdefault(each.port, []).append(each.address)
        for port, addresses in sorted(found.items()):
            yield intercept.Raw(
                route=key, addresses=tuple(sorted(addresses)), port=port, targets=[(_direct_cluster(key), 1)]
            )


def _asked_directly(world: World, parts: Parts) -> list[str]:
    known = parts.backends.items()
    return sorted(
        key for key, backend in known if backend.tls == "mesh" and clusters.identities(world.endpoints, key)
    ) if world.has_identity else []  # fmt: skip


def _direct_cluster(key: str) -> str:
    return f"direct:{key}"


def _let_out(parts: Parts) -> Iterator[intercept.Raw]:
    """Addresses that a closed mesh lets out."""
    if parts.listeners.egress != "registry_only":
        return
    for known in parts.listeners.egress_hosts:
        name, _, port = known.rpartition(":")
        if outside.is_address(name):
            yield intercept.Raw(
                route=routes.UNKNOWN_ROUTE, addresses=(name,), port=int(port), targets=[(intercept.ONWARD, 1)]
            )


def _outbound(world: World, parts: Parts, shop: Shop) -> list[Json]:
    if not parts.is_there:
        return [routes.not_ready()]
    hosts = [_with_tunnel(host, parts, shop) for host in routes.mesh_hosts(parts.hosts.tables, shop)]
    if any(host["domains"] == ["*"] for host in hosts):
        return hosts
    taken = {domain for host in hosts for domain in host["domains"]}
    own = (world.address.outbound, world.address.redirected.outbound if world.address.redirected is not None else 0)
    loops = routes.loops([port for port in own if port], taken, shop)
    taken |= {domain for host in loops for domain in host["domains"]}
    return [*hosts, *loops, *routes.let_out(parts.listeners.egress_hosts, taken, shop), _unknown(parts, shop)]


def _unknown(parts: Parts, shop: Shop) -> Json:
    is_closed = parts.listeners.egress == "registry_only"
    return routes.refusing_host(502, "unknown-host", shop) if is_closed else routes.outside_host(shop)


def _with_tunnel(host: Json, parts: Parts, shop: Shop) -> Json:
    """CONNECT to a host of the mesh: what comes through is looked into, or passed on to a TCP backend."""
    table = parts.hosts.of_key(host["name"])
    targets = raw_targets(table, parts, shop) if table is not None else []
    return host | {"routes": [routes.tunnel(targets), *host["routes"]]}


def _explicit(table: RouteTable | None, asked: bytes, parts: Parts, shop: Shop) -> Json:
    if not parts.is_there:
        return routes.not_ready()
    if table is not None:
        return routes.fixed_host(table.routes, shop)
    if is_let_out(frozenset(parts.listeners.egress_hosts), asked):
        return routes.outside_host(shop)
    return _unknown(parts, shop)


def _inbound(port: int, world: World, parts: Parts, shop: Shop) -> Json:
    rules = _checks(port, world, parts)
    return routes.application_host(port, rules, shop) if parts.is_there else routes.not_ready()


def _checks(port: int, world: World, parts: Parts) -> dict[str, Json]:
    hops = parts.listeners.trusted_hops
    rules = rbac.http_rules(parts.authorization, world.revoked, port, parts.issuers, hops)
    return rules | rbac.expected_rules(world.expected)


def _gateway(port: int, world: World, parts: Parts, shop: Shop) -> list[Json]:
    """Callers from outside have no identity; what policies say of them comes before what routes say."""
    entries = [listener for listener in parts.listeners.gateway if listener.port == port]
    hosts = gateway.hosts(port, entries, parts.at_gateway(port).tables, shop)
    rules = _checks(port, world, parts)
    return [host | {"typed_per_filter_config": rules} if rules else host for host in hosts]


def raw_targets(table: RouteTable, parts: Parts, shop: Shop) -> list[tuple[str, int]]:
    """(cluster, weight) of connections to a host whose backend speaks no HTTP; none where it does."""
    index = table.pick(b"", b"/", b"", ())
    rule: Rule | None = table.routes.rules[index] if index is not None else None
    usable = [target for target in rule.backends if target.weight > 0] if rule is not None else []
    backend = parts.backends.get(usable[0].backend) if usable else None
    if backend is None or backend.protocol != "tcp":
        return []
    return [(shop.cluster(target.backend, target.subset, table.key), target.weight) for target in usable]


# --- listeners -----------------------------------------------------------------------------------------------------


def _listeners(world: World, parts: Parts, shop: Shop) -> list[Json]:
    raw = {}
    for entry in world.address.explicit:
        table = parts.hosts.find(f"{entry.host}:{entry.port}".encode())
        targets = raw_targets(table, parts, shop) if table is not None else []
        if targets and table is not None:
            raw[entry.listen] = (table.key, targets)
    ports = listeners.Ports(
        address=world.address,
        folder=world.folder,
        listeners=parts.listeners,
        authorization=parts.authorization,
        revoked=world.revoked,
        has_identity=world.has_identity,
        raw=raw,
        secrets=frozenset(world.secrets),
        workload=parts.workload,
        key_sets=world.key_sets,
        passing=dict(_passing(parts, shop)),
    )
    ways = _ways(world, parts, shop)
    redirected = intercept.both(ways, ports) if ways is not None else []
    return [*listeners.every(ports), *redirected, *listeners.inner(ports)]


def _passing(parts: Parts, shop: Shop) -> Iterator[tuple[tuple[int, str], tuple[str, Sequence[tuple[str, int]]]]]:
    """Names whose TLS goes through a gateway, and where to."""
    for port in parts.gateway_ports:
        entries = [listener for listener in parts.listeners.gateway if listener.port == port]
        if entries[0].protocol == "tls":
            for name, table in gateway.served(entries, parts.at_gateway(port).tables):
                rule = table.routes.rules[0]
                usable = [target for target in rule.backends if target.weight > 0]
                targets = [(shop.cluster(each.backend, each.subset, table.key), each.weight) for each in usable]
                if targets:
                    yield (port, name), (f"{table.key}#{rule.name}", targets)


# --- clusters and endpoints ----------------------------------------------------------------------------------------


def _clusters(world: World, parts: Parts) -> list[Json]:
    budgets = routes.budgets(parts.routes)
    found = [*_to_application(world, parts)]
    for key, backend in sorted(parts.backends.items()):
        if backend.external is not None:
            name = cluster_name(key, "")
            reach = outside.external(name, backend.external, world.roots)
            found.append(clusters.named_cluster(name, backend, budgets.get(key, 0), reach, world.folder))
            continue
        shown = clusters.identities(world.endpoints, key)
        found += clusters.backend_clusters(
            backend, shown, budgets.get(key, 0), world.folder, has_identity=world.has_identity
        )
    tracing = parts.listeners.tracing
    if tracing is not None and tracing.endpoint:
        found.append(outside.collector(tracing))
    return [*found, clusters.outside(), clusters.inner()]


def _to_application(world: World, parts: Parts) -> Iterator[Json]:
    if world.address.redirected is None:
        yield from (clusters.app(port, world.address) for port in sorted(world.address.inbound))
        return
    ports = {intercept.OTHER_PORT, *_application_ports(world, parts)}
    yield from (intercept.application(port) for port in sorted(ports))
    yield intercept.onward()
    for key in _asked_directly(world, parts):
        shown = [each for each in clusters.identities(world.endpoints, key) if each not in world.revoked]
        yield intercept.direct(_direct_cluster(key), tls.to_any(shown, world.folder))


def _endpoints(world: World, parts: Parts) -> dict[str, Json]:
    revoked = frozenset(world.revoked)
    found: dict[str, Json] = {}
    for key, backend in parts.backends.items():
        if backend.external is not None:
            continue
        known = [each for each in world.endpoints.get(key, ()) if _is_reachable(each, backend, world)]
        for name, labels in clusters.subsets(backend):
            cluster = cluster_name(key, name)
            chosen = clusters.chosen(known, labels)
            found[cluster] = clusters.assignment(cluster, chosen, backend, world.address.zone, revoked)
    return found


def _is_reachable(endpoint: Endpoint, backend: Backend, world: World) -> bool:
    """Nobody who has an identity is asked in plaintext, however early it is."""
    return world.has_identity or not endpoint.identity or backend.tls == "disable"


def _filters(world: World, parts: Parts) -> dict[str, Json]:
    jwt = parts.listeners.jwt
    found = tokens.filters(jwt, world.key_sets) if jwt is not None else []
    return {each["name"]: message("envoy.config.core.v3.TypedExtensionConfig", **each) for each in found}


def _secrets(world: World) -> dict[str, Json]:
    found = {name: tls.shown_secret(name, pem) for name, pem in world.secrets.items()}
    if world.has_identity:
        found[tls.IDENTITY] = tls.identity_secret(world.identity)
        found[tls.TRUST] = tls.trust_secret(world.trust)
    return found
