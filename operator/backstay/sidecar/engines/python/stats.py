"""Counters: one slotted object per (config digest, direction, route, backend), bumped with plain integer additions.

Everything here is cumulative; `Ledger.collect` gives what was added since the previous call, and `prometheus` renders
the sums. Increments per request: one bucket, one code, perhaps one reason.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.config.wire import PeerRow, PlaintextRow, Row

if TYPE_CHECKING:
    from backstay.sidecar.engines.python.peers import Peer

Direction = Literal["in", "out"]
BUCKETS: Final = len(LATENCY_BOUNDS_MS) + 1
MOST_CALLERS: Final = 256
"""Addresses without a certificate that a report names; of more, the others are counted without."""
_BOUNDS_S: Final = tuple(bound / 1000 for bound in LATENCY_BOUNDS_MS)


def bucket_of(seconds: float) -> int:
    """Index of the bucket: a request that took exactly a bound is within it."""
    return bisect_left(_BOUNDS_S, seconds)


SIZE_BOUNDS: Final = tuple(4**power - 1 for power in range(14))
"""Upper bounds of the buckets of body sizes: 0, 3, 15, ... 64 MiB - 1. Powers of four, because those cost no search."""
_LAST_SIZE: Final = len(SIZE_BOUNDS)
NO_FLAGS: Final = "-"  # as Envoy and Istio write it


class Exemplar(NamedTuple):
    """A traced request of a bucket."""

    trace: str
    seconds: float
    at: float


class Streams:
    """Connections whose bytes are not read."""

    __slots__ = ("closed", "opened", "received", "sent")

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.received = 0
        self.sent = 0


class Cell:
    """What happened between this proxy and one peer under one rule: what metrics show, and no verdict asks for."""

    __slots__ = ("codes", "exemplars", "latency", "received", "requests", "responses", "seconds", "sent", "streams")

    def __init__(self) -> None:
        self.codes: dict[tuple[int, str], int] = {}
        """Status and flags -> count."""
        self.latency = [0] * BUCKETS
        self.seconds = 0.0
        self.requests = [0] * (_LAST_SIZE + 1)
        self.responses = [0] * (_LAST_SIZE + 1)
        self.received = 0
        """Bytes of request bodies."""
        self.sent = 0
        self.exemplars: dict[int, Exemplar] | None = None
        self.streams: Streams | None = None

    def finish(self, bucket: int, seconds: float, code: tuple[int, str], received: int, sent: int) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.latency[bucket] += 1
        self.seconds += seconds
        size = (received.bit_length() + 1) >> 1
        self.requests[min(_LAST_SIZE, size)] += 1
        size = (sent.bit_length() + 1) >> 1
        self.responses[min(_LAST_SIZE, size)] += 1
        self.received += received
        self.sent += sent

    def note(self, bucket: int, exemplar: Exemplar) -> None:
        if self.exemplars is None:
            self.exemplars = {}
        self.exemplars[bucket] = exemplar

    def add(self, other: "Cell") -> None:
        for code, count in other.codes.items():
            self.codes[code] = self.codes.get(code, 0) + count
        self.latency = [one + another for one, another in zip(self.latency, other.latency, strict=True)]
        self.requests = [one + another for one, another in zip(self.requests, other.requests, strict=True)]
        self.responses = [one + another for one, another in zip(self.responses, other.responses, strict=True)]
        self.seconds += other.seconds
        self.received += other.received
        self.sent += other.sent
        if other.exemplars:
            self.exemplars = {**(self.exemplars or {}), **other.exemplars}
        if other.streams is not None:
            self._add_streams(other.streams)

    def _add_streams(self, other: Streams) -> None:
        mine = self.streams = self.streams or Streams()
        mine.opened += other.opened
        mine.closed += other.closed
        mine.received += other.received
        mine.sent += other.sent


class Counters:
    """What happened to the requests of one kind since the process started."""

    __slots__ = (
        "_sent", "attempts", "backend", "bad", "cells", "codes", "config", "direction", "excused", "latency", "open", "route", "seconds",
    )  # fmt: skip

    def __init__(self, config: str, direction: Direction, route: str, backend: str) -> None:
        self.config = config
        self.direction: Direction = direction
        self.route = route
        self.backend = backend
        self.attempts = 0
        self.excused = 0
        self.seconds = 0.0
        self.latency = [0] * BUCKETS
        self.bad: dict[str, int] = {}
        self.codes: dict[int, int] = {}
        self.cells: dict[Peer, Cell] = {}
        """The same requests by who was at the other end."""
        self.open = 0
        """Requests under way; a config that is gone keeps its counters until the last one has ended."""
        self._sent = NOTHING_SENT

    def finish(self, seconds: float, status: int) -> int:
        """Count one request; returns its latency bucket."""
        bucket = bisect_left(_BOUNDS_S, seconds)
        self.latency[bucket] += 1
        self.seconds += seconds
        self.codes[status] = self.codes.get(status, 0) + 1
        return bucket

    def cell(self, peer: "Peer") -> Cell:
        found = self.cells.get(peer)
        if found is None:
            found = self.cells[peer] = Cell()
        return found

    def blame(self, reason: str) -> None:
        self.bad[reason] = self.bad.get(reason, 0) + 1

    def take(self, open_crossings: list[int] | None) -> Row | None:
        """Increments since the last call, or None if there are none."""
        sent = self._sent
        if (
            open_crossings is None
            and not sent.was_open
            and self.attempts == sent.attempts
            and self.latency == sent.latency
        ):
            return None  # as most of the thousands that a config of 1,000 routes has: 0.2 instead of 10 microseconds
        if sent is NOTHING_SENT:
            sent = self._sent = Sent()
        sent.was_open = open_crossings is not None
        over = self._over(open_crossings)
        row = sent.difference(self, over)
        return row if row.total or any(row.over) or row.attempts else None

    @property
    def has_counted(self) -> bool:
        """Whether anything was ever taken from it."""
        return self._sent is not NOTHING_SENT

    def _over(self, open_crossings: list[int] | None) -> list[int]:
        """Crossings so far: finished requests beyond each bound, and open ones that crossed it. One that was counted while
        it was open is counted as finished later, never twice: the sum of both only grows."""
        over: list[int] = []
        slower = 0
        for bucket in range(BUCKETS - 1, 0, -1):
            slower += self.latency[bucket]
            over.append(slower)
        over.reverse()
        if open_crossings is not None:
            over = [finished + still_open for finished, still_open in zip(over, open_crossings, strict=True)]
        return over


class Sent:
    """The sums at the previous collect."""

    __slots__ = ("attempts", "bad", "excused", "latency", "over", "was_open")

    def __init__(self) -> None:
        self.attempts = 0
        self.excused = 0
        self.bad: dict[str, int] = {}
        self.latency = [0] * BUCKETS
        self.over = [0] * (BUCKETS - 1)
        self.was_open = False
        """Requests that were open had crossed bounds then: what has become of them is not in `latency` alone."""

    def difference(self, now: Counters, over: list[int]) -> Row:
        latency = [after - before for after, before in zip(now.latency, self.latency, strict=True)]
        row = Row(
            config=now.config,
            direction=now.direction,
            route=now.route,
            backend=now.backend,
            total=sum(latency),
            bad=_grown(now.bad, self.bad),
            excused=now.excused - self.excused,
            attempts=now.attempts - self.attempts,
            latency=latency,
            over=[after - before for after, before in zip(over, self.over, strict=True)],
        )
        self.attempts, self.excused, self.bad = now.attempts, now.excused, dict(now.bad)
        self.latency, self.over = list(now.latency), over
        return row


NOTHING_SENT: Final = Sent()
"""Of counters that have counted nothing yet; shared, and replaced before it would be written to."""


def _grown(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {key: count - before.get(key, 0) for key, count in now.items() if count != before.get(key, 0)}


class Waiting(Protocol):
    """An open request, as far as counting goes."""

    @property
    def counters(self) -> "Counters": ...

    started: float


Key = tuple[str, Direction, str, str]


class Ledger:
    """All counters of one engine, and what it tried to connect to."""

    def __init__(self) -> None:
        self._counters: dict[Key, Counters] = {}
        self._retired: dict[Key, Counters] = {}
        """Sums of configs that are gone, without their digest: what Prometheus shows never falls."""
        self._peers: dict[tuple[str, str], list[int]] = {}
        self.audited: dict[str, int] = {}
        """Requests by the audit rule that they matched."""
        self.refused: dict[tuple[int, str], int] = {}
        """Connections turned away by inbound port and reason, whether or not that is evidence."""
        self._plaintext: dict[tuple[int, str], list[int]] = {}
        self._copies: dict[tuple[str, str], Counters] = {}
        self.illegal_transitions = 0
        self.protocol_errors = 0

    def counters(self, config: str, direction: Direction, route: str, backend: str) -> Counters:
        key = (config, direction, route, backend)
        found = self._counters.get(key)
        if found is None:
            found = self._counters[key] = Counters(config, direction, route, backend)
        return found

    def copies(self, route: str, backend: str) -> Counters:
        """Of mirrored requests: shown by `metrics`, never reported, whichever config sent them."""
        return self._copies.setdefault((route, backend), Counters("", "out", route, backend))

    def all_copies(self) -> list[Counters]:
        return list(self._copies.values())

    def note_audited(self, rules: Iterable[str]) -> None:
        for rule in rules:
            self.audited[rule] = self.audited.get(rule, 0) + 1

    def note_refused(self, port: int, reason: str) -> None:
        self.refused[port, reason] = self.refused.get((port, reason), 0) + 1

    def note_plaintext(self, port: int, address: str, *, accepted: int = 0, refused: int = 0) -> None:
        """Count connections without a certificate; without a count, one from before is still open."""
        key = (
            (port, address) if (port, address) in self._plaintext or len(self._plaintext) < MOST_CALLERS else (port, "")
        )
        row = self._plaintext.setdefault(key, [0, 0])
        row[0] += accepted
        row[1] += refused

    def take_plaintext(self) -> list[PlaintextRow]:
        """What was noted since the last call."""
        rows = [PlaintextRow(*key, accepted, refused) for key, (accepted, refused) in self._plaintext.items()]
        self._plaintext.clear()
        return rows

    def connected(self, peer: str, config: str, *, failed: bool) -> None:
        """Count one attempt to open a connection to an endpoint."""
        row = self._peers.setdefault((peer, config), [0, 0])
        row[0] += 1
        row[1] += failed

    def peer_failed_late(self, peer: str, config: str) -> None:
        """A connection that was counted as made turned out to be refused (TLS 1.3 tells the client late)."""
        self._peers.setdefault((peer, config), [0, 0])[1] += 1

    def collect(self, waiting: Iterable[Waiting], now: float, live: Iterable[str]) -> tuple[list[Row], list[PeerRow]]:
        """Increments since the previous call; forgets counters of configs that are not `live` any more."""
        crossings = _crossings(waiting, now)
        taken = [(counters, counters.take(crossings.get(id(counters)))) for counters in self._counters.values()]
        self._retire(set(live), [counters for counters, row in taken if row is None])
        peers = [
            PeerRow(peer, config, attempts, failures) for (peer, config), (attempts, failures) in self._peers.items()
        ]
        self._peers.clear()
        return [row for _, row in taken if row is not None], peers

    def _retire(self, live: set[str], idle: Iterable[Counters]) -> None:
        for counters in idle:
            if counters.config in live or counters.open:
                continue
            del self._counters[counters.config, counters.direction, counters.route, counters.backend]
            if counters.has_counted:
                _add(self._retired, counters)

    def sums(self) -> list[Counters]:
        """One Counters per (direction, route, backend) over all configs."""
        total: dict[Key, Counters] = {}
        for counters in (*self._retired.values(), *self._counters.values()):
            _add(total, counters)
        return list(total.values())


def _crossings(waiting: Iterable[Waiting], now: float) -> dict[int, list[int]]:
    """Bounds crossed by open requests, by the identity of their counters."""
    found: dict[int, list[int]] = {}
    for exchange in waiting:
        crossed = bucket_of(now - exchange.started)
        if crossed:
            row = found.setdefault(id(exchange.counters), [0] * (BUCKETS - 1))
            for bound in range(crossed):
                row[bound] += 1
    return found


def _add(sums: dict[Key, Counters], counters: Counters) -> None:
    key: Key = ("", counters.direction, counters.route, counters.backend)
    total = sums.setdefault(key, Counters(*key))
    total.attempts += counters.attempts
    total.excused += counters.excused
    total.seconds += counters.seconds
    total.latency = [one + other for one, other in zip(total.latency, counters.latency, strict=True)]
    for reason, count in counters.bad.items():
        total.bad[reason] = total.bad.get(reason, 0) + count
    for code, count in counters.codes.items():
        total.codes[code] = total.codes.get(code, 0) + count
    for peer, cell in counters.cells.items():
        total.cell(peer).add(cell)
