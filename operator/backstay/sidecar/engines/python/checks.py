"""Active health checks: asks every endpoint of a backend that wants it, and says who is well.

Every proxy checks for itself, over the same connections, identity and mTLS as its requests. Checks are looked at with the
sweep, so an interval below half a second is not kept.
"""

from time import monotonic
from typing import TYPE_CHECKING

from backstay.config.model import Backend, HealthCheck
from backstay.sidecar.engines.python.flow import Exchange
from backstay.sidecar.engines.python.framing import Fields, RequestHead
from backstay.sidecar.engines.python.nobody import Nobody
from backstay.sidecar.engines.python.pool import Group, Pool
from backstay.sidecar.engines.python.runtime import Lane
from backstay.sidecar.engines.python.stats import Counters

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.server import Server


class Checks:
    def __init__(self, server: "Server") -> None:
        self._server = server
        self._due: dict[Pool, float] = {}
        self._asking: set[Pool] = set()

    def sweep(self, now: float) -> None:
        """Ask whom it is time to ask; forget who is gone."""
        wanted: dict[Pool, Group] = {}
        for group in self._server.pools.checked():
            wanted.update((pool, group) for pool in group.everyone)
        self._due = {pool: self._due.get(pool, now) for pool in wanted}
        for pool, group in wanted.items():
            if now >= self._due[pool] and pool not in self._asking and group.health is not None:
                self._due[pool] = now + group.health.interval_ms / 1000
                self._ask(pool, group, group.health)

    def _ask(self, pool: Pool, group: Group, check: HealthCheck) -> None:
        server = self._server
        own = Group(Backend(service="", port=0), (), server.random)
        own.everyone = own.members = (pool,)
        own.connect_seconds = min(group.connect_seconds, check.timeout_ms / 1000)
        lane = Lane(
            digest="",
            counters=Counters("", "out", "", ""),
            group=own,
            deadlines=server.deadlines_of(check.timeout_ms / 1000),
        )
        self._asking.add(pool)
        client = _Asker(self, pool, group, check)
        exchange = Exchange(client, b"GET", check.path.encode(), "1.1", [], True)
        exchange.head = _head(group, check)
        exchange.complete = True
        exchange.started = monotonic()
        exchange.forward(lane)

    def heard(self, pool: Pool, group: Group, check: HealthCheck, *, passed: bool) -> None:
        self._asking.discard(pool)
        if pool.health.checked(passed=passed, unhealthy_after=check.unhealthy, healthy_after=check.healthy):
            now = self._server.loop.time()
            for other in group.quota.groups:
                other.settle(now)


def _head(group: Group, check: HealthCheck) -> RequestHead:
    host = group.service.encode()
    head = RequestHead(b"GET", host, check.path.encode(), b"")
    head.block = b"GET %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: backstay-health\r\n\r\n" % (head.path, host)
    return head


class _Asker(Nobody):
    """The client of one check."""

    def __init__(self, checks: Checks, pool: Pool, group: Group, check: HealthCheck) -> None:
        super().__init__(checks._server)
        self._checks, self._pool, self._group, self._check = checks, pool, group, check
        self._told = False

    def _tell(self, *, passed: bool) -> None:
        if not self._told:
            self._told = True
            self._checks.heard(self._pool, self._group, self._check, passed=passed)

    def exchange_ended(self, exchange: Exchange) -> None:
        self._tell(passed=200 <= exchange.status < 300)

    def answer(
        self, exchange: Exchange, status: int, reason: str, fields: Fields | None = None, body: bytes | None = None
    ) -> None:
        self._tell(passed=False)

    def abort(self) -> None:
        self._tell(passed=False)
