"""Full-jitter exponential back-off: a thousand proxies that lost their operator must not come back as one. Pure."""

import random
from collections.abc import Callable
from typing import Final

BASE: Final = 0.2  # seconds; a restarted operator is noticed within the first tries
CAP: Final = 5.0  # seconds; so that a lease of 60 s sees a dozen tries


class Backoff:
    def __init__(self, base: float = BASE, cap: float = CAP, uniform: Callable[[float, float], float] = random.uniform):
        self._base = base
        self._cap = cap
        self._uniform = uniform
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure; never quite zero, so that nothing spins."""
        ceiling = min(self._cap, self._base * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        return self._uniform(ceiling / 10, ceiling)

    def reset(self) -> None:
        self._failures = 0
