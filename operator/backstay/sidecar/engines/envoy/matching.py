"""Matches of a rule as Envoy's route matchers: one Envoy route for each alternative. Pure.

Rule: whatever config/match.py says of a request, the matcher rendered here says too. Fields that no matcher may see
(config/target.py) are never asked for.
"""

import re
from collections.abc import Sequence
from typing import Final

from backstay.config.match import is_from
from backstay.config.model import AuthorityMatch, Match, PathMatch, Rule, ValueMatch
from backstay.config.target import is_seen
from backstay.sidecar.engines.envoy.api import Json, exactly, whole

_ANYTHING: Final[Json] = {"prefix": "/"}


def alternatives(rule: Rule, workload: str) -> list[tuple[Match, Json]]:
    """(match, Envoy's RouteMatch) of every alternative that some request of this workload could meet."""
    asked = (match for match in rule.matches or (Match(),) if is_from(match.sources, workload))
    return [(match, rendered) for match in asked if (rendered := route_match(match)) is not None]


def route_match(match: Match) -> Json | None:
    """None for what no request can match."""
    headers = header_matchers(match.headers)
    if headers is None:
        return None
    if match.method:
        headers.append({"name": ":method", "string_match": exactly(match.method)})
    if match.authority is not None:
        headers.append({"name": ":authority", "string_match": whole(_authority_pattern(match.authority))})
    headers += [_no_parameter(value.name) for value in match.query if value.kind == "absent"]
    found = _path(match.path)
    if headers:
        found["headers"] = headers
    parameters = [_parameter(value) for value in match.query if value.kind != "absent"]
    if parameters:
        found["query_parameters"] = parameters
    return found


def _path(path: PathMatch | None) -> Json:
    if path is None:
        return dict(_ANYTHING)
    match path.kind:
        case "exact":
            return {"path": path.value}
        case "regex":
            return {"safe_regex": {"regex": path.value}}
        case "prefix":
            prefix = path.value.rstrip("/")
            return {"path_separated_prefix": prefix} if prefix else dict(_ANYTHING)


def matched_prefix(match: Match) -> str:
    """The path prefix by which a match takes requests, without a slash at its end (RouteTable.matched_prefix)."""
    return match.path.value.rstrip("/") if match.path is not None and match.path.kind == "prefix" else ""


def header_matchers(values: Sequence[ValueMatch]) -> list[Json] | None:
    """None if one of them asks for a field that no matcher may see, which is as good as absent."""
    found: list[Json] = []
    for value in values:
        if is_seen(value.name.encode()):
            found.append(header_matcher(value))
        elif value.kind != "absent":
            return None
    return found


def header_matcher(value: ValueMatch) -> Json:
    name = value.name.lower()
    match value.kind:
        case "present":
            return {"name": name, "present_match": True}
        case "absent":
            return {"name": name, "present_match": False}
        case _:
            return {"name": name, "string_match": string_match(value.kind, value.value)}


def string_match(kind: str, value: str) -> Json:
    """Envoy wants prefixes that are not empty; every value begins with the empty one."""
    if kind == "regex":
        return whole(value)
    if kind == "prefix":
        return {"prefix": value} if value else whole("(?s).*")
    return exactly(value)


def whole_pattern(kind: str, value: str) -> str:
    """A pattern that takes what a matcher of this kind takes."""
    if kind == "regex":
        return value
    return re.escape(value) + (".*" if kind == "prefix" else "")


def _parameter(value: ValueMatch) -> Json:
    if value.kind == "present":
        return {"name": value.name, "present_match": True}
    return {"name": value.name, "string_match": string_match(value.kind, value.value)}


def _no_parameter(name: str) -> Json:
    """Envoy's matchers of parameters cannot ask for absence; the path with its query can be asked."""
    pattern = rf"[^?]*\?(.*&)?{re.escape(name)}([=&].*)?"
    return {"name": ":path", "string_match": whole(pattern), "invert_match": True}


def _authority_pattern(match: AuthorityMatch) -> str:
    """Of an authority with or without a port; the host is compared without one, and without a dot at its end."""
    host = match.value if match.kind == "regex" else re.escape(match.value.lower())
    more = ".*" if match.kind == "prefix" else ""
    return rf"(?i:{host}){more}\.?(:[0-9]+)?"
