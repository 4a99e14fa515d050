"""One proxy's control stream as the operator sees it: a bounded queue out, and what is known about the proxy.

A link never makes its sender wait: what does not fit, or is not taken within a stated time, cuts the link; the proxy
comes back and is told everything anew. Records outlive links, so that a proxy that is away gets its assignment later.

Times are looked after by whoever keeps the links (`overdue`), and what can leave at once leaves without waking a task: for a
thousand proxies that send and get a message a second, timers and wake-ups were a third of the operator's processor.
"""

import asyncio
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec
from aiohttp import WSMsgType, web

from backstay.config.wire import MAX_MESSAGE_BYTES, Goodbye, Message, RefusalExpected, encode
from backstay.core.ports import Assignment, Identity
from backstay.tasks import spawn, stop

MAX_QUEUED_BYTES: Final = 2 * MAX_MESSAGE_BYTES
SEND_WITHIN: Final = 10.0  # seconds for one message to leave; the same as aiohttp's and nginx's habit for slow readers
SILENT_AFTER: Final = 20.0  # seconds without any frame; a live proxy reports every second, so this is a dead peer
REMEMBERED_CONFIGS: Final = 4  # a proxy keeps at least eight, see sidecar/store.py
CLOSE_POLICY: Final = 1008  # RFC 6455 7.4.1, "policy violation"
_FINAL_TEXT: Final = 0x81
_SIZE_16, _SIZE_64 = struct.Struct("!BBH"), struct.Struct("!BBQ")


@dataclass(slots=True, eq=False)
class ProxyRecord:
    """What is known of one proxy, connected or not."""

    proxy: str
    desired: Assignment | None = None
    stable: str = ""
    candidate: str = ""
    """Digests of `desired`."""
    believed: tuple[str, ...] = ()
    """Configs it is believed to have on its disk, newest last."""
    sent: tuple[object, ...] | None = None
    """The assignment that is pending or acked on the present link; None: nothing, or it must be said again."""
    left_candidate: str = ""
    """The candidate it went back from, until the reconciler has heard of it: it is not sent again before."""
    serial: int = 0
    sent_bytes: int = 0
    acks: int = 0
    acked_at: float = 0.0
    """Unix time of its last ack; 0: none yet."""
    away_since: float = 0.0
    heard: tuple[str, int] = ("", 0)
    """Boot and sequence of the last report whose samples were kept."""

    def believe(self, *digests: str) -> None:
        fresh = dict.fromkeys(digest for digest in digests if digest)
        older = [digest for digest in self.believed if digest not in fresh]
        self.believed = tuple([*older, *fresh][-REMEMBERED_CONFIGS:])

    @property
    def effective_candidate(self) -> str:
        return "" if self.candidate == self.left_candidate else self.candidate

    def wanted(self) -> tuple[object, ...] | None:
        """What should be in force, comparable; None while nothing is assigned."""
        if self.desired is None:
            return None
        candidate, refusals = self.effective_candidate, self.desired.expect_refused
        share = self.desired.share if candidate else 0.0
        return self.stable, candidate, share, self.desired.lease_s, refusals


class AssignFrame(Message, frozen=True, kw_only=True, tag="assign"):
    """An `Assign` whose offers are encoded already: those bytes are shared by all proxies that get the same offer."""

    epoch: int
    serial: int
    stable: msgspec.Raw
    candidate: msgspec.Raw | None = None
    share: float = 0.0
    lease_s: float = 60.0
    expect_refused: list[RefusalExpected] = []


def refusals(assignment: Assignment) -> list[RefusalExpected]:
    return [RefusalExpected(source=source, host=host, path=path) for source, host, path in assignment.expect_refused]


@dataclass(slots=True, eq=False)
class Link:
    """One open control stream."""

    socket: web.WebSocketResponse
    transport: asyncio.Transport | None
    record: ProxyRecord
    identity: Identity
    valid_until: float
    """Unix seconds: its certificate's end; a renewal moves it."""
    services: set[str] | None = None
    """Services whose endpoints it gets; None: all, as long as nothing is known of its configs."""
    draining: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    """When its last frame came."""
    _sending_since: float = 0.0
    """When the message began to leave that has not left; 0: none."""
    _queue: deque[bytes] = field(default_factory=deque)
    _queued_bytes: int = 0
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: asyncio.Task[None] | None = None
    _goodbye: Goodbye | None = None
    _was_said: bool = False

    def __repr__(self) -> str:
        return f"Link({self.record.proxy}, {self.identity.workload}, queued={self._queued_bytes})"

    def open(self) -> None:
        self._writer = spawn(self._write(), name=f"control-writer-{self.record.proxy}")

    def send(self, frame: bytes) -> None:
        """One message, at once if nothing waits before it; a full queue cuts the link."""
        if self._goodbye:
            return
        if self.transport is not None and self._is_free(self.transport):
            self.transport.write(framed(frame))
            self.record.sent_bytes += len(frame) + frame_overhead(len(frame))
            return
        if self._queued_bytes + len(frame) > MAX_QUEUED_BYTES:
            self.cut(
                "SlowProxy", f"{self._queued_bytes} bytes are waiting to be sent, expected at most {MAX_QUEUED_BYTES}"
            )
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._more.set()

    def _is_free(self, transport: asyncio.Transport) -> bool:
        """Neither here nor in the transport something waits to leave, and the stream is open."""
        waits = self._queue or self._sending_since or transport.get_write_buffer_size()
        return not (waits or self.socket.closed or transport.is_closing())

    def cut(self, reason: str, message: str) -> None:
        """End the link; the reason is sent if it can still be, and nothing else any more."""
        if self._goodbye is None:
            self._goodbye = Goodbye(reason=reason, message=message)
            self._queue.clear()
            self._more.set()

    async def close(self) -> None:
        """Say what is to be said, then end; never longer than SEND_WITHIN."""
        if self._writer is not None and self._goodbye is not None:
            await asyncio.wait([self._writer], timeout=SEND_WITHIN)
        await stop(self._writer)
        if self._was_said and self.transport is not None:
            # In order: an abort may reset the connection and take the goodbye out of the peer's hands unread.
            self.transport.close()
        else:
            self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def overdue(self, now: float) -> str:
        """What its peer takes too long for at `now` (time.monotonic); "" while it does not."""
        if now - self.heard_at > SILENT_AFTER:
            return f"nothing was heard for {now - self.heard_at:.0f} s"
        if self._sending_since and now - self._sending_since > SEND_WITHIN:
            return f"a message waits to be taken for {now - self._sending_since:.0f} s"
        return ""

    async def _write(self) -> None:
        try:
            while self._goodbye is None:
                await self._more.wait()
                self._more.clear()
                await self._flush()
            await self._say_goodbye(self._goodbye)
        except (TimeoutError, ConnectionError, RuntimeError):
            # RuntimeError: aiohttp's word for a transport that is closing. The reader sees the end and cleans up.
            self.abort()

    async def _flush(self) -> None:
        while self._queue:
            frame = self._queue.popleft()
            self._queued_bytes -= len(frame)
            self._sending_since = time.monotonic()
            await self.socket.send_frame(frame, WSMsgType.TEXT)
            self._sending_since = 0.0
            self.record.sent_bytes += len(frame) + frame_overhead(len(frame))

    async def _say_goodbye(self, goodbye: Goodbye) -> None:
        async with asyncio.timeout(SEND_WITHIN):
            await self.socket.send_frame(encode(goodbye), WSMsgType.TEXT)
            self._was_said = True
            await self.socket.close(code=CLOSE_POLICY, message=goodbye.reason.encode())


def framed(text: bytes) -> bytes:
    """A whole text message as one unmasked frame (RFC 6455 5.2)."""
    size = len(text)
    if size < 126:
        return bytes((_FINAL_TEXT, size)) + text
    if size < 65536:
        return _SIZE_16.pack(_FINAL_TEXT, 126, size) + text
    return _SIZE_64.pack(_FINAL_TEXT, 127, size) + text


def frame_overhead(size: int) -> int:
    """Bytes a WebSocket header of an unmasked frame adds (RFC 6455 5.2)."""
    return 2 if size < 126 else 4 if size < 65536 else 10
