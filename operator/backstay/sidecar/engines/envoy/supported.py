"""What this engine knows how to say to Envoy. Pure.

Rule: what is not listed here is refused, never left out in silence: a rule that an engine does not know of would be a policy that
is not enforced. So a field that is added to the model is refused by this engine until it is rendered and listed.
"""

from typing import Final

import msgspec

from backstay.config import model
from backstay.config.model import Config
from backstay.sidecar.engine import ContentRefused

SERVED: Final[dict[type, frozenset[str]]] = {
    model.HostRoutes: frozenset(("host", "port", "rules", "gateway")),
    model.Rule: frozenset(
        (
            "name", "matches", "backends", "timeout_ms", "try_timeout_ms", "idle_timeout_ms", "retry", "fault", "mirrors",
            "request_headers", "response_headers", "rewrite", "redirect", "direct", "cors", "rate_limit", "sticky",
        )
    ),
    model.Match: frozenset(("path", "method", "headers", "query", "authority", "sources")),
    model.PathMatch: frozenset(("kind", "value")),
    model.ValueMatch: frozenset(("name", "kind", "value")),
    model.AuthorityMatch: frozenset(("kind", "value")),
    model.WeightedBackend: frozenset(("backend", "subset", "weight")),
    model.Retry: frozenset(
        ("attempts", "retry_on", "backoff_ms", "budget_percent", "statuses", "any_method")
    ),
    model.Fault: frozenset(("delay_ms", "delay_percent", "abort_status", "abort_percent")),
    model.Mirror: frozenset(("backend", "subset", "percent")),
    model.HeaderEdits: frozenset(("set", "add", "remove")),
    model.PathRewrite: frozenset(("kind", "value", "pattern")),
    model.Rewrite: frozenset(("host", "path")),
    model.Redirect: frozenset(("status", "scheme", "host", "port", "path")),
    model.DirectResponse: frozenset(("status", "body", "content_type")),
    model.Cors: frozenset(("origins", "methods", "headers", "expose", "max_age_s", "credentials")),
    model.RateLimit: frozenset(("requests", "per_ms", "burst")),
    model.Sticky: frozenset(("header", "cookie", "cookie_ttl_s")),
    model.Backend: frozenset(
        (
            "service", "port", "protocol", "subsets", "balance", "hash_on", "connect_timeout_ms", "max_connections",
            "max_requests", "outlier", "health", "slow_start_ms", "same_zone_first", "tls", "external",
        )
    ),
    model.External: frozenset(("host", "port", "tls")),
    model.OriginTls: frozenset(("sni", "names", "ca")),
    model.Tracing: frozenset(("endpoint", "percent")),
    model.Subset: frozenset(("name", "labels")),
    model.HashOn: frozenset(("kind", "name")),
    model.Outlier: frozenset(
        ("consecutive_5xx", "consecutive_gateway", "consecutive_local", "base_ms", "max_ms", "max_percent")
    ),
    model.HealthCheck: frozenset(("path", "interval_ms", "timeout_ms", "unhealthy", "healthy")),
    model.Authorization: frozenset(("policies",)),
    model.Policy: frozenset(("name", "action", "rules")),
    model.PolicyRule: frozenset(("sources", "operations")),
    model.Source: frozenset(
        (
            "principals", "namespaces", "not_principals", "not_namespaces", "ip_blocks", "not_ip_blocks",
            "remote_ip_blocks", "not_remote_ip_blocks", "request_principals", "not_request_principals", "claims",
        )
    ),
    model.ClaimMatch: frozenset(("name", "values", "not_values")),
    model.Jwt: frozenset(("providers", "required", "not_required")),
    model.JwtProvider: frozenset(
        ("issuer", "audiences", "jwks", "jwks_uri", "places", "forward", "claim_headers")
    ),
    model.TokenPlace: frozenset(("kind", "name", "prefix")),
    model.Operation: frozenset(
        ("methods", "paths", "headers", "ports", "hosts", "not_methods", "not_paths", "not_ports", "not_hosts")
    ),
    model.Listeners: frozenset(
        (
            "namespace", "identity", "trust_domain", "inbound", "egress", "access_log", "gateway", "trusted_hops",
            "other_ports", "engine", "client_cert", "egress_hosts", "log_percent", "tracing", "jwt",
        )
    ),
    model.InboundPort: frozenset(("port", "protocol", "mtls")),
    model.GatewayListener: frozenset(
        ("name", "port", "protocol", "hosts", "secret", "min_tls", "redirect_port")
    ),
}  # fmt: skip


def check(config: Config) -> None:
    """Raises ContentRefused for what Envoy would not be told of."""
    for key, part in config.parts.items():
        _check(part, key)


def _check(value: object, place: str) -> None:
    if isinstance(value, msgspec.Struct):
        _check_struct(value, place)
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            if not isinstance(each, str | int):
                _check(each, f"{place}[{index}]")


def _check_struct(value: msgspec.Struct, place: str) -> None:
    served = SERVED.get(type(value), frozenset())
    for field in msgspec.structs.fields(value):
        found = getattr(value, field.name)
        if field.name not in served and found != field.default:
            raise ContentRefused("Unsupported", f"{place}: {field.name} is not served by engine envoy")
        _check(found, f"{place}.{field.name}")
