"""What a rule does to a request besides choosing where it goes, as fields of an Envoy route and of its filters. Pure."""

import re
from collections.abc import Mapping
from typing import Final

from backstay.config.model import (
    Cors,
    DirectResponse,
    Fault,
    HeaderEdits,
    PathRewrite,
    RateLimit,
    Redirect,
    Rewrite,
    Rule,
)
from backstay.sidecar.engines.envoy.api import Json, message, millis, percent, plain, whole
from backstay.sidecar.engines.envoy.matching import whole_pattern

FAULT: Final = "envoy.filters.http.fault"
RATE_LIMIT: Final = "envoy.filters.http.local_ratelimit"
_FILTERS: Final = "envoy.extensions.filters.http."
_REDIRECTS: Final = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_OVERWRITE: Final = "OVERWRITE_IF_EXISTS_OR_ADD"
_APPEND: Final = "APPEND_IF_EXISTS_OR_ADD"
_CORS_ANSWERS: Final = (
    "access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers",
)  # fmt: skip
"""Fields of an answer that the rule speaks for; an application's own would contradict it."""
LEAST_FILL_MS: Final = 50
"""The shortest interval that Envoy fills a bucket at; shorter ones are said as more tokens in this one."""


# --- filters of a route --------------------------------------------------------------------------------------------


def filters(rule: Rule, route: str) -> dict[str, Json]:
    """What the route says to each filter, by filter name."""
    found: dict[str, Json] = {}
    if rule.fault is not None:
        found[FAULT] = fault(rule.fault)
    if rule.rate_limit is not None:
        found[RATE_LIMIT] = rate_limit(rule.rate_limit, route)
    return found


def fault(rule: Fault) -> Json:
    fields: Json = {}
    if rule.delay_ms > 0:
        fields["delay"] = {"fixed_delay": millis(rule.delay_ms), "percentage": percent(rule.delay_percent)}
    if rule.abort_status > 0:
        fields["abort"] = {"http_status": rule.abort_status, "percentage": percent(rule.abort_percent)}
    return message(f"{_FILTERS}fault.v3.HTTPFault", **fields)


def rate_limit(limit: RateLimit, route: str) -> Json:
    times = -(-LEAST_FILL_MS // limit.per_ms) if limit.per_ms < LEAST_FILL_MS else 1
    bucket = {
        "max_tokens": limit.burst,
        "tokens_per_fill": limit.requests * times,
        "fill_interval": millis(limit.per_ms * times),
    }
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    wait = max(-(-limit.per_ms // (limit.requests * 1000)), 1)
    told = [
        ("Retry-After", wait),
        ("X-RateLimit-Limit", limit.requests),
        ("X-RateLimit-Remaining", 0),
        ("X-RateLimit-Reset", wait),
    ]
    return message(
        f"{_FILTERS}local_ratelimit.v3.LocalRateLimit",
        stat_prefix="backstay", token_bucket=bucket, filter_enabled=always, filter_enforced=always,
        response_headers_to_add=[_header(name, str(value), _OVERWRITE) for name, value in told],
    )  # fmt: skip


# --- changed on the way --------------------------------------------------------------------------------------------


def edits(rule: Rule) -> Json:
    """Header edits of both directions."""
    return _edits(rule.request_headers, "request") | _edits(rule.response_headers, "response")


def _edits(wanted: HeaderEdits | None, side: str) -> Json:
    if wanted is None:
        return {}
    added = [_header(name, value, _OVERWRITE) for name, value in wanted.set]
    added += [_header(name, value, _APPEND) for name, value in wanted.add]
    fields: Json = {}
    if added:
        fields[f"{side}_headers_to_add"] = added
    if wanted.remove:
        fields[f"{side}_headers_to_remove"] = list(wanted.remove)
    return fields


def _header(name: str, value: str, action: str) -> Json:
    return {"header": {"key": name, "value": plain(value)}, "append_action": action, "keep_empty_value": True}


def rewrite(wanted: Rewrite, prefix: str) -> Json:
    """`prefix` is the one by which the match took the request."""
    fields: Json = {"host_rewrite_literal": wanted.host} if wanted.host else {}
    if wanted.path is not None:
        pattern, substitution = _replacement(wanted.path, prefix)
        if pattern:
            fields["regex_rewrite"] = {"pattern": {"regex": pattern}, "substitution": substitution}
    return fields


def _replacement(wanted: PathRewrite, prefix: str) -> tuple[str, str]:
    """(what of the path is found, what is put there); never two slashes at the seam of a new prefix, never none."""
    match wanted.kind:
        case "full":
            return "^.*$", _literal(wanted.value)
        case "regex":
            return wanted.pattern, wanted.value
        case "prefix":
            new = wanted.value.rstrip("/")
            if new:
                return f"^{re.escape(prefix)}", _literal(new)
            return (f"^{re.escape(prefix)}/?", "/") if prefix else ("", "")


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


# --- CORS ----------------------------------------------------------------------------------------------------------


def known_origin(rule: Cors) -> Json:
    """A header matcher for the origins that may read answers."""
    patterns = [whole_pattern(origin.kind, origin.value) for origin in rule.origins]
    pattern = ".+" if any_origin(rule) else "|".join(f"(?:{pattern})" for pattern in patterns)
    return {"name": "origin", "string_match": whole(pattern)}


def any_origin(rule: Cors) -> bool:
    return any(origin.kind == "exact" and origin.value == "*" for origin in rule.origins)


def preflight(rule: Cors) -> Json:
    """The answer to a browser's question whether another origin may ask."""
    said = {
        "Access-Control-Allow-Methods": ", ".join(rule.methods),
        "Access-Control-Allow-Headers": ", ".join(rule.headers),
        "Access-Control-Max-Age": str(rule.max_age_s) if rule.max_age_s else "",
    }
    more = [_header(name, value, _OVERWRITE) for name, value in said.items() if value]
    return {"direct_response": {"status": 204}, "response_headers_to_add": [*_allowed(rule), *more]}


def shared(rule: Cors) -> Json:
    """What is added to an answer that a known origin may read; the application's own word on that goes."""
    expose = [_header("Access-Control-Expose-Headers", ", ".join(rule.expose), _OVERWRITE)] if rule.expose else []
    return {
        "response_headers_to_add": [*_allowed(rule), *expose],
        "response_headers_to_remove": list(_CORS_ANSWERS),
    }


def _allowed(rule: Cors) -> list[Json]:
    """A browser takes no `*` with credentials; an answer that depends on the origin must not be cached for another."""
    if any_origin(rule) and not rule.credentials:
        return [_header("Access-Control-Allow-Origin", "*", _OVERWRITE)]
    origin = {"key": "Access-Control-Allow-Origin", "value": "%REQ(origin)%"}
    fields: list[Json] = [{"header": origin, "append_action": _OVERWRITE}, _header("Vary", "Origin", _APPEND)]
    if rule.credentials:
        fields.append(_header("Access-Control-Allow-Credentials", "true", _OVERWRITE))
    return fields


# --- answered here -------------------------------------------------------------------------------------------------


def redirect(wanted: Redirect, prefix: str) -> Json:
    fields: Json = {"response_code": _REDIRECTS[wanted.status]}
    if wanted.scheme:
        fields["scheme_redirect"] = wanted.scheme
    if wanted.host:
        fields["host_redirect"] = wanted.host
    if wanted.port:
        fields["port_redirect"] = wanted.port
    if wanted.path is not None and wanted.path.kind == "full":
        fields["path_redirect"] = wanted.path.value
    elif wanted.path is not None:
        pattern, substitution = _replacement(wanted.path, prefix)
        if pattern:
            fields["regex_rewrite"] = {"pattern": {"regex": pattern}, "substitution": substitution}
    return {"redirect": fields}


def direct(wanted: DirectResponse) -> Json:
    fields: Json = {"direct_response": {"status": wanted.status}}
    if wanted.body:
        fields["direct_response"]["body"] = {"inline_string": wanted.body}
        fields["response_headers_to_add"] = [_header("Content-Type", wanted.content_type, _OVERWRITE)]
    return fields


def merged(*fields: Mapping[str, object]) -> Json:
    """Fields of a route together; lists of the same field one after the other."""
    found: Json = {}
    for each in fields:
        for name, value in each.items():
            known = found.get(name)
            found[name] = [*known, *value] if isinstance(known, list) and isinstance(value, list) else value
    return found
