"""The strict layer over httptools: which parsed messages may go on, and with which bytes.

llhttp without leniencies already refuses what breaks framing inside one message (two Content-Length, both framings,
bare LF, folded lines, bad chunks). It has no rules for Host, targets, sizes, versions and hop-by-hop fields: those are here.
Called once per message head with plain values; a refusal is a value. Rule: every decision is made on what is forwarded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backstay.config.target import clean_target

Fields: TypeAlias = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES: Final = 60 * 1024  # Envoy's default; nginx 4 x 8 KiB, h11 16 KiB
MAX_FIELDS: Final = 100  # Envoy's default
MAX_TARGET_BYTES: Final = 8 * 1024  # nginx large_client_header_buffers; RFC 9112 asks for at least 8000
MAX_CHUNK_OVERHEAD: Final = 64 * 1024
"""Bytes of chunk lines, extensions and trailers beyond `CHUNK_OVERHEAD_PER_BYTE` per body byte (threats H2, H16)."""
CHUNK_OVERHEAD_PER_BYTE: Final = 8  # one-byte chunks need five: size, CR LF, CR LF
MAX_INTERIM_RESPONSES: Final = 16  # 1xx answers to one request; real servers send one or two

CHUNKED: Final = -1
NO_BODY: Final = 0
UNTIL_CLOSE: Final = -2
"""Body lengths that are not a number of bytes."""

_ORDINARY: Final = 0
_HOST: Final = 1
_LENGTH: Final = 2
_ENCODING: Final = 3
_CONNECTION: Final = 4
_EXPECT: Final = 5
_UPGRADE: Final = 6
_CERTIFICATE: Final = 7
_DROPPED: Final = 8
_SPECIAL: Final = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _ENCODING,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    b"upgrade": _UPGRADE,
    b"keep-alive": _DROPPED,
    b"proxy-connection": _DROPPED,
    b"proxy-authenticate": _DROPPED,
    b"proxy-authorization": _DROPPED,
    b"te": _DROPPED,
    b"trailer": _DROPPED,
    b"http2-settings": _DROPPED,
    b"x-forwarded-client-cert": _CERTIFICATE,
}
_OWN_PREFIX: Final = b"x-backstay-"
"""Identity and control fields are the mesh's to write; a client's are removed, underscore twins too (threats H8)."""
_BLANK: Final = 0x20  # and what is below it: of those llhttp lets only the tab through
_NEVER_LISTED: Final = frozenset((b"authorization", b"cookie", b"traceparent", b"tracestate", b"content-type"))
"""Fields that naming them in `Connection` does not remove: they are what a next hop decides by (threats H7)."""
_MAX_REMEMBERED_NAMES: Final = 4096
_MAX_REMEMBERED_NAME: Final = 64
"""Bytes of one such name; real ones have 30 at most. A head is one long name if its sender wants: 4,096 would be 240 MB."""

_AUTHORITY: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~-]{1,253})(?::([0-9]{1,5}))?")
_METHOD_BODYLESS: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"))
_STATUS_WITHOUT_BODY: Final = frozenset((204, 304))
_MAX_PORT: Final = 65535
_good_authorities: Final[set[bytes]] = set()
"""Authorities that were looked at and found good: most requests name one of a few."""
_MAX_REMEMBERED_AUTHORITIES: Final = 1024
_kinds: Final[dict[bytes, int]] = {}
"""Kind of a field by its name as sent; each spelling is classified once."""


def _kind(name: bytes) -> int:
    lower = name.lower().replace(b"_", b"-")
    kind = _DROPPED if lower.startswith(_OWN_PREFIX) else _SPECIAL.get(lower, _ORDINARY)
    if kind not in (_ORDINARY, _DROPPED) and b"_" in name:
        kind = _DROPPED  # `Content_Length`: some application servers read it as the real one
    if len(_kinds) < _MAX_REMEMBERED_NAMES and len(name) <= _MAX_REMEMBERED_NAME:
        _kinds[name] = kind
    return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A message that goes nowhere, and what its sender is told."""

    status: int
    reason: str


class RequestHead:
    """A request that may be forwarded. Not frozen and without defaults: one is made per request."""

    __slots__ = (
        "authority", "block", "client_cert", "expects_continue", "fields", "length", "method", "path", "query", "upgrade",
    )  # fmt: skip

    def __init__(self, method: bytes, authority: bytes, path: bytes, query: bytes) -> None:
        self.method = method
        self.authority = authority
        self.path = path
        self.query = query
        self.fields: Fields = []
        """What is forwarded, and so what matchers see (without Host and framing)."""
        self.length = NO_BODY
        self.upgrade = False
        self.expects_continue = False
        self.client_cert = b""
        """X-Forwarded-Client-Cert as it came. It is not forwarded unless clientcert.py says so."""
        self.block = b""
        """The whole head as it goes upstream."""


class ResponseHead:
    __slots__ = ("block", "length", "reusable")

    def __init__(self, block: bytes, length: int, reusable: bool) -> None:
        self.block = block
        self.length = length
        """Length of the body from upstream: bytes, CHUNKED, NO_BODY or UNTIL_CLOSE."""
        self.reusable = reusable


_NONE: Final[list[bytes]] = []
"""Of fields that are not there; shared, and never added to."""


class _Scan:
    """What the special fields of one head say. Most heads have one or two of them, so lists are made when needed."""

    __slots__ = ("certificate", "connection", "encoding", "expect", "host", "length", "upgrade")

    def __init__(self) -> None:
        self.host = self.length = self.encoding = self.connection = self.expect = self.upgrade = _NONE
        self.certificate = _NONE

    def add(self, kind: int, value: bytes) -> None:
        if kind == _HOST:
            self.host = [*self.host, value]
        elif kind == _LENGTH:
            self.length = [*self.length, value]
        elif kind == _ENCODING:
            self.encoding = [*self.encoding, value]
        elif kind == _CONNECTION:
            self.connection = [*self.connection, value]
        elif kind == _EXPECT:
            self.expect = [*self.expect, value]
        elif kind == _UPGRADE:
            self.upgrade = [*self.upgrade, value]
        elif kind == _CERTIFICATE:
            self.certificate = [*self.certificate, value]


def _sort(fields: Fields) -> tuple[Fields, _Scan]:
    """Ordinary fields in order, and the values of the special ones."""
    ordinary: Fields = []
    scan, known = _Scan(), _kinds
    for field in fields:
        kind = known.get(field[0], -1)
        if kind < 0:
            kind = _kind(field[0])
        if kind == _ORDINARY:
            # llhttp leaves blanks at a value's end: `admin ` must not pass a rule about `admin` (RFC 9110, 5.5).
            value = field[1]
            ordinary.append(field if not value or value[-1] > _BLANK else (field[0], value.rstrip(b" \t")))
        else:
            scan.add(kind, field[1].strip(b" \t"))
    if scan.connection:
        ordinary = _without_listed(ordinary, scan.connection)
    return ordinary, scan


def connection_options(values: Sequence[bytes]) -> set[bytes]:
    return {option.strip(b" \t").lower() for value in values for option in value.split(b",")}


def _without_listed(fields: Fields, connection: Sequence[bytes]) -> Fields:
    listed = connection_options(connection) - {b"close", b"keep-alive", b"upgrade"} - _NEVER_LISTED
    return [field for field in fields if field[0].lower() not in listed] if listed else fields


def read_request(
    method: bytes, target: bytes, version: str, fields: Fields, authority: bytes = b""
) -> RequestHead | Refusal:
    """Judge one request head. `authority`: what a tunnel or an explicit listener fixed; it wins over Host and target."""
    refusal = _limits(target, version, fields)
    if refusal is not None:
        return refusal
    ordinary, scan = _sort(fields)
    named, target = _split_target(target)
    if named is None or len(scan.host) > 1 or (not scan.host and version == "1.1"):
        return Refusal(status=400, reason="bad-host")
    sent = named or (scan.host[0] if scan.host else authority)
    if not is_authority(sent) or (named and scan.host and not is_authority(scan.host[0])):
        return Refusal(status=400, reason="bad-host")
    cleaned = clean_target(target, method)
    if cleaned is None:
        return Refusal(status=400, reason="bad-target")
    path, _, query = cleaned.partition(b"?")
    head = RequestHead(method, authority or sent, path, query)
    head.fields = ordinary
    if scan.certificate:
        head.client_cert = b",".join(scan.certificate)
    return _frame(head, scan, version) or _finish(head, cleaned, sent)


def check_connect(target: bytes, version: str, fields: Fields) -> Refusal | None:
    """Judge the head of a CONNECT, of which nothing is forwarded. What follows it is the tunnel (RFC 9110, 9.3.6): a sender who
    says how long a body is means something else, and so may whoever reads this connection before us."""
    refusal = _limits(target, version, fields)
    if refusal is not None:
        return refusal
    _, scan = _sort(fields)
    if len(scan.host) > 1 or not (is_authority(scan.host[0]) if scan.host else version == "1.0"):
        return Refusal(status=400, reason="bad-host")
    if body_length(scan.length, scan.encoding, version) != NO_BODY:
        return Refusal(status=400, reason="bad-framing")
    return None


def _limits(target: bytes, version: str, fields: Fields) -> Refusal | None:
    if version not in ("1.1", "1.0"):
        return Refusal(status=505, reason="bad-version")
    if len(target) > MAX_TARGET_BYTES:
        return Refusal(status=414, reason="long-target")
    if len(fields) > MAX_FIELDS:
        return Refusal(status=431, reason="many-fields")
    return None


def _frame(head: RequestHead, scan: _Scan, version: str) -> Refusal | None:
    """Read body length, Expect and Upgrade into the head."""
    length = body_length(scan.length, scan.encoding, version)
    if length is None:
        return Refusal(status=400, reason="bad-framing")
    head.length = length
    if scan.expect:
        if [value.lower() for value in scan.expect] != [b"100-continue"]:
            return Refusal(status=417, reason="bad-expect")
        head.expects_continue = version == "1.1" and length != NO_BODY
    if scan.upgrade and b"upgrade" in connection_options(scan.connection):
        head.upgrade = is_websocket(scan.upgrade)
    if head.upgrade and (length != NO_BODY or head.method != b"GET"):
        return Refusal(status=400, reason="bad-upgrade")
    return None


def is_websocket(upgrade: Sequence[bytes]) -> bool:
    """Only WebSocket is passed on; other offers (`h2c`) are a client's option that a proxy may ignore (RFC 9110, 7.8)."""
    return len(upgrade) == 1 and upgrade[0].lower() == b"websocket"


def wants_websocket(fields: Fields) -> bool:
    return is_websocket([value.strip(b" \t") for name, value in fields if name.lower() == b"upgrade"])


def body_length(length: Sequence[bytes], encoding: Sequence[bytes], version: str) -> int | None:
    """Bytes, CHUNKED or NO_BODY of a request; None if the framing is not beyond doubt."""
    if encoding:
        is_plain_chunked = len(encoding) == 1 and encoding[0].lower() == b"chunked"
        return CHUNKED if is_plain_chunked and not length and version == "1.1" else None
    if not length:
        return NO_BODY
    return int(length[0]) if len(length) == 1 and length[0].isdigit() else None


def _finish(head: RequestHead, target: bytes, host: bytes) -> RequestHead:
    parts = [head.method, b" ", target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]
    for name, value in head.fields:
        parts.append(b"%b: %b\r\n" % (name, value))
    if head.length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif head.length > 0 or head.method not in _METHOD_BODYLESS:
        parts.append(b"Content-Length: %d\r\n" % head.length)
    if head.expects_continue:
        parts.append(b"Expect: 100-continue\r\n")
    if head.upgrade:
        parts.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    parts.append(b"\r\n")
    head.block = b"".join(parts)
    return head


def is_authority(value: bytes) -> bool:
    if value in _good_authorities:
        return True
    match = _AUTHORITY.fullmatch(value)
    is_good = match is not None and (match[1] is None or 0 < int(match[1]) <= _MAX_PORT)
    if is_good:
        if len(_good_authorities) >= _MAX_REMEMBERED_AUTHORITIES:
            _good_authorities.clear()
        _good_authorities.add(value)
    return is_good


def split_authority(authority: bytes, default_port: int = 80) -> tuple[str, int]:
    """Host without brackets, and port, of a checked authority."""
    host, colon, port = authority.rpartition(b":")
    if not colon or not port.isdigit():
        return authority.strip(b"[]").decode(), default_port
    return host.strip(b"[]").decode(), int(port)


def _split_target(target: bytes) -> tuple[bytes | None, bytes]:
    """(authority or b"", origin form) of a target; the authority is None for forms a proxy cannot serve."""
    if target.startswith(b"/") or target == b"*":
        return b"", target
    if target[:7].lower() != b"http://":
        return None, b""
    rest = target[7:]
    cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    origin = rest[cut:]
    return rest[:cut] or None, origin if origin.startswith(b"/") else b"/" + origin


# --- responses -----------------------------------------------------------------------------------------------------


def read_response(
    status: int, status_line: bytes, fields: Fields, request_method: bytes, keep_alive: bool, client_http11: bool
) -> ResponseHead | Refusal:
    """Judge one final response head (or a 101) and make the head that the client gets, without the Connection field."""
    if len(fields) > MAX_FIELDS:
        return Refusal(status=502, reason="many-fields")
    ordinary, scan = _sort(fields)
    length = response_length(status, request_method, scan.length, scan.encoding)
    if length is None:
        return Refusal(status=502, reason="bad-framing")
    parts = [status_line]
    for name, value in ordinary:
        parts.append(b"%b: %b\r\n" % (name, value))
    if length >= 0 and scan.length and status != 204:
        parts.append(b"Content-Length: %d\r\n" % int(scan.length[0]))
    elif length >= 0 and not _has_no_body(status, request_method):
        parts.append(b"Content-Length: 0\r\n")
    elif length < 0 and client_http11:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    return ResponseHead(b"".join(parts), length, keep_alive and length != UNTIL_CLOSE)


def _has_no_body(status: int, request_method: bytes) -> bool:
    return request_method == b"HEAD" or status in _STATUS_WITHOUT_BODY or status < 200


def response_length(status: int, method: bytes, length: Sequence[bytes], encoding: Sequence[bytes]) -> int | None:
    """Length of the body that follows, by RFC 9112, 6.3; None if the framing is not beyond doubt."""
    if len(length) > 1 or (length and (encoding or not length[0].isdigit())):
        return None
    if encoding and (len(encoding) > 1 or encoding[0].lower() != b"chunked"):
        return None
    if _has_no_body(status, method):
        return NO_BODY
    if encoding:
        return CHUNKED
    return int(length[0]) if length else UNTIL_CLOSE


def upgrade_head(status_line: bytes, fields: Fields) -> bytes:
    """The head of a 101 answer as the client gets it."""
    ordinary, _ = _sort(fields)
    parts = [status_line, *(b"%b: %b\r\n" % field for field in ordinary)]
    return b"".join((*parts, b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
