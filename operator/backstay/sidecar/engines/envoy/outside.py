"""Hosts outside of the mesh that a config knows by name: how they are reached, by TLS or not, and who takes traces. Pure."""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from backstay.config.model import External, OriginTls, Tracing
from backstay.sidecar.engines.envoy.api import Json, exactly, message, socket_address, typed
from backstay.sidecar.engines.envoy.clusters import http_options

COLLECTOR: Final = "collector"
"""The cluster that spans go to."""
OTLP_PORT: Final = 4318
OTLP_PATH: Final = "/v1/traces"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_TRACER: Final = "envoy.config.trace.v3.OpenTelemetryConfig"


def by_name(cluster: str, host: str, port: int) -> Json:
    """Fields of a cluster whose only endpoint is a name."""
    place = {"endpoint": {"address": socket_address(host, port)}}
    kind = "STATIC" if is_address(host) else "LOGICAL_DNS"
    found: Json = {
        "type": kind,
        "load_assignment": {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [place]}]},
    }
    return found if kind == "STATIC" else found | {"dns_lookup_family": "V4_PREFERRED"}


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def external(cluster: str, found: External, roots: str) -> Json:
    """`roots`: the file of who the system trusts."""
    fields = by_name(cluster, found.host, found.port)
    return fields | {"transport_socket": originated(found.tls, roots)} if found.tls is not None else fields


def originated(origin: OriginTls, roots: str) -> Json:
    """TLS that begins here, for an application that speaks none."""
    names = origin.names or (origin.sni,)
    trusted: Json = {"trusted_ca": {"inline_string": origin.ca} if origin.ca else {"filename": roots}}
    trusted["match_typed_subject_alt_names"] = [{"san_type": "DNS", "matcher": exactly(name)} for name in names]
    common = {
        "validation_context": trusted,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
    }
    return typed("envoy.transport_sockets.tls", _TLS, common_tls_context=common, sni=origin.sni)


def tracing(wanted: Tracing, service: str) -> Json:
    """The manager's part: contexts of callers decide, else the share of `wanted`."""
    parts = urlsplit(wanted.endpoint)
    path = parts.path if parts.path not in ("", "/") else OTLP_PATH
    uri = f"http://{parts.hostname}:{parts.port or OTLP_PORT}{path}"
    http = {"http_uri": {"uri": uri, "cluster": COLLECTOR, "timeout": "5s"}}
    provider = typed("envoy.tracers.opentelemetry", _TRACER, http_service=http, service_name=service)
    return {"provider": provider, "random_sampling": {"value": wanted.percent}, "spawn_upstream_span": True}


def collector(wanted: Tracing) -> Json:
    parts = urlsplit(wanted.endpoint)
    return message(
        _CLUSTER,
        name=COLLECTOR,
        connect_timeout="5s",
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http_options("plain", explicit=True)
        },
        **by_name(COLLECTOR, parts.hostname or "", parts.port or OTLP_PORT),
    )
