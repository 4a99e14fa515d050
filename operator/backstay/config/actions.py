"""What a rule does to a request besides choosing where it goes: rewrites, redirects, header edits, CORS, sticky shares.

Pure functions over bytes, asked by the data plane once per message and by the operator's evaluator with the same values, so
that a review shows the bytes a proxy would send. Targets made here are not trusted more than a client's: the caller cleans
them again before they are forwarded.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, TypeAlias

from backstay.config.match import Headers, hold
from backstay.config.model import Cors, HeaderEdits, PathRewrite, Redirect, Rewrite, ValueMatch
from backstay.config.regex import compile_pattern

Fields: TypeAlias = list[tuple[bytes, bytes]]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_CORS_ANSWERS: Final = frozenset(
    (
        b"access-control-allow-origin", b"access-control-allow-credentials", b"access-control-expose-headers",
    )
)  # fmt: skip
"""Fields of an answer that the rule speaks for; an application's own would contradict it."""


# --- paths and places ----------------------------------------------------------------------------------------------


def rewritten_path(rewrite: PathRewrite, path: bytes, prefix: bytes) -> bytes:
    """The path after a rewrite. `prefix` is the one by which the rule took the request (RouteTable.matched_prefix)."""
    match rewrite.kind:
        case "full":
            return rewrite.value.encode()
        case "regex":
            changed, _ = compile_pattern(rewrite.pattern).subn(rewrite.value.encode(), path)
            return changed
        case "prefix":
            return _joined(rewrite.value.encode().rstrip(b"/"), path[len(prefix) :])


def _joined(prefix: bytes, rest: bytes) -> bytes:
    """Never two slashes at the seam, never none (GEP-726: `/foo` -> `/` makes `/`, `/foo/bar` -> `/bar`)."""
    if not rest:
        return prefix or b"/"
    return prefix + rest if rest.startswith(b"/") else prefix + b"/" + rest


def rewritten_target(rewrite: Rewrite, path: bytes, query: bytes, prefix: bytes) -> bytes:
    """The whole target after a rewrite; the query stays what it was."""
    changed = rewritten_path(rewrite.path, path, prefix) if rewrite.path is not None else path
    return changed + b"?" + query if query else changed


def redirect_location(
    redirect: Redirect, *, secure: bool, authority: bytes, path: bytes, query: bytes, prefix: bytes
) -> bytes:
    """The Location of a redirect: what it does not name is as the request had it (Gateway API, RequestRedirect)."""
    asked = "https" if secure else "http"
    scheme = redirect.scheme or asked
    host, own_port = _split(authority)
    port = redirect.port or _port_of(scheme, asked, own_port)
    changed = rewritten_path(redirect.path, path, prefix) if redirect.path is not None else path
    name = redirect.host.encode() or host
    shown = name if port == _DEFAULT_PORTS[scheme] else b"%b:%d" % (name, port)
    return b"%b://%b%b%b" % (scheme.encode(), shown, changed, b"?" + query if query else b"")


def _port_of(scheme: str, asked: str, own: int) -> int:
    """A redirect to another scheme goes to that scheme's own port; one that stays keeps the port."""
    return own if scheme == asked and own else _DEFAULT_PORTS[scheme]


def _split(authority: bytes) -> tuple[bytes, int]:
    host, colon, port = authority.rpartition(b":")
    if not colon or not port.isdigit() or host.endswith(b":"):
        return authority, 0
    return host, int(port)


# --- fields --------------------------------------------------------------------------------------------------------


class CompiledEdits:
    """Header edits as bytes."""

    __slots__ = ("_add", "_drop")

    def __init__(self, edits: HeaderEdits) -> None:
        replaced = tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in edits.set)
        added = tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in edits.add)
        self._drop = frozenset((*(name.encode().lower() for name in edits.remove), *(n.lower() for n, _ in replaced)))
        self._add = (*replaced, *added)

    def apply(self, fields: Iterable[tuple[bytes, bytes]]) -> Fields:
        """The fields after the edits: removed first, then set, then added (Envoy's order)."""
        kept = [field for field in fields if field[0].lower() not in self._drop] if self._drop else list(fields)
        kept.extend(self._add)
        return kept


# --- CORS ----------------------------------------------------------------------------------------------------------


class CompiledCors:
    """Answers to preflights, and what is added to other answers (Fetch standard, CORS protocol)."""

    __slots__ = ("_answer", "_any", "_credentials", "_expose", "_origins")

    def __init__(self, cors: Cors) -> None:
        self._any = any(origin.kind == "exact" and origin.value == "*" for origin in cors.origins)
        self._origins = tuple(_origin_test(origin) for origin in cors.origins)
        self._credentials = cors.credentials
        self._expose = ", ".join(cors.expose).encode()
        said = (
            (b"Access-Control-Allow-Methods", ", ".join(cors.methods)),
            (b"Access-Control-Allow-Headers", ", ".join(cors.headers)),
            (b"Access-Control-Max-Age", str(cors.max_age_s) if cors.max_age_s else ""),
        )
        self._answer: Fields = [(name, value.encode()) for name, value in said if value]

    def preflight(self, method: bytes, headers: Headers) -> Fields | None:
        """The fields of the answer to a preflight of a known origin; None for every other request: it is forwarded."""
        if method != b"OPTIONS" or not _value(headers, b"access-control-request-method"):
            return None
        allowed = self._allowed(headers)
        return [*allowed, *self._answer] if allowed else None

    def answer(self, request: Headers, response: Iterable[tuple[bytes, bytes]]) -> Fields:
        """The fields of an ordinary answer: what the application says about origins is replaced where the rule knows it."""
        allowed = self._allowed(request)
        if not allowed:
            return list(response)
        kept = [field for field in response if field[0].lower() not in _CORS_ANSWERS]
        if self._expose:
            allowed.append((b"Access-Control-Expose-Headers", self._expose))
        return [*kept, *allowed]

    def _allowed(self, headers: Headers) -> Fields:
        origin = _value(headers, b"origin")
        if not origin or not (self._any or any(hold((test,), {b"": origin}) for test in self._origins)):
            return []
        # A browser takes no `*` with credentials; an answer that depends on the origin must not be cached for another.
        shown = b"*" if self._any and not self._credentials else origin
        fields = [(b"Access-Control-Allow-Origin", shown)]
        if shown != b"*":
            fields.append((b"Vary", b"Origin"))
        if self._credentials:
            fields.append((b"Access-Control-Allow-Credentials", b"true"))
        return fields


def _origin_test(origin: ValueMatch) -> tuple[bytes, str, object]:
    return b"", origin.kind, compile_pattern(origin.value) if origin.kind == "regex" else origin.value.encode()


def _value(headers: Headers, name: bytes) -> bytes:
    return next((value.strip(b" \t") for field, value in headers if field.lower() == name), b"")


# --- sticky shares and hashes --------------------------------------------------------------------------------------


def cookie_value(headers: Headers, name: bytes) -> bytes:
    """The value of a cookie; the first one counts (RFC 6265, 5.4 puts the most specific first)."""
    for field, value in headers:
        if field.lower() == b"cookie":
            for pair in value.split(b";"):
                found, equals, content = pair.strip(b" \t").partition(b"=")
                if equals and found == name:
                    return content.strip(b'"')
    return b""


def hash_of(value: bytes) -> int:
    """64 bits that every proxy computes alike, whatever its process."""
    return int.from_bytes(blake2b(value, digest_size=8).digest(), "big")


def sticky_point(value: bytes) -> float:
    """Where in [0, 1) a value falls: the draw of a rule whose shares are sticky. While weights move, only those callers
    change sides whose point the border passes."""
    return (hash_of(value) >> 11) / 2**53  # as many bits as a float between 0 and 1 can tell apart


def sticky_value(headers: Headers, header: bytes, cookie: bytes) -> bytes:
    """What a request is recognized by; empty if it carries nothing."""
    if header:
        return b",".join(value.strip(b" \t") for name, value in headers if name.lower() == header)
    return cookie_value(headers, cookie)


def set_cookie(name: bytes, value: bytes, ttl_s: int, path: bytes = b"/") -> tuple[bytes, bytes]:
    """A field that makes a browser send the value back."""
    lives = b"; Max-Age=%d" % ttl_s if ttl_s > 0 else b""
    return b"Set-Cookie", b'%b="%b"%b; Path=%b; HttpOnly' % (name, value, lives, path)
