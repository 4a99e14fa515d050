"""Authorization sets as Envoy's RBAC filters: one that denies, one that allows, one that only looks. Pure.

Rule: as in config/authorize.py, deny policies decide first, then allow policies, and a caller without identity matches no
source that names one. Ports are settled here, because Envoy would compare the port that the proxy listens on.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Final

from backstay.config.authorize import operation_reads_requests, reads_requests
from backstay.config.match import aliases
from backstay.config.model import Authorization, Operation, Policy, PolicyRule, Source
from backstay.config.wire import RefusalExpected
from backstay.sidecar.engines.envoy import tokens
from backstay.sidecar.engines.envoy.api import Json, exactly, message, whole
from backstay.sidecar.engines.envoy.matching import header_matchers

DENY: Final = "backstay.deny"
ALLOW: Final = "backstay.allow"
AUDIT: Final = "backstay.audit"
EXPECTED: Final = "backstay.expected"
"""Names of the filters; the last two only look. A route carries the rules of its config for each."""
EXPECTED_BY: Final = "expected_shadow_effective_policy_id"
"""Key of the metadata that says which announced refusal a request would be."""
METADATA: Final = "envoy.filters.http.rbac"
REVOKED: Final = "revoked"
UNREAD: Final = "unread-address"
_ODD_ADDRESS: Final = r"([0-9.]+:[0-9]*|\[[^,]*|[0:]*:[fF]{4}:[0-9a-fA-F.:]+)"
"""An address with a port, or IPv4 written as IPv6: for the other engine they are addresses."""
_HTTP: Final = "envoy.extensions.filters.http.rbac.v3."
_NETWORK: Final = "envoy.extensions.filters.network.rbac.v3.RBAC"
_ANY: Final[Json] = {"any": True}
_AUTHENTICATED: Final[Json] = {"authenticated": {}}


def http_rules(
    authorization: Authorization, revoked: Sequence[str], port: int, issuers: Sequence[str] = (), hops: int = 0
) -> dict[str, Json]:
    """What the routes of one inbound port say to the filters, by filter name. `issuers`: whose tokens are believed; `hops`:
    how many addresses at the end of X-Forwarded-For are of proxies that are trusted."""
    policies = authorization.policies
    denied = _compiled(policies, "deny", port, issuers) | _revoked(revoked) | _unread(policies, hops)
    found = {DENY: _per_route("DENY", denied)} if denied else {}
    if any(policy.action == "allow" for policy in policies):
        found[ALLOW] = _per_route("ALLOW", _compiled(policies, "allow", port, issuers))
    audited = _compiled(policies, "audit", port, issuers)
    if audited:
        shadow = {"shadow_rules": {"action": "ALLOW", "policies": audited}, "shadow_rules_stat_prefix": "audit_"}
        found[AUDIT] = message(f"{_HTTP}RBACPerRoute", rbac=shadow)
    return found


def expected_rules(expected: Sequence[RefusalExpected]) -> dict[str, Json]:
    """Which requests a document wants refused (`rollout.expectRefused`): looked at before anything refuses."""
    if not expected:
        return {}
    policies = {f"expected#{index}": _expected(entry) for index, entry in enumerate(expected)}
    shadow = {"shadow_rules": {"action": "ALLOW", "policies": policies}, "shadow_rules_stat_prefix": "expected_"}
    return {EXPECTED: message(f"{_HTTP}RBACPerRoute", rbac=shadow)}


def _expected(entry: RefusalExpected) -> Json:
    wanted = [_path(entry.path)] if entry.path else []
    if entry.host:
        spellings = dict.fromkeys((entry.host, *aliases(entry.host, entry.host.partition(".")[2])))
        wanted.append(_or("rules", [_host(name) for name in spellings]))
    is_identity = "://" in entry.source
    source = _principal(entry.source) if is_identity else {"direct_remote_ip": _block(entry.source)}
    return {"permissions": [_and("rules", wanted)], "principals": [source]}


def expected_filter() -> Json:
    return {"name": EXPECTED, "typed_config": message(f"{_HTTP}RBAC")}


def http_filters() -> list[Json]:
    """The filters, without rules of their own: without a route's they let everything pass."""
    return [{"name": name, "typed_config": message(f"{_HTTP}RBAC")} for name in (AUDIT, DENY, ALLOW)]


def network_filters(authorization: Authorization, revoked: Sequence[str], port: int) -> list[Json]:
    """For connections whose requests nobody reads. Fails closed: what cannot be seen matches a deny rule, and no allow rule."""
    policies = authorization.policies
    denied = _seen_blindly(policies, "deny", port, unseen_matches=True) | _revoked(revoked)
    filters = [_network_filter(DENY, "DENY", denied)] if denied else []
    if any(policy.action == "allow" for policy in policies):
        allowed = _seen_blindly(policies, "allow", port, unseen_matches=False)
        filters.append(_network_filter(ALLOW, "ALLOW", allowed))
    return filters


def cut_off(revoked: Sequence[str]) -> list[Json]:
    """A filter that lets no revoked identity open a connection."""
    return [_network_filter(REVOKED, "DENY", _revoked(revoked))] if revoked else []


def _network_filter(name: str, action: str, policies: Json) -> Json:
    rules = {"action": action, "policies": policies}
    return {"name": name, "typed_config": message(_NETWORK, stat_prefix=name, rules=rules)}


def _per_route(action: str, policies: Json) -> Json:
    return message(f"{_HTTP}RBACPerRoute", rbac={"rules": {"action": action, "policies": policies}})


def _revoked(identities: Sequence[str]) -> Json:
    if not identities:
        return {}
    return {REVOKED: {"permissions": [_ANY], "principals": [_principal(identity) for identity in sorted(identities)]}}


def _unread(policies: Sequence[Policy], hops: int) -> Json:
    """Where addresses of callers are judged, one that Envoy does not read is refused: it would judge the last proxy's, and let
    in whom a rule denies."""
    sources = [source for policy in policies for rule in policy.rules for source in rule.sources]
    if not any(source.remote_ip_blocks or source.not_remote_ip_blocks for source in sources):
        return {}
    counting = whole(rf"(.*,)?[ \t]*{_ODD_ADDRESS}[ \t]*(,[^,]*){{{hops}}}")
    odd = {"header": {"name": "x-forwarded-for", "string_match": counting}}
    return {UNREAD: {"permissions": [odd], "principals": [_ANY]}}


def _rules(policies: Sequence[Policy], action: str) -> Iterable[tuple[str, PolicyRule]]:
    for policy in policies:
        if policy.action == action:
            for index, rule in enumerate(policy.rules):
                yield f"{policy.name}#{index}", rule


def _compiled(policies: Sequence[Policy], action: str, port: int, issuers: Sequence[str]) -> Json:
    found: Json = {}
    for name, rule in _rules(policies, action):
        asked = [_operation(operation) for operation in rule.operations if _is_about(operation, port)]
        permissions = [permission for permission in asked if permission is not None] if rule.operations else [_ANY]
        if permissions:
            found[name] = {"permissions": permissions, "principals": _principals(rule, issuers)}
    return found


def _seen_blindly(policies: Sequence[Policy], action: str, port: int, *, unseen_matches: bool) -> Json:
    found: Json = {}
    for name, rule in _rules(policies, action):
        asked = [operation for operation in rule.operations if _is_about(operation, port)]
        takes = not rule.operations or any(unseen_matches or not operation_reads_requests(each) for each in asked)
        seen = [source for source in rule.sources if unseen_matches or not reads_requests(source)]
        if takes and (seen or not rule.sources):
            found[name] = {"permissions": [_ANY], "principals": [_peer(source) for source in seen] or [_ANY]}
    return found


def _is_about(operation: Operation, port: int) -> bool:
    return (not operation.ports or port in operation.ports) and port not in operation.not_ports


def _operation(operation: Operation) -> Json | None:
    """None for what no request can be."""
    headers = header_matchers(operation.headers)
    if headers is None:
        return None
    wanted = [{"header": header} for header in headers]
    if operation.methods:
        methods = [{"header": {"name": ":method", "string_match": exactly(method)}} for method in operation.methods]
        wanted.append(_or("rules", methods))
    if operation.paths:
        wanted.append(_or("rules", [_path(pattern) for pattern in operation.paths]))
    if operation.hosts:
        wanted.append(_or("rules", [_host(pattern) for pattern in operation.hosts]))
    unwanted = [{"header": {"name": ":method", "string_match": exactly(method)}} for method in operation.not_methods]
    unwanted += [_path(pattern) for pattern in operation.not_paths]
    unwanted += [_host(pattern) for pattern in operation.not_hosts]
    return _and("rules", wanted + [{"not_rule": each} for each in unwanted])


def _host(pattern: str) -> Json:
    """The host of an authority, in lower case, without its port and without a dot at its end."""
    name = "".join(".*" if part == "*" else re.escape(part.lower()) for part in re.split(r"(\*)", pattern))
    return {"header": {"name": ":authority", "string_match": whole(rf"(?i){name}\.?(:[0-9]+)?")}}


def _path(pattern: str) -> Json:
    if pattern == "*":
        return _ANY
    if pattern.endswith("*"):
        return {"url_path": {"path": {"prefix": pattern[:-1]}}}
    if pattern.startswith("*"):
        return {"url_path": {"path": {"suffix": pattern[1:]}}}
    return {"url_path": {"path": exactly(pattern)}}


def _principals(rule: PolicyRule, issuers: Sequence[str]) -> list[Json]:
    return [_source(source, issuers) for source in rule.sources] or [_ANY]


def _source(source: Source, issuers: Sequence[str]) -> Json:
    wanted = [*_wanted_of_peer(source), *_wanted_of_token(source, issuers)]
    if source.remote_ip_blocks:
        wanted.append(_or("ids", [{"remote_ip": _block(block)} for block in source.remote_ip_blocks]))
    wanted += [{"not_id": {"remote_ip": _block(block)}} for block in source.not_remote_ip_blocks]
    return _and("ids", wanted)


def _peer(source: Source) -> Json:
    """What of a source can be seen of a connection."""
    return _and("ids", _wanted_of_peer(source))


def _wanted_of_peer(source: Source) -> list[Json]:
    wanted = []
    if source.principals:
        wanted.append(_or("ids", [_principal(pattern) for pattern in source.principals]))
    if source.namespaces:
        wanted.append(_or("ids", [_namespace(pattern) for pattern in source.namespaces]))
    wanted += [{"not_id": _principal(pattern)} for pattern in source.not_principals]
    wanted += [{"not_id": _namespace(pattern)} for pattern in source.not_namespaces]
    if source.ip_blocks:
        wanted.append(_or("ids", [{"direct_remote_ip": _block(block)} for block in source.ip_blocks]))
    return [*wanted, *({"not_id": {"direct_remote_ip": _block(block)}} for block in source.not_ip_blocks)]


def _wanted_of_token(source: Source, issuers: Sequence[str]) -> list[Json]:
    """A caller whose token nobody has issued is none of those that are asked for."""
    wanted = []
    if source.request_principals:
        found = [each for pattern in source.request_principals for each in tokens.principal(pattern, issuers)]
        wanted.append(_or("ids", found) if found else {"not_id": _ANY})
    unwanted = [each for pattern in source.not_request_principals for each in tokens.principal(pattern, issuers)]
    return [*wanted, *({"not_id": each} for each in unwanted), *map(tokens.claim, source.claims)]


def _block(cidr: str) -> Json:
    network = ip_network(cidr, strict=False)
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}


def _principal(pattern: str) -> Json:
    if pattern == "*":
        return _AUTHENTICATED
    matcher = {"prefix": pattern[:-1]} if pattern.endswith("*") else exactly(pattern)
    return {"authenticated": {"principal_name": matcher}}


def _namespace(pattern: str) -> Json:
    """Kubernetes' names of namespaces need no escape in a pattern."""
    name = pattern[:-1] + "[^/]*" if pattern.endswith("*") else pattern
    if pattern == "*":
        name = "[^/]+"
    return {"authenticated": {"principal_name": whole(f"spiffe://[^/]+/ns/{name}/sa/.*")}}


def _and(field: str, wanted: list[Json]) -> Json:
    if not wanted:
        return _ANY
    return wanted[0] if len(wanted) == 1 else {f"and_{field}": {field: wanted}}


def _or(field: str, wanted: list[Json]) -> Json:
    return wanted[0] if len(wanted) == 1 else {f"or_{field}": {field: wanted}}
