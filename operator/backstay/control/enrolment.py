"""Who may ask for a certificate how often, and what a caller whose answer got lost is told. Pure: `now` is an argument.

Called by the control server around Enroller and CertificateAuthority, which decide who a caller is and sign.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from backstay.config.wire import EnrolAnswer, EnrolRequest

REFUSALS_PER_SECOND: Final = 20.0
"""A token has 256 bits: this protects processor and log, not the secret. On one machine all sidecars share an address,
so fifty of them with stale tokens, each trying every few seconds, must not lock out one with a good token."""
REFUSALS_AT_ONCE: Final = 200.0
MAX_CALLERS: Final = 4096
REPEAT_WITHIN: Final = 120.0  # seconds; several tries of a proxy that backs off up to 5 s


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


@dataclass(slots=True)
class AttemptLimiter:
    """A token bucket of refused attempts per address: honest enrolments cost nothing, guessing soon gets 429."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """granted, refused, limited: for metrics."""
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def admits(self, address: str, now: float) -> bool:
        bucket = self._refill(address, now)
        if bucket.level >= 1.0:
            return True
        self.outcomes["limited"] += 1
        return False

    def granted(self) -> None:
        self.outcomes["granted"] += 1

    def refused(self, address: str, now: float) -> None:
        self.outcomes["refused"] += 1
        self._refill(address, now).level -= 1.0

    def _refill(self, address: str, now: float) -> _Bucket:
        bucket = self._buckets.get(address)
        if bucket is None:
            if len(self._buckets) >= MAX_CALLERS:
                self._forget_the_calm(now)
            bucket = self._buckets[address] = _Bucket(REFUSALS_AT_ONCE, now)
        bucket.level = min(REFUSALS_AT_ONCE, bucket.level + (now - bucket.at) * REFUSALS_PER_SECOND)
        bucket.at = now
        return bucket

    def _forget_the_calm(self, now: float) -> None:
        """Drop addresses that have been quiet long enough to be full again; then, if need be, the oldest."""
        full_after = REFUSALS_AT_ONCE / REFUSALS_PER_SECOND
        self._buckets = {key: each for key, each in self._buckets.items() if now - each.at < full_after}
        while len(self._buckets) >= MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]


@dataclass(slots=True)
class RecentAnswers:
    """Answers by (token, request), so that a proxy whose answer got lost may ask again although tokens are one-time.

    Safe because the certificate is useless without the key of that very request.
    """

    _answers: dict[str, tuple[float, EnrolAnswer]] = field(default_factory=dict)

    def find(self, asked: EnrolRequest, now: float) -> EnrolAnswer | None:
        self._answers = {key: each for key, each in self._answers.items() if now - each[0] < REPEAT_WITHIN}
        found = self._answers.get(_key(asked))
        return found[1] if found else None

    def keep(self, asked: EnrolRequest, answer: EnrolAnswer, now: float) -> None:
        self._answers[_key(asked)] = (now, answer)


def _key(asked: EnrolRequest) -> str:
    return hashlib.sha256("\0".join((asked.proxy, asked.token, asked.csr)).encode()).hexdigest()
