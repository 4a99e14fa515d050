"""Rules about the filters of a Route: which fit together, and what each may say."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from backstay.config.regex import BadPattern, compile_pattern
from backstay.core.durations import milliseconds
from backstay.core.intents import (
    FILTER_FIELDS,
    HeaderField,
    HeaderModifier,
    PathModifier,
    RequestRedirect,
    RouteFilter,
    RouteRule,
    UrlRewrite,
)
from backstay.core.problems import Problem, Severity
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem

_ATTRIBUTES: Final[Mapping[str, str]] = {
    type_: re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", field) for type_, field in FILTER_FIELDS.items()
}
"""Type of a filter -> its attribute of RouteFilter."""


def _filters(facts: Facts) -> Iterator[tuple[Document, str, RouteRule, RouteFilter]]:
    for document, path, rule in facts.route_rules:
        for index, item in enumerate(rule.filters):
            yield document, f"{path}.filters[{index}]", rule, item


# --- which fit together -----------------------------------------------------------------------------------------------


def _answers(rule: RouteRule) -> str:
    """Name of the field by which the rule answers itself; empty where backends do."""
    if any(item.request_redirect for item in rule.filters):
        return FILTER_FIELDS["RequestRedirect"]
    return FILTER_FIELDS["DirectResponse"] if any(item.direct_response for item in rule.filters) else ""


def rules_without_backends(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        if not rule.backend_refs and not _answers(rule):
            yield problem(document, path, "MissingField", "`backendRefs` is missing, expected it here")


def mismatched_filters(facts: Facts) -> Iterator[Problem]:
    """The type names the one field that is set."""
    for document, path, _, item in _filters(facts):
        for type_, attribute in _ATTRIBUTES.items():
            given = getattr(item, attribute) is not None
            if type_ == item.type and not given:
                message = f"a filter of type {type_} without `{FILTER_FIELDS[type_]}`, expected it here"
                yield problem(document, path, "FilterMismatch", message)
            elif type_ != item.type and given:
                message = f"`{FILTER_FIELDS[type_]}` in a filter of type {item.type}, expected it to be left out"
                yield problem(document, f"{path}.{FILTER_FIELDS[type_]}", "FilterMismatch", message)


def repeated_filters(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        first: dict[str, int] = {}
        for index, item in enumerate(rule.filters):
            earlier = first.setdefault(item.type, index)
            if earlier != index and item.request_mirror is None:
                place = document.place(f"{path}.filters[{earlier}]")
                message = f"a second filter of type {item.type}, expected one; the first is in {place}"
                yield problem(document, f"{path}.filters[{index}].type", "FilterRepeated", message)


def conflicting_filters(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        answer = _answers(rule)
        if answer:
            for where, what in _pointless(rule, answer):
                message = f"{what} means nothing beside `{answer}`, expected one of the two"
                yield problem(document, f"{path}.{where}", "FilterConflict", message)


def _pointless(rule: RouteRule, answer: str) -> Iterator[tuple[str, str]]:
    """What a rule that answers itself says of requests that it never forwards."""
    if rule.backend_refs:
        yield "backendRefs", "`backendRefs`"
    for field, value in (
        ("fault", rule.fault),
        ("retry", rule.retry),
        ("sessionPersistence", rule.session_persistence),
    ):
        if value is not None:
            yield field, f"`{field}`"
    for index, item in enumerate(rule.filters):
        others = (item.url_rewrite, item.request_mirror, item.request_header_modifier)
        is_second = item.direct_response is not None and answer != FILTER_FIELDS["DirectResponse"]
        if is_second or any(other is not None for other in others):
            yield f"filters[{index}]", f"a filter of type {item.type}"


# --- new paths --------------------------------------------------------------------------------------------------------


def path_modifiers(facts: Facts) -> Iterator[Problem]:
    for document, path, rule, item in _filters(facts):
        for name, settings in (("urlRewrite", item.url_rewrite), ("requestRedirect", item.request_redirect)):
            if settings is not None and settings.path is not None:
                at = f"{path}.{name}.path"
                yield from _modifier_fields(document, at, settings.path)
                yield from _modifier_prefix(document, at, settings.path, rule)
                yield from _modifier_groups(document, at, settings.path)


_NEEDED: Final = {
    "ReplaceFullPath": "replaceFullPath",
    "ReplacePrefixMatch": "replacePrefixMatch",
    "ReplaceRegex": "pattern",
}


def _modifier_fields(document: Document, at: str, modifier: PathModifier) -> Iterator[Problem]:
    given = {
        "replaceFullPath": modifier.replace_full_path,
        "replacePrefixMatch": modifier.replace_prefix_match,
        "pattern": modifier.pattern,
        "substitution": modifier.substitution,
    }
    needed = _NEEDED[modifier.type]
    if not given[needed]:
        yield problem(document, at, "FilterMismatch", f"{modifier.type} without `{needed}`, expected it here")
    may = {needed, "substitution"} if needed == "pattern" else {needed}
    for field in (name for name, value in given.items() if value and name not in may):
        message = f"`{field}` means nothing with {modifier.type}, expected it to be left out"
        yield problem(document, f"{at}.{field}", "FilterMismatch", message)


def _modifier_prefix(document: Document, at: str, modifier: PathModifier, rule: RouteRule) -> Iterator[Problem]:
    """Without a prefix that matched there is nothing to replace; no path at all is the prefix `/`."""
    others = [match.path.type for match in rule.matches if match.path is not None and match.path.type != "PathPrefix"]
    if modifier.replace_prefix_match is not None and others:
        message = f"a rule with a path of type {others[0]} has no prefix to replace, expected PathPrefix only"
        yield problem(document, f"{at}.replacePrefixMatch", "FilterConflict", message)


_GROUP: Final = re.compile(r"\\(.)", re.DOTALL)


def _modifier_groups(document: Document, at: str, modifier: PathModifier) -> Iterator[Problem]:
    try:
        groups = compile_pattern(modifier.pattern).groups if modifier.pattern else 0
    except BadPattern:
        return  # said by another rule
    for name in _GROUP.findall(modifier.substitution):
        if not name.isdecimal() or int(name) > groups:
            message = f"`\\{name}` is no group of the pattern, expected \\0 to \\{groups}"
            yield problem(document, f"{at}.substitution", "BadPattern", message)


# --- what each may say ------------------------------------------------------------------------------------------------


def filters_without_effect(facts: Facts) -> Iterator[Problem]:
    for document, path, _, item in _filters(facts):
        nothing = [
            settings
            for settings in (
                item.request_header_modifier,
                item.response_header_modifier,
                item.url_rewrite,
                item.request_redirect,
            )
            if settings is not None and settings in _EMPTY
        ]
        if nothing:
            message = f"a filter of type {item.type} that changes nothing, expected something in it"
            yield problem(document, f"{path}.{FILTER_FIELDS[item.type]}", "FilterWithoutEffect", message)


_EMPTY: Final = (HeaderModifier(), UrlRewrite(), RequestRedirect())
_REDIRECTS: Final = (301, 302, 303, 307, 308)


def redirect_status(facts: Facts) -> Iterator[Problem]:
    for document, path, _, item in _filters(facts):
        if item.request_redirect and item.request_redirect.status_code not in _REDIRECTS:
            message = f"{item.request_redirect.status_code} redirects nobody, expected 301, 302, 303, 307 or 308"
            yield problem(document, f"{path}.requestRedirect.statusCode", "OutOfRange", message)


FORBIDDEN_HEADERS: Final = frozenset(
    {
        "host", "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive", "te", "trailer", "expect",
        "proxy-connection", "proxy-authenticate", "proxy-authorization", "http2-settings", "x-forwarded-client-cert",
    }
)  # fmt: skip
"""Framing and hop-by-hop fields are the proxy's own, identity is the mesh's; Host has `urlRewrite.hostname`."""


def forbidden_headers(facts: Facts) -> Iterator[Problem]:
    for document, path, _, item in _filters(facts):
        for field, modifier in (
            ("requestHeaderModifier", item.request_header_modifier),
            ("responseHeaderModifier", item.response_header_modifier),
        ):
            for where, name in _edited(modifier or HeaderModifier()):
                if is_forbidden(name):
                    message = f"{name!r} is written by the proxy itself, expected another header"
                    yield problem(document, f"{path}.{field}.{where}", "ForbiddenHeader", message)


def is_forbidden(name: str) -> bool:
    plain = name.lower().replace("_", "-")
    return plain in FORBIDDEN_HEADERS or plain.startswith("x-backstay-")


def _edited(modifier: HeaderModifier) -> Iterator[tuple[str, str]]:
    lists: tuple[tuple[str, tuple[HeaderField, ...]], ...] = (("set", modifier.set), ("add", modifier.add))
    for name, fields in lists:
        for index, field in enumerate(fields):
            yield f"{name}[{index}].name", field.name
    for index, removed in enumerate(modifier.remove):
        yield f"remove[{index}]", removed


LEAST_PERIOD_MS: Final = 10
"""Below it the proxy's clock and its event loop are no measure; Envoy's fill interval has a least value of 50 ms."""


def rate_limit_periods(facts: Facts) -> Iterator[Problem]:
    for document, path, _, item in _filters(facts):
        if item.rate_limit and milliseconds(item.rate_limit.per) < LEAST_PERIOD_MS:
            message = f"{item.rate_limit.per} is too short to count in, expected at least {LEAST_PERIOD_MS}ms"
            yield problem(document, f"{path}.rateLimit.per", "RateLimitPeriod", message)


def cors_for_everybody(facts: Facts) -> Iterator[Problem]:
    for document, path, _, item in _filters(facts):
        if item.cors and item.cors.allow_credentials and any(o.value in ("*", ".*") for o in item.cors.allow_origins):
            message = "every page in the web may use a visitor's cookies here, expected listed origins beside `allowCredentials`"
            yield problem(document, f"{path}.cors.allowCredentials", "CorsForEverybody", message, Severity.WARNING)


def sticky_headers(facts: Facts) -> Iterator[Problem]:
    for document, path, rule in facts.route_rules:
        sticky = rule.session_persistence
        if sticky is not None and sticky.type == "Header" and sticky.ttl is not None:
            message = "`ttl` means nothing with a header, which no proxy can make a caller send; expected it left out"
            yield problem(document, f"{path}.sessionPersistence.ttl", "FilterMismatch", message)
