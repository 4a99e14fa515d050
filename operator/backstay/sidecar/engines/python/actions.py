"""A rule's actions made ready: what is answered at once, what is changed on the way, and to whom copies go.

A rule that only chooses backends has none, and its requests never come here. Decisions are those of config/actions.py; an
exchange asks and acts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from backstay.config.actions import CompiledCors, CompiledEdits, redirect_location, rewritten_target, set_cookie
from backstay.config.match import RouteTable
from backstay.config.model import Rule
from backstay.config.target import clean_target
from backstay.sidecar.engines.python.framing import Fields, RequestHead, is_authority

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.limits import Bucket
    from backstay.sidecar.engines.python.runtime import Lane


class LocalAnswer(NamedTuple):
    """An answer that no backend gives."""

    status: int
    fields: Fields
    body: bytes


class Copies(NamedTuple):
    """Where copies of some requests go."""

    lane: "Lane"
    share: float


class Actions:
    __slots__ = (
        "_cookie", "_cors", "_index", "_request", "_response", "_rewrite", "_rule", "_table", "bucket", "copies",
    )  # fmt: skip

    def __init__(
        self, rule: Rule, table: RouteTable, index: int, bucket: "Bucket | None", copies: Sequence[Copies]
    ) -> None:
        self._rule = rule
        self._table = table
        self._index = index
        self._cors = CompiledCors(rule.cors) if rule.cors else None
        self._request = CompiledEdits(rule.request_headers) if rule.request_headers else None
        self._response = CompiledEdits(rule.response_headers) if rule.response_headers else None
        self._rewrite = rule.rewrite
        self._cookie = rule.sticky.cookie.encode() if rule.sticky and rule.sticky.cookie_ttl_s >= 0 else b""
        self.bucket = bucket
        self.copies = tuple(copies)

    # --- answered here ---------------------------------------------------------------------------------------------

    def preflight(self, head: RequestHead) -> LocalAnswer | None:
        """The answer to a browser's question whether another origin may ask."""
        fields = self._cors.preflight(head.method, head.fields) if self._cors is not None else None
        return None if fields is None else LocalAnswer(204, fields, b"")

    def answer(self, head: RequestHead, *, secure: bool) -> LocalAnswer | None:
        """The rule's own answer: a redirect or a direct response."""
        rule = self._rule
        if rule.redirect is not None:
            location = redirect_location(
                rule.redirect,
                secure=secure,
                authority=head.authority,
                path=head.path,
                query=head.query,
                prefix=self._prefix(head),
            )
            return LocalAnswer(rule.redirect.status, self._edited(head, [(b"Location", location)]), b"")
        if rule.direct is None:
            return None
        body = rule.direct.body.encode()
        fields = [(b"Content-Type", rule.direct.content_type.encode())] if body else []
        return LocalAnswer(rule.direct.status, self._edited(head, fields), body)

    def _prefix(self, head: RequestHead) -> bytes:
        return self._table.matched_prefix(self._index, head.method, head.path, head.query, head.fields, head.authority)

    # --- changed on the way ----------------------------------------------------------------------------------------

    @property
    def reshapes(self) -> bool:
        return self._request is not None or self._rewrite is not None

    def reshaped(self, head: RequestHead) -> bytes | None:
        """The head that is forwarded instead; None if the new target is none that a server could be sent."""
        target, host, rest = _split(head)
        if self._rewrite is not None:
            new = rewritten_target(self._rewrite, head.path, head.query, self._prefix(head))
            cleaned = clean_target(new, head.method)
            if cleaned is None or not (cleaned.startswith(b"/") or cleaned == b"*"):
                return None
            target = cleaned
            host = self._rewrite.host.encode() or host
        if not is_authority(host):
            return None
        if self._request is not None:
            rest = _with_fields(head, rest, self._request.apply(head.fields))
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (head.method, target, host, rest)

    def response(self, head: RequestHead, fields: Fields, cookie: bytes) -> Fields:
        """The fields of a backend's answer as the client gets them."""
        if cookie and self._cookie:
            ttl = self._rule.sticky.cookie_ttl_s if self._rule.sticky is not None else 0
            fields = [*fields, set_cookie(self._cookie, cookie, ttl)]
        return self._edited(head, fields)

    def _edited(self, head: RequestHead, fields: Fields) -> Fields:
        if self._cors is not None:
            fields = self._cors.answer(head.fields, fields)
        return self._response.apply(fields) if self._response is not None else fields


def has_actions(rule: Rule) -> bool:
    """False for a rule that only chooses a backend."""
    return any(
        (
            rule.cors, rule.request_headers, rule.response_headers, rule.rewrite, rule.redirect, rule.direct,
            rule.rate_limit, rule.mirrors, rule.sticky is not None and rule.sticky.cookie_ttl_s >= 0,
        )
    )  # fmt: skip


_HOST = b" HTTP/1.1\r\nHost: "


def _split(head: RequestHead) -> tuple[bytes, bytes, bytes]:
    """(target, Host, everything after it) of a head made by framing, which puts them first and in this order."""
    start = len(head.method) + 1
    at = head.block.index(_HOST, start)
    host, _, rest = head.block[at + len(_HOST) :].partition(b"\r\n")
    return head.block[start:at], host, rest


def with_fields(head: RequestHead, fields: Fields, query: bytes | None = None) -> bytes:
    """The whole head with other ordinary fields, and with another query if one is given."""
    target, host, rest = _split(head)
    if query is not None:
        target = target.partition(b"?")[0] + (b"?" + query if query else b"")
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (head.method, target, host, _with_fields(head, rest, fields))


def _with_fields(head: RequestHead, rest: bytes, fields: Fields) -> bytes:
    """What follows Host, with other ordinary fields: they come first, framing after them."""
    ordinary = sum(len(name) + len(value) + 4 for name, value in head.fields)
    return b"".join(b"%b: %b\r\n" % field for field in fields) + rest[ordinary:]
