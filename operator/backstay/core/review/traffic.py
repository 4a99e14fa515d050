"""What the mesh was asked lately: requests that sidecars sampled in the last hour, callers without a certificate of the last day.

`TrafficBook` keeps both within a bound, `Traffic` is what it tells, `replayed` and `refused_plaintext` put that through the two
worlds of a review. Samples are for people and for reviews: no rollout decides by them, and none is written to disk.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, TypeAlias

import msgspec

from backstay.config.wire import PlaintextRow, Sample
from backstay.core.durations import spell
from backstay.core.evaluate import ANONYMOUS, World, refused_by_mode
from backstay.core.registry import Registry
from backstay.core.review.replay import Logged, Replay
from backstay.core.review.report import Replayed, ReplayedKind

MINUTES_KEPT: Final = 60
MOST_A_MINUTE: Final = 1000
"""Different requests kept of one minute: 60,000 in an hour, 24 MB. Of more, an even choice is kept."""
HOURS_KEPT: Final = 24
MOST_CALLERS: Final = 2_000
"""(workload, port, address) of callers without a certificate: 7 MB. A mesh that has more of them is not near STRICT."""
_ALL: Final = 2**32
_Key: TypeAlias = tuple[Logged, int]


class Seen(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A request as it was sampled, with the number of requests that it stands for."""

    method: str
    authority: str
    target: str
    """Path and names of query parameters, without their values."""
    source: str
    """Key of the workload that asked; the address of a caller without a certificate."""
    entry: str
    """`<workload>:<port>` where such a caller's request came in; empty for requests of the mesh's own workloads."""
    status: int
    count: int


class PlaintextCaller(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who opened connections without a certificate to one port of a workload."""

    workload: str
    port: int
    """The application's own; 0: ports that no document names."""
    address: str
    name: str = ""
    """What ran at that address when it called, if the registry knew."""
    accepted: int
    refused: int
    last_seen: float


class Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    since: float
    """When the oldest kept sample may have been taken, Unix seconds."""
    until: float
    requests: tuple[Seen, ...] = ()
    plaintext_since: float = 0.0
    plaintext: tuple[PlaintextCaller, ...] = ()
    plaintext_unnamed: int = 0
    """Connections of callers beyond the bound."""


# --- keeping ----------------------------------------------------------------------------------------------------------


class _Minute:
    """Requests of one minute. Once full, it keeps those whose hash is below a limit that falls: an even choice among all
    different requests, whenever in the minute they came and however often."""

    __slots__ = ("counts", "limit", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts: dict[_Key, int] = {}
        self.limit = _ALL

    def add(self, key: _Key, weight: int) -> None:
        counts = self.counts
        if key in counts:
            counts[key] += weight
        elif self.limit == _ALL or self._rank(key) < self.limit:
            counts[key] = weight
            if len(counts) > MOST_A_MINUTE:
                self._thin()

    def _thin(self) -> None:
        self.limit //= 2
        self.counts = {key: count for key, count in self.counts.items() if self._rank(key) < self.limit}

    def _rank(self, key: _Key) -> int:
        """Salted with the minute: another choice in each."""
        text = f"{self.number} {key!r}".encode("utf-8", "backslashreplace")
        return int.from_bytes(blake2b(text, digest_size=4).digest(), "big")


@dataclass(slots=True)
class _Caller:
    name: str = ""
    last_seen: float = 0.0
    hours: dict[int, list[int]] = field(default_factory=dict)
    """Hour -> accepted, refused."""


class TrafficBook:
    """Everything told by proxies of one operator since `began`."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._minutes: dict[int, _Minute] = {}
        self._callers: dict[tuple[str, int, str], _Caller] = {}
        self._unnamed: dict[int, int] = {}
        self._hour = 0

    def sampled(self, workload: str, samples: Iterable[Sample], now: float) -> None:
        """What a proxy of `workload` sampled in the second before. Who asked is told by whose proxy it is, never by what the
        proxy says."""
        number = int(now // 60)
        minute = self._minutes.get(number)
        if minute is None:
            minute = self._minutes[number] = _Minute(number)
            for old in [each for each in self._minutes if each <= number - MINUTES_KEPT]:
                del self._minutes[old]
        for item in samples:
            source, entry = (item.caller, f"{workload}:{item.port}") if item.caller else (workload, "")
            logged = Logged(item.method, item.authority, item.target, source, entry)
            minute.add((logged, item.status), item.weight)

    def plaintext(self, workload: str, rows: Iterable[tuple[PlaintextRow, str]], now: float) -> None:
        """Connections without a certificate at a proxy of `workload`, each with what is known to run at the address."""
        hour = int(now // 3600)
        if hour != self._hour:
            self._hour = hour
            self._forget(hour)
        for row, name in rows:
            caller = self._caller((workload, row.port, row.address))
            if caller is None:
                self._unnamed[hour] = self._unnamed.get(hour, 0) + row.accepted + row.refused
                continue
            caller.name, caller.last_seen = name or caller.name, now
            counts = caller.hours.setdefault(hour, [0, 0])
            counts[0] += row.accepted
            counts[1] += row.refused

    def _caller(self, key: tuple[str, int, str]) -> _Caller | None:
        found = self._callers.get(key)
        if found is None and len(self._callers) < MOST_CALLERS:
            found = self._callers[key] = _Caller()
        return found

    def _forget(self, hour: int) -> None:
        oldest = hour - HOURS_KEPT
        self._unnamed = {each: count for each, count in self._unnamed.items() if each > oldest}
        for key, caller in list(self._callers.items()):
            caller.hours = {each: counts for each, counts in caller.hours.items() if each > oldest}
            if not caller.hours:
                del self._callers[key]

    def told(self, workloads: Iterable[str], now: float) -> Traffic:
        """What is kept of these workloads."""
        wanted = frozenset(workloads)
        self._forget(int(now // 3600))
        return Traffic(
            since=max(self._began, now - MINUTES_KEPT * 60),
            until=now,
            requests=tuple(self._requests(wanted, int(now // 60))),
            plaintext_since=max(self._began, now - HOURS_KEPT * 3600),
            plaintext=tuple(self._plaintext(wanted)),
            plaintext_unnamed=sum(self._unnamed.values()),
        )

    def _requests(self, wanted: frozenset[str], minute: int) -> Iterator[Seen]:
        sums: dict[_Key, int] = {}
        for each in self._minutes.values():
            if each.number > minute - MINUTES_KEPT:
                for key, count in each.counts.items():
                    sums[key] = sums.get(key, 0) + count
        for (logged, status), count in sums.items():
            if (logged.entry.rpartition(":")[0] or logged.source) in wanted:
                yield Seen(logged.method, logged.authority, logged.target, logged.source, logged.entry, status, count)

    def _plaintext(self, wanted: frozenset[str]) -> Iterator[PlaintextCaller]:
        for (workload, port, address), caller in sorted(self._callers.items()):
            if workload in wanted:
                yield PlaintextCaller(
                    workload=workload,
                    port=port,
                    address=address,
                    name=caller.name,
                    accepted=sum(counts[0] for counts in caller.hours.values()),
                    refused=sum(counts[1] for counts in caller.hours.values()),
                    last_seen=caller.last_seen,
                )


def names_by_address(registry: Registry) -> dict[str, str]:
    """Address -> workload, for addresses at which only one runs."""
    found: dict[str, str] = {}
    for instance in registry.instances.values():
        known = found.setdefault(instance.address, instance.workload)
        if known != instance.workload:
            found[instance.address] = ""
    return found


# --- asking -----------------------------------------------------------------------------------------------------------


def feed(replay: Replay, traffic: Traffic) -> None:
    for item in traffic.requests:
        replay.take(Logged(item.method, item.authority, item.target, item.source, item.entry), item.count)


def replayed(traffic: Traffic, before: World, after: World) -> Replayed:
    """The sampled requests through both worlds. Counts are estimates: each sample stands for several requests."""
    replay = Replay(before, after)
    feed(replay, traffic)
    result = replay.finish()
    return Replayed(
        span=spell(max(traffic.until - traffic.since, 0.0)),
        requests=result.total,
        distinct=result.distinct,
        denied=result.count("denied"),
        admitted=result.count("admitted"),
        changed=result.count("changed"),
        unknown=result.unknown,
        rules_ask_for_headers=result.asks_headers,
        kinds=tuple(
            ReplayedKind(
                fate=group.fate,
                count=group.count,
                before=group.before,
                after=group.after,
                before_place=group.before_place,
                after_place=group.after_place,
                examples=tuple(group.examples),
            )
            for group in result.ordered()
        ),
    )


def refused_plaintext(traffic: Traffic, before: World, after: World) -> tuple[str, ...]:
    """Callers without a certificate whose connections a stricter mode would refuse, those seen most first; or that there were
    none, where a port becomes strict."""
    stricter = set(_stricter(before, after))
    span = spell(max(traffic.until - traffic.plaintext_since, 0.0))
    found = [item for item in traffic.plaintext if (item.workload, item.port) in stricter]
    told = [
        _caller_text(item) for item in sorted(found, key=lambda item: (-item.accepted, item.workload, item.address))
    ]
    if stricter and traffic.plaintext_unnamed:
        told.append(f"{traffic.plaintext_unnamed} connections of more callers than are kept, anywhere in the mesh")
    if stricter and not told:
        told.append(f"nobody was seen in the last {span}")
    return tuple(told)


def _caller_text(item: PlaintextCaller) -> str:
    who = f"{item.name} ({item.address})" if item.name else item.address
    port = f"port {item.port}" if item.port else "other ports"
    count = f"{item.accepted} connection{'s' * (item.accepted != 1)}" if item.accepted else "an open connection"
    return f"{who}: {count} to {item.workload} {port}"


def _stricter(before: World, after: World) -> Iterator[tuple[str, int]]:
    """(workload, port) that take plaintext before and not after; port 0 is every port that nobody names."""
    for workload in before.compiled.manifests.keys() & after.compiled.manifests.keys():
        for port in (0, *(item.port for item in after.listeners(workload).inbound)):
            modes = (world.inbound(workload, port).mtls for world in (before, after))
            if [refused_by_mode(mode, ANONYMOUS) != "" for mode in modes] == [False, True]:
                yield workload, port
