"""Token rules as Envoy's JWT filter, and what policies ask of a verified token as matchers of its metadata. Pure.

Rule: as in config/tokens.py, a token that is there must be valid, wherever it stands; which paths must bring one is said
besides. What the filter has verified lies under one key, whoever issued it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from re import escape
from sys import float_info
from typing import Final

from backstay.config.jwks import BadKeySet, read_key_set, strict_json
from backstay.config.model import ClaimMatch, Jwt, JwtProvider, TokenPlace
from backstay.config.tokens import SKEW_SECONDS
from backstay.sidecar.engines.envoy import scripts, strict
from backstay.sidecar.engines.envoy.api import Json, exactly, message, whole

FILTER: Final = "envoy.filters.http.jwt_authn"
PAYLOAD: Final = "token"
DENIED: Final = "jwt_authn_access_denied"
"""How Envoy's details about a refused token begin."""
_KIND: Final = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
_SPACED: Final = ("scope", "scp", "permission")
"""As config/claims.py: lists that are written as one text."""
_NOBODYS: Final = {
    "kty": "EC",
    "kid": "nobody",
    "crv": "P-256",
    "x": "7VakHWnCVq5lrAoBCqJyiHW3nqV2u0RZc6sBdtNsfHs",
    "y": "5At9uNZeXjjEZnG7wWHv8a9Kz6AtzGr7Dch9mr4KZwg",
}
"""Envoy wants a key. The private half of this one was never kept, so that it proves nothing."""
_LATE: Final = 2.0**53
_RULE: Final = "token."
REFUSALS: Final = (DENIED, f"{strict.DETAILS}{_RULE}")
_RBAC: Final = "envoy.extensions.filters.http.rbac.v3.RBAC"


def http_filter(jwt: Jwt, key_sets: Mapping[str, str]) -> Json:
    names = [f"provider-{number}" for number, _ in enumerate(jwt.providers)]
    providers = {name: _provider(found, key_sets) for name, found in zip(names, jwt.providers, strict=True)}
    valid: list[Json] = [{"provider_name": name} for name in names]
    optional = {"requires_any": {"requirements": [*valid, {"allow_missing": {}}]}}
    required = {"requires_any": {"requirements": valid}} if len(valid) > 1 else valid[0]
    rules = [{"match": match, "requires": optional} for match in map(_path, jwt.not_required)]
    rules += [{"match": match, "requires": required} for match in map(_path, jwt.required)]
    rules.append({"match": {"prefix": "/"}, "requires": optional})
    config = message(_KIND, providers=providers, rules=rules, strip_failure_response=True)
    return {"name": FILTER, "typed_config": config}


def usable_keys(text: str) -> str:
    """The keys of a set that may prove a token (config/jwks.py says which)."""
    try:
        every = strict_json(text.encode())["keys"]
    except (ValueError, KeyError, TypeError):
        every = []
    kept = [key for key in every if _is_usable(key)] if isinstance(every, list) else []
    return json.dumps({"keys": kept or [_NOBODYS]})


def _is_usable(key: object) -> bool:
    try:
        return bool(read_key_set(json.dumps({"keys": [key]})).keys)
    except BadKeySet:
        return False


def filters(jwt: Jwt, key_sets: Mapping[str, str]) -> list[Json]:
    """Envoy's own, between two that refuse what it overlooks and what it believes all the same, and two scripts."""
    overlooked = {f"{_RULE}{name}": policy for name, policy in _overlooked(jwt)}
    written = scripts.after(jwt, FILTER, PAYLOAD)
    return [
        scripts.before(jwt),
        _refusing("places", overlooked),
        http_filter(jwt, key_sets),
        _refusing("times", {f"{_RULE}times": _believed()}),
        *([written] if written is not None else []),
    ]


def _refusing(name: str, policies: Json) -> Json:
    config = message(_RBAC, rules={"action": "DENY", "policies": policies})
    return {"name": f"backstay.token-{name}", "typed_config": config}


def _believed() -> Json:
    """Times that are none: Envoy takes no time for the first second of 1970, and lets numbers overflow."""
    times = [
        _claim((name,), {"double_match": match})
        for name in ("exp", "nbf")
        for match in ({"exact": 0.0}, {"range": {"start": _LATE, "end": float_info.max}})
        if name == "exp" or "range" in match
    ]
    return {"permissions": [{"any": True}], "principals": times}


def _overlooked(jwt: Jwt) -> Iterable[tuple[str, Json]]:
    asked = {"filter": scripts.EXTENSION, "path": [{"key": "asked"}], "value": {"bool_match": True}}
    yield "extension", {"permissions": [{"any": True}], "principals": [{"metadata": asked}]}
    places = dict.fromkeys(place for provider in jwt.providers for place in provider.places)
    for number, place in enumerate(places):
        if place.kind == "query":
            yield f"twice-{number}", _asked(_twice(place.name))
        elif place.kind == "header" and place.prefix:
            yield f"prefix-{number}", _asked(*_misspelt(place))


def _asked(*matchers: Json) -> Json:
    rules = [{"header": each} for each in matchers]
    return {"permissions": [{"and_rules": {"rules": rules}}], "principals": [{"any": True}]}


def _twice(name: str) -> Json:
    parameter = f"[?&]{escape(name)}="
    return {"name": ":path", "string_match": whole(f".*{parameter}.*{parameter}.*")}


def _spelt(prefix: str) -> list[str]:
    return list(dict.fromkeys((prefix, prefix.lower(), prefix.upper())))


def _misspelt(place: TokenPlace) -> tuple[Json, Json]:
    """A prefix in a case that Envoy would not know: its token would go on unread."""
    known = "|".join(map(escape, _spelt(place.prefix)))
    return (
        {"name": place.name, "string_match": whole(f"(?i){escape(place.prefix)}.*")},
        {"name": place.name, "string_match": whole(f"({known}).*"), "invert_match": True},
    )


def own_fields(jwt: Jwt) -> str:
    """A pattern of the fields that say what a token claims, however they are spelt: a client's are removed."""
    names = dict.fromkeys(header for provider in jwt.providers for header, _ in provider.claim_headers)
    return "|".join(name.replace("_", "-").replace("-", "[-_]") for name in names)


def replies() -> list[Json]:
    """401 and how to ask (RFC 6750, 3), with nothing of the token or of why."""
    missing, bad = f"{DENIED}{{Jwt_is_missing", f"{DENIED}{{"
    checked = f"{strict.DETAILS}{_RULE}"
    return [
        strict.reply(checked, 401, "bad-token") | {"headers_to_add": [_challenge('Bearer error="invalid_token"')]},
        strict.reply(missing, 401, "no-token") | {"headers_to_add": [_challenge("Bearer")]},
        strict.reply(bad, 401, "bad-token") | {"headers_to_add": [_challenge('Bearer error="invalid_token"')]},
    ]


def _challenge(value: str) -> Json:
    return {"header": {"key": "WWW-Authenticate", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _provider(found: JwtProvider, key_sets: Mapping[str, str]) -> Json:
    keys = usable_keys(found.jwks or key_sets.get(found.jwks_uri, ""))
    places = [
        {"name": place.name, **({"value_prefix": prefix} if prefix else {})}
        for place in found.places
        if place.kind == "header"
        for prefix in _spelt(place.prefix)
    ]
    fields: Json = {
        "issuer": found.issuer,
        "audiences": list(found.audiences),
        "local_jwks": {"inline_string": keys},
        "forward": found.forward,
        "from_headers": places,
        "from_params": [place.name for place in found.places if place.kind == "query"],
        "from_cookies": [place.name for place in found.places if place.kind == "cookie"],
        "payload_in_metadata": PAYLOAD,
        "normalize_payload_in_metadata": {"space_delimited_claims": list(_SPACED)},
        "clock_skew_seconds": int(SKEW_SECONDS),
    }
    return {name: value for name, value in fields.items() if value != []}


def _path(pattern: str) -> Json:
    if pattern == "*":
        return {"prefix": "/"}
    if pattern.endswith("*"):
        return {"prefix": pattern[:-1]}
    if pattern.startswith("*"):
        return {"safe_regex": {"regex": f".*{escape(pattern[1:])}"}}
    return {"path": pattern}


# --- what policies ask ---------------------------------------------------------------------------------------------


def principal(pattern: str, issuers: Sequence[str]) -> list[Json]:
    """Alternatives that together are `<issuer>/<subject>` by this pattern. Only issuers of the config are ever believed."""
    return [
        _and(_claim(("iss",), _text(issuer)), subject) for issuer in issuers for subject in _subjects(pattern, issuer)
    ]


def _subjects(pattern: str, issuer: str) -> Iterable[Json]:
    before = f"{issuer}/"
    if pattern == "*":
        yield _present(("sub",))
    elif pattern.endswith("*"):
        wanted = pattern[:-1]
        if before.startswith(wanted):
            yield _present(("sub",))
        elif wanted.startswith(before):
            yield _claim(("sub",), {"string_match": {"prefix": wanted[len(before) :]}})
    elif pattern.startswith("*"):
        yield from _ending(pattern[1:], before)
    elif pattern.startswith(before):
        yield _claim(("sub",), _text(pattern[len(before) :]))


def _ending(wanted: str, before: str) -> Iterable[Json]:
    yield _claim(("sub",), {"string_match": {"suffix": wanted}})
    for length in range(1, len(wanted) + 1):
        if before.endswith(wanted[:length]):
            yield _claim(("sub",), _text(wanted[length:]))


def claim(wanted: ClaimMatch) -> Json:
    """A claim of exactly this name comes before one that lies within others."""
    direct, within = (wanted.name,), tuple(wanted.name.split("."))
    if within == direct:
        return _judged(wanted, direct)
    return _or(
        _and(_present(direct), _judged(wanted, direct)),
        _and({"not_id": _present(direct)}, _judged(wanted, within)),
    )


def _judged(wanted: ClaimMatch, path: tuple[str, ...]) -> Json:
    asked = [_or(*(_valued(path, value) for value in wanted.values))] if wanted.values else []
    if not wanted.values and not wanted.not_values:
        asked.append(_present(path))
    asked += [{"not_id": _valued(path, value)} for value in wanted.not_values]
    return _and(*asked)


def _valued(path: tuple[str, ...], pattern: str) -> Json:
    """Text, a number, or true or false; or a list with one of these in it."""
    if pattern == "*":
        return _present(path)
    matches = [_pattern(pattern)]
    if pattern in ("true", "false"):
        matches.append({"bool_match": pattern == "true"})
    elif _is_number(pattern):
        matches.append({"double_match": {"exact": float(pattern)}})
    return _or(*(_claim(path, each) for match in matches for each in (match, {"list_match": {"one_of": match}})))


def _is_number(text: str) -> bool:
    try:
        return str(int(text)) == text
    except ValueError:
        return False


def _pattern(pattern: str) -> Json:
    if pattern.endswith("*"):
        return {"string_match": {"prefix": pattern[:-1]}}
    if pattern.startswith("*"):
        return {"string_match": {"suffix": pattern[1:]}}
    return _text(pattern)


def _text(value: str) -> Json:
    return {"string_match": exactly(value)} if value else {"string_match": whole("")}


def _present(path: tuple[str, ...]) -> Json:
    return _claim(path, {"present_match": True})


def _claim(path: tuple[str, ...], value: Json) -> Json:
    keys = [{"key": key} for key in (PAYLOAD, *path)]
    return {"metadata": {"filter": FILTER, "path": keys, "value": value}}


def _and(*wanted: Json) -> Json:
    return wanted[0] if len(wanted) == 1 else {"and_ids": {"ids": list(wanted)}}


def _or(*wanted: Json) -> Json:
    return wanted[0] if len(wanted) == 1 else {"or_ids": {"ids": list(wanted)}}
