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
from backstay.sidecar.engines.envoy.api import Json, message, millis, percent, plain
from backstay.sidecar.engines.envoy.matching import string_match

CORS: Final = "envoy.filters.http.cors"
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
LEAST_FILL_MS: Final = 50
"""The shortest interval that Envoy fills a bucket at; shorter ones are said as more tokens in this one."""


# --- filters of a route --------------------------------------------------------------------------------------------


def filters(rule: Rule, route: str) -> dict[str, Json]:
    """What the route says to each filter, by filter name."""
    found: dict[str, Json] = {}
    if rule.cors is not None:
        found[CORS] = cors(rule.cors)
    if rule.fault is not None:
        found[FAULT] = fault(rule.fault)
    if rule.rate_limit is not None:
        found[RATE_LIMIT] = rate_limit(rule.rate_limit, route)
    return found


def cors(rule: Cors) -> Json:
    fields: Json = {
        "allow_origin_string_match": [_origin(origin.kind, origin.value) for origin in rule.origins],
        "allow_credentials": rule.credentials,
        "forward_not_matching_preflights": True,
    }
    said = {
        "allow_methods": ", ".join(rule.methods),
        "allow_headers": ", ".join(rule.headers),
        "expose_headers": ", ".join(rule.expose),
        "max_age": str(rule.max_age_s) if rule.max_age_s else "",
    }
    return message(f"{_FILTERS}cors.v3.CorsPolicy", **fields, **{name: text for name, text in said.items() if text})


def _origin(kind: str, value: str) -> Json:
    """Envoy reads an exact `*` as every origin, as we do."""
    return string_match(kind, value)


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
        response_headers_to_add=[_header(name, str(value), "OVERWRITE_IF_EXISTS_OR_ADD") for name, value in told],
    )  # fmt: skip


# --- changed on the way --------------------------------------------------------------------------------------------


def edits(rule: Rule) -> Json:
    """Header edits of both directions."""
    return _edits(rule.request_headers, "request") | _edits(rule.response_headers, "response")


def _edits(wanted: HeaderEdits | None, side: str) -> Json:
    if wanted is None:
        return {}
    added = [_header(name, value, "OVERWRITE_IF_EXISTS_OR_ADD") for name, value in wanted.set]
    added += [_header(name, value, "APPEND_IF_EXISTS_OR_ADD") for name, value in wanted.add]
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
        fields["response_headers_to_add"] = [_header("Content-Type", wanted.content_type, "OVERWRITE_IF_EXISTS_OR_ADD")]
    return fields


def merged(*fields: Mapping[str, object]) -> Json:
    """Fields of a route together; lists of the same field one after the other."""
    found: Json = {}
    for each in fields:
        for name, value in each.items():
            known = found.get(name)
            found[name] = [*known, *value] if isinstance(known, list) and isinstance(value, list) else value
    return found
