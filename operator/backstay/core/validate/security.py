"""Rules about Authentication and Authorization: policies that overlap, clash or do nothing."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from backstay.config.jwks import BadKeySet, read_key_set
from backstay.core.compile.index import selects
from backstay.core.guardrails import bad_expressions
from backstay.core.intents import AuthenticationSpec, AuthorizationSpec, BackendSpec, JwtProvider, Mtls
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Workload
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem, service_key
from backstay.core.validate.filters import is_forbidden


def overlapping_authentication(facts: Facts) -> Iterator[Problem]:
    """One policy for the whole namespace and one that names a workload may stand together: the narrower wins."""
    first: dict[str, tuple[Document, str]] = {}
    for document, spec in facts.of(AuthenticationSpec):
        for path, subject in _subjects(document, spec):
            earlier, place = first.setdefault(subject, (document, path))
            if (earlier, place) != (document, path):
                message = f"{subject} already has an Authentication in {earlier.place(place)}, expected one"
                yield problem(document, path, "AuthenticationOverlap", message)


def _subjects(document: Document, spec: AuthenticationSpec) -> Iterator[tuple[str, str]]:
    namespace = document.metadata.namespace
    if not spec.selector.workloads:
        yield "spec.selector", f"namespace {namespace!r}"
    for index, name in enumerate(spec.selector.workloads):
        yield f"spec.selector.workloads[{index}]", f"workload {f'{namespace}/{name}'!r}"


def duplicate_mtls_ports(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(AuthenticationSpec):
        first: dict[int, int] = {}
        for index, item in enumerate(spec.mtls.ports):
            earlier = first.setdefault(item.port, index)
            if earlier != index:
                place = document.place(f"spec.mtls.ports[{earlier}]")
                message = f"port {item.port} is already given in {place}, expected it once"
                yield problem(document, f"spec.mtls.ports[{index}].port", "DuplicatePort", message)


# --- callers without TLS against servers that insist on it ------------------------------------------------------------


def tls_conflicts(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        if spec.tls.mode == "DISABLE":
            insists = _insists(facts, service_key(spec.service, document))
            if insists:
                message = f"callers would not use TLS, but {insists} asks for it with STRICT; expected MESH here"
                yield problem(document, "spec.tls.mode", "TlsConflict", f"{message} or PERMISSIVE there")


def _insists(facts: Facts, service: str) -> str:
    """Where STRICT is asked of the service's workloads, "" where it is not or cannot be told without a registry."""
    if facts.registry is None:
        return _insists_in_namespace(facts, service.partition(".")[2])
    target = facts.registry.services.get(service)
    ports = [port.target_port for port in target.ports] if target else []
    for workload in facts.registry.workloads.values():
        if service in workload.services:
            document, mtls = _governing(facts, workload)
            if "STRICT" in {_mode(mtls, port) for port in ports}:
                return _place_of(facts, document)
    return ""


def _insists_in_namespace(facts: Facts, namespace: str) -> str:
    policies = [(d, spec) for d, spec in facts.of(AuthenticationSpec) if d.metadata.namespace == namespace]
    if not policies:
        return _place_of(facts, None) if facts.is_complete and facts.mesh.defaults.mtls == "STRICT" else ""
    if len(policies) > 1 or policies[0][1].selector.workloads or policies[0][1].mtls.ports:
        return ""
    return _place_of(facts, policies[0][0]) if policies[0][1].mtls.mode == "STRICT" else ""


def _governing(facts: Facts, workload: Workload) -> tuple[Document | None, Mtls]:
    """The policy that counts for a workload: one that names it, else its namespace's, else the mesh's default."""
    found: tuple[Document | None, Mtls] = (None, Mtls(mode=facts.mesh.defaults.mtls))
    for document, spec in facts.of(AuthenticationSpec):
        if selects(spec.selector, document.metadata.namespace, workload):
            if spec.selector.workloads:
                return document, spec.mtls
            found = (document, spec.mtls)
    return found


def _mode(mtls: Mtls, port: int) -> str:
    return next((item.mode for item in mtls.ports if item.port == port), mtls.mode)


def _place_of(facts: Facts, policy: Document | None) -> str:
    if policy is not None:
        return policy.place("spec.mtls")
    return facts.mesh_document.place("spec.defaults.mtls") if facts.mesh_document else "the mesh's default"


# --- authorization ----------------------------------------------------------------------------------------------------


def foreign_trust_domains(facts: Facts) -> Iterator[Problem]:
    if facts.mesh_document is None and not facts.is_complete:
        return
    own = facts.mesh.trust_domain
    for document, path, principal in _principals(facts):
        domain, slash, _ = principal.removeprefix("spiffe://").partition("/")
        is_own = domain == own if slash else own.startswith(domain.rstrip("*"))
        if not is_own:
            message = f"{principal!r} is of another trust domain, expected {own!r}: nobody in this mesh is called so"
            yield problem(document, path, "ForeignTrustDomain", message, Severity.WARNING)


def _principals(facts: Facts) -> Iterator[tuple[Document, str, str]]:
    for document, spec in facts.of(AuthorizationSpec):
        for number, rule in enumerate(spec.rules):
            for index, source in enumerate(rule.from_):
                path = f"spec.rules[{number}].from[{index}]"
                for place, principal in enumerate(source.principals):
                    yield document, f"{path}.principals[{place}]", principal
                for place, principal in enumerate(source.not_principals):
                    yield document, f"{path}.notPrincipals[{place}]", principal


def policies_without_effect(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(AuthorizationSpec):
        if spec.action != "Allow" and not spec.rules:
            message = f"{spec.action} without rules does nothing, expected rules; `- {{}}` is every request"
            yield problem(document, "spec.rules", "PolicyWithoutEffect", message, Severity.WARNING)


def bad_blocks(facts: Facts) -> Iterator[Problem]:
    """What looks like an address but is none (`10.0.0.256`, `10.0.0.0/33`), and blocks whose address lies inside of them."""
    for document, path, block in _blocks(facts):
        try:
            network = ip_network(block, strict=False)
        except ValueError:
            message = f"{block!r} is neither an address nor a block of addresses, expected 10.2.0.0/16 or 10.2.0.1"
            yield problem(document, path, "BadAddress", message)
            continue
        if not _is_start(block):
            message = f"{block!r} names an address within the block, expected {str(network)!r}: all of it is meant"
            yield problem(document, path, "AddressWithinBlock", message, Severity.WARNING)


def _is_start(block: str) -> bool:
    return ip_address(block.partition("/")[0]) == ip_network(block, strict=False).network_address


def _blocks(facts: Facts) -> Iterator[tuple[Document, str, str]]:
    for document, spec in facts.of(AuthorizationSpec):
        for number, rule in enumerate(spec.rules):
            for index, source in enumerate(rule.from_):
                path = f"spec.rules[{number}].from[{index}]"
                fields = {
                    "ipBlocks": source.ip_blocks,
                    "notIpBlocks": source.not_ip_blocks,
                    "remoteIpBlocks": source.remote_ip_blocks,
                    "notRemoteIpBlocks": source.not_remote_ip_blocks,
                }
                for name, blocks in fields.items():
                    for place, block in enumerate(blocks):
                        yield document, f"{path}.{name}[{place}]", block


# --- tokens -----------------------------------------------------------------------------------------------------------


def _providers(facts: Facts) -> Iterator[tuple[Document, str, JwtProvider]]:
    for document, spec in facts.of(AuthenticationSpec):
        for index, provider in enumerate(spec.jwt.providers if spec.jwt else ()):
            yield document, f"spec.jwt.providers[{index}]", provider


def key_sets(facts: Facts) -> Iterator[Problem]:
    """Every provider has its keys in one place, and what stands in the document can be used."""
    for document, path, provider in _providers(facts):
        if bool(provider.jwks) == bool(provider.jwks_uri):
            message = "expected either `jwks` or `jwksUri`: keys come from one place"
            yield problem(document, path, "JwksSource", message)
        elif provider.jwks:
            yield from _bad_keys(document, f"{path}.jwks", provider.jwks)


def _bad_keys(document: Document, path: str, text: str) -> Iterator[Problem]:
    try:
        found = read_key_set(text)
    except BadKeySet as error:
        yield problem(document, path, "BadKeySet", f"the key set cannot be used: {error}")
        return
    if not found.keys:
        why = f": {'; '.join(found.rejected)}" if found.rejected else ""
        yield problem(document, path, "BadKeySet", f"the key set has no key that could verify anything{why}")
        return
    for reason in found.rejected:
        yield problem(document, path, "KeyRejected", f"{reason}; it verifies nothing", Severity.WARNING)


def repeated_issuers(facts: Facts) -> Iterator[Problem]:
    """Tokens of one issuer are judged by one provider: a second one would never be asked."""
    for document, spec in facts.of(AuthenticationSpec):
        first: dict[str, int] = {}
        for index, provider in enumerate(spec.jwt.providers if spec.jwt else ()):
            earlier = first.setdefault(provider.issuer, index)
            if earlier != index:
                place = document.place(f"spec.jwt.providers[{earlier}]")
                message = f"issuer {provider.issuer!r} is already given in {place}, expected it once"
                yield problem(document, f"spec.jwt.providers[{index}].issuer", "RepeatedIssuer", message)


def claim_headers(facts: Facts) -> Iterator[Problem]:
    for document, path, provider in _providers(facts):
        for index, item in enumerate(provider.output_claim_to_headers):
            if is_forbidden(item.header):
                message = f"{item.header!r} is written by the proxy itself, expected another header"
                at = f"{path}.outputClaimToHeaders[{index}].header"
                yield problem(document, at, "ForbiddenHeader", message)


def plain_key_addresses(facts: Facts) -> Iterator[Problem]:
    for document, path, provider in _providers(facts):
        host = provider.jwks_uri.removeprefix("http://").partition("/")[0].rpartition(":")[0]
        if provider.jwks_uri.startswith("http://") and host not in ("127.0.0.1", "localhost"):
            message = "keys over http can be replaced on the way, and with them whom we believe; expected https"
            yield problem(document, f"{path}.jwksUri", "PlainKeyAddress", message, Severity.WARNING)


def conditions_without_tokens(facts: Facts) -> Iterator[Problem]:
    """Conditions on tokens where nobody verifies any: an Allow lets nobody in, a Deny refuses nobody."""
    with_tokens = {
        document.metadata.namespace for document, spec in facts.of(AuthenticationSpec) if spec.jwt is not None
    }
    for document, spec in facts.of(AuthorizationSpec):
        if document.metadata.namespace in with_tokens or not facts.is_complete:
            continue
        for number, rule in enumerate(spec.rules):
            for index, source in enumerate(rule.from_):
                if source.request_principals or source.claims or source.not_request_principals:
                    message = "asks for tokens, but no Authentication of this namespace has `jwt`: no request has one"
                    path = f"spec.rules[{number}].from[{index}]"
                    yield problem(document, path, "NobodyReadsTokens", message, Severity.WARNING)


# --- guardrails -------------------------------------------------------------------------------------------------------


def bad_guardrails(facts: Facts) -> Iterator[Problem]:
    """Conditions that are no CEL would be met by nothing, or by everything."""
    for document, path, why in bad_expressions(facts.documents):
        yield problem(document, path, "GuardrailExpression", why)
