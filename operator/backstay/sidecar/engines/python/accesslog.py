"""The access log: one JSON object a line, collected in memory and written in batches, never one call per request."""

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backstay.sidecar.engines.python.failures import FAILURES
from backstay.sidecar.engines.python.sink import MAX_BUFFERED, LinesLost, Sink

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange
    from backstay.sidecar.engines.python.pool import Pool
    from backstay.sidecar.engines.python.stats import Counters

LAST_LINES_SECONDS: Final = 1.0  # at the end: for a reader to take what is left; one that is stuck does not get more
LOOK_SECONDS: Final = 0.01
MOST_ENDINGS: Final = 1024
"""Remembered ends of lines, of 0.3 KiB each: one per rule, endpoint and caller; a proxy seldom has more than dozens at a time."""
_TRACEPARENT_LENGTH: Final = len(b"traceparent")
_PLAIN: Final = bytes(code for code in range(0x20, 0x7F) if code not in b'"\\')
"""What stands in JSON as it is."""


class AccessLog:
    def __init__(self, write: Sink) -> None:
        self._write = write
        self._encode = msgspec.json.Encoder().encode_into
        self._buffer = bytearray()
        self._line = bytearray()
        self._endings: dict[tuple[Counters | None, Pool | None, str, str], bytes] = {}
        self.dropped = 0
        """Lines that nobody will see."""

    def exchange(self, exchange: "Exchange", seconds: float) -> None:
        if not self._has_room():
            return
        line = None if exchange.reason or exchange.audited else self._simple_line(exchange, seconds, time.time())
        if line is None:
            self._add(record(exchange, seconds, time.time()))
        else:
            self._buffer += line

    def _simple_line(self, exchange: "Exchange", seconds: float, at: float) -> bytes | None:
        """The line of a request to which nothing special happened, as most are: what `record` says, without the way through
        a dict (1.5 instead of 7 us; a test holds the two together). None if it needs the other way."""
        head, trace = exchange.head, _trace(exchange)
        if head is None or (exchange.method + head.authority + head.path + trace).translate(None, _PLAIN):
            return None
        lane, runtime, downstream = exchange.lane, exchange.runtime, exchange.downstream
        key = (
            lane.counters if lane is not None else None,
            exchange.tried[-1] if exchange.tried else exchange.pool,
            downstream.identity or downstream.address,
            runtime.digest if runtime is not None else "",
        )
        ending = self._endings.get(key) or self._remember(key)
        return b'{"time":%.3f,"method":"%b","authority":"%b","path":"%b","status":%d,"duration_ms":%.3f,%b%b%b}\n' % (
            at, exchange.method, head.authority, head.path, exchange.status, seconds * 1000,
            b'"bytes_in":%d,"bytes_out":%d,"tries":%d' % (exchange.size, exchange.response_bytes, exchange.tries),
            ending, b',"traceparent":"%b"' % trace if trace else b"",
        )  # fmt: skip

    def _remember(self, key: "tuple[Counters | None, Pool | None, str, str]") -> bytes:
        counters, pool, source, digest = key
        encoded = msgspec.json.encode(_without_empty(_where(counters, pool, source, digest)))[1:-1]
        if len(self._endings) >= MOST_ENDINGS:
            self._endings.clear()
        ending = self._endings[key] = b"," + encoded
        return ending

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
        **_where(
            lane.counters if lane is not None else None,
            exchange.tried[-1] if exchange.tried else exchange.pool,
            downstream.identity or downstream.address,
            exchange.runtime.digest if exchange.runtime is not None else "",
        ),
        "traceparent": _trace(exchange).decode("latin-1"),
    }
    return _without_empty(fields)


def _where(counters: "Counters | None", pool: "Pool | None", source: str, digest: str) -> dict[str, Any]:
    """Where from, where to, by which rule and config: the same for many requests."""
    return {
        "route": counters.route if counters is not None else "",
        "backend": counters.backend if counters is not None else "",
        "upstream": f"{pool.key.address}:{pool.key.port}" if pool is not None else "",
        "source": source,
        "config": digest[:12],
    }


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
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
    return _without_empty(fields)


def _trace(exchange: "Exchange") -> bytes:
    if exchange.trace is not None:
        return b"00-%b-%b-01" % (exchange.trace.trace, exchange.trace.span)
    for name, value in exchange.fields:
        if len(name) == _TRACEPARENT_LENGTH and name.lower() == b"traceparent":
            return value
    return b""
