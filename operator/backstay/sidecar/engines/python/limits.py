"""Token buckets of rate limits: how many requests a rule lets through. Pure; time is an argument."""

from math import ceil
from typing import NamedTuple

from backstay.config.model import RateLimit


class Verdict(NamedTuple):
    """Whether one request may pass, and what its caller is told."""

    passes: bool
    remaining: int
    """Whole requests that would pass now."""
    wait: float
    """Seconds until one more would pass; 0 if one would now."""


class Bucket:
    """Filled steadily, up to its size; each request takes one token."""

    __slots__ = ("__weakref__", "_at", "_per_second", "_tokens", "limit")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._per_second = limit.requests * 1000 / limit.per_ms
        self._tokens = float(limit.burst)
        self._at = now

    def take(self, now: float) -> Verdict:
        filled = min(self._tokens + max(now - self._at, 0.0) * self._per_second, float(self.limit.burst))
        self._at = now
        passes = filled >= 1
        self._tokens = filled - 1 if passes else filled
        missing = 1 - self._tokens
        return Verdict(passes, int(self._tokens), max(missing / self._per_second, 0.0))


def told(limit: RateLimit, verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Fields of a refusal (RFC 6585, 4, and the names Envoy uses)."""
    seconds = max(ceil(verdict.wait), 1)  # Retry-After knows whole seconds only
    return [
        (b"Retry-After", b"%d" % seconds),
        (b"X-RateLimit-Limit", b"%d" % limit.requests),
        (b"X-RateLimit-Remaining", b"%d" % verdict.remaining),
        (b"X-RateLimit-Reset", b"%d" % seconds),
    ]
