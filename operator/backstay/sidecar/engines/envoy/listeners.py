"""Envoy's listeners: what the application asks through, what it is asked at, and a gateway's ports. Pure.

Rule: a listener says only what cannot change with a rollout of routes or policies; those are route configurations, which Envoy
replaces without touching a connection. mTLS modes are filter chains, so that a change of one drains that port and no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from backstay.config.model import Authorization, GatewayListener, InboundPort, Jwt, Listeners
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.envoy import accesslog, actions, clusters, outside, rbac, scripts, strict, tls, tokens
from backstay.sidecar.engines.envoy.api import Json, discovered, message, socket_address, typed, watched, whole
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.names import INNER, app_cluster
from backstay.sidecar.engines.envoy.routes import targets_action

HEAD_KIB: Final = 60  # as the other engine, and Envoy's own default
IDLE_S: Final = "75s"  # of connections without a request, as the other engine
WEBSOCKET: Final = "websocket"
HEAD_S: Final = "10s"
SHAKE_S: Final = "10s"
_LISTENER: Final = "envoy.config.listener.v3.Listener"
_HTTP: Final = "envoy.extensions.filters.http."
_MANAGER: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TCP: Final = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_OWN_FIELDS: Final = r"(?i)x[-_]backstay[-_].*|content_length|transfer_encoding|" + strict.PROXYS_OWN
"""Fields that are the mesh's to write, that look like framing, or that end here: a client's are removed. gRPC needs its
`te`."""
_ODD_CERTIFICATES: Final = r"(?i)x_forwarded[-_]client[-_]cert|x-forwarded(_client[-_]cert|-client_cert)"
"""X-Forwarded-Client-Cert as only some applications would read it. The right spelling is Envoy's own to keep or remove."""

Direction = Literal["in", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the listeners of one proxy need to know."""

    address: Address
    folder: Folder
    listeners: Listeners
    authorization: Authorization = field(default_factory=Authorization)
    revoked: tuple[str, ...] = ()
    has_identity: bool = False
    """Certificate and trust are there: TLS can be spoken."""
    raw: Mapping[int, tuple[str, Sequence[tuple[str, int]]]] = field(default_factory=dict)
    """Explicit listeners that lead to a TCP backend: route, and clusters by weight."""
    secrets: frozenset[str] = frozenset()
    """Certificates of the gateway that are there."""
    workload: str = ""
    key_sets: Mapping[str, str] = field(default_factory=dict)
    passing: Mapping[tuple[int, str], tuple[str, Sequence[tuple[str, int]]]] = field(default_factory=dict)
    """(gateway's port, name) of TLS that goes through -> route, and clusters by weight."""


def outbound_routes() -> str:
    return "outbound"


def explicit_routes(port: int) -> str:
    return f"explicit-{port}"


def inbound_routes(port: int) -> str:
    return f"inbound-{port}"


def gateway_routes(port: int) -> str:
    return f"gateway-{port}"


# --- HTTP ----------------------------------------------------------------------------------------------------------


def manager(
    name: str,
    direction: Direction,
    ports: Ports,
    *,
    connects: bool = False,
    noted: Sequence[Json] = (),
    extra: Json | None = None,
) -> Json:
    """The HTTP side of a port; its routes are a file of their own. `connects`: clients may ask for tunnels; `noted`: what is
    written into a head before routes look at it."""
    http1 = {
        "accept_http_10": True,
        "header_key_format": _preserved_case(),
        "default_host_for_http_10": "",
        "ignore_http_11_upgrade": [whole(strict.OTHER_PROTOCOLS)],
    }
    settings: Json = {
        "stat_prefix": name,
        "rds": {"route_config_name": name, "config_source": watched(ports.folder.routes(name))},
        **_filtered(direction, ports, checks=direction == "in", is_plain=direction == "out", connects=connects),
        "access_log": [accesslog.counted(direction), *_shown(ports)],
        "http_protocol_options": http1,
        "common_http_protocol_options": {
            "idle_timeout": IDLE_S,
            "headers_with_underscores_action": "ALLOW",
            "max_headers_count": 100,
        },
        "max_request_headers_kb": HEAD_KIB,
        "request_headers_timeout": HEAD_S,
        "stream_idle_timeout": "300s",
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "generate_request_id": False,
        "xff_num_trusted_hops": ports.listeners.trusted_hops,
        "server_header_transformation": "PASS_THROUGH",
        # Nobody is trusted to steer Envoy by x-envoy-* fields.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "early_header_mutation_extensions": [_own_fields_removed(ports.listeners.jwt, noted)],
        **_tracing(ports),
        **(_introducing(ports) if direction == "in" else {}),
        "local_reply_config": {"mappers": [*strict.replies(), *_about_tokens(ports), *_refused(), *_said()]},
    }
    return typed("envoy.filters.network.http_connection_manager", _MANAGER, **(settings | (extra or {})))


def _filtered(
    direction: Direction, ports: Ports, *, checks: bool = False, is_plain: bool = False, connects: bool = False
) -> Json:
    """Requests that ask for another protocol pass the same filters, but that it may be answered."""
    usual, switching = (
        http_filters(direction, ports, checks=checks, is_plain=is_plain, upgrade=each) for each in ("", WEBSOCKET)
    )
    upgrades: list[Json] = [{"upgrade_type": WEBSOCKET, "filters": switching}]
    if connects:
        upgrades.append({"upgrade_type": "CONNECT"})
    return {"http_filters": usual, "upgrade_configs": upgrades}


def _tracing(ports: Ports) -> Json:
    wanted = ports.listeners.tracing
    if wanted is None or not wanted.endpoint:
        return {}  # contexts pass like any other field
    # Envoy draws the share from the request's id: without one nothing is traced.
    return {"tracing": outside.tracing(wanted, ports.workload.rpartition("/")[2]), "generate_request_id": True}


def _introducing(ports: Ports) -> Json:
    """What applications are told of their callers' certificates. Elsewhere Envoy takes the field away by itself."""
    mode = ports.listeners.client_cert
    said: Json = {"forward_client_cert_details": mode.upper()}
    if mode in ("append_forward", "sanitize_set"):
        said["set_current_client_cert_details"] = {"subject": True, "uri": True, "dns": True}
    return said


def _about_tokens(ports: Ports) -> list[Json]:
    return tokens.replies() if ports.listeners.jwt is not None else []


def _shown(ports: Ports) -> list[Json]:
    return accesslog.shown(ports.listeners.access_log, ports.listeners.log_percent)


def http_filters(
    direction: Direction, ports: Ports, *, checks: bool = False, is_plain: bool = False, upgrade: str = ""
) -> list[Json]:
    """The same in every config: what a filter does is said by routes. `checks`: whether callers are checked. `upgrade`: the
    protocol that requests ask for which come this way."""
    router = typed("envoy.filters.http.router", f"{_HTTP}router.v3.Router", suppress_envoy_headers=True)
    jwt = ports.listeners.jwt
    read = [_of_its_own(each, ports) for each in tokens.filters(jwt, ports.key_sets)] if jwt and checks else []
    before = [
        scripts.answers(upgrade),
        strict.http_filter(is_plain=is_plain),
        strict.own_answers_removed(),
        *([rbac.expected_filter()] if checks else []),
        *read,
        *(rbac.http_filters() if checks else []),
    ]
    if direction == "in":
        return [*before, router]
    kind = f"{_HTTP}dynamic_forward_proxy.v3.FilterConfig"
    return [
        *before,
        typed(actions.RATE_LIMIT, f"{_HTTP}local_ratelimit.v3.LocalRateLimit", stat_prefix="backstay"),
        typed(actions.FAULT, f"{_HTTP}fault.v3.HTTPFault"),
        typed("envoy.filters.http.dynamic_forward_proxy", kind, dns_cache_config=clusters.DNS_CACHE),
        router,
    ]


def _of_its_own(found: Json, ports: Ports) -> Json:
    """Keys and rules of tokens change while connections stay."""
    return discovered(found["name"], found["typed_config"]["@type"], ports.folder.filter(found["name"]))


_REASONS: Final = {
    "UH": "no-healthy-upstream", "UO": "overflow", "UF": "connect-failure", "UC": "reset",
    "UPE": "bad-response", "UT": "timeout", "FI": "fault",
}  # fmt: skip


def _refused() -> list[Json]:
    """The same, whichever policy or limit it was."""
    return [strict.reply("rbac_access_denied", 403, "denied"), strict.reply("local_rate_limited", 429, "rate-limited")]


def _said() -> list[Json]:
    """What Envoy answers by itself says the same as the other engine's answers: the kind of failure and nothing else."""
    return [
        {"filter": {"response_flag_filter": {"flags": [flag]}}, "body": {"inline_string": f"{reason}\n"}}
        for flag, reason in _REASONS.items()
    ]


def _preserved_case() -> Json:
    kind = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
    return {"stateful_formatter": typed("preserve_case", kind)}


def _own_fields_removed(jwt: Jwt | None, noted: Sequence[Json]) -> Json:
    claims = tokens.own_fields(jwt) if jwt is not None else ""
    pattern = f"{_OWN_FIELDS}|{claims}" if claims else _OWN_FIELDS
    # One expression each: Envoy takes none that makes too long a program.
    mutations = [
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": each}}}} for each in (pattern, _ODD_CERTIFICATES)
    ]
    mutations += [strict.encoding_noted(), *noted]
    kind = "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return typed("envoy.http.early_header_mutation.header_mutation", kind, mutations=mutations)


# --- listeners -----------------------------------------------------------------------------------------------------


def every(ports: Ports) -> list[Json]:
    """All listeners of a config."""
    address = ports.address
    found = [outbound(ports)] if address.outbound else []
    found += [explicit(entry.listen, ports) for entry in address.explicit]
    named = {port.port: port for port in ports.listeners.inbound}
    for port, listen in sorted(address.inbound.items()):
        found += inbound(named.get(port, InboundPort(port=port)), listen, ports)
    by_port: dict[int, list[GatewayListener]] = {}
    for listener in ports.listeners.gateway:
        by_port.setdefault(listener.port, []).append(listener)
    for port, entries in sorted(by_port.items()):
        found += gateway(port, entries, ports)
    return found


def outbound(ports: Ports) -> Json:
    """The HTTP proxy of the application."""
    http = manager(outbound_routes(), "out", ports, connects=True)
    return _listener("outbound", ports.address.app_host, ports.address.outbound, [_chain([http])], "OUTBOUND")


def explicit(listen: int, ports: Ports) -> Json:
    """A port on which the application finds one host."""
    name, raw = explicit_routes(listen), ports.raw.get(listen)
    filters = [manager(name, "out", ports)] if raw is None else [tcp(name, raw[1], "out", f"{raw[0]}#default", ports)]
    return _listener(name, ports.address.app_host, listen, [_chain(filters)], "OUTBOUND")


def inbound(port: InboundPort, listen: int, ports: Ports) -> list[Json]:
    """The mesh's side of one port of the application; nothing listens where only TLS may be spoken and cannot be yet."""
    filters = _application(port, ports)
    name = inbound_routes(port.port)
    chains = []
    if ports.has_identity and port.mtls != "disable":
        refused = rbac.cut_off(ports.revoked)
        chain = _chain([*refused, *filters], tls.from_mesh(ports.folder))
        chains.append(chain | {"name": "mesh", "filter_chain_match": {"transport_protocol": "tls"}})
    if port.mtls != "strict":
        chains.append(_chain(filters) | {"name": "plain", "filter_chain_match": {"transport_protocol": "raw_buffer"}})
    inspector = typed(
        "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    )
    if not chains:
        return []
    return [_listener(name, ports.address.host, listen, chains, "INBOUND") | {"listener_filters": [inspector]}]


def _application(port: InboundPort, ports: Ports) -> list[Json]:
    name = inbound_routes(port.port)
    if port.protocol == "http":
        return [manager(name, "in", ports)]
    checks = rbac.network_filters(ports.authorization, ports.revoked, port.port)
    return [*checks, tcp(name, [(app_cluster(port.port), 1)], "in", f"inbound:{port.port}", ports)]


def tcp(name: str, targets: Sequence[tuple[str, int]], direction: Direction, route: str, ports: Ports) -> Json:
    """Whole connections."""
    counted = accesslog.counted_connections(direction, route)
    return typed(
        "envoy.filters.network.tcp_proxy", _TCP,
        stat_prefix=name, **targets_action(targets), access_log=[counted, *_shown(ports)],
    )  # fmt: skip


def _chain(filters: Sequence[Json], socket: Json | None = None) -> Json:
    chain: Json = {"filters": list(filters)}
    if socket is not None:
        chain |= {"transport_socket": socket, "transport_socket_connect_timeout": SHAKE_S}
    return chain


def _listener(name: str, host: str, port: int, chains: Sequence[Json], direction: str) -> Json:
    return message(
        _LISTENER,
        name=name,
        address=socket_address(host, port),
        stat_prefix=name,
        filter_chains=list(chains),
        traffic_direction=direction,
        listener_filters_timeout=SHAKE_S,
        per_connection_buffer_limit_bytes=1024 * 1024,
        ignore_global_conn_limit=False,
    )


def inner(ports: Ports) -> list[Json]:
    """Where tunnels of the application end: what comes through is HTTP, and goes by the same routes."""
    if not ports.address.outbound:
        return []
    http = manager(outbound_routes(), "out", ports)
    return [message(_LISTENER, name=INNER, internal_listener={}, stat_prefix=INNER, filter_chains=[_chain([http])])]


# --- gateways ------------------------------------------------------------------------------------------------------


def gateway(port: int, entries: Sequence[GatewayListener], ports: Ports) -> list[Json]:
    """One port of a gateway: plaintext, or TLS that ends here with the certificate of the name that is asked for."""
    name = gateway_routes(port)
    host = ports.address.gateway_host or ports.address.host
    extra = {"use_remote_address": True, "skip_xff_append": False, **_filtered("out", ports, checks=True)}
    http = manager(name, "out", ports, extra=extra)
    if entries[0].protocol == "http":
        return [_listener(name, host, port, [_chain([http])], "INBOUND")]
    if entries[0].protocol == "tls":
        chains = [_passed(port, found, ports) for found in sorted(ports.passing) if found[0] == port]
    else:
        chains = [_secured(entry, http, ports) for entry in entries if entry.secret in ports.secrets]
    if not chains:
        return []
    inspector = typed(
        "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    )
    return [_listener(name, host, port, chains, "INBOUND") | {"listener_filters": [inspector]}]


def _passed(port: int, found: tuple[int, str], ports: Ports) -> Json:
    """TLS that the service behind ends: only the name it asks for is read."""
    route, targets = ports.passing[found]
    checks = rbac.network_filters(ports.authorization, ports.revoked, port)
    chain = _chain([*checks, tcp(gateway_routes(port), targets, "out", route, ports)])
    match = {"server_names": [found[1]]} if found[1] != "*" else {"transport_protocol": "tls"}
    return chain | {"name": f"{gateway_routes(port)}/{found[1]}", "filter_chain_match": match}


def _secured(entry: GatewayListener, http: Json, ports: Ports) -> Json:
    names = [host for host in entry.hosts if host != "*"]
    match = {"server_names": names} if names else {"transport_protocol": "tls"}
    chain = _chain([http], tls.from_outside(entry.secret, entry.min_tls, ports.folder))
    return chain | {"name": entry.name, "filter_chain_match": match}
