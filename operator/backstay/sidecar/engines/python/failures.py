"""What a client is told when the mesh itself answers: one table from reason to status and body.

Bodies name the kind of failure and nothing else: no policy, no address, no file (those are in the access log).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    status: int
    bad: str
    """Name in `wire.BAD_REASONS`; empty for what is the client's own fault or nobody's evidence."""
    flag: str
    """Response flag in the access log, as Envoy's users know them."""
    is_refusal: bool = False
    """The mesh says no by its rules: evidence only if stable would have said yes."""


FAILURES: Final = {
    "no-route": Failure(status=404, bad="no-route", flag="NR", is_refusal=True),
    "unknown-host": Failure(status=502, bad="no-route", flag="NR", is_refusal=True),
    "denied": Failure(status=403, bad="denied", flag="RBAC", is_refusal=True),
    "no-token": Failure(status=401, bad="bad-token", flag="UAEX", is_refusal=True),
    "bad-token": Failure(status=401, bad="bad-token", flag="UAEX", is_refusal=True),
    "plaintext-refused": Failure(status=0, bad="plaintext-refused", flag="DC", is_refusal=True),
    "handshake-refused": Failure(status=0, bad="handshake-refused", flag="DC", is_refusal=True),
    "fault": Failure(status=503, bad="fault", flag="FI", is_refusal=True),
    "rate-limited": Failure(status=429, bad="rate-limited", flag="RL", is_refusal=True),
    "bad-rewrite": Failure(status=400, bad="no-route", flag="NR", is_refusal=True),
    "no-healthy-upstream": Failure(status=503, bad="no-healthy-upstream", flag="UH"),
    "no-backend": Failure(status=503, bad="no-healthy-upstream", flag="UH"),
    "overflow": Failure(status=503, bad="overflow", flag="UO"),
    "connect-failure": Failure(status=503, bad="connect-failure", flag="UF"),
    "reset": Failure(status=503, bad="reset", flag="UC"),
    "bad-response": Failure(status=502, bad="reset", flag="UPE"),
    "timeout": Failure(status=504, bad="timeout", flag="UT"),
    "not-ready": Failure(status=503, bad="", flag="UH"),
    "loop": Failure(status=508, bad="", flag="NR"),
    "client-gone": Failure(status=0, bad="", flag="DC"),
    "bad-request": Failure(status=400, bad="", flag="DPE"),
    "slow-request": Failure(status=408, bad="", flag="DT"),
}
"""Statuses as Envoy's (`connect-failure`, `reset` 503; a malformed answer 502; registry-only 502)."""


UNDELIVERED: Final = (b"X-Backstay-Undelivered", b"connect-failure")
"""With a 503, from one proxy of the mesh to another: the application took no connection, so no byte of this request reached
it, and it may be sent elsewhere. Fields of this prefix are taken out of whatever an application sends and of whatever goes
to one, so that only proxies say it, and only proxies hear it."""
_UNDELIVERED_NAME: Final = UNDELIVERED[0].lower()
UNDELIVERED_STATUS: Final = 503


def says_undelivered(fields: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == _UNDELIVERED_NAME for name, _ in fields)


CHALLENGES: Final = {
    "no-token": [(b"WWW-Authenticate", b"Bearer")],
    "bad-token": [(b"WWW-Authenticate", b'Bearer error="invalid_token"')],
}
"""What a client is told to bring (RFC 6750, 3); why its token is not believed stands in the access log only."""


def local_response(
    status: int,
    reason: str,
    *,
    close: bool,
    with_body: bool = True,
    fields: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
) -> bytes:
    """A whole answer made by the proxy itself: `body` with these fields, or a line of text that names the reason."""
    kind = b"Content-Type: text/plain\r\n" if body is None else b""
    content = reason.encode() + b"\n" if body is None else body
    length = b"" if status in _WITHOUT_BODY else b"Content-Length: %d\r\n" % len(content)
    head = b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n" % (
        status, phrase(status), b"".join(b"%b: %b\r\n" % field for field in fields), kind, length,
        b"Connection: close\r\n" if close else b"",
    )  # fmt: skip
    return head + content if with_body and length else head


_WITHOUT_BODY: Final = frozenset((204, 304))


def phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"


STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase(status)) for status in range(100, 600)}
"""Reason phrases are the proxy's own: an application's phrase is free text that nobody needs downstream."""
