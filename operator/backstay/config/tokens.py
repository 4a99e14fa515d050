"""Tokens of requests (JWT): where they stand, what they must say, and what of a request is forwarded for it.

Signatures are the verifier's (sidecar/engines/python/jwt.py); everything else about a token is decided here, so that the
evaluator says of claims what a proxy says of the token they came from. Rule: the algorithm comes from the key, never from
the token; keys in a token's header (`jwk`, `jku`, `x5u`) are not looked at (threats J1 to J3).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final, NamedTuple

from backstay.config.claims import claim_values
from backstay.config.jwks import decode64, strict_json
from backstay.config.match import Headers
from backstay.config.model import Jwt, JwtProvider, TokenPlace

MAX_TOKEN_BYTES: Final = 8 * 1024  # threats J7; nginx and Node.js refuse heads not much longer
SKEW_SECONDS: Final = 60.0  # by how much clocks may differ: Envoy's default
LAST_TIME: Final = 2**53  # seconds; greater numbers are not exact in JSON
_UNSAFE_IN_HEADER: Final = re.compile(rb"[\x00-\x1f\x7f]")


class Token(NamedTuple):
    """A token as it reads; nothing of it is true before its signature is verified."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class Found(NamedTuple):
    place: TokenPlace
    token: bytes


class Forwarded(NamedTuple):
    """What of a request goes on."""

    fields: list[tuple[bytes, bytes]]
    query: bytes


def read_token(data: bytes) -> Token:
    """Take a compact token apart. Raises ValueError that says what is wrong, without any of its content."""
    if len(data) > MAX_TOKEN_BYTES:
        raise ValueError("too long")
    parts = data.split(b".")
    if len(parts) != 3:
        raise ValueError("not three parts")
    header, claims = _object(parts[0], "header"), _object(parts[1], "payload")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)):
        raise ValueError("header without alg, or with a kid that is no text")
    if "crit" in header or "b64" in header:
        raise ValueError("header asks for an extension")
    return Token(algorithm, kid, claims, parts[0] + b"." + parts[1], decode64(parts[2]))


def _object(part: bytes, name: str) -> dict[str, Any]:
    try:
        found = strict_json(decode64(part))
    except ValueError as error:
        raise ValueError(f"{name} unreadable: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no object")
    return found


def complaint(claims: Mapping[str, Any], provider: JwtProvider, now: float) -> str:
    """What is wrong with the claims of a token for one provider; empty if nothing is."""
    if claims.get("iss") != provider.issuer:
        return "issuer"
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_time(claims[name]):
            return f"{name} is no time"
    if "exp" in claims and now > claims["exp"] + SKEW_SECONDS:
        return "expired"
    if "nbf" in claims and now < claims["nbf"] - SKEW_SECONDS:
        return "not valid yet"
    if "sub" in claims and not isinstance(claims["sub"], str):
        return "sub is no text"
    return "" if _is_for(claims.get("aud"), provider.audiences) else "audience"


def _is_time(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isfinite(value) and 0 <= value <= LAST_TIME


def _is_for(audience: Any, wanted: Sequence[str]) -> bool:
    if not wanted:
        return True
    named = [audience] if isinstance(audience, str) else audience
    return isinstance(named, list) and any(isinstance(name, str) and name in wanted for name in named)


class TokenTable:
    """The providers of one workload, and which requests must bring a token."""

    __slots__ = ("_claim_headers", "_not_required", "_required", "jwt", "places", "providers")

    def __init__(self, jwt: Jwt) -> None:
        self.jwt = jwt
        self.providers = jwt.providers
        self.places = tuple(dict.fromkeys(place for provider in jwt.providers for place in provider.places))
        """Every place where a token may stand, in the order of the providers."""
        self._required = tuple(jwt.required)
        self._not_required = tuple(jwt.not_required)
        self._claim_headers = frozenset(
            header.encode() for provider in jwt.providers for header, _ in provider.claim_headers
        )

    def is_required(self, path: bytes) -> bool:
        """Whether a request for this path must bring a token."""
        return _takes(self._required, path) and not _takes(self._not_required, path)

    def find(self, fields: Headers, query: bytes) -> list[Found]:
        """The tokens of a request. Raises ValueError where one place has two."""
        found = []
        for place in self.places:
            values = list(_values_at(place, fields, query))
            if len(values) > 1:
                raise ValueError(f"two tokens in {place.kind} {place.name}")
            found += [Found(place, value) for value in values]
        return found

    def of_issuer(self, issuer: Any, place: TokenPlace | None = None) -> JwtProvider | None:
        """Whose token it is; None where nobody who reads that place knows the issuer."""
        chosen = (
            provider
            for provider in self.providers
            if provider.issuer == issuer and (place is None or place in provider.places)
        )
        return next(chosen, None)

    def refusal(self, path: bytes, claims: Mapping[str, Any] | None) -> str:
        """`no-token`, `bad-token` or nothing, for claims of a token that is valid in itself; without `aud` it is for us."""
        if claims is None:
            return "no-token" if self.is_required(path) else ""
        provider = self.of_issuer(claims.get("iss"))
        if provider is None or ("aud" in claims and not _is_for(claims["aud"], provider.audiences)):
            return "bad-token"
        return ""

    def forwarded(
        self, fields: Headers, query: bytes, found: Iterable[Found], claims: Mapping[str, Any] | None
    ) -> Forwarded:
        """The request without tokens that are not to be forwarded, and with the claims that its application wants to see.
        Headers for claims are ours to write: a client's are removed, with a token or without (threats H8)."""
        kept = [field for field in fields if _plain(field[0]) not in self._claim_headers]
        provider = self.of_issuer(claims.get("iss")) if claims is not None else None
        if provider is None or not provider.forward:
            for place, _ in found:
                kept, query = _without(place, kept, query)
        if provider is not None and claims is not None:
            kept += _claim_fields(provider, claims)
        return Forwarded(kept, query)


def _plain(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _takes(patterns: Sequence[str], path: bytes) -> bool:
    text = path.decode("latin-1")
    return any(
        pattern == "*"
        or (text.startswith(pattern[:-1]) if pattern.endswith("*") else False)
        or (text.endswith(pattern[1:]) if pattern.startswith("*") else text == pattern)
        for pattern in patterns
    )


def _claim_fields(provider: JwtProvider, claims: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    for header, claim in provider.claim_headers:
        value = ",".join(claim_values(claims, claim)).encode()
        if value and _UNSAFE_IN_HEADER.search(value) is None:
            yield header.encode(), value


# --- places -----------------------------------------------------------------------------------------------------------


def _values_at(place: TokenPlace, fields: Headers, query: bytes) -> Iterator[bytes]:
    if place.kind == "header":
        name, prefix = place.name.encode(), place.prefix.encode()
        for key, value in fields:
            stripped = value.strip(b" \t")
            if (
                key.lower() == name
                and stripped[: len(prefix)].lower() == prefix.lower()
                and len(stripped) > len(prefix)
            ):
                yield stripped[len(prefix) :].strip(b" \t")
    elif place.kind == "query":
        yield from (value for name, value in _pairs(query) if name == place.name.encode() and value)
    else:
        yield from (value for name, value in _cookies(fields) if name == place.name.encode() and value)


def _pairs(query: bytes) -> Iterator[tuple[bytes, bytes]]:
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        yield name, value


def _cookies(fields: Headers) -> Iterator[tuple[bytes, bytes]]:
    for key, line in fields:
        if key.lower() == b"cookie":
            for pair in line.split(b";"):
                name, _, value = pair.strip(b" \t").partition(b"=")
                yield name, value


def _without(
    place: TokenPlace, fields: list[tuple[bytes, bytes]], query: bytes
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    name = place.name.encode()
    if place.kind == "header":
        return [
            field for field in fields if field[0].lower() != name or not list(_values_at(place, [field], b""))
        ], query
    if place.kind == "query":
        return fields, b"&".join(pair for pair in query.split(b"&") if pair.partition(b"=")[0] != name)
    return [field for item in fields for field in _without_cookie(name, item)], query


def _without_cookie(name: bytes, field: tuple[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    if field[0].lower() != b"cookie":
        yield field
        return
    pairs = [pair for pair in field[1].split(b";") if pair.strip(b" \t").partition(b"=")[0] != name]
    if pairs:
        yield field[0], b";".join(pairs).strip(b" \t")
