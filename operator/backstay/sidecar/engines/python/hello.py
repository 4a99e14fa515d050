"""The server name in a TLS ClientHello, read from bytes that stay in the socket. Pure.

Only what stands before the name is parsed; a hello that is cut short or is none has no name.
"""

from typing import Final

HELLO_BYTES: Final = 16 * 1024 + 5  # one TLS record; hellos have 0.3 to 2 KiB, with post-quantum keys
_CLIENT_HELLO: Final = b"\x01"
_SERVER_NAME, _HOST_NAME = 0x0000, 0x00
_MAX_RECORD: Final = 16 * 1024 + 256


def server_name(data: bytes) -> bytes | None:
    """The name in lower case, `b""` where there is none or this is no TLS; None while more bytes must come."""
    hello, at = b"", 0
    while not _is_whole(hello):
        head = data[at : at + 5]
        if not head.startswith(b"\x16\x03"[: len(head)]) or not hello.startswith(_CLIENT_HELLO[: len(hello)]):
            return b""
        if len(head) < 5:
            return None
        size = int.from_bytes(head[3:], "big")
        if not 0 < size <= _MAX_RECORD or _says(hello) > HELLO_BYTES:
            return b""
        if len(data) < at + 5 + size:
            return None
        hello += data[at + 5 : at + 5 + size]
        at += 5 + size
    try:
        return _name(hello)
    except IndexError:
        return b""


def _says(hello: bytes) -> int:
    """The size of a hello as it says itself, once that is there."""
    return 4 + int.from_bytes(hello[1:4], "big") if len(hello) >= 4 else 4


def _is_whole(hello: bytes) -> bool:
    """A hello may come in several records (RFC 8446, 5.1), as some clients send it to hide the name from simpler readers."""
    return len(hello) >= _says(hello)


class _Reader:
    """Takes length-prefixed fields; IndexError where one is cut short."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise IndexError("cut short")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        return self.take(self.number(size))

    @property
    def has_more(self) -> bool:
        return self._at < len(self._data)


def _name(message: bytes) -> bytes:
    reader = _Reader(message)
    if reader.take(1) != _CLIENT_HELLO:
        return b""
    hello = _Reader(reader.block(3))
    hello.take(2 + 32)  # version and random
    hello.block(1)  # session
    hello.block(2)  # cipher suites
    hello.block(1)  # compression
    extensions = _Reader(hello.block(2) if hello.has_more else b"")
    while extensions.has_more:
        kind, content = extensions.number(2), extensions.block(2)
        if kind == _SERVER_NAME:
            return _first_host(_Reader(_Reader(content).block(2)))
    return b""


def _first_host(names: _Reader) -> bytes:
    while names.has_more:
        kind, name = names.number(1), names.block(2)
        if kind == _HOST_NAME:
            return name.lower().removesuffix(b".")
    return b""
