"""Endpoints, the connections kept to them, and who gets the next request.

A `Pool` is one endpoint reached in one way (plaintext, or mTLS with one expected identity). A `Group` is what one config
means by a backend's subset: the pools whose endpoints carry its labels. Groups live as long as a config names them;
pools live as long as a group holds them. A `Quota` counts connections to a service over all its groups. Nothing here opens
or closes a socket; `dial.py` and `upstream.py` do.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from backstay.config.model import Backend
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.balance import Random, RoundRobin, least_request, untried
from backstay.sidecar.engines.python.retry import IDEMPOTENT

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.upstream import Upstream

MAX_PENDING: Final = 1024  # requests waiting for a connection of a full backend; Envoy's max_pending_requests
COLD_CONNECTS: Final = 4
"""Connections opened at a time to one endpoint. Envoy opens one for every waiting request, but a handshake costs us 1 to 2 ms
of CPU on either side, ten requests' worth: with one each, a burst at an endpoint nobody had asked before looked like an
endpoint that hangs. 50 requests at once now open at most 20."""
MAX_IDLE_PER_ENDPOINT: Final = 256
"""Connections kept without a request; more are closed when their request ends. nginx `keepalive` is often 32 to 320."""
MESH_IDLE_SECONDS: Final = 60.0
"""Below the 75 s after which our own listeners close, so that a request never meets a connection that is going."""
PLAIN_IDLE_SECONDS: Final = 4.0
"""Below the 5 s after which Node.js and uvicorn close an idle connection, the shortest common defaults."""


class PoolKey(NamedTuple):
    id: str
    address: str
    port: int
    identity: str
    """Expected SPIFFE ID; empty: plaintext."""


class Pool:
    """One endpoint and its connections."""

    __slots__ = ("active", "connecting", "idle", "idle_seconds", "key", "open", "retired", "source", "waiting")

    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.active = 0
        """Requests in flight: what least-request compares."""
        self.open = 0
        """Connections, idle ones included, and those being opened."""
        self.connecting = 0
        """Connections being opened."""
        self.waiting: dict[Seeker, bool] = {}
        """Requests that wait for a connection, in order; True once one is being opened on their account."""
        self.idle: list[Upstream] = []
        """Newest last, and reused first: those are the least likely to be closed by the other side."""
        self.idle_seconds = MESH_IDLE_SECONDS if key.identity else PLAIN_IDLE_SECONDS
        self.retired = False
        self.source = ""
        """Address to connect from; empty: whichever the system takes."""

    def take(self) -> "Upstream | None":
        """An idle connection that can carry a request now."""
        idle = self.idle
        while idle:
            upstream = idle.pop()
            if upstream.is_usable:
                return upstream
        return None

    def give(self, upstream: "Upstream", now: float) -> bool:
        """Keep a connection for later; False if the caller must close it."""
        if self.retired or len(self.idle) >= MAX_IDLE_PER_ENDPOINT:
            return False
        upstream.idle_since = now
        self.idle.append(upstream)
        return True

    @property
    def established(self) -> int:
        return self.open - self.connecting

    @property
    def wants_connection(self) -> bool:
        """True if one more should be opened for those who wait."""
        return len(self.waiting) > self.connecting and self.connecting < COLD_CONNECTS

    def attend(self) -> "Seeker":
        """The request on whose account the next connection is opened: the first that has none under way."""
        seeker = next((seeker for seeker, attended in self.waiting.items() if not attended), None)
        if seeker is None:
            return next(iter(self.waiting))
        self.waiting[seeker] = True
        return seeker

    def next_for_new(self) -> "Seeker | None":
        """Take out who gets a new connection."""
        seeker = next(iter(self.waiting), None)
        if seeker is not None:
            del self.waiting[seeker]
        return seeker

    def next_for_kept(self, upstream: "Upstream") -> "Seeker | None":
        """Take out who gets a connection that another request is done with: not one whose last kept connection was dead."""
        seeker = next((seeker for seeker in self.waiting if not seeker.fresh), None)
        if seeker is None or (seeker.method not in IDEMPOTENT and not upstream.is_quiet()):
            return None
        del self.waiting[seeker]
        return seeker

    def dismiss(self) -> "list[Seeker]":
        """Take out everybody."""
        waiting, self.waiting = list(self.waiting), {}
        return waiting

    def forget(self, upstream: "Upstream") -> None:
        """A connection is gone."""
        if upstream in self.idle:
            self.idle.remove(upstream)

    def stale(self, now: float) -> list["Upstream"]:
        """Take out the connections that were idle too long; the caller closes them."""
        if not self.idle or now - self.idle[0].idle_since < self.idle_seconds:
            return []
        old = [upstream for upstream in self.idle if now - upstream.idle_since >= self.idle_seconds]
        self.idle = [upstream for upstream in self.idle if now - upstream.idle_since < self.idle_seconds]
        return old

    def retire(self) -> list["Upstream"]:
        """The endpoint is gone: take out all idle connections; those in use are closed when their request ends."""
        self.retired = True
        idle, self.idle = self.idle, []
        return idle

    def __repr__(self) -> str:
        return f"Pool({self.key.address}:{self.key.port} active={self.active} open={self.open} idle={len(self.idle)})"


class Seeker(Protocol):
    """A request that waits for a connection to one endpoint."""

    method: bytes
    fresh: bool

    def connected(self, upstream: "Upstream") -> None: ...

    def connect_failed(self, error: Exception) -> None: ...


class Waiter(Protocol):
    """A request that waits until a full backend has a free connection."""

    def connection_available(self) -> None: ...


class Quota:
    """Connections from this proxy to one service, whichever subset they were opened for, and who waits for one."""

    __slots__ = ("_woken", "groups", "open", "pending")

    def __init__(self) -> None:
        self.open = 0
        self.pending: deque[Waiter] = deque()
        self.groups: list[Group] = []
        self._woken: Waiter | None = None

    def wait(self, waiter: Waiter) -> None:
        """Queue up; who was woken for nothing keeps its place at the head."""
        if waiter is self._woken:
            self.pending.appendleft(waiter)
        else:
            self.pending.append(waiter)

    def wake(self) -> None:
        """A connection may be free: the request that waits longest tries again."""
        if not self.pending:
            return
        self._woken = self.pending.popleft()
        self._woken.connection_available()
        self._woken = None

    def spare(self, group: "Group") -> "Upstream | None":
        """An idle connection that `group` cannot use but that holds a place it could have."""
        members = set(group.members)
        pools = (pool for other in self.groups for pool in other.members if pool not in members)
        return next((pool.idle[0] for pool in pools if pool.idle), None)


class Group:
    """The endpoints of one backend and subset as one config sees them."""

    __slots__ = (
        "_choose", "_random", "active", "connect_seconds", "is_tcp", "key", "labels", "max_connections", "members", "mesh",
        "quota", "retries", "service",
    )  # fmt: skip

    def __init__(
        self, backend: Backend, labels: tuple[tuple[str, str], ...], random: Random, quota: Quota | None = None
    ) -> None:
        self.key = group_key(backend, labels)
        self.service = f"{backend.service}:{backend.port}"
        self.labels = labels
        self.quota = quota or Quota()
        self.mesh = backend.tls == "mesh"
        self.is_tcp = backend.protocol == "tcp"
        self.max_connections = backend.max_connections
        self.connect_seconds = backend.connect_timeout_ms / 1000
        self.members: tuple[Pool, ...] = ()
        self.active = 0
        self.retries = 0
        """Requests in flight, and those among them that are a second or later try: the retry budget compares them."""
        self._random = random
        self._choose: Callable[[Sequence[Pool]], Pool] = (
            RoundRobin(random) if backend.balance == "round_robin" else self._least
        )

    def _least(self, members: Sequence[Pool]) -> Pool:
        return least_request(members, self._random)

    def choose(self, tried: Sequence[Pool] = ()) -> Pool | None:
        """The endpoint for the next try; None if there is none at all."""
        members = self.members
        if not members:
            return None
        if tried:
            return self._choose(untried(members, tried))
        return members[0] if len(members) == 1 else self._choose(members)

    def takes(self, endpoint: Endpoint) -> bool:
        return all(endpoint.labels.get(name) == value for name, value in self.labels)

    def key_for(self, endpoint: Endpoint) -> PoolKey:
        return PoolKey(endpoint.id, endpoint.address, endpoint.port, endpoint.identity if self.mesh else "")

    @property
    def is_full(self) -> bool:
        return 0 < self.max_connections <= self.quota.open

    def count(self, pool: Pool, connections: int) -> None:
        """Connections to one of its members were opened, or are gone."""
        pool.open += connections
        self.quota.open += connections

    def __repr__(self) -> str:
        return f"Group({self.service} {dict(self.labels)} members={len(self.members)} active={self.active})"


GroupKey = tuple[str, int, tuple[tuple[str, str], ...], str, str, str, int, int]


def group_key(backend: Backend, labels: tuple[tuple[str, str], ...]) -> GroupKey:
    """What a group is made of: settings that two configs share make one group."""
    return (
        backend.service, backend.port, labels, backend.tls, backend.balance, backend.protocol,
        backend.max_connections, backend.connect_timeout_ms,
    )  # fmt: skip


class Pools:
    """All groups and pools of one engine, and the live endpoints they are made from."""

    def __init__(self, random: Random, *, by_address: bool = False) -> None:
        """`by_address`: endpoints are looked up by their address as well."""
        self._random = random
        self._places: dict[tuple[str, int], dict[str, Endpoint]] | None = {} if by_address else None
        self._groups: dict[GroupKey, Group] = {}
        self._quotas: dict[str, Quota] = {}
        self._pools: dict[PoolKey, Pool] = {}
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}

    def group(self, backend: Backend, labels: tuple[tuple[str, str], ...]) -> Group:
        """The group of these settings. Configs that mean the same share it, so a swap keeps connections and loads."""
        key = group_key(backend, labels)
        found = self._groups.get(key)
        if found is None:
            quota = self._quotas.setdefault(f"{backend.service}:{backend.port}", Quota())
            found = self._groups[key] = Group(backend, labels, self._random, quota)
            quota.groups.append(found)
            self._fill(found)
        return found

    def update(self, changed: Mapping[str, Sequence[Endpoint]], *, full: bool) -> list["Upstream"]:
        """Take in live endpoints; returns the idle connections that the caller must close."""
        if full:
            self._take_away(list(self._endpoints))
        for service, endpoints in changed.items():
            self._take_away([service])
            self._endpoints[service] = tuple(endpoints)
            for endpoint in endpoints if self._places is not None else ():
                self._places.setdefault((endpoint.address, endpoint.port), {})[service] = endpoint  # type: ignore[union-attr]
        for group in self._groups.values():
            if full or group.service in changed:
                self._fill(group)
        return self._retire()

    def _take_away(self, services: Iterable[str]) -> None:
        for service in services:
            endpoints = self._endpoints.pop(service, ())
            for endpoint in endpoints if self._places is not None else ():
                place = (endpoint.address, endpoint.port)
                known: dict[str, Endpoint] = self._places[place]  # type: ignore[index]
                known.pop(service, None)
                if not known:
                    self._places.pop(place, None)  # type: ignore[union-attr]

    def endpoint_at(self, address: str, port: int) -> tuple[str, Endpoint] | None:
        """The endpoint at this address with a service port it stands behind; None if there is none."""
        known = self._places.get((address, port)) if self._places is not None else None
        return next(iter(known.items())) if known else None

    def keep(self, is_wanted: Callable[[Group], bool]) -> list["Upstream"]:
        """Forget all other groups; returns the idle connections that the caller must close."""
        gone = [group for group in self._groups.values() if not is_wanted(group)]
        if not gone:
            return []
        for group in gone:
            del self._groups[group.key]
            group.quota.groups.remove(group)
        self._quotas = {name: quota for name, quota in self._quotas.items() if quota.groups or quota.open}
        return self._retire()

    def _fill(self, group: Group) -> None:
        endpoints = self._endpoints.get(group.service, ())
        group.members = tuple(self.pool(group.key_for(endpoint)) for endpoint in endpoints if group.takes(endpoint))

    def pool(self, key: PoolKey) -> Pool:
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = Pool(key)
        return found

    def _retire(self) -> list["Upstream"]:
        held = {pool.key for group in self._groups.values() for pool in group.members}
        gone = [pool for key, pool in self._pools.items() if key not in held]
        for pool in gone:
            del self._pools[pool.key]
        return [upstream for pool in gone for upstream in pool.retire()]

    def all(self) -> list[Pool]:
        return list(self._pools.values())
