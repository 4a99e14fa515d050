"""Samples of requests for reviews: one in so many is looked at when it has ended, a few a report, and nothing secret of it.

The application's own requests are sampled by this proxy; those of callers with a certificate by theirs. What comes in without
one, and what comes to a gateway, is sampled here as well. A request that is not looked at costs one subtraction.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from backstay.config.wire import Sample

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.flow import Exchange

MOST_LOOKS: Final = 1000  # a second, at half a microsecond each; a server's own requests are looked at in vain
MAX_TARGET: Final = 1024  # bytes; a cut path could be decided otherwise, so longer ones are left out
_Key = tuple[bytes, bytes, bytes, str, int, int]


class Sampler:
    __slots__ = ("_is_full", "_kept", "_most", "_random", "_stride", "_unsent", "left")

    def __init__(self, random: Callable[[], float]) -> None:
        self.left = 0
        """Requests until the next look; 0 and below: no look."""
        self._random = random
        self._most = 0
        self._stride = 1
        self._kept: dict[_Key, int] = {}
        self._is_full = False
        self._unsent = 0
        """Requests that looks stood for and that this proxy did not send: nobody else counts them."""

    def allow(self, most: int) -> None:
        """Take at most so many samples between two calls of `collect`; 0 takes none."""
        self._most = most
        self._kept.clear()
        self.left = self._next() if most else 0

    def _next(self) -> int:
        """Requests until the next look: `stride` on average, by chance, so that traffic with a rhythm is seen whole."""
        return 1 + int(self._random() * (2 * self._stride - 1))

    def look(self, exchange: "Exchange") -> None:
        """`left` has come to 0."""
        if len(self._kept) >= self._most:
            self._is_full = True
            return
        self.left = self._next()
        asker = exchange.downstream.listener.asker(exchange.downstream)
        if asker is None or exchange.head is None or not exchange.status:
            return
        self._unsent += self._stride if asker[0] else 0
        head = exchange.head
        target = head.path + names_of(head.query)
        if len(target) <= MAX_TARGET:
            key = (exchange.method, head.authority, target, *asker, exchange.status)
            self._kept[key] = self._kept.get(key, 0) + self._stride

    def collect(self, sent: int, finished: int) -> list[Sample]:
        """What was sampled since the last call; `sent` and `finished` requests (of the application, of all) say how many to
        pass over from now on."""
        if not self._most:
            return []
        found = [_sample(key, weight) for key, weight in self._kept.items()]
        enough = -(-(sent + self._unsent) // self._most)
        stride = max(1, enough, finished // MOST_LOOKS, 2 * self._stride if self._is_full else 0)
        self._kept.clear()
        self._is_full, self._unsent = False, 0
        if self.left <= 0 or stride < self._stride:
            self._stride = stride
            self.left = self._next()
        self._stride = stride
        return found


def _sample(key: _Key, weight: int) -> Sample:
    method, authority, target, caller, port, status = key
    method_text, host, where = (each.decode("latin-1") for each in (method, authority, target))
    return Sample(method_text, host, where, caller, port, status, weight)


def names_of(query: bytes) -> bytes:
    """`?a=&b=` of `a=1&b=2`: which parameters there are may decide about a request, what they hold is nobody's business."""
    if not query:
        return b""
    return b"?" + b"&".join(item.partition(b"=")[0] + b"=" for item in query.split(b"&"))
