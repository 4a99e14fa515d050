"""Authentication and Authorization -> what a workload's own proxy accepts."""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from backstay.config import model
from backstay.core import intents
from backstay.core.compile.facts import Index
from backstay.core.compile.gateway import listener_parts
from backstay.core.compile.outbound import header_match
from backstay.core.registry import Workload
from backstay.core.snapshot import Document

_MODES: dict[str, Literal["permissive", "strict", "disable"]] = {
    "PERMISSIVE": "permissive",
    "STRICT": "strict",
    "DISABLE": "disable",
}
_ACTIONS: dict[str, Literal["allow", "deny", "audit"]] = {"Allow": "allow", "Deny": "deny", "Audit": "audit"}
_CLIENT_CERTS: dict[
    intents.ForwardClientCert, Literal["append_forward", "sanitize_set", "forward_only", "sanitize"]
] = {
    "APPEND_FORWARD": "append_forward",
    "SANITIZE_SET": "sanitize_set",
    "FORWARD_ONLY": "forward_only",
    "SANITIZE": "sanitize",
}
_LOGS: dict[str, Literal["off", "failures", "all"]] = {"none": "off", "failures": "failures", "all": "all"}


def listeners_part(workload: Workload, document: Document | None, facts: Index) -> model.Listeners:
    spec = document.spec if document and isinstance(document.spec, intents.AuthenticationSpec) else None
    mode = spec.mtls.mode if spec else facts.mesh.defaults.mtls
    by_port = {item.port: item.mode for item in spec.mtls.ports} if spec else {}
    log, tracing = telemetry_of(workload.key, facts.mesh)
    return model.Listeners(
        namespace=workload.namespace,
        identity=workload.identity(facts.mesh.trust_domain),
        trust_domain=facts.mesh.trust_domain,
        inbound=tuple(
            model.InboundPort(port=port, protocol=protocol, mtls=_MODES[by_port.get(port, mode)])
            for port, protocol in sorted(workload.ports)
        ),
        other_ports=_MODES[mode],
        egress="allow_any" if facts.mesh.egress == "ALLOW_ANY" else "registry_only",
        egress_hosts=facts.egress_hosts if facts.mesh.egress == "REGISTRY_ONLY" else (),
        access_log=_LOGS[log.mode],
        log_percent=log.sampling if log.mode == "all" else 100.0,
        tracing=_tracing(tracing) if tracing else None,
        gateway=listener_parts(facts.gateways.get(workload.key, ())),
        trusted_hops=facts.mesh.trusted_hops,
        jwt=_jwt(spec.jwt) if spec and spec.jwt else None,
        client_cert=_CLIENT_CERTS[spec.forward_client_cert] if spec else "append_forward",
        engine=engine_of(workload.key, facts.mesh),
    )


def engine_of(workload: str, mesh: intents.MeshSpec) -> Literal["", "python", "envoy"]:
    """What the documents say of a workload's engine; empty: nothing."""
    return _nearest(workload, ((entry.workloads, entry.engine) for entry in mesh.engines)) or mesh.engine or ""


def telemetry_of(workload: str, mesh: intents.MeshSpec) -> tuple[intents.AccessLog, intents.MeshTracing | None]:
    """What is logged and traced of a workload."""
    logs = ((entry.workloads, entry.access_log) for entry in mesh.telemetry)
    traces = ((entry.workloads, entry.tracing) for entry in mesh.telemetry)
    return _nearest(workload, logs) or mesh.access_log, _nearest(workload, traces) or mesh.tracing


_Said = TypeVar("_Said")


def _nearest(workload: str, entries: Iterable[tuple[Sequence[str], _Said | None]]) -> _Said | None:
    """The first that names the workload, else the first that names its namespace; entries that say nothing do not count."""
    said = [(names, value) for names, value in entries if value is not None]
    everybody = f"{workload.partition('/')[0]}/*"
    return next((value for name in (workload, everybody) for names, value in said if name in names), None)


def _jwt(spec: intents.JwtRules) -> model.Jwt:
    return model.Jwt(
        providers=tuple(_provider(provider) for provider in spec.providers),
        required=spec.required,
        not_required=spec.not_required,
    )


def _provider(spec: intents.JwtProvider) -> model.JwtProvider:
    headers = [
        model.TokenPlace(kind="header", name=item.name.lower(), prefix=item.prefix) for item in spec.from_headers
    ]
    params = [model.TokenPlace(kind="query", name=name) for name in spec.from_params]
    cookies = [model.TokenPlace(kind="cookie", name=name) for name in spec.from_cookies]
    return model.JwtProvider(
        issuer=spec.issuer,
        audiences=spec.audiences,
        jwks=spec.jwks,
        jwks_uri=spec.jwks_uri,
        places=(*headers, *params, *cookies) or model.BEARER,
        forward=spec.forward_original_token,
        claim_headers=tuple((item.header.lower(), item.claim) for item in spec.output_claim_to_headers),
    )


def key_addresses(documents: Iterable[Document]) -> frozenset[str]:
    """Where the key sets are that any of these documents names."""
    specs = (document.spec for document in documents)
    rules = [spec.jwt for spec in specs if isinstance(spec, intents.AuthenticationSpec) and spec.jwt is not None]
    return frozenset(provider.jwks_uri for jwt in rules for provider in jwt.providers if provider.jwks_uri)


def _tracing(spec: intents.MeshTracing) -> model.Tracing:
    return model.Tracing(endpoint=spec.endpoint, percent=spec.sampling, b3="b3" in spec.propagation)


def authorization_part(documents: Sequence[Document], facts: Index) -> model.Authorization:
    return model.Authorization(policies=tuple(_policy(document, facts.mesh.trust_domain) for document in documents))


def _policy(document: Document, trust_domain: str) -> model.Policy:
    spec = document.spec
    if not isinstance(spec, intents.AuthorizationSpec):
        raise TypeError(f"{document.key} is not an Authorization")
    namespace = document.metadata.namespace
    return model.Policy(
        name=f"{namespace}/{document.metadata.name}",
        action=_ACTIONS[spec.action],
        rules=tuple(
            model.PolicyRule(
                sources=tuple(_source(source, namespace, trust_domain) for source in rule.from_),
                operations=tuple(_operation(operation) for operation in rule.to),
            )
            for rule in spec.rules
        ),
    )


def _source(spec: intents.AuthorizationSource, namespace: str, trust_domain: str) -> model.Source:
    def principals(accounts: Sequence[str]) -> tuple[str, ...]:
        return tuple(_principal(account, namespace, trust_domain) for account in accounts)

    return model.Source(
        principals=(*spec.principals, *principals(spec.service_accounts)),
        namespaces=spec.namespaces,
        not_principals=(*spec.not_principals, *principals(spec.not_service_accounts)),
        not_namespaces=spec.not_namespaces,
        ip_blocks=spec.ip_blocks,
        not_ip_blocks=spec.not_ip_blocks,
        remote_ip_blocks=spec.remote_ip_blocks,
        not_remote_ip_blocks=spec.not_remote_ip_blocks,
        request_principals=spec.request_principals,
        not_request_principals=spec.not_request_principals,
        claims=tuple(
            model.ClaimMatch(name=claim.name, values=claim.values, not_values=claim.not_values) for claim in spec.claims
        ),
    )


def _principal(account: str, namespace: str, trust_domain: str) -> str:
    owner, _, name = account.rpartition("/")
    return f"spiffe://{trust_domain}/ns/{owner or namespace}/sa/{name}"


def _operation(spec: intents.AuthorizationOperation) -> model.Operation:
    return model.Operation(
        methods=spec.methods,
        paths=spec.paths,
        headers=tuple(header_match(header) for header in spec.headers),
        ports=spec.ports,
        hosts=spec.hosts,
        not_methods=spec.not_methods,
        not_paths=spec.not_paths,
        not_ports=spec.not_ports,
        not_hosts=spec.not_hosts,
    )
