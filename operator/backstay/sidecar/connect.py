"""Ways to the operator: one POST for certificates, one WebSocket for all else. Small on purpose: no aiohttp here.

Both verify the operator by its SPIFFE ID before the first byte of theirs leaves.
"""

import asyncio
import ssl
from collections import deque
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, InvalidStatus, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from backstay.config.wire import (
    MAX_MESSAGE_BYTES,
    STREAM_PATH,
    EnrolAnswer,
    EnrolRequest,
    ToOperator,
    ToProxy,
    decode_to_proxy,
    encode,
)
from backstay.sidecar.identity import is_operator

CONNECT_WITHIN: Final = 5.0  # seconds for TCP and TLS; the operator is near
ANSWER_WITHIN: Final = 15.0
CLOSE_WITHIN: Final = 1.0
MAX_ANSWER: Final = 1024 * 1024
PING_AFTER: Final = 5.0  # seconds without anything heard
DEAD_AFTER: Final = 15.0  # three pings; a quarter of the default lease
MAX_UNSENT: Final = 8 * 1024 * 1024  # two minutes of the largest reports; more means the operator has stopped reading
REDIRECT: Final = 307
_READ: Final = 64 * 1024


class OperatorUnreachable(Exception):
    """Nobody there, or nobody that can prove to be the operator. Try again later."""


class OperatorRefused(Exception):
    """The operator has answered no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OperatorElsewhere(Exception):
    """Another replica of the operator holds the streams. It proves to be the operator like any other."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"streams are held at {host}:{port}")
        self.host, self.port = host, port


class ChannelClosed(Exception):
    """The stream has ended."""


async def _open(
    host: str, port: int, context: ssl.SSLContext, trust_domain: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        async with asyncio.timeout(CONNECT_WITHIN):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
        raise OperatorUnreachable(f"{host}:{port}: {error or 'no answer'}") from error
    if not is_operator(writer, trust_domain):
        writer.transport.abort()
        raise OperatorUnreachable(f"{host}:{port}: its certificate is not the operator's of {trust_domain}")
    return reader, writer


# --- certificates ---------------------------------------------------------------------------------


async def ask_certificate(
    host: str, port: int, path: str, asked: EnrolRequest, *, context: ssl.SSLContext, trust_domain: str
) -> EnrolAnswer:
    """POST one enrolment or renewal. Raises OperatorUnreachable, OperatorRefused."""
    reader, writer = await _open(host, port, context, trust_domain)
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            writer.write(_request(host, port, path, msgspec.json.encode(asked)))
            status, body = _response(await reader.read(MAX_ANSWER))
    except (OSError, TimeoutError, ValueError) as error:
        raise OperatorUnreachable(f"{host}:{port}: {error or 'no answer'}") from error
    finally:
        writer.transport.abort()
    if status != 200:
        raise OperatorRefused(status, f"{host}:{port}{path}: {status} {body[:200].decode(errors='replace')}")
    try:
        return msgspec.json.decode(body, type=EnrolAnswer)
    except msgspec.DecodeError as error:
        raise OperatorUnreachable(f"{host}:{port}{path}: {error}") from error


def _request(host: str, port: int, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _response(data: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer that ended with its connection. Raises ValueError."""
    head, mark, body = data.partition(b"\r\n\r\n")
    line = head.split(b"\r\n", 1)[0].split(b" ")
    if not mark or len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not line[1].isdigit():
        raise ValueError("not an HTTP answer")
    return int(line[1]), body


def _follow(error: InvalidStatus) -> None:
    """Raises OperatorElsewhere where the answer names another replica."""
    location = error.response.headers.get("Location", "")
    if error.response.status_code == REDIRECT and location.startswith("https://"):
        where = urlsplit(location)
        if where.hostname and where.port:
            raise OperatorElsewhere(where.hostname, where.port)


# --- the stream -----------------------------------------------------------------------------------


class Channel:
    """One open control stream. `receive` belongs to one task; `send` never waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ClientProtocol) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = protocol
        self._pieces: list[bytes] = []
        self._inbox: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"Channel({self._protocol.state.name}, inbox={len(self._inbox)})"

    @classmethod
    async def open(cls, host: str, port: int, *, context: ssl.SSLContext, trust_domain: str) -> "Channel":
        """Connect and upgrade. Raises OperatorUnreachable, OperatorRefused, OperatorElsewhere."""
        reader, writer = await _open(host, port, context, trust_domain)
        protocol = ClientProtocol(parse_uri(f"wss://{host}:{port}{STREAM_PATH}"), max_size=MAX_MESSAGE_BYTES)
        channel = cls(reader, writer, protocol)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await channel._upgrade()
        except (OSError, TimeoutError, ChannelClosed) as error:
            channel.abort()
            # TLS 1.3 tells a client only now that its certificate was not liked.
            raise OperatorUnreachable(f"{host}:{port}: {error or 'no answer'}") from error
        except BaseException:
            channel.abort()
            raise
        return channel

    async def _upgrade(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is State.CONNECTING:
            await self._hear()
            error = self._protocol.handshake_exc
            if isinstance(error, InvalidStatus):
                _follow(error)
                raise OperatorRefused(error.response.status_code, f"stream: {error}")
            if error is not None:
                raise ChannelClosed(str(error))

    def send(self, message: ToOperator) -> None:
        """Raises ChannelClosed."""
        if self._protocol.state is not State.OPEN:
            raise ChannelClosed("the stream is closed")
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort()
            raise ChannelClosed("the operator does not read")
        self._protocol.send_text(encode(message))
        self._flush()

    async def receive(self) -> ToProxy:
        """The next message. Raises ChannelClosed, msgspec.DecodeError."""
        while not self._inbox:
            if self._protocol.state is not State.OPEN:
                raise ChannelClosed(f"{self._protocol.close_code} {self._protocol.close_reason}")
            await self._hear()
        return decode_to_proxy(self._inbox.popleft())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """End in order, within a second; the operator sees code and reason."""
        try:
            self._protocol.send_close(code, reason)
            self._flush()
            async with asyncio.timeout(CLOSE_WITHIN):
                # Until the operator answers: an abort before that would take the reason back with it.
                while self._protocol.close_rcvd is None and self._protocol.state is not State.CLOSED:
                    await self._hear()
        except (OSError, TimeoutError, ChannelClosed, ProtocolError, InvalidState):
            pass  # going anyway
        finally:
            self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _hear(self) -> None:
        """Read once and file what came. Raises ChannelClosed when the operator is silent or gone."""
        try:
            data = await self._read()
        except OSError as error:
            raise ChannelClosed(str(error) or type(error).__name__) from error
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._flush()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._file(event)
        if not data and self._protocol.state is State.CONNECTING:
            raise ChannelClosed("closed during the upgrade")

    async def _read(self) -> bytes:
        for _ in range(round(DEAD_AFTER / PING_AFTER)):
            try:
                async with asyncio.timeout(PING_AFTER):
                    return await self._reader.read(_READ)
            except TimeoutError:
                if self._protocol.state is State.OPEN:
                    self._protocol.send_ping(b"")
                    self._flush()
        raise ChannelClosed("the operator is silent")

    def _file(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.CONT):
            return
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            self._inbox.append(b"".join(self._pieces))
            self._pieces.clear()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._writer.is_closing():
                self._writer.write(data)
