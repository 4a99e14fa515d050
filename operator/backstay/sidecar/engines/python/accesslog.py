"""The access log: one JSON object a line, collected in memory and written in batches, never one call per request."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backstay.sidecar.engines.python.failures import FAILURES

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange

MAX_BUFFERED: Final = 1024 * 1024
"""Bytes kept for a reader that does not keep up; beyond it lines are dropped and counted, traffic is not held up."""


class AccessLog:
    def __init__(self, write: Callable[[bytes], int | None]) -> None:
        """`write` takes what it can at once and says how many bytes that were (as os.write on a non-blocking file)."""
        self._write = write
        self._encode = msgspec.json.Encoder().encode_into
        self._buffer = bytearray()
        self._line = bytearray()
        self.dropped = 0

    def exchange(self, exchange: "Exchange", seconds: float) -> None:
        if len(self._buffer) > MAX_BUFFERED:
            self.dropped += 1
            return
        self._encode(record(exchange, seconds, time.time()), self._line)
        self._buffer += self._line
        self._buffer += b"\n"

    def flush(self) -> None:
        """Write what is there; what the reader does not take stays."""
        if not self._buffer:
            return
        try:
            written = self._write(bytes(self._buffer))
        except BlockingIOError:
            return
        del self._buffer[: len(self._buffer) if written is None else written]


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


def _trace(exchange: "Exchange") -> str:
    for name, value in exchange.fields:
        if name.lower() == b"traceparent":
            return value.decode("latin-1")
    return ""
