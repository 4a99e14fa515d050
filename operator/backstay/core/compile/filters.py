"""Filters of a Route's rule -> what a config's rule does besides choosing a backend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from backstay.config import model
from backstay.core import intents
from backstay.core.durations import milliseconds

KINDS: Final[Mapping[str, Literal["exact", "prefix", "regex", "present", "absent"]]] = {
    "Exact": "exact",
    "Prefix": "prefix",
    "RegularExpression": "regex",
    "Present": "present",
    "Absent": "absent",
}
BackendName = Callable[[intents.ServiceRef], str]


def filter_fields(filters: Sequence[intents.RouteFilter], name: BackendName) -> dict[str, Any]:
    """Fields of model.Rule. Each type stands once (validation sees to it), mirrors as often as one likes."""
    found: dict[str, Any] = {}
    mirrors = tuple(_mirror(item.request_mirror, name) for item in filters if item.request_mirror)
    if mirrors:
        found["mirrors"] = mirrors
    for item in filters:
        found |= _field(item)
    return found


def _field(item: intents.RouteFilter) -> dict[str, Any]:
    if item.request_header_modifier:
        return {"request_headers": header_edits(item.request_header_modifier)}
    if item.response_header_modifier:
        return {"response_headers": header_edits(item.response_header_modifier)}
    if item.request_redirect:
        return {"redirect": _redirect(item.request_redirect)}
    if item.url_rewrite:
        return {"rewrite": _rewrite(item.url_rewrite)}
    if item.direct_response:
        return {"direct": _direct(item.direct_response)}
    if item.cors:
        return {"cors": _cors(item.cors)}
    return {"rate_limit": _rate_limit(item.rate_limit)} if item.rate_limit else {}


def _mirror(spec: intents.RequestMirror, name: BackendName) -> model.Mirror:
    return model.Mirror(backend=name(spec.backend_ref), subset=spec.backend_ref.subset or "", percent=spec.percent)


def header_edits(spec: intents.HeaderModifier) -> model.HeaderEdits:
    """Fields that are set go by their name in lower case: there is one of each; added ones keep their spelling."""
    return model.HeaderEdits(
        set=tuple((item.name, item.value) for item in spec.set),
        add=tuple((item.name, item.value) for item in spec.add),
        remove=tuple(sorted(name.lower() for name in spec.remove)),
    )


def _path(spec: intents.PathModifier | None) -> model.PathRewrite | None:
    if spec is None:
        return None
    if spec.type == "ReplaceFullPath":
        return model.PathRewrite(kind="full", value=spec.replace_full_path or "/")
    if spec.type == "ReplacePrefixMatch":
        return model.PathRewrite(kind="prefix", value=spec.replace_prefix_match or "/")
    return model.PathRewrite(kind="regex", value=spec.substitution, pattern=spec.pattern)


def _redirect(spec: intents.RequestRedirect) -> model.Redirect:
    return model.Redirect(
        status=spec.status_code,
        scheme=spec.scheme or "",
        host=spec.hostname or "",
        port=spec.port or 0,
        path=_path(spec.path),
    )


def _rewrite(spec: intents.UrlRewrite) -> model.Rewrite:
    return model.Rewrite(host=spec.hostname or "", path=_path(spec.path))


def _direct(spec: intents.DirectResponse) -> model.DirectResponse:
    return model.DirectResponse(status=spec.status, body=spec.body, content_type=spec.content_type)


def _cors(spec: intents.CorsPolicy) -> model.Cors:
    return model.Cors(
        origins=tuple(
            model.ValueMatch(name="", kind=KINDS[origin.type], value=origin.value) for origin in spec.allow_origins
        ),
        methods=spec.allow_methods,
        headers=spec.allow_headers,
        expose=spec.expose_headers,
        max_age_s=milliseconds(spec.max_age) // 1000 if spec.max_age else 0,
        credentials=spec.allow_credentials,
    )


def _rate_limit(spec: intents.RateLimit) -> model.RateLimit:
    return model.RateLimit(requests=spec.requests, per_ms=milliseconds(spec.per), burst=spec.burst or spec.requests)
