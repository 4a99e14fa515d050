"""Copies of requests: sent like any request, but nobody waits for them and nobody reads their answers.

A copy is an exchange whose client is `Nobody` (nobody.py), so it has the same limits, connections and time as others. Its counters are
not part of reports: what becomes of a copy is no evidence about a config, because no caller saw it.
"""

from time import monotonic
from typing import TYPE_CHECKING, Final

from backstay.sidecar.engines.python.framing import RequestHead
from backstay.sidecar.engines.python.retry import MAX_REPLAY_BYTES

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.actions import Actions
    from backstay.sidecar.engines.python.flow import Exchange

MAX_COPIES: Final = 256
"""Copies under way to one backend. A slow one would otherwise cost this proxy a connection for every request in 15 s; what
is beyond is dropped and counted."""


def send_copies(exchange: "Exchange", actions: "Actions") -> None:
    """Send the copies of a request that is whole. Called once a request."""
    if exchange.size > MAX_REPLAY_BYTES or exchange.upgrade:
        return  # its body was not kept, or what follows is no request
    for lane, share in actions.copies:
        if share < 1 and exchange.server.random() >= share:
            continue
        if lane.counters.open >= MAX_COPIES:
            lane.counters.blame("overflow")
            continue
        _copy(exchange).forward(lane)


def _copy(exchange: "Exchange") -> "Exchange":
    copy = type(exchange)(exchange.server.nobody, exchange.method, exchange.target, "1.1", exchange.fields, True)
    copy.head = _same_head(exchange.head)
    copy.body = list(exchange.body)
    copy.size = exchange.size
    copy.complete = True
    copy.started = monotonic()
    return copy


def _same_head(head: RequestHead) -> RequestHead:
    """A head of its own: an exchange notes in it what it has answered to `Expect`."""
    same = RequestHead(head.method, head.authority, head.path, head.query)
    same.fields, same.length, same.block = head.fields, head.length, head.block
    return same
