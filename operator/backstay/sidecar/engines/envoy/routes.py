"""Routes of a config as Envoy's route configurations: one virtual host for each host, one route for each alternative. Pure.

Every route carries the name under which its requests are counted (`names.py`), those that only refuse as well.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from backstay.config.match import RouteTable
from backstay.config.model import Backend, HashOn, HostRoutes, Match, Mirror, Retry, Rule, Sticky, WeightedBackend
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.envoy import actions
from backstay.sidecar.engines.envoy.api import Json, exactly, message, millis, percent, whole
from backstay.sidecar.engines.envoy.matching import alternatives, matched_prefix
from backstay.sidecar.engines.envoy.names import INNER, OUTSIDE, app_cluster, cluster_name, route_name

IDEMPOTENT: Final = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE"
"""RFC 9110, 9.2.2; as in the other engine."""
FAILOVERS: Final = 2
"""Tries at other endpoints after a failed connect that need no retry policy, as in the other engine."""
BACKOFF_CAP: Final = 10  # times the base
UNDELIVERED: Final = "x-backstay-undelivered"
"""What the other engine's proxies tell each other. Applications must neither say nor hear it."""
UNKNOWN_ROUTE: Final = "#"
_ASKED_METHOD: Final = "access-control-request-method"
_ROUTE_CONFIGURATION: Final = "envoy.config.route.v3.RouteConfiguration"
_REPEATS_CONNECTS: Final = {"connect-failure", "gateway-error", "5xx"}
"""Conditions that take in a connect that failed."""
_CONDITIONS: Final = {
    "reset-before-request": ("reset",),
    "gateway-error": ("gateway-error", "unavailable"),
    "5xx": ("5xx", "unavailable", "internal"),
}
"""Our reset is a connection that died before any byte of the answer; Envoy's `reset-before-request` is one that died before the
request was sent. gRPC says with 200 what HTTP says with 503 and 500."""


class Shop:
    """What routes refer to: backends by key, of whose requests this is, and the slot of the config."""

    def __init__(self, backends: Mapping[str, Backend], namespace: str, workload: str, slot: int) -> None:
        self.backends = backends
        self.namespace = namespace
        self.workload = workload
        self.slot = slot

    def name(self, route: str, reason: str = "") -> str:
        return route_name(self.slot, route, reason)

    def cluster(self, backend: str, subset: str, route: str) -> str:
        """Raises ContentRefused for a backend or subset that the config does not hold."""
        known = self.backends.get(backend)
        if known is None:
            raise ContentRefused("MissingBackend", f"{route} sends to {backend!r}, which is not in this config")
        if subset and not any(each.name == subset for each in known.subsets):
            raise ContentRefused(
                "UnknownSubset", f"{route} sends to subset {subset!r}, which {known.key} does not define"
            )
        return cluster_name(backend, subset)


# --- route configurations ------------------------------------------------------------------------------------------


def configuration(name: str, hosts: Sequence[Json], *, any_port: bool = False, removed: Sequence[str] = ()) -> Json:
    """`any_port`: what a request says of the port in its Host counts for nothing; `removed`: fields that are for routes only."""
    return message(
        _ROUTE_CONFIGURATION,
        name=name,
        virtual_hosts=list(hosts),
        response_headers_to_remove=[UNDELIVERED],
        max_direct_response_body_size_bytes=1024 * 1024,
        ignore_port_in_host_matching=any_port,
        **({"request_headers_to_remove": list(removed)} if removed else {}),
    )


def mesh_hosts(tables: Sequence[RouteTable], shop: Shop) -> list[Json]:
    """Virtual hosts of what the mesh routes, each under all its spellings. A spelling belongs to one host: exact names come
    first, so that a name of the user's own never loses against a short spelling of another (HostTable)."""
    taken: dict[str, RouteTable] = {}
    for table in tables:
        for name in (*table.names, *table.wild):
            taken.setdefault(name.decode(), table)
    for table in tables:
        for alias in table.aliases:
            taken.setdefault(alias.decode(), table)
    domains: dict[str, list[str]] = {table.key: [] for table in tables}
    for authority, table in taken.items():
        domains[table.key] += spellings(authority)
    return [virtual_host(table.routes, domains[table.key], shop) for table in tables if domains[table.key]]


def spellings(authority: str) -> list[str]:
    """The domains that Envoy compares for an authority; a name may end in a dot."""
    name, colon, port = authority.partition(":")
    if name.startswith("*"):
        return [authority] if name == "*" else [authority, f"{name}.{colon}{port}"]
    return [authority, f"{name}.{colon}{port}"]


def virtual_host(routes: HostRoutes, domains: Sequence[str], shop: Shop) -> Json:
    every = [route for rule in routes.rules for route in rule_routes(routes, rule, shop)]
    # One domain `*` takes all others in: Envoy wants it alone.
    named = ["*"] if "*" in domains else list(domains)
    return {"name": routes.key, "domains": named, "routes": [*every, no_route(f"{routes.key}#", shop)]}


def fixed_host(routes: HostRoutes, shop: Shop) -> Json:
    """The one host behind a port that is about no other."""
    return virtual_host(routes, ["*"], shop)


def refusing_host(status: int, reason: str, shop: Shop, route: str = UNKNOWN_ROUTE) -> Json:
    """For every host that is not known."""
    answer = {"name": shop.name(route, reason), "direct_response": _said(status, reason)}
    matches: list[Json] = [{"connect_matcher": {}}, {"prefix": "/"}]
    return {"name": "unknown", "domains": ["*"], "routes": [answer | {"match": match} for match in matches]}


def outside_host(shop: Shop) -> Json:
    """Hosts that the mesh does not know are asked by their name."""
    onward = {"cluster": OUTSIDE, "timeout": "0s"}
    plain = {"match": {"prefix": "/"}, "name": shop.name(UNKNOWN_ROUTE), "route": onward}
    connect = {
        "match": {"connect_matcher": {}},
        "name": shop.name(UNKNOWN_ROUTE),
        "route": {**onward, "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }
    return {"name": "unknown", "domains": ["*"], "routes": [connect, plain]}


def loops(ports: Iterable[int], taken: Collection[str], shop: Shop) -> list[Json]:
    """Requests to this proxy for itself, but for names that the mesh routes."""
    named = [f"{name}:{port}" for port in ports for name in ("127.0.0.1", "localhost", "[::1]")]
    domains = [name for name in named if name not in taken]
    answer = {"name": shop.name(UNKNOWN_ROUTE, "loop"), "direct_response": _said(508, "loop")}
    matches: list[Json] = [{"connect_matcher": {}}, {"prefix": "/"}]
    found = {"name": "loop", "domains": domains, "routes": [answer | {"match": match} for match in matches]}
    return [found] if domains else []


def let_out(hosts: Sequence[str], taken: Iterable[str], shop: Shop) -> list[Json]:
    """Hosts that a closed mesh lets out all the same, but for names that it routes."""
    domains = [name for host in hosts for name in _outside_names(host)]
    free = [name for name in dict.fromkeys(domains) if name not in set(taken)]
    return [outside_host(shop) | {"name": "let-out", "domains": free}] if free else []


def _outside_names(host: str) -> list[str]:
    """`host:port`; a request for port 80 need not say so."""
    name, _, port = host.rpartition(":")
    return [host, name] if port == "80" else [host]


def application_host(port: int, rules: Mapping[str, Json], shop: Shop) -> Json:
    """Everything that comes in for one port of the application. The caller's proxy owns the time limit."""
    route = {"match": {"prefix": "/"}, "name": shop.name(f"inbound:{port}")}
    action = {"cluster": app_cluster(port), "timeout": "0s", "retry_policy": failover(0) | {"num_retries": 1}}
    found: Json = {"name": "application", "domains": ["*"], "routes": [route | {"route": action}]}
    if rules:
        found["typed_per_filter_config"] = dict(rules)
    return found


def tunnel(targets: Sequence[tuple[str, int]]) -> Json:
    """What CONNECT to a host of the mesh leads to: a TCP backend, or back here to be read as HTTP. It is counted there."""
    action = targets_action(targets or [(INNER, 1)])
    upgrade = {"upgrade_type": "CONNECT", "connect_config": {}}
    return {"match": {"connect_matcher": {}}, "route": action | {"timeout": "0s", "upgrade_configs": [upgrade]}}


def not_ready() -> Json:
    """Before the first config."""
    answer = {"match": {"prefix": "/"}, "direct_response": _said(503, "not-ready")}
    return {"name": "none", "domains": ["*"], "routes": [answer]}


def no_route(route: str, shop: Shop) -> Json:
    return {"match": {"prefix": "/"}, "name": shop.name(route, "no-route"), "direct_response": _said(404, "no-route")}


def _said(status: int, reason: str) -> Json:
    return {"status": status, "body": {"inline_string": f"{reason}\n"}}


# --- one rule ------------------------------------------------------------------------------------------------------


def rule_routes(routes: HostRoutes, rule: Rule, shop: Shop) -> list[Json]:
    route = f"{routes.key}#{rule.name}"
    return [
        {"name": shop.name(route)} | made
        for match, rendered in alternatives(rule, shop.workload)
        for made in _by_origin(rule, match, rendered, route, shop)
    ]


def _by_origin(rule: Rule, match: Match, rendered: Json, route: str, shop: Shop) -> list[Json]:
    """Questions of browsers are answered before anything else is done; answers to known origins say who may read them."""
    ordinary = _answers(rule, match, rendered, route, shop, {})
    if rule.cors is None or not rule.cors.origins:
        return ordinary
    origin = actions.known_origin(rule.cors)
    asks = [
        {"name": ":method", "string_match": exactly("OPTIONS")},
        {"name": _ASKED_METHOD, "string_match": whole(".+")},
    ]
    question = actions.preflight(rule.cors) | {"match": _narrowed(rendered, origin, *asks)}
    known = _answers(rule, match, _narrowed(rendered, origin), route, shop, actions.shared(rule.cors))
    return [question, *known, *ordinary]


def _narrowed(match: Json, *headers: Json) -> Json:
    return match | {"headers": [*match.get("headers", ()), *headers]}


def _answers(rule: Rule, match: Match, rendered: Json, route: str, shop: Shop, shared: Json) -> list[Json]:
    """What becomes of requests that this match takes: one Envoy route, or two where methods are retried differently."""
    common: Json = actions.merged({"match": rendered}, shared, actions.edits(rule))
    own = actions.filters(rule, route)
    if own:
        common["typed_per_filter_config"] = own
    prefix = matched_prefix(match)
    if rule.redirect is not None:
        return [actions.merged(actions.redirect(rule.redirect, prefix), common)]
    if rule.direct is not None:
        return [actions.merged(actions.direct(rule.direct), common)]
    if not any(target.weight > 0 for target in rule.backends):
        refused = {"name": shop.name(route, "no-backend"), "direct_response": _said(503, "no-backend")}
        return [actions.merged(refused, common)]
    action = _action(rule, prefix, route, shop)
    return [
        common | {"match": narrowed, "route": action | {"retry_policy": policy}}
        for narrowed, policy in _retried(rule, rendered)
    ]


def _action(rule: Rule, prefix: str, route: str, shop: Shop) -> Json:
    action = _targets(rule, route, shop)
    action["timeout"] = millis(rule.timeout_ms)
    if rule.idle_timeout_ms:
        action["idle_timeout"] = millis(rule.idle_timeout_ms)
    if rule.mirrors:
        action["request_mirror_policies"] = [_mirror(mirror, route, shop) for mirror in rule.mirrors]
    if rule.rewrite is not None:
        action |= actions.rewrite(rule.rewrite, prefix)
    hashes = hash_policies(rule, shop.backends)
    if hashes:
        action["hash_policy"] = hashes
    return action


def _targets(rule: Rule, route: str, shop: Shop) -> Json:
    every = [(shop.cluster(target.backend, target.subset, route), target.weight) for target in rule.backends]
    action = targets_action([(cluster, weight) for cluster, weight in every if weight > 0])
    if rule.sticky is not None and "weighted_clusters" in action:
        action["weighted_clusters"]["use_hash_policy"] = True
    return action


def targets_action(targets: Sequence[tuple[str, int]]) -> Json:
    """One cluster, or several by their weights."""
    if len(targets) == 1:
        return {"cluster": targets[0][0]}
    return {"weighted_clusters": {"clusters": [{"name": cluster, "weight": weight} for cluster, weight in targets]}}


def _mirror(mirror: Mirror, route: str, shop: Shop) -> Json:
    return {
        "cluster": shop.cluster(mirror.backend, mirror.subset, route),
        "runtime_fraction": {"default_value": percent(mirror.percent)},
        "disable_shadow_host_suffix_append": True,
    }


# --- retries -------------------------------------------------------------------------------------------------------


def _retried(rule: Rule, rendered: Json) -> list[tuple[Json, Json]]:
    """(match, retry policy) of a rule: methods that are not idempotent are repeated only while nothing was sent, unless the
    document says otherwise; Envoy has one policy for a route, so they get a route of their own."""
    retry, limit = rule.retry, rule.try_timeout_ms
    if retry is None or retry.attempts == 0:
        return [(rendered, failover(limit))]
    policy = retry_policy(retry, limit)
    if retry.any_method:
        return [(rendered, policy)]
    idempotent = {"name": ":method", "string_match": whole(IDEMPOTENT)}
    careful = _narrowed(rendered, idempotent)
    unsent = policy | {"retry_on": "connect-failure"} if _REPEATS_CONNECTS & {*retry.retry_on} else failover(limit)
    return [(careful, policy), (rendered, unsent)]


def failover(try_timeout_ms: int) -> Json:
    """A failed connect finds another endpoint without any policy: nothing had been sent."""
    policy: Json = {
        "retry_on": "connect-failure",
        "num_retries": FAILOVERS,
        "retry_host_predicate": [_previous_hosts()],
        "host_selection_retry_max_attempts": 3,
    }
    if try_timeout_ms:
        policy["per_try_timeout"] = millis(try_timeout_ms)
    return policy


def retry_policy(retry: Retry, try_timeout_ms: int) -> Json:
    base = max(retry.backoff_ms, 1)
    policy = failover(try_timeout_ms) | {
        "retry_on": ",".join(dict.fromkeys(each for name in retry.retry_on for each in _CONDITIONS.get(name, (name,)))),
        "num_retries": retry.attempts,
        "retry_back_off": {"base_interval": millis(base), "max_interval": millis(base * BACKOFF_CAP)},
    }
    if retry.statuses:
        policy["retriable_status_codes"] = list(retry.statuses)
    return policy


def _previous_hosts() -> Json:
    kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": message(kind)}


def budgets(routes: Iterable[HostRoutes]) -> dict[str, int]:
    """Backend -> the largest share of its requests that may be retries, over all rules that send to it."""
    found: dict[str, int] = {}
    for each in routes:
        for rule in each.rules:
            for target in rule.backends if rule.retry is not None else ():
                share = rule.retry.budget_percent if rule.retry is not None else 0
                found[target.backend] = max(found.get(target.backend, 0), share)
    return found


# --- hashes --------------------------------------------------------------------------------------------------------


def hash_policies(rule: Rule, backends: Mapping[str, Backend]) -> list[Json]:
    """By what a request is recognized: the rule's sticky shares first, else its first backend that hashes."""
    if rule.sticky is not None:
        return [_sticky(rule.sticky)]
    return next(([_hash_on(found)] for found in _hashes(rule.backends, backends)), [])


def _hashes(targets: Iterable[WeightedBackend], backends: Mapping[str, Backend]) -> Iterable[HashOn]:
    for target in targets:
        backend = backends.get(target.backend)
        if backend is not None and backend.hash_on is not None and backend.balance in ("ring_hash", "maglev"):
            yield backend.hash_on


def _sticky(sticky: Sticky) -> Json:
    if sticky.header:
        return {"header": {"header_name": sticky.header}}
    cookie: Json = {"name": sticky.cookie, "path": "/"}
    if sticky.cookie_ttl_s >= 0:
        cookie["ttl"] = f"{sticky.cookie_ttl_s}s"
    return {"cookie": cookie}


def _hash_on(wanted: HashOn) -> Json:
    match wanted.kind:
        case "header":
            return {"header": {"header_name": wanted.name}}
        case "cookie":
            return {"cookie": {"name": wanted.name}}
        case "query":
            return {"query_parameter": {"name": wanted.name}}
        case "source":
            return {"connection_properties": {"source_ip": True}}
