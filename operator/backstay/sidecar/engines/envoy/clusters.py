"""Backends, the application and the outside as Envoy's clusters; endpoints as load assignments. Pure.

A cluster is one subset of one backend. Its endpoints are a file of their own, because they change by themselves; which
certificate an endpoint must show is metadata that chooses its transport socket, so that every endpoint is held to its own
identity.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from backstay.config.model import Backend, HealthCheck, Outlier
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.envoy import tls
from backstay.sidecar.engines.envoy.api import Json, message, millis, socket_address, typed, watched
from backstay.sidecar.engines.envoy.files import Folder
from backstay.sidecar.engines.envoy.names import INNER, OUTSIDE, app_cluster, cluster_name

NO_LIMIT: Final = 2**32 - 1
MAX_PENDING: Final = 1024  # as the other engine's
MIN_RETRIES_IN_FLIGHT: Final = 3
IDLE_S: Final = {"mesh": "60s", "plain": "4s"}
"""Below what our own listeners (75 s) and common servers (5 s) keep, as in the other engine."""
RING_SIZE: Final = 1024
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_HTTP: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_POLICIES: Final = {
    "round_robin": "ROUND_ROBIN",
    "least_request": "LEAST_REQUEST",
    "random": "RANDOM",
    "ring_hash": "RING_HASH",
    "maglev": "MAGLEV",
}


def subsets(backend: Backend) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """(name, labels); the whole backend is the one without a name."""
    return [("", ()), *((subset.name, subset.labels) for subset in backend.subsets)]


def backend_clusters(
    backend: Backend, identities: Sequence[str], budget: int, folder: Folder, *, has_identity: bool
) -> list[Json]:
    """`identities`: what the endpoints must show."""
    sockets = _sockets(identities if backend.tls == "mesh" and has_identity else (), folder)
    key = f"{backend.service}:{backend.port}"
    return [_cluster(cluster_name(key, name), backend, budget, sockets, folder) for name, _ in subsets(backend)]


def named_cluster(name: str, backend: Backend, budget: int, reach: Json, folder: Folder) -> Json:
    """A backend that is reached by its name, as `reach` says."""
    return _cluster(name, backend, budget, {}, folder, reach)


def _cluster(
    name: str, backend: Backend, budget: int, sockets: Json, folder: Folder, reach: Json | None = None
) -> Json:
    if not reach:
        reach = {
            "type": "EDS",
            "eds_cluster_config": {"eds_config": watched(folder.endpoints(name)), "service_name": name},
        } | sockets
    cluster = message(
        _CLUSTER,
        name=name,
        connect_timeout=millis(backend.connect_timeout_ms),
        circuit_breakers={"thresholds": [_threshold(backend, budget)]},
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
        typed_extension_protocol_options={_HTTP: http_options("mesh" if len(sockets) > 1 else "plain")},
        per_connection_buffer_limit_bytes=1024 * 1024,
        **reach,
        **_balance(backend),
    )
    if backend.outlier is not None:
        cluster["outlier_detection"] = outlier_detection(backend.outlier)
    if backend.health is not None:
        cluster["health_checks"] = [health_check(backend.health, backend.service)]
    return cluster


def _sockets(identities: Sequence[str], folder: Folder) -> Json:
    """The transport socket of each endpoint by what it must show; of one that is not settled, one that reaches nobody."""
    matches: list[Json] = [_socket_match(tls.PLAIN, tls.plaintext())]
    if not identities:
        return {"transport_socket_matches": matches}
    matches += [_socket_match(identity, tls.to_peer(identity, folder)) for identity in sorted(set(identities))]
    return {"transport_socket_matches": matches, "transport_socket": tls.to_nobody(folder)}


def _socket_match(peer: str, socket: Json) -> Json:
    return {"name": peer, "match": {tls.PEER: peer}, "transport_socket": socket}


def http_options(kind: str, *, explicit: bool = False) -> Json:
    """Upstream speaks what downstream spoke: a gRPC client's HTTP/2 stays HTTP/2. `explicit`: HTTP/1.1, whoever asks."""
    http1 = {"header_key_format": _preserved_case()}
    if explicit:
        idle = {"idle_timeout": IDLE_S[kind]}
        chosen = {"http_protocol_options": http1}
        return message(_HTTP, common_http_protocol_options=idle, explicit_http_config=chosen)
    return message(
        _HTTP,
        common_http_protocol_options={"idle_timeout": IDLE_S[kind]},
        use_downstream_protocol_config={"http_protocol_options": http1, "http2_protocol_options": {}},
    )


def _preserved_case() -> Json:
    kind = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
    return {"stateful_formatter": typed("preserve_case", kind)}


def _threshold(backend: Backend, budget: int) -> Json:
    return {
        "max_connections": backend.max_connections or NO_LIMIT,
        "max_pending_requests": MAX_PENDING,
        "max_requests": backend.max_requests or NO_LIMIT,
        "max_retries": NO_LIMIT,
        "retry_budget": {
            "budget_percent": {"value": budget or 100},
            "min_retry_concurrency": MIN_RETRIES_IN_FLIGHT,
        },
    }


def threshold() -> Json:
    """No limits, where no backend says any."""
    return _threshold(Backend(service="", port=0), 0)


def _balance(backend: Backend) -> Json:
    fields: Json = {"lb_policy": _POLICIES[backend.balance]}
    if backend.balance == "ring_hash":
        fields["ring_hash_lb_config"] = {"minimum_ring_size": RING_SIZE}
    slow = {"slow_start_config": {"slow_start_window": millis(backend.slow_start_ms)}}
    if backend.slow_start_ms and backend.balance in ("round_robin", "least_request"):
        fields[f"{backend.balance}_lb_config"] = slow
    return fields


def outlier_detection(rule: Outlier) -> Json:
    """Only failures in a row eject; Envoy's statistics over all endpoints are off."""
    fields: Json = {
        "consecutive_5xx": max(rule.consecutive_5xx, 1),
        "enforcing_consecutive_5xx": 100 if rule.consecutive_5xx else 0,
        "consecutive_gateway_failure": max(rule.consecutive_gateway, 1),
        "enforcing_consecutive_gateway_failure": 100 if rule.consecutive_gateway else 0,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "interval": "1s",
        "base_ejection_time": millis(rule.base_ms),
        "max_ejection_time": millis(max(rule.max_ms, rule.base_ms)),
        "max_ejection_percent": rule.max_percent,
        "always_eject_one_host": True,
    }
    if rule.consecutive_local:
        fields["split_external_local_origin_errors"] = True
        fields["consecutive_local_origin_failure"] = rule.consecutive_local
        fields["enforcing_consecutive_local_origin_failure"] = 100
        fields["enforcing_local_origin_success_rate"] = 0
    return fields


def health_check(check: HealthCheck, service: str) -> Json:
    return {
        "timeout": millis(check.timeout_ms),
        "interval": millis(check.interval_ms),
        "no_traffic_interval": millis(check.interval_ms),
        "unhealthy_threshold": check.unhealthy,
        "healthy_threshold": check.healthy,
        "http_health_check": {
            "path": check.path,
            "host": service,
            "expected_statuses": [{"start": 200, "end": 300}],
        },
    }


# --- the application and the outside -------------------------------------------------------------------------------


def app(port: int, address: Address) -> Json:
    """The application at one of its own ports."""
    name = app_cluster(port)
    place = {"endpoint": {"address": socket_address(address.app_host, address.app_ports.get(port, port))}}
    return message(
        _CLUSTER,
        name=name,
        type="STATIC",
        connect_timeout="5s",
        load_assignment={"cluster_name": name, "endpoints": [{"lb_endpoints": [place]}]},
        circuit_breakers={"thresholds": [threshold()]},
        typed_extension_protocol_options={_HTTP: http_options("plain")},
    )


DNS_CACHE: Final[Json] = {"name": OUTSIDE, "dns_lookup_family": "V4_PREFERRED", "max_hosts": 1024}


def outside() -> Json:
    """Hosts that the mesh does not know, by their names."""
    kind = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
    options = message(
        _HTTP,
        common_http_protocol_options={"idle_timeout": IDLE_S["plain"]},
        explicit_http_config={"http_protocol_options": {"header_key_format": _preserved_case()}},
    )
    return message(
        _CLUSTER,
        name=OUTSIDE,
        lb_policy="CLUSTER_PROVIDED",
        connect_timeout="5s",
        # Plaintext HTTP; TLS of the application's own goes through as a tunnel. There is no certificate to check here.
        cluster_type=typed(
            "envoy.clusters.dynamic_forward_proxy",
            kind,
            dns_cache_config=DNS_CACHE,
            allow_insecure_cluster_options=True,
        ),
        typed_extension_protocol_options={_HTTP: options},
    )


def inner() -> Json:
    """Back into this proxy: tunnels of the application end there."""
    place = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": INNER}}}}
    return message(
        _CLUSTER,
        name=INNER,
        type="STATIC",
        connect_timeout="5s",
        load_assignment={"cluster_name": INNER, "endpoints": [{"lb_endpoints": [place]}]},
    )


# --- endpoints -----------------------------------------------------------------------------------------------------


def assignment(name: str, endpoints: Iterable[Endpoint], backend: Backend, zone: str, revoked: frozenset[str]) -> Json:
    """Who is behind a cluster now. Endpoints of the own zone come first where the backend says so."""
    usable = [endpoint for endpoint in endpoints if endpoint.identity not in revoked or not endpoint.identity]
    near = [endpoint for endpoint in usable if not backend.same_zone_first or not zone or endpoint.zone == zone]
    far = [endpoint for endpoint in usable if endpoint not in near]
    levels = [level for level in (near, far) if level]
    places = [
        {"priority": priority, "lb_endpoints": [_place(endpoint, backend) for endpoint in level]}
        for priority, level in enumerate(levels)
    ]
    return message("envoy.config.endpoint.v3.ClusterLoadAssignment", cluster_name=name, endpoints=places)


def _place(endpoint: Endpoint, backend: Backend) -> Json:
    peer = endpoint.identity if backend.tls == "mesh" and endpoint.identity else tls.PLAIN
    return {
        "endpoint": {"address": socket_address(endpoint.address, endpoint.port)},
        "metadata": {"filter_metadata": {"envoy.transport_socket_match": {tls.PEER: peer}}},
    }


def chosen(endpoints: Iterable[Endpoint], labels: Sequence[tuple[str, str]]) -> list[Endpoint]:
    """Endpoints that carry all these labels."""
    return [endpoint for endpoint in endpoints if all(endpoint.labels.get(key) == value for key, value in labels)]


def identities(endpoints: Mapping[str, Sequence[Endpoint]], key: str) -> list[str]:
    return sorted({endpoint.identity for endpoint in endpoints.get(key, ()) if endpoint.identity})
