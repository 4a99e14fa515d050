"""Rules about one Route: rules nobody reaches, weights, timeouts, retries, matches that never hold."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from backstay.core.durations import seconds
from backstay.core.intents import (
    AuthorizationSpec,
    HTTPHeaderMatch,
    HTTPPathMatch,
    HTTPQueryParamMatch,
    HTTPRouteMatch,
    RouteRule,
    RouteSpec,
)
from backstay.core.problems import Problem, Severity
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem, service_key
from backstay.core.validate.patterns import takes_whole

ValueMatch = HTTPHeaderMatch | HTTPQueryParamMatch


# --- matches ----------------------------------------------------------------------------------------------------------

_PATH: Final = re.compile(r"/[^\s?#]*")


def match_paths(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        for index, match in enumerate(rule.matches):
            wanted = match.path
            if wanted and wanted.type != "RegularExpression" and not _PATH.fullmatch(wanted.value):
                message = f"{wanted.value!r} has the wrong form, expected something like '/analyse'"
                yield problem(document, f"{path}.matches[{index}].path.value", "BadFormat", message)


def match_ports(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(RouteSpec):
        for number, rule in enumerate(spec.rules):
            for index, match in enumerate(rule.matches):
                if spec.port and match.port and match.port != spec.port:
                    message = f"a Route for port {spec.port} never sees port {match.port}, expected one of the two"
                    yield problem(document, f"spec.rules[{number}].matches[{index}].port", "NeverMatches", message)


# --- order of rules ---------------------------------------------------------------------------------------------------


def unreachable_rules(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(RouteSpec):
        for number, rule in enumerate(spec.rules[: _comparable(spec)]):
            takers = _takers(spec.rules[:number], rule)
            if takers:
                message = f"no request reaches this rule: {_who_takes_all(document, takers)}, expected it before"
                yield problem(document, f"spec.rules[{number}]", "UnreachableRule", message)


_MOST_PLACES: Final = 5


def _who_takes_all(document: Document, takers: Sequence[int]) -> str:
    places = [document.place(f"spec.rules[{taker}]") for taker in takers]
    if len(places) == 1:
        return f"the earlier rule in {places[0]} takes all of them"
    more = f" and {len(places) - _MOST_PLACES} more" if len(places) > _MOST_PLACES else ""
    return f"the earlier rules in {', '.join(places[:_MOST_PLACES])}{more} take all of them"


_MOST_COMPARISONS: Final = 40_000
"""Of matches with earlier ones, per Route: 256 rules (as many as may be) with a match each need 32,640. Without a bound
8,192 matches, which a Route may have, would take half a minute."""


def _comparable(spec: RouteSpec) -> int:
    """How many rules can be compared with all earlier ones within the bound."""
    comparisons = earlier = 0
    for number, rule in enumerate(spec.rules):
        own = max(len(rule.matches), 1)
        comparisons += own * earlier
        earlier += own
        if comparisons > _MOST_COMPARISONS:
            return number
    return len(spec.rules)


def _takers(earlier: Sequence[RouteRule], rule: RouteRule) -> list[int]:
    """Numbers of the earlier rules that take every request the rule wants; empty when some are left for it.

    Each match is compared with single earlier ones: a rule that only several together cover is not found.
    """
    takers: set[int] = set()
    for match in rule.matches or (HTTPRouteMatch(),):
        taker = next((number for number, other in enumerate(earlier) if _takes(other, match)), None)
        if taker is None:
            return []
        takers.add(taker)
    return sorted(takers)


def _takes(rule: RouteRule, match: HTTPRouteMatch) -> bool:
    return not rule.matches or any(_covers(wide, match) for wide in rule.matches)


def _covers(wide: HTTPRouteMatch, narrow: HTTPRouteMatch) -> bool:
    """Whether every request that `narrow` takes is taken by `wide` as well."""
    return (
        (wide.path is None or _path_covers(wide.path, narrow.path))
        and (wide.method is None or wide.method == narrow.method)
        and (wide.authority is None or wide.authority == narrow.authority)
        and (wide.port is None or wide.port == narrow.port)
        and (not wide.sources or (bool(narrow.sources) and set(narrow.sources) <= set(wide.sources)))
        and _values_cover(wide.headers, narrow.headers, _header_key)
        and _values_cover(wide.query_params, narrow.query_params, _param_key)
    )


_EVERY_PATH: Final = frozenset({".*", "/.*", ".+"})
"""Expressions that take all paths (`*`, which only OPTIONS has, aside)."""


def _path_covers(wide: HTTPPathMatch, narrow: HTTPPathMatch | None) -> bool:
    if wide.type == "RegularExpression":
        return _pattern_covers(wide.value, narrow)
    if wide.type == "Exact":
        return narrow is not None and narrow.type == "Exact" and narrow.value == wide.value
    prefix = wide.value.rstrip("/")
    if not prefix:
        return True
    if narrow is None or narrow.type == "RegularExpression":
        return False
    return narrow.value.rstrip("/") == prefix or narrow.value.startswith(f"{prefix}/")


def _pattern_covers(wide: str, narrow: HTTPPathMatch | None) -> bool:
    """Which paths two expressions share is not asked: only the same one, and one that takes everything, is seen."""
    if wide in _EVERY_PATH or narrow is None:
        return wide in _EVERY_PATH
    if narrow.type == "RegularExpression":
        return narrow.value == wide
    return narrow.type == "Exact" and takes_whole(wide, narrow.value)


def _header_key(item: ValueMatch) -> str:
    return item.name.lower()


def _param_key(item: ValueMatch) -> str:
    return item.name


def _values_cover(wide: Sequence[ValueMatch], narrow: Sequence[ValueMatch], key: Callable[[ValueMatch], str]) -> bool:
    return all(any(key(n) == key(w) and _value_covers(w, n) for n in narrow) for w in wide)


def _value_covers(wide: ValueMatch, narrow: ValueMatch) -> bool:
    match wide.type:
        case "Present":
            return narrow.type != "Absent"
        case "Absent":
            return narrow.type == "Absent"
        case "Prefix":
            return narrow.type in ("Exact", "Prefix") and narrow.value.startswith(wide.value)
        case "Exact":
            return narrow.type == "Exact" and narrow.value == wide.value
        case "RegularExpression":
            same = narrow.type == "RegularExpression" and narrow.value == wide.value
            return same or (narrow.type == "Exact" and takes_whole(wide.value, narrow.value))


def duplicate_rule_names(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(RouteSpec):
        names: dict[str, int] = {}
        for number, rule in enumerate(spec.rules):
            name = rule.name or f"rule-{number}"
            earlier = names.setdefault(name, number)
            if earlier != number:
                place = document.place(f"spec.rules[{earlier}]")
                message = f"the rule in {place} is called {name!r} too, expected names to differ: counters go by them"
                yield problem(document, f"spec.rules[{number}].name", "DuplicateRuleName", message)


# --- backends ---------------------------------------------------------------------------------------------------------


def weight_sums(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        if rule.backend_refs and sum(ref.weight for ref in rule.backend_refs) == 0:
            message = "weights add up to 0, expected at least one above 0: nothing would take the requests"
            yield problem(document, f"{path}.backendRefs", "WeightSum", message)


def duplicate_backend_refs(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        first: dict[tuple[object, ...], int] = {}
        for index, ref in enumerate(rule.backend_refs):
            earlier = first.setdefault((service_key(ref.name, document), ref.port, ref.subset), index)
            if earlier != index:
                place = document.place(f"{path}.backendRefs[{earlier}]")
                message = f"the same backend as in {place}, expected it once with the sum of the weights"
                yield problem(document, f"{path}.backendRefs[{index}]", "DuplicateBackendRef", message)


# --- timeouts and retries ---------------------------------------------------------------------------------------------


def timeout_order(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        attempt = rule.timeouts.backend_request
        whole = rule.timeouts.request or facts.mesh.defaults.timeout
        if attempt and 0 < seconds(whole) < seconds(attempt):
            whose = "" if rule.timeouts.request else " (the mesh's default)"
            message = f"one attempt may take {attempt}, longer than the whole request with {whole}{whose}"
            yield problem(
                document, f"{path}.timeouts.backendRequest", "TimeoutOrder", f"{message}; expected at most {whole}"
            )


_TAKES_TIMEOUTS = frozenset({"5xx", "gateway-error", "reset"})
"""Conditions that an attempt's timeout counts for; as in Envoy, where a mere `connect-failure` does not."""


def retries_never_on_timeout(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        if rule.retry is None or not rule.retry.attempts or not rule.timeouts.backend_request:
            continue
        if seconds(rule.timeouts.backend_request) and not _TAKES_TIMEOUTS & set(rule.retry.retry_on):
            message = (
                f"attempts that end at {rule.timeouts.backend_request} are not retried, "
                f"expected one of {', '.join(sorted(_TAKES_TIMEOUTS))} if they should be"
            )
            yield problem(document, f"{path}.retry.retryOn", "RetryNeverOnTimeout", message, Severity.WARNING)


def retries_without_condition(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        if rule.retry is not None and rule.retry.attempts and not rule.retry.retry_on:
            message = f"{rule.retry.attempts} retries on no condition, expected a condition or `attempts: 0`"
            yield problem(document, f"{path}.retry.retryOn", "RetryWithoutCondition", message)


def faults_without_effect(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        if rule.fault is not None and rule.fault.delay is None and rule.fault.abort is None:
            message = "a fault that does nothing, expected `delay` or `abort`"
            yield problem(document, f"{path}.fault", "EmptyFault", message, Severity.WARNING)


# --- values of headers and parameters ---------------------------------------------------------------------------------


def _value_lists(facts: Facts) -> Iterator[tuple[Document, str, Sequence[ValueMatch]]]:
    for document, path, rule in facts.route_rules:
        for index, match in enumerate(rule.matches):
            yield document, f"{path}.matches[{index}].headers", match.headers
            yield document, f"{path}.matches[{index}].queryParams", match.query_params
    for document, spec in facts.of(AuthorizationSpec):
        for number, policy in enumerate(spec.rules):
            for index, operation in enumerate(policy.to):
                yield document, f"spec.rules[{number}].to[{index}].headers", operation.headers


def match_values(facts: Facts) -> Iterator[Problem]:
    for document, path, items in _value_lists(facts):
        for index, item in enumerate(items):
            if item.type in ("Exact", "Prefix", "RegularExpression") and not item.value:
                message = f"no `value` to compare {item.name!r} with, expected one; `type: Present` takes any"
                yield problem(document, f"{path}[{index}]", "MatchValueMissing", message)
            if item.type in ("Present", "Absent") and item.value:
                message = f"`value` means nothing with `type: {item.type}`, expected it to be left out"
                yield problem(document, f"{path}[{index}].value", "MatchValueUnused", message)


def never_matching(facts: Facts) -> Iterator[Problem]:
    for document, path, items in _value_lists(facts):
        by_name: dict[str, list[tuple[int, ValueMatch]]] = {}
        for index, item in enumerate(items):
            name = item.name.lower() if path.endswith("headers") else item.name
            by_name.setdefault(name, []).append((index, item))
        for group in by_name.values():
            yield from _contradictions(document, path, group)


def _contradictions(document: Document, path: str, group: Iterable[tuple[int, ValueMatch]]) -> Iterator[Problem]:
    (_, first), *others = group
    for index, item in others:
        if _exclude(first, item):
            message = f"{item.name!r} cannot match this and what is asked of it before, expected one of the two"
            yield problem(document, f"{path}[{index}]", "NeverMatches", message)


def _exclude(one: ValueMatch, other: ValueMatch) -> bool:
    if "Absent" in (one.type, other.type):
        return one.type != other.type
    if "Present" in (one.type, other.type):
        return False
    exact, second = (one, other) if one.type == "Exact" else (other, one)
    if "RegularExpression" in (one.type, other.type):
        return exact.type == "Exact" and not takes_whole(second.value, exact.value)
    if exact.type == "Exact":
        return second.value != exact.value if second.type == "Exact" else not exact.value.startswith(second.value)
    return not (one.value.startswith(other.value) or other.value.startswith(one.value))
