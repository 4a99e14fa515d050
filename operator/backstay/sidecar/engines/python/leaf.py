"""Whether a certificate may be the leaf of a workload (X509-SVID, sections 4 and 5). Pure: DER in, complaint out.

OpenSSL verifies the chain and, for extensions that are there, the purpose; it takes a CA's certificate as a leaf, and one
that says nothing about its usage. A CA that could speak as a workload could speak as every workload (threats S1). Read
with a parser of the few DER forms that extensions need, because a crypto library would cost the sidecar 15 MB.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

REMEMBERED: Final = 256
"""Judgements kept: a caller that connects again shows the same certificate. Only verified ones are asked about, of 1 KiB."""
_SEQUENCE, _BOOLEAN, _BIT_STRING, _OCTETS, _OID, _EXTENSIONS = 0x30, 0x01, 0x03, 0x04, 0x06, 0xA3
_BASIC_CONSTRAINTS: Final = b"\x55\x1d\x13"
_KEY_USAGE: Final = b"\x55\x1d\x0f"
_EXTENDED_KEY_USAGE: Final = b"\x55\x1d\x25"
_SERVER_AUTH: Final = b"\x2b\x06\x01\x05\x05\x07\x03\x01"
_CLIENT_AUTH: Final = b"\x2b\x06\x01\x05\x05\x07\x03\x02"
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN, _CRL_SIGN = 0x80, 0x04, 0x02  # bits 0, 5 and 6 of KeyUsage (RFC 5280, 4.2.1.3)
_LONG_FORM: Final = 0x80
_MAX_LENGTH_BYTES: Final = 3  # 16 MiB; a TLS message with certificates is shorter


class BadEncoding(ValueError):
    """Bytes that are not the DER of a certificate."""


@lru_cache(maxsize=REMEMBERED)
def complaint(certificate: bytes) -> str:
    """Why this certificate (DER) is no workload's leaf; empty if it is one. It is a property of the bytes alone."""
    try:
        listed = list(extensions(certificate))
    except (ValueError, IndexError) as error:
        return f"it cannot be read ({error})"
    found = dict(listed)
    return "it has one extension twice" if len(found) < len(listed) else _judge(found)


def _judge(found: dict[bytes, bytes]) -> str:
    try:
        return _judge_usage(found)
    except (ValueError, IndexError) as error:
        return f"an extension cannot be read ({error})"


def _judge_usage(found: dict[bytes, bytes]) -> str:
    if _is_ca(found.get(_BASIC_CONSTRAINTS)):
        return "it is a CA"
    usage = _usage(found.get(_KEY_USAGE))
    if usage & (_KEY_CERT_SIGN | _CRL_SIGN):
        return "its key may sign certificates or revocation lists"
    if not usage & _DIGITAL_SIGNATURE:
        return "its key usage lacks digitalSignature"
    purposes = {value for _, value in _items(_only(found.get(_EXTENDED_KEY_USAGE), _SEQUENCE))}
    if not {_SERVER_AUTH, _CLIENT_AUTH} <= purposes:
        return "its extended key usage lacks serverAuth or clientAuth"
    return ""


def _is_ca(value: bytes | None) -> bool:
    return any(tag == _BOOLEAN and content != b"\x00" for tag, content in _items(_only(value, _SEQUENCE)))


def _usage(value: bytes | None) -> int:
    bits = _only(value, _BIT_STRING)
    return bits[1] if len(bits) > 1 else 0


def extensions(certificate: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(OID, value) of every extension. Raises BadEncoding."""
    (body, *_) = _items(_only(certificate, _SEQUENCE))
    listed = next((content for tag, content in _items(body[1]) if tag == _EXTENSIONS), b"")
    for _, extension in _items(_only(listed, _SEQUENCE)) if listed else ():
        fields = list(_items(extension))
        if len(fields) < 2 or fields[0][0] != _OID or fields[-1][0] != _OCTETS:
            raise BadEncoding("an extension is malformed")
        yield fields[0][1], fields[-1][1]


def _only(data: bytes | None, tag: int) -> bytes:
    """The content of a value that must be alone and of this type; nothing for None."""
    if data is None:
        return b""
    values = list(_items(data))
    if len(values) != 1 or values[0][0] != tag:
        raise BadEncoding(f"expected one value with tag {tag:#x}")
    return values[0][1]


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of the values that follow each other."""
    at = 0
    while at < len(data):
        tag, start, end = data[at], *_bounds(data, at + 1)
        yield tag, data[start:end]
        at = end


def _bounds(data: bytes, at: int) -> tuple[int, int]:
    """Where the content begins and ends whose length is written at `at`."""
    length, start = data[at], at + 1
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        if not 0 < count <= _MAX_LENGTH_BYTES:
            raise BadEncoding("a length is malformed")
        length, start = int.from_bytes(data[start : start + count], "big"), start + count
    if start + length > len(data):
        raise BadEncoding("a value is cut short")
    return start, start + length
