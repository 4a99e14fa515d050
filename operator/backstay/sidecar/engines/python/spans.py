"""Spans of sampled requests, sent to a collector in batches: OTLP over HTTP, as JSON (opentelemetry-proto 1.x).

Nothing waits for the collector: spans are kept up to a number, what is beyond is dropped and counted, and a batch that could
not be sent is dropped as well. Called by flow.py when a sampled request has ended, and by the sweep.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from backstay.redact import clean
from backstay.sidecar.engines.python.trace import Trace
from backstay.tasks import spawn, stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backstay.sidecar.engines.python.flow import Exchange

MAX_KEPT: Final = 2048  # spans waiting; the SDKs' default queue
MAX_BATCH: Final = 512  # the SDKs' default batch
SEND_AFTER: Final = 5.0  # seconds; the SDKs' default delay
SEND_WITHIN: Final = 10.0  # seconds for the collector to answer; the SDKs' default
MAX_ANSWER: Final = 64 * 1024
SERVER_ERROR: Final = 500
_SERVER, _CLIENT = 2, 3  # SpanKind
_ERROR: Final = 2  # StatusCode

_log: Final = logging.getLogger("backstay.sidecar.python")


class Span(NamedTuple):
    """One request as this proxy saw it."""

    trace: Trace
    is_inbound: bool
    name: str
    began: float
    """Unix seconds; so is `ended`."""
    ended: float
    status: int
    attributes: tuple[tuple[str, str | int], ...]


def span_of(exchange: "Exchange", trace: Trace, seconds: float, at: float) -> Span:
    """What is told of an exchange that has ended at this time."""
    head, lane = exchange.head, exchange.lane
    counters = lane.counters if lane is not None else None
    method = head.method.decode("latin-1")
    pool = exchange.tried[-1] if exchange.tried else None
    found: tuple[tuple[str, str | int], ...] = (
        ("http.request.method", method),
        ("server.address", head.authority.decode("latin-1")),
        ("url.path", head.path.decode("latin-1")),
        ("http.response.status_code", exchange.status),
        ("http.request.resend_count", exchange.tries - 1 if exchange.tries > 1 else 0),
        ("backstay.route", counters.route if counters is not None else ""),
        ("backstay.backend", counters.backend if counters is not None else ""),
        ("backstay.config", exchange.runtime.digest[:12] if exchange.runtime is not None else ""),
        ("response_flags", exchange.flags),
        ("peer.address", f"{pool.key.address}:{pool.key.port}" if pool is not None else exchange.downstream.address),
    )
    attributes = tuple(pair for pair in found if pair[1] not in ("", "-", 0))
    is_inbound = exchange.downstream.listener.is_inbound
    return Span(
        trace,
        is_inbound,
        f"{method} {counters.route if counters else ''}".strip(),
        at - seconds,
        at,
        exchange.status,
        attributes,
    )


def encode(spans: "Sequence[Span]", workload: str, version: str) -> bytes:
    """An ExportTraceServiceRequest."""
    namespace, _, name = workload.partition("/")
    resource = (("service.name", name), ("service.namespace", namespace), ("backstay.engine", "python"))
    scope = {"name": "backstay", "version": version}
    found = {"scope": scope, "spans": [_span(span) for span in spans]}
    return msgspec.json.encode(
        {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [found]}]}
    )


def _span(span: Span) -> dict[str, Any]:
    trace = span.trace
    is_bad = span.status >= SERVER_ERROR or span.status == 0
    found = {
        "traceId": trace.trace.decode(),
        "spanId": trace.span.decode(),
        "name": span.name,
        "kind": _SERVER if span.is_inbound else _CLIENT,
        "startTimeUnixNano": str(int(span.began * 1e9)),
        "endTimeUnixNano": str(int(span.ended * 1e9)),
        "attributes": _attributes(span.attributes),
        "status": {"code": _ERROR} if is_bad else {},
    }
    return found | {"parentSpanId": trace.parent.decode()} if trace.parent else found


def _attributes(pairs: "Sequence[tuple[str, str | int]]") -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in pairs]


def _value(value: str | int) -> dict[str, str]:
    return {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}


class Collector(NamedTuple):
    """Where batches go."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, endpoint: str) -> "Collector":
        """Of `http://host[:port][/path]`, which was checked. 4318 and /v1/traces are OTLP's defaults."""
        parts = urlsplit(endpoint)
        return cls(
            parts.hostname or "", parts.port or 4318, parts.path if parts.path not in ("", "/") else "/v1/traces"
        )


def request(collector: Collector, body: bytes) -> bytes:
    head = (
        f"POST {collector.path} HTTP/1.1\r\nHost: {collector.host}:{collector.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class Spans:
    """Spans on their way."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._kept: list[Span] = []
        self._since = 0.0
        self._collector: Collector | None = None
        self._workload = ""
        self._sending: asyncio.Task[None] | None = None
        self.dropped = 0
        """Spans that no collector will see."""
        self.sent = 0

    def send_to(self, endpoint: str, workload: str) -> None:
        """From now on; empty: nowhere."""
        self._collector = Collector.of(endpoint) if endpoint else None
        self._workload = workload
        if self._collector is None:
            self._kept.clear()

    def add(self, span: Span) -> None:
        if self._collector is None:
            return
        if len(self._kept) >= MAX_KEPT:
            self.dropped += 1
            return
        self._kept.append(span)

    def sweep(self, now: float) -> None:
        """Send what is due; called about twice a second."""
        if not self._kept:
            self._since = now
        elif self._sending is None and (len(self._kept) >= MAX_BATCH or now - self._since >= SEND_AFTER):
            self._since = now
            self._sending = spawn(self._send(), name="spans")

    async def finish(self, within: float) -> None:
        """Send the last ones, for at most this long."""
        try:
            async with asyncio.timeout(within):
                while self._kept or self._sending is not None:
                    if self._sending is None:
                        self._sending = spawn(self._send(), name="spans")
                    await asyncio.shield(self._sending)
        except TimeoutError:
            self.dropped += len(self._kept)
            await stop(self._sending)

    async def _send(self) -> None:
        batch, self._kept = self._kept[:MAX_BATCH], self._kept[MAX_BATCH:]
        collector = self._collector
        try:
            if collector is None:
                raise ConnectionError("no collector any more")
            async with asyncio.timeout(SEND_WITHIN):
                await _post(collector, encode(batch, self._workload, self._version))
            self.sent += len(batch)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            self.dropped += len(batch)
            _log.warning("spans.dropped count=%d error=%s", len(batch), clean(str(error) or type(error).__name__))
        finally:
            self._sending = None


async def _post(collector: Collector, body: bytes) -> None:
    """Raises OSError, EOFError, ValueError (an answer that is not 2xx)."""
    reader, writer = await asyncio.open_connection(collector.host, collector.port, limit=MAX_ANSWER)
    try:
        writer.write(request(collector, body))
        line = await reader.readline()
        status = line.split(b" ")[1:2]
        if not status or not status[0].startswith(b"2"):
            raise ValueError(f"the collector answered {line[:80]!r}")
    finally:
        writer.close()
