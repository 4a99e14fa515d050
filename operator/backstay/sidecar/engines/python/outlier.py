"""When an endpoint that keeps failing is left out for a while, and when it comes back. Pure; time is an argument.

Envoy's rules: so many failures in a row (of any kind, gateway errors, or failures to reach it at all) eject it, longer each
time, but never more than a share of the endpoints at once.
"""

from typing import Final

from backstay.config.model import Outlier

GATEWAY_ERRORS: Final = (502, 503, 504)
UNREACHED: Final = 0
"""Status of a try that got no answer: not connected, cut off, out of time."""


class Health:
    """What is known of one endpoint."""

    __slots__ = ("ejections", "failures", "gateway_errors", "passes", "unhealthy", "unreached", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.gateway_errors = 0
        self.unreached = 0
        """In a row, each."""
        self.ejections = 0
        self.until = 0.0
        """Ejected before this time."""
        self.unhealthy = False
        """By active checks."""
        self.passes = 0
        """Checks in a row that say otherwise than `unhealthy`."""

    def is_out(self, now: float) -> bool:
        return self.unhealthy or now < self.until

    def note(self, status: int) -> None:
        """One answer, or UNREACHED."""
        if UNREACHED < status < 500:
            self.failures = self.gateway_errors = self.unreached = 0
            return
        self.failures += 1
        if status in GATEWAY_ERRORS or status == UNREACHED:
            self.gateway_errors += 1
        else:
            self.gateway_errors = 0
        self.unreached = self.unreached + 1 if status == UNREACHED else 0

    def has_failed(self, rule: Outlier) -> bool:
        return (
            0 < rule.consecutive_5xx <= self.failures
            or 0 < rule.consecutive_gateway <= self.gateway_errors
            or 0 < rule.consecutive_local <= self.unreached
        )

    def eject(self, rule: Outlier, now: float) -> None:
        self.ejections += 1
        self.failures = self.gateway_errors = self.unreached = 0
        self.until = now + min(rule.base_ms * self.ejections, rule.max_ms) / 1000

    def forgive(self, rule: Outlier, now: float) -> None:
        """An endpoint that has stayed in for a base time since its last ejection is sent away for less the next time."""
        if self.ejections and now >= self.until + rule.base_ms / 1000:
            self.ejections -= 1
            self.until = now

    def checked(self, *, passed: bool, unhealthy_after: int, healthy_after: int) -> bool:
        """Take in one active check; True if it changes what the endpoint is held to be."""
        if passed != self.unhealthy:
            self.passes = 0
            return False
        self.passes += 1
        if self.passes < (healthy_after if self.unhealthy else unhealthy_after):
            return False
        self.unhealthy = not self.unhealthy
        self.passes = 0
        return True


def may_eject(rule: Outlier, *, out: int, members: int) -> bool:
    """One endpoint may always go, unless it is the only one; more only up to the share."""
    return members > 1 and (out == 0 or (out + 1) * 100 <= rule.max_percent * members)
