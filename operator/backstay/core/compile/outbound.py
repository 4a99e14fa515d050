"""Routes and Backends -> what callers do: the rules of one host, and how one service port is reached."""

from collections.abc import Mapping
from typing import Literal

from backstay.config import model
from backstay.core import intents
from backstay.core.compile.facts import Index, Routed
from backstay.core.compile.filters import KINDS, filter_fields
from backstay.core.durations import milliseconds
from backstay.core.externals import pem_of
from backstay.core.registry import Service, ServicePort
from backstay.core.snapshot import Document

_BALANCE: Mapping[str, Literal["round_robin", "least_request", "random", "ring_hash", "maglev"]] = {
    "LeastRequest": "least_request",
    "RoundRobin": "round_robin",
    "Random": "random",
    "RingHash": "ring_hash",
    "Maglev": "maglev",
}
_HASHES: Mapping[str, Literal["header", "cookie", "query", "source"]] = {
    "Header": "header",
    "Cookie": "cookie",
    "QueryParam": "query",
    "Source": "source",
}
_PATHS: Mapping[str, Literal["exact", "prefix", "regex"]] = {
    "Exact": "exact",
    "PathPrefix": "prefix",
    "RegularExpression": "regex",
}


def host_routes(wanted: Routed, facts: Index) -> model.HostRoutes:
    """The rules of one host and port; without a Route, one rule that takes everything to the service itself."""
    if wanted.document is None or wanted.spec is None:
        return model.HostRoutes(host=wanted.host, port=wanted.port, rules=(_default_rule(wanted, facts),))
    rules = tuple(
        _rule(rule_name(number, rule), rule, wanted, facts)
        for number, rule in enumerate(wanted.spec.rules)
        if _is_for(rule, wanted.port)
    )
    return model.HostRoutes(host=wanted.host, port=wanted.port, rules=rules, gateway=wanted.gateway)


def rule_name(number: int, rule: intents.RouteRule) -> str:
    return rule.name or f"rule-{number}"


def rule_places(wanted: Routed) -> dict[str, str]:
    """Rule name -> `file:line`; "" is the Route itself."""
    if wanted.document is None or wanted.spec is None:
        return {}
    document = wanted.document
    places = {rule_name(n, rule): document.place(f"spec.rules[{n}]") for n, rule in enumerate(wanted.spec.rules)}
    return {"": document.place("spec"), **places}


def _default_rule(wanted: Routed, facts: Index) -> model.Rule:
    backend = model.WeightedBackend(backend=f"{wanted.host}:{wanted.port}")
    defaults = facts.mesh.defaults
    return model.Rule(
        name="default",
        backends=(backend,),
        timeout_ms=milliseconds(defaults.timeout),
        retry=_default_retry(defaults.retry),
    )


def _default_retry(retry: intents.MeshRetry) -> model.Retry | None:
    if retry.attempts == 0:
        return None
    return model.Retry(
        attempts=retry.attempts,
        retry_on=("connect-failure", "reset-before-request"),
        budget_percent=retry.budget_percent,
    )


def _rule(name: str, spec: intents.RouteRule, wanted: Routed, facts: Index) -> model.Rule:
    defaults = facts.mesh.defaults
    return model.Rule(
        name=name,
        matches=tuple(_match(match, wanted.namespace) for match in _at_port(spec, wanted.port)),
        backends=tuple(_weighted(ref, wanted) for ref in spec.backend_refs),
        timeout_ms=milliseconds(spec.timeouts.request or defaults.timeout),
        try_timeout_ms=milliseconds(spec.timeouts.backend_request) if spec.timeouts.backend_request else 0,
        idle_timeout_ms=milliseconds(spec.timeouts.idle) if spec.timeouts.idle else 0,
        retry=_default_retry(defaults.retry) if spec.retry is None else _retry(spec.retry),
        fault=_fault(spec.fault) if spec.fault else None,
        sticky=_sticky(spec.session_persistence) if spec.session_persistence else None,
        **filter_fields(spec.filters, wanted.backend_name),
    )


def _weighted(ref: intents.BackendRef, wanted: Routed) -> model.WeightedBackend:
    return model.WeightedBackend(backend=wanted.backend_name(ref), subset=ref.subset or "", weight=ref.weight)


def _at_port(spec: intents.RouteRule, port: int) -> tuple[intents.HTTPRouteMatch, ...]:
    return tuple(match for match in spec.matches if match.port in (None, port))


def _is_for(spec: intents.RouteRule, port: int) -> bool:
    """False for a rule whose every match is about other ports: at this one it takes nothing."""
    return not spec.matches or bool(_at_port(spec, port))


def _match(spec: intents.HTTPRouteMatch, namespace: str) -> model.Match:
    return model.Match(
        path=model.PathMatch(kind=_PATHS[spec.path.type], value=spec.path.value) if spec.path else None,
        method=spec.method or "",
        headers=tuple(header_match(header) for header in spec.headers),
        query=tuple(
            model.ValueMatch(name=param.name, kind=KINDS[param.type], value=param.value) for param in spec.query_params
        ),
        authority=_authority(spec.authority) if spec.authority else None,
        sources=tuple(source if "/" in source else f"{namespace}/{source}" for source in spec.sources),
    )


def _authority(spec: intents.AuthorityMatch) -> model.AuthorityMatch:
    kind: Literal["exact", "prefix", "regex"] = "exact"
    if spec.type != "Exact":
        kind = "prefix" if spec.type == "Prefix" else "regex"
    return model.AuthorityMatch(kind=kind, value=spec.value)


def header_match(spec: intents.HTTPHeaderMatch) -> model.ValueMatch:
    return model.ValueMatch(name=spec.name.lower(), kind=KINDS[spec.type], value=spec.value)


def _sticky(spec: intents.SessionPersistence) -> model.Sticky:
    if spec.type == "Header":
        return model.Sticky(header=spec.name.lower())
    ttl = -1 if spec.ttl is None else milliseconds(spec.ttl) // 1000
    return model.Sticky(cookie=spec.name, cookie_ttl_s=ttl)


def _retry(spec: intents.RouteRetry) -> model.Retry | None:
    if spec.attempts == 0:
        return None
    return model.Retry(
        attempts=spec.attempts,
        retry_on=tuple(sorted(spec.retry_on)),
        backoff_ms=milliseconds(spec.backoff),
        budget_percent=spec.budget_percent,
        statuses=tuple(sorted(spec.status_codes)),
        any_method=spec.any_method,
    )


def _fault(spec: intents.FaultInjection) -> model.Fault:
    return model.Fault(
        delay_ms=milliseconds(spec.delay.duration) if spec.delay else 0,
        delay_percent=spec.delay.percentage if spec.delay else 0.0,
        abort_status=spec.abort.status if spec.abort else 0,
        abort_percent=spec.abort.percentage if spec.abort else 0.0,
    )


def backend_part(service: Service, port: ServicePort, document: Document | None, facts: Index) -> model.Backend:
    spec = document.spec if document and isinstance(document.spec, intents.BackendSpec) else None
    external = _external(service.key, port.port, facts.externals.get(service.key))
    if spec is None:
        plain = external is not None or facts.mesh.defaults.mtls == "DISABLE"
        tls: Literal["mesh", "disable"] = "disable" if plain else "mesh"
        return model.Backend(service=service.key, port=port.port, protocol=port.protocol, tls=tls, external=external)
    disabled = external is not None or spec.tls.mode == "DISABLE" or facts.mesh.defaults.mtls == "DISABLE"
    return model.Backend(
        service=service.key,
        port=port.port,
        protocol=port.protocol,
        subsets=tuple(
            model.Subset(name=subset.name, labels=tuple(sorted(subset.labels.items())))
            for subset in sorted(spec.subsets, key=lambda subset: subset.name)
        ),
        balance=_BALANCE[spec.load_balancing.policy],
        connect_timeout_ms=milliseconds(spec.connections.connect_timeout),
        max_connections=spec.connections.max_connections,
        max_requests=spec.connections.max_requests,
        hash_on=_hash_on(spec.load_balancing.hash_on) if spec.load_balancing.hash_on else None,
        slow_start_ms=milliseconds(spec.load_balancing.slow_start),
        same_zone_first=spec.load_balancing.same_zone_first,
        outlier=_outlier(spec.outlier_detection) if spec.outlier_detection else None,
        health=_health(spec.health_check) if spec.health_check else None,
        tls="disable" if disabled else "mesh",
        external=external,
    )


def _external(host: str, port: int, document: Document | None) -> model.External | None:
    spec = document.spec if document else None
    if not isinstance(spec, intents.ExternalServiceSpec):
        return None
    if spec.tls is None:
        return model.External(host=host, port=port)
    tls = model.OriginTls(
        sni=spec.tls.sni or host, names=spec.tls.subject_alt_names, ca=pem_of(spec.tls.ca_certificates)
    )
    return model.External(host=host, port=spec.tls.port, tls=tls)


def _hash_on(spec: intents.HashOn) -> model.HashOn:
    name = spec.name.lower() if spec.type == "Header" else spec.name
    return model.HashOn(kind=_HASHES[spec.type], name=name)


def _outlier(spec: intents.OutlierDetection) -> model.Outlier:
    return model.Outlier(
        consecutive_5xx=spec.consecutive_5xx,
        consecutive_gateway=spec.consecutive_gateway_errors,
        consecutive_local=spec.consecutive_local_failures,
        base_ms=milliseconds(spec.base_ejection_time),
        max_ms=milliseconds(spec.max_ejection_time),
        max_percent=spec.max_ejection_percent,
    )


def _health(spec: intents.ActiveHealthCheck) -> model.HealthCheck:
    return model.HealthCheck(
        path=spec.path,
        interval_ms=milliseconds(spec.interval),
        timeout_ms=milliseconds(spec.timeout),
        unhealthy=spec.unhealthy_threshold,
        healthy=spec.healthy_threshold,
    )
