"""Whether a failed try is made again, and after how long. Pure; who calls it keeps the counts.

Rule: a request whose method is not idempotent is never sent twice once a byte of it was written, unless its document
says so (threats H19).
"""

import enum
from typing import Final

from backstay.config.model import Retry

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110, 9.2.2."""
MIN_RETRIES_IN_FLIGHT: Final = 3  # Envoy's min_retry_concurrency
BACKOFF_CAP: Final = 10  # times the base, as Envoy
MAX_REPLAY_BYTES: Final = 64 * 1024  # larger bodies are not kept for a second try; Linkerd's limit
FAILOVERS: Final = 2
"""Tries at other endpoints after a failed connect that need no retry policy: nothing had been sent."""


class Outcome(enum.Enum):
    """How one try ended before its response was passed on."""

    CONNECT_FAILURE = "connect-failure"
    RESET = "reset"
    """The connection died before any byte of the response."""
    TRY_TIMEOUT = "try-timeout"
    BAD_GATEWAY = "gateway-error"
    """502, 503 or 504 from upstream."""
    SERVER_ERROR = "5xx"
    CONFLICT = "retriable-4xx"
    """409, the only one (Envoy)."""
    LISTED = "retriable-status-codes"


_NAMES: Final = {
    Outcome.CONNECT_FAILURE: frozenset(("connect-failure", "gateway-error", "5xx")),
    Outcome.RESET: frozenset(("reset-before-request", "reset", "gateway-error", "5xx")),
    Outcome.TRY_TIMEOUT: frozenset(("reset", "gateway-error", "5xx")),
    Outcome.BAD_GATEWAY: frozenset(("gateway-error", "5xx")),
    Outcome.SERVER_ERROR: frozenset(("5xx",)),
    Outcome.CONFLICT: frozenset(("retriable-4xx",)),
    Outcome.LISTED: frozenset(("retriable-status-codes",)),
}
"""Conditions of a document under which each outcome is retried (Envoy's meaning of retry-on)."""

_GATEWAY_ERRORS: Final = (502, 503, 504)


_CONFLICT_STATUS: Final = 409


def outcome_of(status: int, retry: Retry | None = None) -> Outcome | None:
    """None for what is no failure. A status that the policy lists is one whatever it is."""
    if retry is not None and status in retry.statuses and "retriable-status-codes" in retry.retry_on:
        return Outcome.LISTED
    if status < 500:
        return Outcome.CONFLICT if status == _CONFLICT_STATUS else None
    return Outcome.BAD_GATEWAY if status in _GATEWAY_ERRORS else Outcome.SERVER_ERROR


def should_retry(retry: Retry | None, outcome: Outcome, *, tries: int, method: bytes, written: bool) -> bool:
    """`tries` made so far; `written`: a byte of the request went out on the failed try."""
    if retry is None or tries > retry.attempts or _NAMES[outcome].isdisjoint(retry.retry_on):
        return False
    return not written or retry.any_method or method in IDEMPOTENT


def within_budget(retry: Retry, *, retries_in_flight: int, in_flight: int) -> bool:
    return retries_in_flight < max(MIN_RETRIES_IN_FLIGHT, in_flight * retry.budget_percent // 100)


def backoff_seconds(retry: Retry, nth: int, draw: float) -> float:
    """Full jitter: the n-th retry waits a random time below (2**n - 1) * base, capped at 10 * base."""
    return draw * min((1 << nth) - 1, BACKOFF_CAP) * retry.backoff_ms / 1000
