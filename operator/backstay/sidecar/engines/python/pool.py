"""Endpoints, the connections kept to them, and who gets the next request.

A `Pool` is one endpoint reached in one way (plaintext, or mTLS with one expected identity). A `Group` is what one config
means by a backend's subset: the pools whose endpoints carry its labels. Groups live as long as a config names them;
pools live as long as a group holds them. A `Quota` counts connections to a service over all its groups. Nothing here opens
or closes a socket; `dial.py` and `upstream.py` do.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec.structs import replace

from backstay.config.actions import sticky_value
from backstay.config.match import parameters
from backstay.config.model import Backend, External, HashOn, OriginTls
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.balance import Random, RoundRobin, least_request, untried
from backstay.sidecar.engines.python.hashing import Maglev, Ring
from backstay.sidecar.engines.python.outlier import Health, may_eject
from backstay.sidecar.engines.python.retry import IDEMPOTENT

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.framing import RequestHead
    from backstay.sidecar.engines.python.peers import Peer
    from backstay.sidecar.engines.python.upstream import Upstream

LEAST_SHARE: Final = 0.1  # of its share, for an endpoint that is new: Envoy's and Istio's least weight
OVERPROVISION: Final = 1.4
"""Instances of a zone take on so much more than their own part before others are asked: Envoy's overprovisioning_factor."""
ZONE_GRAIN: Final = 1000  # parts into which hashes are divided between the own zone and the others
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

    __slots__ = (
        "active",
        "connecting",
        "health",
        "idle",
        "idle_seconds",
        "is_near",
        "is_simple",
        "key",
        "open",
        "origin",
        "peer",
        "retired",
        "since",
        "source",
        "waiting",
    )

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
        self.health = Health()
        self.since = 0.0
        """When it became known."""
        self.is_near = True
        """In the proxy's own zone, or nothing is said of either."""
        self.peer: Peer | None = None
        """Who this is for metrics; found when it first answers."""
        self.origin: OriginTls | None = None
        """TLS to a host outside of the mesh."""
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
        "_by_hash",
        "_choose",
        "_clock",
        "_far",
        "_far_by_hash",
        "_maglev",
        "_near_part",
        "_random",
        "_slow_start",
        "active",
        "connect_seconds",
        "everyone",
        "external",
        "hash_on",
        "health",
        "is_simple",
        "is_tcp",
        "key",
        "labels",
        "max_connections",
        "max_requests",
        "members",
        "mesh",
        "outlier",
        "quota",
        "retries",
        "same_zone_first",
        "service",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        labels: tuple[tuple[str, str], ...],
        random: Random,
        quota: Quota | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.key = group_key(backend, labels)
        self.service = f"{backend.service}:{backend.port}"
        self.labels = labels
        self.quota = quota or Quota()
        self.mesh = backend.tls == "mesh"
        self.external = backend.external
        self.is_tcp = backend.protocol == "tcp"
        self.max_connections = backend.max_connections
        self.connect_seconds = backend.connect_timeout_ms / 1000
        self.max_requests = backend.max_requests
        self.outlier = backend.outlier
        self.same_zone_first = backend.same_zone_first
        self.hash_on = backend.hash_on if backend.balance in ("ring_hash", "maglev") else None
        self.is_simple = self.hash_on is None and not self.max_requests
        """Nothing of a request is looked at to choose, and there may be any number of them."""
        self._maglev = backend.balance == "maglev"
        self._by_hash: Ring[Pool] | Maglev[Pool] | None = None
        self.health = backend.health
        self._slow_start = backend.slow_start_ms / 1000
        self._clock = clock
        self.everyone: tuple[Pool, ...] = ()
        """All endpoints of the subset."""
        self.members: tuple[Pool, ...] = ()
        """Those that get requests now: not ejected, not unhealthy, of the own zone where that comes first."""
        self._far: tuple[Pool, ...] = ()
        """Those of other zones that get the rest, while the own zone has lost too many."""
        self._near_part = 1.0
        self._far_by_hash: Ring[Pool] | Maglev[Pool] | None = None
        self.active = 0
        self.retries = 0
        """Requests in flight, and those among them that are a second or later try: the retry budget compares them."""
        self._random = random
        self._choose: Callable[[Sequence[Pool]], Pool] = self._least
        if backend.balance == "round_robin":
            self._choose = RoundRobin(random)
        elif backend.balance == "random":
            self._choose = self._any
        if self._slow_start:
            self._choose = self._eased(self._choose)

    def _eased(self, choose: Callable[[Sequence[Pool]], Pool]) -> Callable[[Sequence[Pool]], Pool]:
        """Pass over a new endpoint, the more often the newer it is: its caches are cold, its code not yet compiled."""

        def chosen(members: Sequence[Pool]) -> Pool:
            pool = choose(members)
            age = (self._clock() - pool.since) / self._slow_start
            if age >= 1 or self._random() < max(age, LEAST_SHARE):
                return pool
            return choose([other for other in members if other is not pool] or members)

        return chosen

    def _least(self, members: Sequence[Pool]) -> Pool:
        return least_request(members, self._random)

    def _any(self, members: Sequence[Pool]) -> Pool:
        return members[int(self._random() * len(members))]

    def choose_for(self, point: int, tried: Sequence[Pool] = ()) -> Pool | None:
        """The endpoint that a hash stands for."""
        if not self.members:
            return None
        if self._far and (point % ZONE_GRAIN) / ZONE_GRAIN >= self._near_part:
            if self._far_by_hash is None:
                self._far_by_hash = self._hashed(self._far)
            return self._far_by_hash.choose(point, tried)
        if self._by_hash is None:
            self._by_hash = self._hashed(self.members)
        return self._by_hash.choose(point, tried)

    def _hashed(self, pools: Sequence[Pool]) -> Ring[Pool] | Maglev[Pool]:
        named = [
            (pool.key.id.encode() or b"%b:%d" % (pool.key.address.encode(), pool.key.port), pool) for pool in pools
        ]
        return Maglev(named) if self._maglev else Ring(named)

    def note(self, pool: Pool, status: int, now: float) -> None:
        """What one of its endpoints answered; perhaps it is left out from now on."""
        rule, health = self.outlier, pool.health
        if rule is None or health.is_out(now):
            return
        health.note(status)
        if not health.has_failed(rule):
            return
        out = sum(other.health.is_out(now) for other in self.everyone)
        if may_eject(rule, out=out, members=len(self.everyone)):
            health.eject(rule, now)
            for group in self.quota.groups:
                group.settle(now)

    def settle(self, now: float) -> None:
        """Find out anew who gets requests."""
        inside = tuple(pool for pool in self.everyone if not pool.health.is_out(now))
        far: tuple[Pool, ...] = ()
        self._near_part = 1.0
        if self.same_zone_first:
            near = tuple(pool for pool in inside if pool.is_near)
            if near:
                self._near_part = self._part_of_near(near, len(inside) - len(near))
                far = tuple(pool for pool in inside if not pool.is_near) if self._near_part < 1 else ()
                inside = near
        if inside != self.members:
            self.members = inside
            self._by_hash = None
        if far != self._far:
            self._far = far
            self._far_by_hash = None

    def _part_of_near(self, near: Sequence[Pool], far: int) -> float:
        """The own zone's part of the requests: what it has lost goes to the others before the rest of it is overrun."""
        zone = sum(pool.is_near for pool in self.everyone)
        others = len(self.everyone) - zone
        well = min(1.0, OVERPROVISION * len(near) / zone)
        spare = min(1.0, OVERPROVISION * far / others) if others else 0.0
        return well / min(1.0, well + spare)

    def choose(self, tried: Sequence[Pool] = ()) -> Pool | None:
        """The endpoint for the next try; None if there is none at all."""
        members = self.members
        if not members:
            return None
        if self._far and self._random() >= self._near_part:
            members = self._far
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


GroupKey = tuple[tuple[tuple[str, str], ...], Backend]


def group_key(backend: Backend, labels: tuple[tuple[str, str], ...]) -> GroupKey:
    """What a group is made of: settings that two configs share make one group, whatever other subsets there are."""
    return labels, replace(backend, subsets=()) if backend.subsets else backend


def hash_value(hash_on: HashOn, head: "RequestHead | None", address: str) -> bytes:
    """What of a request is hashed; empty if it carries nothing of the kind."""
    if hash_on.kind == "source":
        return address.encode()
    if head is None:
        return b""
    name = hash_on.name.encode()
    if hash_on.kind == "query":
        return parameters(head.query).get(name, b"")
    return sticky_value(head.fields, name if hash_on.kind == "header" else b"", name)


class Pools:
    """All groups and pools of one engine, and the live endpoints they are made from."""

    def __init__(self, random: Random, *, by_address: bool = False) -> None:
        """`by_address`: endpoints are looked up by their address as well."""
        self._random = random
        self._places: dict[tuple[str, int], dict[str, Endpoint]] | None = {} if by_address else None
        self._now = 0.0
        self.zone = ""
        """Of the proxy itself, if the platform says so."""
        self._groups: dict[GroupKey, Group] = {}
        self._quotas: dict[str, Quota] = {}
        self._pools: dict[PoolKey, Pool] = {}
        self._beyond: dict[External, Pool] = {}
        """Hosts outside of the mesh."""
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}

    def group(self, backend: Backend, labels: tuple[tuple[str, str], ...]) -> Group:
        """The group of these settings. Configs that mean the same share it, so a swap keeps connections and loads."""
        key = group_key(backend, labels)
        found = self._groups.get(key)
        if found is None:
            quota = self._quotas.setdefault(f"{backend.service}:{backend.port}", Quota())
            found = self._groups[key] = Group(backend, labels, self._random, quota, lambda: self._now)
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

    @property
    def groups(self) -> list[Group]:
        return list(self._groups.values())

    @property
    def now(self) -> float:
        """When health was looked at last."""
        return self._now

    @property
    def known(self) -> Mapping[str, tuple[Endpoint, ...]]:
        """All live endpoints by service port."""
        return self._endpoints

    def place(self, zone: str) -> None:
        """The proxy's own zone has become known."""
        self.zone = zone
        for group in self._groups.values():
            self._fill(group)

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
        if group.external is not None:
            group.everyone = (self._outside(group.external),)
            group.settle(self._now)
            return
        endpoints = self._endpoints.get(group.service, ())
        pools = []
        for endpoint in endpoints:
            if group.takes(endpoint):
                pool = self.pool(group.key_for(endpoint))
                pool.is_near = endpoint.zone == self.zone
                pools.append(pool)
        group.everyone = tuple(pools)
        group.settle(self._now)

    def settle(self, now: float) -> None:
        """Take back whose time outside is over. Called by the sweep."""
        self._now = now
        for group in self._groups.values():
            if group.outlier is not None:
                for pool in group.everyone:
                    pool.health.forgive(group.outlier, now)
                group.settle(now)

    def checked(self) -> "Iterator[Group]":
        """Groups whose endpoints are asked how they are."""
        return (group for group in self._groups.values() if group.health is not None)

    def count_out(self) -> int:
        """Endpoints that are ejected or unhealthy now."""
        return sum(pool.health.is_out(self._now) for pool in self._pools.values())

    def pool(self, key: PoolKey) -> Pool:
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = Pool(key)
            found.since = self._now
        return found

    def _outside(self, external: External) -> Pool:
        """The one endpoint of a host outside: its name, asked in this way."""
        found = self._beyond.get(external)
        if found is None:
            found = self._beyond[external] = Pool(PoolKey("", external.host, external.port, ""))
            found.since, found.origin = self._now, external.tls
        return found

    def _retire(self) -> list["Upstream"]:
        held = {pool.key for group in self._groups.values() for pool in group.everyone}
        gone = [pool for key, pool in self._pools.items() if key not in held]
        for pool in gone:
            del self._pools[pool.key]
        asked = {group.external for group in self._groups.values()}
        gone += [self._beyond.pop(external) for external in self._beyond.keys() - asked]
        return [upstream for pool in gone for upstream in pool.retire()]

    def all(self) -> list[Pool]:
        return [*self._pools.values(), *self._beyond.values()]
