"""Trace context of requests: read, continued or begun, and written again. W3C first, then B3. Pure, but for ids by chance.

A proxy's span is the child of what came and the parent of what it forwards. A context that says it is not sampled goes on as
it came. Rule: a context that is not beyond doubt (two of them, a bad form, zeros) is as good as none, and is not passed on.
"""

import re
from collections.abc import Callable
from random import getrandbits
from typing import TYPE_CHECKING, Final, NamedTuple

from backstay.config.model import Tracing

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.framing import Fields

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HEX: Final = re.compile(rb"[0-9a-f]+")
_W3C: Final = frozenset((b"traceparent", b"tracestate"))
_B3: Final = frozenset((b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags"))
_ON: Final = (b"1", b"true", b"d")
_OFF: Final = (b"0", b"false")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16


class Context(NamedTuple):
    """What came with a request."""

    trace: bytes
    """32 hexadecimal digits; empty: only a decision came."""
    span: bytes
    sampled: bool | None
    """None: nothing was decided."""


class Trace(NamedTuple):
    """This proxy's part of a sampled trace."""

    trace: bytes
    span: bytes
    parent: bytes
    """Empty at the root."""


class Tracer:
    """How requests are traced under one config."""

    __slots__ = ("_b3", "_names", "_random", "_share", "settings")

    def __init__(self, settings: Tracing, random: Callable[[], float]) -> None:
        self.settings = settings
        self._share = settings.percent / 100
        self._b3 = settings.b3
        self._names = _W3C | _B3 if settings.b3 else _W3C
        self._random = random

    def begin(self, fields: "Fields") -> "tuple[Fields, Trace | None]":
        """The fields to forward, the same list if nothing changes, and this proxy's span if it is sampled."""
        found = self._context(fields)
        if found is not None and found.trace and found.sampled is False:
            return fields, None
        decided = found.sampled if found is not None else None
        sampled = decided if decided is not None else self._random() < self._share
        trace, parent = (found.trace, found.span) if found is not None and found.trace else (_id(128), b"")
        span = _id(64)
        kept = self._without_contexts(fields, continues=bool(parent))
        kept.append((b"traceparent", b"00-%b-%b-%b" % (trace, span, b"01" if sampled else b"00")))
        if self._b3:
            kept += _b3_fields(trace, span, parent, sampled=sampled)
        return kept, Trace(trace, span, parent) if sampled else None

    def _without_contexts(self, fields: "Fields", *, continues: bool) -> "Fields":
        """`tracestate` belongs to the trace that is continued, and goes with one that is not."""
        names = self._names - {b"tracestate"} if continues else self._names
        return [field for field in fields if field[0].lower() not in names]

    def _context(self, fields: "Fields") -> Context | None:
        values: dict[bytes, bytes] = {}
        for name, value in fields:
            lower = name.lower()
            if lower in self._names:
                values[lower] = b"" if lower in values and lower != b"tracestate" else value  # two are none
        if not values:
            return None
        return _w3c(values.get(b"traceparent", b"")) or (_b3(values) if self._b3 else None)


def _id(bits: int) -> bytes:
    """Lower-case hexadecimal digits, not all zero. By chance, not secret: 0.3 us instead of 0.7 of the system's randomness."""
    return b"%0*x" % (bits // 4, getrandbits(bits) or 1)


def _w3c(value: bytes) -> Context | None:
    found = _TRACEPARENT.fullmatch(value)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    if found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    return Context(found[2], found[3], bool(int(found[4], 16) & 1))


def _b3(values: dict[bytes, bytes]) -> Context | None:
    if b"b3" in values:
        return _b3_single(values[b"b3"].lower())
    flags, decision = values.get(b"x-b3-flags", b""), values.get(b"x-b3-sampled", b"").lower()
    trace, span = values.get(b"x-b3-traceid", b"").lower(), values.get(b"x-b3-spanid", b"").lower()
    return _checked_b3(trace, span, b"1" if flags == b"1" else decision)


def _b3_single(value: bytes) -> Context | None:
    parts = value.split(b"-")
    if len(parts) == 1:
        return _checked_b3(b"", b"", parts[0])
    return _checked_b3(parts[0], parts[1], parts[2] if len(parts) > 2 else b"")


def _checked_b3(trace: bytes, span: bytes, decision: bytes) -> Context | None:
    sampled = True if decision in _ON else False if decision in _OFF else None
    is_whole = len(trace) in (16, 32) and len(span) == 16 and _HEX.fullmatch(trace + span) is not None
    if is_whole and trace.strip(b"0") and span.strip(b"0"):
        return Context(trace.rjust(32, b"0"), span, sampled)
    return Context(b"", b"", sampled) if not trace and not span and sampled is not None else None


def _b3_fields(trace: bytes, span: bytes, parent: bytes, *, sampled: bool) -> "Fields":
    found = [(b"x-b3-traceid", trace), (b"x-b3-spanid", span), (b"x-b3-sampled", b"1" if sampled else b"0")]
    return [*found, (b"x-b3-parentspanid", parent)] if parent else found
