"""What parent and workers say to each other: one call, one answer, over a socket pair; sockets travel with a call.

Both ends are the same program at the same version and trust each other; a frame is its length and a MessagePack array.
"""

import socket
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from backstay.config.model import Config
from backstay.config.wire import Endpoint, RefusalExpected
from backstay.sidecar.engine import Address, Observed

SIGNATURES: Final[dict[str, Any]] = {
    "begin": tuple[list[msgspec.Raw]],
    "start": tuple[Address],
    "ports": tuple[list[tuple[str, int]]],
    "apply": tuple[Config, Config | None, float, list[RefusalExpected]],
    "endpoints": tuple[dict[str, list[Endpoint]], bool],
    "place": tuple[str],
    "key_sets": tuple[dict[str, str]],
    "addresses": tuple[dict[str, list[str]]],
    "trust": tuple[dict[str, str], list[str]],
    "identity": tuple[str, str],
    "secrets": tuple[dict[str, str]],
    "sample": tuple[int],
    "collect": tuple[()],
    "metrics": tuple[bool],
    "clusters": tuple[()],
    "level": tuple[str],
    "drain": tuple[float],
}
"""Name of a call -> its arguments. Those of `Engine`; `begin`: these calls, with nothing served in between; `ports`: take
the sockets that come along for these places."""

MAX_SOCKETS: Final = 200  # that travel with one call; the kernel takes 253
_LENGTH: Final = 4


class Call(msgspec.Struct, frozen=True, array_like=True):
    name: str
    arguments: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    observed: Observed | None = None
    text: str = ""
    refused: str = ""
    """Reason of a `ContentRefused`."""
    failed: str = ""
    """What broke; empty: nothing did."""


class Last(msgspec.Struct, frozen=True, array_like=True):
    """What a worker says unasked, when it has drained and ends: counts that nobody collected yet."""

    observed: Observed
    metrics: str


_encode: Final = msgspec.msgpack.Encoder(enc_hook=str).encode
_call: Final = msgspec.msgpack.Decoder(Call)
_answer: Final = msgspec.msgpack.Decoder(Answer)
_last: Final = msgspec.msgpack.Decoder(Last)
_arguments: Final = {name: msgspec.msgpack.Decoder(kind) for name, kind in SIGNATURES.items()}


def encode_call(name: str, *arguments: object) -> bytes:
    return _encode(Call(name, msgspec.Raw(_encode(arguments))))


def decode_call(data: bytes) -> tuple[str, tuple[Any, ...]]:
    """Name and arguments. Raises msgspec.DecodeError, KeyError."""
    call = _call.decode(data)
    return call.name, _arguments[call.name].decode(call.arguments)


def encode(said: Answer | Last) -> bytes:
    return _encode(said)


def decode_answer(data: bytes) -> Answer:
    return _answer.decode(data)


def decode_last(data: bytes) -> Last:
    return _last.decode(data)


def send(sock: socket.socket, data: bytes, sockets: Sequence[int] = ()) -> None:
    """One frame, with the descriptors of these sockets. Raises OSError."""
    head = len(data).to_bytes(_LENGTH, "big")
    if sockets:
        socket.send_fds(sock, [head], list(sockets))
        sock.sendall(data)
    else:
        sock.sendall(head + data)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One frame and the descriptors that came with it. Raises OSError; EOFError at the end."""
    head, found, _, _ = socket.recv_fds(sock, _LENGTH, MAX_SOCKETS)
    if not head:
        raise EOFError("the other end is gone")
    head += _exactly(sock, _LENGTH - len(head))
    return _exactly(sock, int.from_bytes(head, "big")), found


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other end is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
