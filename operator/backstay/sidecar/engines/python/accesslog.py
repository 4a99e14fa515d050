"""The access log: one JSON object a line, collected in memory and written in batches, never one call per request."""

import asyncio
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backstay.sidecar.engines.python.failures import FAILURES

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange

MAX_BUFFERED: Final = 1024 * 1024
"""Bytes kept for a reader that does not keep up; beyond it lines are dropped and counted, traffic is not held up."""
LAST_LINES_SECONDS: Final = 1.0  # at the end: for a reader to take what is left; one that is stuck does not get more
LOOK_SECONDS: Final = 0.01

Sink = Callable[[bytes], int | None]
"""Takes what it can without waiting and says how many bytes that were (None: all). Raises LinesLost."""


class LinesLost(OSError):
    """Lines that were taken could not be written; there is no second try for them."""

    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.lines = lines


class StdoutSink:
    """Writes to standard output from a thread of its own, one batch at a time.

    Not by O_NONBLOCK: that is a setting of the open file, which other processes (a shell, a supervisor) may share.
    """

    def __init__(self, descriptor: int | None = None, *, shared: bool = False) -> None:
        """`shared`: other processes write to it too, so lines are written in pieces that the kernel does not mix."""
        self._descriptor = descriptor
        self._most = select.PIPE_BUF if shared else MAX_BUFFERED * 2
        self._batch = b""
        self._lost: LinesLost | None = None
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, data: bytes) -> int:
        if self._batch:
            return 0
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost
        self._batch = data
        self._filled.set()
        if self._thread is None:  # a sidecar without an access log has no thread
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        return len(data)

    @property
    def is_busy(self) -> bool:
        return bool(self._batch)

    def _run(self) -> None:
        descriptor = self._descriptor if self._descriptor is not None else sys.stdout.fileno()
        while True:
            self._filled.wait()
            self._filled.clear()
            left = memoryview(self._batch)
            try:
                while left:
                    left = left[os.write(descriptor, left[: _whole_lines(left, self._most)]) :]
            except OSError as error:  # the reader has gone away
                self._lost = LinesLost(bytes(left).count(b"\n"), error)
            self._batch = b""  # last: from here on the loop may bring the next one


def _whole_lines(data: memoryview, most: int) -> int:
    """How many bytes to write at once: at most so many, in whole lines where one fits."""
    if len(data) <= most:
        return len(data)
    return bytes(data[:most]).rfind(b"\n") + 1 or most


class AccessLog:
    def __init__(self, write: Sink) -> None:
        self._write = write
        self._encode = msgspec.json.Encoder().encode_into
        self._buffer = bytearray()
        self._line = bytearray()
        self.dropped = 0
        """Lines that nobody will see."""

    def exchange(self, exchange: "Exchange", seconds: float) -> None:
        if self._has_room():
            self._add(record(exchange, seconds, time.time()))

    def refused(self, address: str, port: int, reason: str, config: str, error: str = "") -> None:
        """A connection that was closed before any request of it was read."""
        if self._has_room():
            self._add(refusal_record(address, port, reason, config, error, time.time()))

    def _has_room(self) -> bool:
        has_room = len(self._buffer) <= MAX_BUFFERED
        self.dropped += not has_room
        return has_room

    def _add(self, fields: dict[str, Any]) -> None:
        self._encode(fields, self._line)
        self._buffer += self._line
        self._buffer += b"\n"

    def flush(self) -> None:
        """Write what is there; what the reader does not take stays."""
        if not self._buffer:
            return
        try:
            written = self._write(bytes(self._buffer))
        except LinesLost as lost:
            self.dropped += lost.lines
            return
        except BlockingIOError:
            return
        del self._buffer[: len(self._buffer) if written is None else written]

    async def finish(self) -> None:
        """Write the last lines, as long as somebody takes them."""
        ends = time.monotonic() + LAST_LINES_SECONDS
        self.flush()
        while (self._buffer or getattr(self._write, "is_busy", False)) and time.monotonic() < ends:
            await asyncio.sleep(LOOK_SECONDS)
            self.flush()


def record(exchange: "Exchange", seconds: float, at: float) -> dict[str, Any]:
    """The fields of one line; empty ones are left out."""
    downstream, head, lane = exchange.downstream, exchange.head, exchange.lane
    failure = FAILURES.get(exchange.reason)
    pool = exchange.tried[-1] if exchange.tried else exchange.pool
    fields: dict[str, Any] = {
        "time": round(at, 3),
        "method": exchange.method.decode("latin-1"),
        "authority": head.authority.decode("latin-1") if head is not None else "",
        "path": head.path.decode("latin-1") if head is not None else "",
        "status": exchange.status,
        "flags": failure.flag if failure is not None else "",
        "reason": exchange.reason,
        "policy": exchange.policy,
        "audited": exchange.audited or "",
        "duration_ms": round(seconds * 1000, 3),
        "bytes_in": exchange.size,
        "bytes_out": exchange.response_bytes,
        "tries": exchange.tries,
        "route": lane.counters.route if lane is not None else "",
        "backend": lane.counters.backend if lane is not None else "",
        "upstream": f"{pool.key.address}:{pool.key.port}" if pool is not None else "",
        "source": downstream.identity or downstream.address,
        "config": exchange.runtime.digest[:12] if exchange.runtime is not None else "",
        "traceparent": _trace(exchange),
    }
    return {name: value for name, value in fields.items() if value != ""}


def refusal_record(address: str, port: int, reason: str, config: str, error: str, at: float) -> dict[str, Any]:
    fields = {
        "time": round(at, 3),
        "status": 0,
        "flags": FAILURES[reason].flag,
        "reason": reason,
        "error": error,
        "route": f"inbound:{port}",
        "source": address,
        "config": config[:12],
    }
    return {name: value for name, value in fields.items() if value != ""}


def _trace(exchange: "Exchange") -> str:
    if exchange.trace is not None:
        return f"00-{exchange.trace.trace.decode()}-{exchange.trace.span.decode()}-01"
    for name, value in exchange.fields:
        if name.lower() == b"traceparent":
            return value.decode("latin-1")
    return ""
