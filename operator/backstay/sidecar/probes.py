"""Asks the application how it is, for the kubelet, which under STRICT would get no answer itself.

The injection webhook moves a pod's HTTP, TCP and gRPC probes (and HTTP hooks) to paths of the proxy's health port and says
here what each path stands for. The answer is the application's: its status, or 503 with what went wrong. Asked at the address
that the kubelet would have asked, from one that is not redirected.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal

import msgspec

from backstay.redact import clean
from backstay.sidecar.admin import TEXT, Answer
from backstay.sidecar.engine import APP_SOURCES

MAX_BODY: Final = 1024  # shown in an event when a probe fails; the kubelet itself reads 10 KiB
MAX_HEAD: Final = 32 * 1024  # as the hot path's
MAX_GRPC: Final = 64 * 1024  # bytes of frames; an answer has about 100
AGENT: Final = "kube-probe/backstay"
"""Applications keep probes out of their logs by the first half."""


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a path stands for."""

    type: Literal["http", "tcp", "grpc"]
    port: int
    path: str = "/"
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    headers: list[tuple[str, str]] = []
    service: str = ""
    """gRPC only: which service's health; empty is the server's."""
    timeoutSeconds: float = 1.0  # noqa: N815 - as in a pod's probe


class Unwell(Exception):
    """The application answered, and its answer is no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the application is asked."""

    host: str
    source: str = ""
    """From where; empty: whichever address the system takes."""

    @classmethod
    def of(cls, health_host: str, app_host: str, *, is_redirected: bool) -> "Place":
        """The pod's own address, which is the one its health port has, as the kubelet does; else the application's."""
        own = ip_address(health_host) if _is_address(health_host) else None
        host = app_host if own is None or own.is_unspecified else health_host
        needs_source = is_redirected and not (_is_address(host) and ip_address(host).is_loopback)
        return cls(host=host, source=APP_SOURCES[6 if ":" in host else 4] if needs_source else "")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse(text: str) -> dict[str, Question]:
    """Path -> question. Raises ValueError that names the setting."""
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Question])
    except msgspec.DecodeError as error:
        raise ValueError(f"--app-probes: {error}") from error


def pages(questions: Mapping[str, Question], place: Place) -> dict[str, Callable[[], Coroutine[Any, Any, Answer]]]:
    return {path: lambda question=question: ask(question, place) for path, question in questions.items()}  # type: ignore[misc]


async def ask(question: Question, place: Place) -> Answer:
    """The application's answer; what keeps it from answering is an answer as well."""
    try:
        async with asyncio.timeout(question.timeoutSeconds):
            return await _ASK[question.type](question, place)
    except TimeoutError:
        return _no(question, f"no answer within {question.timeoutSeconds:g} s")
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, Unwell) as error:
        return _no(question, clean(str(error)) or type(error).__name__)


def _no(question: Question, why: str) -> Answer:
    return 503, TEXT, f"port {question.port} of the application: {why}\n".encode()


async def _connect(
    question: Question, place: Place, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    source = (place.source, 0) if place.source else None
    return await asyncio.open_connection(
        place.host, question.port, ssl=context, local_addr=source, limit=MAX_HEAD, ssl_handshake_timeout=None
    )


async def _tcp(question: Question, place: Place) -> Answer:
    _, writer = await _connect(question, place)
    writer.close()
    return 200, TEXT, b"connected\n"


# --- HTTP ---------------------------------------------------------------------------------------------------------


async def _http(question: Question, place: Place) -> Answer:
    reader, writer = await _connect(question, place, _any_certificate() if question.scheme == "HTTPS" else None)
    try:
        writer.write(request(question, place.host))
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
        status = status_of(line)
        return status, TEXT, b"" if status < 400 else await reader.read(MAX_BODY)
    finally:
        writer.close()


def _any_certificate() -> ssl.SSLContext:
    """The kubelet does not check certificates of probes either: it asks whether somebody is there, and tells no secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def request(question: Question, host: str) -> bytes:
    """The request's bytes. Raises ValueError for what is no header or path."""
    name = f"[{host}]" if ":" in host else host
    given = {key.lower() for key, _ in question.headers}
    defaults = [("Host", f"{name}:{question.port}"), ("User-Agent", AGENT), ("Accept", "*/*")]
    fields = [*(each for each in defaults if each[0].lower() not in given), *question.headers, ("Connection", "close")]
    lines = [f"GET {question.path} HTTP/1.1", *(f"{key}: {value}" for key, value in fields)]
    if any("\r" in line or "\n" in line for line in lines) or " " in question.path:
        raise ValueError(f"path {question.path!r} or a header of this probe cannot be sent")
    return "\r\n".join([*lines, "", ""]).encode()


def status_of(line: bytes) -> int:
    """The status of a response's first line. Raises Unwell."""
    words = line.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or len(words[1]) != 3:
        raise Unwell(f"{line[:60].decode('latin-1')!r} is no HTTP/1 response")
    return int(words[1])


# --- gRPC: just enough of HTTP/2 for grpc.health.v1.Health/Check --------------------------------------------------

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
SERVING: Final = 1


async def _grpc(question: Question, place: Place) -> Answer:
    reader, writer = await _connect(question, place)
    try:
        writer.write(health_request(f"{place.host}:{question.port}", question.service))
        status = serving_status(await _message(reader, writer))
    finally:
        writer.close()
    if status != SERVING:
        raise Unwell(f"gRPC health is {status}, expected {SERVING} (SERVING)")
    return 200, TEXT, b"serving\n"


def health_request(authority: str, service: str) -> bytes:
    """Preface, settings and the one request of a connection, as bytes of HTTP/2 (RFC 9113)."""
    block = b"\x83\x86" + _field(4, b"/grpc.health.v1.Health/Check") + _field(1, authority.encode())  # POST, http
    block += _field(31, b"application/grpc") + b"\x00" + _text(b"te") + _text(b"trailers")
    asked = b"\x0a" + _varint(len(service.encode())) + service.encode() if service else b""
    message = b"\x00" + len(asked).to_bytes(4) + asked
    return (
        PREFACE
        + frame(_SETTINGS, 0, 0)
        + frame(_HEADERS, _END_HEADERS, 1, block)
        + frame(_DATA, _END_STREAM, 1, message)
    )


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _field(index: int, value: bytes) -> bytes:
    """A literal whose name is in HPACK's static table, not to be indexed (RFC 7541, 6.2.2)."""
    name = bytes((index,)) if index < 15 else bytes((15, index - 15))
    return name + _text(value)


def _text(value: bytes) -> bytes:
    return (bytes((len(value),)) if len(value) < 127 else b"\x7f" + _varint(len(value) - 127)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def _message(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """All of the response's data. Raises Unwell."""
    data, left = b"", MAX_GRPC
    while True:
        head = await reader.readexactly(9)
        size, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
        left -= size
        if left < 0:
            raise Unwell("too long an answer for a health check")
        payload = await reader.readexactly(size)
        if kind == _GOAWAY or (kind == _RESET and stream == 1):
            raise Unwell("the server refused the health check")
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
        if stream == 1 and kind == _DATA:
            data += payload[1 : size - payload[0]] if flags & _PADDED else payload
        if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return data


def serving_status(data: bytes) -> int:
    """`status` of a HealthCheckResponse; 0 (UNKNOWN) is left out by those who say it. Raises Unwell."""
    if len(data) < 5 or data[0] != 0 or len(data) != 5 + int.from_bytes(data[1:5]):
        raise Unwell("no health status: is the gRPC health service there?")
    message = data[5:]
    if not message:
        return 0
    if message[0] != 0x08 or len(message) < 2:
        raise Unwell("an answer that is no health status")
    return message[1]


_ASK: Final[Mapping[str, Callable[[Question, Place], Coroutine[Any, Any, Answer]]]] = {
    "http": _http,
    "tcp": _tcp,
    "grpc": _grpc,
}
