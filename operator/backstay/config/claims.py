"""What a verified token says: its principal, and the values of a claim wherever it stands.

The data plane asks for requests, the evaluator for claims that a person gives it.
"""

from collections.abc import Mapping
from typing import Any, Final

_SPACED: Final = frozenset(("scope", "scp", "permission"))
"""Claims that are a list written as one text (RFC 8693, 4.2; as Istio)."""


def principal_of(claims: Mapping[str, Any] | None) -> str:
    """`<issuer>/<subject>`; empty without a token, or with one that lacks either."""
    if claims is None:
        return ""
    issuer, subject = claims.get("iss"), claims.get("sub")
    return f"{issuer}/{subject}" if isinstance(issuer, str) and isinstance(subject, str) else ""


def claim_values(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The values of one claim as text; none where it is missing or a structure. A claim of exactly this name comes before
    one that lies within others (`realm_access.roles`)."""
    found = claims[name] if name in claims else _within(claims, name)
    if isinstance(found, str) and name.rpartition(".")[2] in _SPACED:
        return tuple(found.split())
    items = found if isinstance(found, list) else [found]
    return tuple(text for text in map(_text, items) if text)


def _within(claims: Mapping[str, Any], name: str) -> Any:
    found: Any = claims
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""
