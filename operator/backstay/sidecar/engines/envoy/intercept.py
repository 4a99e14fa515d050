"""Connections that the kernel redirected here (iptables REDIRECT) as Envoy's listeners, routes and clusters. Pure.

Outbound, the destination says which service was meant (its virtual address is live data); in HTTP the Host header decides, and
what it does not decide goes where it was going. Virtual addresses of HTTP services are matched in routes, so that services that
come and go touch no connection. Inbound, the port says which of the application's ports was meant.

Rule: a connection that nobody redirected is never followed to where it was made to: it would lead straight back here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from backstay.config.match import RouteTable
from backstay.config.model import InboundPort
from backstay.sidecar.engine import APP_SOURCES, Redirected
from backstay.sidecar.engines.envoy import clusters, listeners, rbac, routes, tls
from backstay.sidecar.engines.envoy.api import Json, exactly, message, socket_address, typed
from backstay.sidecar.engines.envoy.listeners import Ports
from backstay.sidecar.engines.envoy.names import app_cluster
from backstay.sidecar.engines.envoy.routes import Shop

ONWARD: Final = "onward"
"""The cluster that leads to wherever a connection was going."""
OTHER_PORT: Final = 0
"""Stands for all ports of the application that the config does not name."""
OTHER_PORTS: Final = "inbound:other"
"""The route of their rows, as the other engine's."""
DESTINATION: Final = "x-backstay-destination"
"""Where a connection was going, for routes to look at; a client's own is removed before, ours before it is forwarded."""
SPEAKS_S: Final = "0.5s"
"""As in the other engine: how long a client's first bytes are waited for where they decide whether HTTP is read."""
HELLO_S: Final = "2s"
"""Wait for a ClientHello; who says nothing that long speaks a protocol in which servers speak first."""
_HTTP_BYTES: Final = ("http/1.0", "http/1.1", "h2c")
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_HTTP: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Connections to addresses at a port that go somewhere unread."""

    route: str
    addresses: tuple[str, ...]
    port: int
    targets: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What of a config and its live data the two listeners need."""

    ports: Redirected
    http_ports: tuple[int, ...] = ()
    raw: tuple[Raw, ...] = ()
    lets_out: bool = True
    """Whether what nobody knows is passed on."""
    has_ipv6: bool = True


def redirected_routes(port: int) -> str:
    return f"redirected-{port}"


# --- listeners -----------------------------------------------------------------------------------------------------


def both(ways: Ways, ports: Ports) -> list[Json]:
    return [_outbound(ways, ports), _inbound(ways, ports)]


def _outbound(ways: Ways, ports: Ports) -> Json:
    chains = [_to(raw, ports) for raw in ways.raw]
    chains += [_requests(port, ports) for port in ways.http_ports]
    chains.append(_proxy(ways.ports.outbound, ports))
    found = _listener("redirected-out", "127.0.0.1", "::1", ways.ports.outbound, chains, ways) | {
        "traffic_direction": "OUTBOUND",
        "listener_filters": [_original(), *_looking(ways.http_ports)],
        "listener_filters_timeout": SPEAKS_S,
        "continue_on_listener_filters_timeout": True,
    }
    onward = listeners.tcp("onward", [(ONWARD, 1)], "out", routes.UNKNOWN_ROUTE, ports)
    return found | {"default_filter_chain": {"filters": [onward], "name": "onward"}} if ways.lets_out else found


def _to(raw: Raw, ports: Ports) -> Json:
    name = f"{raw.route}@{raw.port}"
    match = {"prefix_ranges": [_only(address) for address in raw.addresses], "destination_port": raw.port}
    return _chain(name, match, [listeners.tcp(name, raw.targets, "out", f"{raw.route}#default", ports)])


def _only(address: str) -> Json:
    return {"address_prefix": address, "prefix_len": ip_address(address).max_prefixlen}


def _requests(port: int, ports: Ports) -> Json:
    match = {"destination_port": port, "application_protocols": list(_HTTP_BYTES)}
    http = listeners.manager(redirected_routes(port), "out", ports, noted=[_destination_noted()])
    return _chain(redirected_routes(port), match, [http])


def _destination_noted() -> Json:
    value = {"key": DESTINATION, "value": "%DOWNSTREAM_LOCAL_ADDRESS%"}
    return {"append": {"header": value, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _proxy(port: int, ports: Ports) -> Json:
    """A connection to this port itself is for the HTTP proxy that it is where nothing is redirected."""
    http = listeners.manager(listeners.outbound_routes(), "out", ports, connects=True)
    return _chain("proxy", {"destination_port": port}, [http])


def _inbound(ways: Ways, ports: Ports) -> Json:
    chains = [_nowhere(ways.ports.inbound)]
    for port in ports.listeners.inbound:
        chains += _of_port(port, {"destination_port": port.port}, ports)
    other = InboundPort(port=OTHER_PORT, protocol="tcp", mtls=ports.listeners.other_ports)
    chains += _of_port(other, {}, ports)
    inspector = typed(
        "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    )
    return _listener("redirected-in", "0.0.0.0", "::", ways.ports.inbound, chains, ways) | {  # noqa: S104 - of this pod
        "traffic_direction": "INBOUND",
        "listener_filters": [_original(), inspector],
        "listener_filters_timeout": HELLO_S,
        "continue_on_listener_filters_timeout": True,
    }


def _of_port(port: InboundPort, match: Json, ports: Ports) -> Iterator[Json]:
    """mTLS of the mesh; and where that is not demanded, plaintext and the application's own TLS, which goes through."""
    name = f"inbound-{port.port or 'other'}"
    filters = _application(port, ports)
    if ports.has_identity and port.mtls != "disable":
        of_mesh = match | {"transport_protocol": "tls", "application_protocols": [tls.MESH_PROTOCOL]}
        chain = _chain(f"{name}/mesh", of_mesh, [*rbac.cut_off(ports.revoked), *filters])
        yield chain | {
            "transport_socket": tls.from_mesh(ports.folder),
            "transport_socket_connect_timeout": listeners.SHAKE_S,
        }
    if port.mtls != "strict":
        yield _chain(f"{name}/plain", match | {"transport_protocol": "raw_buffer"}, filters)
        yield _chain(f"{name}/own", match | {"transport_protocol": "tls"}, _unread(port, ports))


def _application(port: InboundPort, ports: Ports) -> list[Json]:
    if port.protocol == "http":
        return [listeners.manager(listeners.inbound_routes(port.port), "in", ports)]
    return _unread(port, ports)


def _unread(port: InboundPort, ports: Ports) -> list[Json]:
    name = listeners.inbound_routes(port.port)
    route = f"inbound:{port.port}" if port.port else OTHER_PORTS
    checks = rbac.network_filters(ports.authorization, ports.revoked, port.port)
    return [*checks, listeners.tcp(name, [(app_cluster(port.port), 1)], "in", route, ports)]


def _nowhere(port: int) -> Json:
    kind = "envoy.extensions.filters.network.direct_response.v3.Config"
    return _chain("nowhere", {"destination_port": port}, [typed("envoy.filters.network.direct_response", kind)])


def _chain(name: str, match: Json, filters: Iterable[Json]) -> Json:
    return {"name": name, "filter_chain_match": match, "filters": list(filters)}


def _listener(name: str, host: str, host6: str, port: int, chains: Sequence[Json], ways: Ways) -> Json:
    more = {"additional_addresses": [{"address": socket_address(host6, port)}]} if ways.has_ipv6 else {}
    return message(
        "envoy.config.listener.v3.Listener",
        name=name,
        address=socket_address(host, port),
        stat_prefix=name,
        filter_chains=list(chains),
        per_connection_buffer_limit_bytes=1024 * 1024,
        ignore_global_conn_limit=False,
        **more,
    )


def _original() -> Json:
    kind = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
    return typed("envoy.filters.listener.original_dst", kind)


def _looking(http_ports: Sequence[int]) -> list[Json]:
    """First bytes are waited for at ports of HTTP hosts, and nowhere else: servers may speak first."""
    if not http_ports:
        return []
    kind = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
    at: list[Json] = [{"destination_port_range": {"start": port, "end": port + 1}} for port in http_ports]
    looked = at[0] if len(at) == 1 else {"or_match": {"rules": at}}
    return [typed("envoy.filters.listener.http_inspector", kind) | {"filter_disabled": {"not_match": looked}}]


# --- routes --------------------------------------------------------------------------------------------------------


def virtual_hosts(
    port: int, tables: Sequence[RouteTable], meant: Mapping[str, RouteTable], let_out: Sequence[str], shop: Shop,
    *, is_closed: bool,
) -> list[Json]:  # fmt: skip
    """What HTTP to one port leads to: by Host, as on every other port; else by `meant`, the services' virtual addresses; else
    where it was going."""
    hosts = [routes.virtual_host(table.routes, domains, shop) for table, domains in _by_name(port, tables) if domains]
    if any(host["domains"] == ["*"] for host in hosts):
        return hosts
    taken = {domain for host in hosts for domain in host["domains"]}
    names = [name for name in _names_at(port, let_out) if name not in taken]
    if names:
        hosts.append({"name": "let-out", "domains": names, "routes": [_onward(shop)]})
    by_address = [route for address, table in sorted(meant.items()) for route in _for(address, port, table, shop)]
    last = routes.refusing_host(502, "unknown-host", shop)["routes"] if is_closed else [_onward(shop)]
    return [*hosts, {"name": "unknown", "domains": ["*"], "routes": [*by_address, *last]}]


def _by_name(port: int, tables: Sequence[RouteTable]) -> Iterator[tuple[RouteTable, list[str]]]:
    here = [table for table in tables if table.routes.port == port]
    taken: dict[str, RouteTable] = {}
    for pick in (lambda table: (*table.names, *table.wild), lambda table: table.aliases):
        for table in here:
            for name in pick(table):
                taken.setdefault(name.decode().partition(":")[0], table)
    names: dict[int, list[str]] = {}
    for name, owner in taken.items():
        names.setdefault(id(owner), []).append(name)
    for table in here:
        yield table, [each for name in names.get(id(table), ()) for each in routes.spellings(name)]


def _names_at(port: int, let_out: Sequence[str]) -> Iterator[str]:
    for known in let_out:
        name, _, at = known.rpartition(":")
        if at == str(port):
            yield name


def _for(address: str, port: int, table: RouteTable, shop: Shop) -> Iterator[Json]:
    text = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    meant = {"name": DESTINATION, "string_match": exactly(text)}
    for route in routes.virtual_host(table.routes, [], shop)["routes"]:
        match = route["match"]
        yield route | {"match": match | {"headers": [*match.get("headers", ()), meant]}}


def _onward(shop: Shop) -> Json:
    return {
        "match": {"prefix": "/"},
        "name": shop.name(routes.UNKNOWN_ROUTE),
        "route": {"cluster": ONWARD, "timeout": "0s"},
    }


# --- clusters ------------------------------------------------------------------------------------------------------


def onward() -> Json:
    return _where_it_was_going(ONWARD)


def application(port: int) -> Json:
    """The application at the address and port that were meant, asked from an address that is left alone."""
    local: Json = {
        "source_address": {"address": APP_SOURCES[4], "port_value": 0},
        "extra_source_addresses": [{"address": {"address": APP_SOURCES[6], "port_value": 0}}],
    }
    return _where_it_was_going(app_cluster(port)) | {"upstream_bind_config": local}


def direct(name: str, socket: Json) -> Json:
    """An endpoint of the mesh that was asked itself, by mTLS."""
    return _where_it_was_going(name) | {"transport_socket": socket}


def _where_it_was_going(name: str) -> Json:
    return message(
        _CLUSTER,
        name=name,
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        connect_timeout="5s",
        circuit_breakers={"thresholds": [clusters.threshold()]},
        typed_extension_protocol_options={_HTTP: clusters.http_options("plain")},
    )
