"""Reports of proxies -> blocks: one second of one workload, every request in exactly one block.

Reports are placed by the proxy's own sequence number, so late and resent ones land in the second they speak of; the same
(proxy, boot, sequence) never counts twice; a missing report is no block, not zero traffic. A second closes when all
connected proxies of the workload have reported it, or 2 s later; what comes afterwards is a block of its own.

What must survive a kill is small: `export()`, per proxy the boot and the sequence up to which everything is in blocks
that were handed out. Persist it together with the rollout's state, then acknowledge `ackable()`: whatever was not
persisted is not acknowledged, and the proxies send it again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from backstay.config.wire import Report, Row
from backstay.core.rollout import verdict
from backstay.core.rollout.model import (
    Block,
    Counts,
    Digest,
    Direction,
    ProxyId,
    ProxyView,
    State,
    Stratum,
    WorkloadKey,
)

CLOSES_AFTER_S: Final = 2
"""A report a second, a second of patience for the network."""
KEPT_REPORTS: Final = 120
"""Proxies keep reports for 120 s: an older gap in the sequence will not be filled any more."""
WEIGHT_MEMORY: Final = 0.98
"""A proxy's usual part of the traffic is a mean over 50 s."""
NEWCOMER_S: Final = 10.0
"""Who came while a candidate was served has been compared with the others for so long when its usual part is believed:
the first seconds of a pod are like no others."""
SETTLED_S: Final = 25.0
"""And after so long it is as well known as they are. A mean with that memory never weighs more than 50 s."""
URGENT_REQUESTS: Final = 5
REFUSALS: Final = frozenset(
    {"no-route", "denied", "plaintext-refused", "bad-token", "rate-limited", "handshake-refused"}
)
"""Bad reasons that are the mesh's own refusal."""


class Counted(State, frozen=True, kw_only=True):
    """Up to where a proxy's reports are in blocks."""

    boot: str
    sequence: int


@dataclass(slots=True)
class _Usual:
    """What a proxy usually gets, by direction, while it serves stable only.

    All proxies of a workload are known from the same seconds: those in which it had no candidate. Later they are told
    nothing anew, or those that still serve stable would follow what the workload gets now, those on the candidate would
    not, and a workload that grows would seem to lose its candidate's requests. Who comes later is known by what it gets
    beside those, in the seconds that the same requests would have taken before.
    """

    seen: dict[Direction, float] = field(default_factory=lambda: dict.fromkeys(_DIRECTIONS, 0.0))
    seconds: float = 0.0
    late: bool = False
    """It came while a candidate was served."""

    def learn(self, totals: Mapping[Direction, float], seconds: float) -> None:
        self.seen = {d: had * WEIGHT_MEMORY + totals[d] for d, had in self.seen.items()}
        self.seconds = self.seconds * WEIGHT_MEMORY + seconds

    @property
    def is_known(self) -> bool:
        return self.seconds >= NEWCOMER_S if self.late else self.seconds > 0

    @property
    def is_settled(self) -> bool:
        return self.seconds >= SETTLED_S if self.late else self.seconds > 0

    def a_second(self, directions: Iterable[Direction]) -> float:
        return sum(self.seen[d] for d in directions) / self.seconds


@dataclass(slots=True)
class _Reporter:
    """One proxy as it reports."""

    workload: WorkloadKey
    boot: str
    upto: int = -1
    """All reports up to here are in blocks; -1: none seen yet."""
    beyond: set[int] = field(default_factory=set)
    """Counted above a gap."""
    offset: int | None = None
    """Operator's second minus sequence, the least seen: the report that travelled fastest knows best."""
    pending: dict[int, tuple[Report, int]] = field(default_factory=dict)
    """Sequence -> (report, second of arrival), not in a bucket yet."""
    latest: int = -1
    """The newest second it has reported."""
    serving: Mapping[Digest, float] = field(default_factory=dict)
    usual: _Usual = field(default_factory=_Usual)
    half: bool = False
    """Every other proxy of a workload is in its second half: what both halves do at once is no single proxy's burst."""
    first: int = 0
    """The first sequence that was placed; earlier ones that arrive after it are new too."""
    early: set[int] = field(default_factory=set)

    def has(self, sequence: int) -> bool:
        if sequence < self.first:
            return sequence in self.early or sequence in self.pending
        return sequence <= self.upto or sequence in self.beyond or sequence in self.pending


_Group: TypeAlias = tuple[Direction, bool, bool]
"""Direction, whether the proxy served one config throughout, which half of the workload's proxies it is in."""


@dataclass(slots=True)
class _Bucket:
    """One workload in one second, filling."""

    rows: dict[_Group, dict[Digest, Counts]] = field(default_factory=dict)
    peers: dict[Digest, tuple[int, int]] = field(default_factory=dict)
    shares: dict[ProxyId, float] = field(default_factory=dict)
    sequences: list[tuple[ProxyId, str, int]] = field(default_factory=list)
    pure: bool = True
    """Nothing but one config was served or about to be."""
    totals: dict[ProxyId, dict[Direction, float]] = field(default_factory=dict)
    plain: set[ProxyId] = field(default_factory=set)
    """Those that served no candidate."""


class Folder:
    """Accumulates reports and hands out blocks. Pure of clocks: seconds are arguments."""

    def __init__(self, counted: Mapping[ProxyId, Counted] | None = None) -> None:
        self._reporters: dict[ProxyId, _Reporter] = {}
        self._counted = dict(counted or {})
        self._buckets: dict[int, dict[WorkloadKey, _Bucket]] = {}
        self._open: dict[tuple[ProxyId, str], set[int]] = {}
        """(Proxy, boot) -> sequences that wait in a bucket: looking for them there takes long with a thousand proxies."""
        self._before: dict[WorkloadKey, verdict.Before] = {}

    def __repr__(self) -> str:
        return f"<Folder proxies={len(self._reporters)} open={len(self._buckets)}>"

    def fold(self, proxy: ProxyId, workload: WorkloadKey, report: Report, second: int) -> bool:
        """Take in one report that arrived in this second of the operator; False: it was counted before."""
        reporter = self._reporter(proxy, workload, report.boot)
        if reporter.has(report.sequence):
            return False
        reporter.pending[report.sequence] = (report, second)
        offset = second - report.sequence
        reporter.offset = offset if reporter.offset is None else min(reporter.offset, offset)
        return True

    def _reporter(self, proxy: ProxyId, workload: WorkloadKey, boot: str) -> _Reporter:
        known = self._reporters.get(proxy)
        if known is not None and known.boot == boot:
            known.workload = workload
            return known
        counted = self._counted.get(proxy)
        upto = counted.sequence if counted is not None and counted.boot == boot else -1
        half = known.half if known else sum(r.workload == workload for r in self._reporters.values()) % 2 == 1
        made = _Reporter(workload, boot, upto=upto, usual=known.usual if known else _Usual(), half=half)
        self._reporters[proxy] = made
        return made

    def blocks(self, now: float, proxies: Mapping[ProxyId, ProxyView]) -> list[Block]:
        """All seconds that are complete now, oldest first."""
        self._forget_gone(proxies)
        templates = _templates(proxies)
        for proxy, reporter in self._reporters.items():
            self._place(proxy, reporter, proxies, templates)
        made: list[Block] = []
        connected = _connected(proxies)
        for second in sorted(self._buckets):
            bucket = self._buckets[second]
            closed = [w for w in sorted(bucket) if self._is_closed(second, int(now), bucket[w], connected.get(w, ()))]
            made += [self._block(second, workload, bucket.pop(workload)) for workload in closed]
            if not bucket:
                del self._buckets[second]
        return made

    def _forget_gone(self, proxies: Mapping[ProxyId, ProxyView]) -> None:
        for proxy in [p for p, r in self._reporters.items() if p not in proxies and not r.pending]:
            del self._reporters[proxy]
            self._counted.pop(proxy, None)

    def _place(
        self,
        proxy: ProxyId,
        reporter: _Reporter,
        proxies: Mapping[ProxyId, ProxyView],
        templates: Mapping[WorkloadKey, str],
    ) -> None:
        """Put what is pending into the seconds it speaks of. What is no evidence is taken note of, and that is all."""
        is_evidence = _is_evidence(proxies.get(proxy), templates)
        for sequence in sorted(reporter.pending):
            report, _ = reporter.pending.pop(sequence)
            second = sequence + (reporter.offset or 0)
            if reporter.upto < 0:
                reporter.upto, reporter.first = sequence - 1, sequence
            (reporter.early if sequence < reporter.first else reporter.beyond).add(sequence)
            reporter.latest = max(reporter.latest, second)
            bucket = self._bucket(second, reporter.workload)
            bucket.sequences.append((proxy, reporter.boot, sequence))
            self._open.setdefault((proxy, reporter.boot), set()).add(sequence)
            served, reporter.serving = reporter.serving, report.serving
            if not is_evidence:
                continue
            bucket.shares[proxy] = _share(served, report, proxies.get(proxy))
            bucket.pure = bucket.pure and _is_pure(report, served, proxies.get(proxy))
            _add_rows(bucket.rows, report.rows, _throughout(served, report.serving), reporter.half)
            _total(bucket, proxy, report)
            self._charge_peers(second, report, proxies)

    def _bucket(self, second: int, workload: WorkloadKey) -> _Bucket:
        return self._buckets.setdefault(second, {}).setdefault(workload, _Bucket())

    def _charge_peers(self, second: int, report: Report, proxies: Mapping[ProxyId, ProxyView]) -> None:
        """Failed connections are charged to the config of the proxy that was called.

        A peer that serves two configs is left out: it draws per connection and counts its own refusals per config. So is
        one that starts: it may not listen yet.
        """
        for row in report.peers:
            view = proxies.get(row.peer)
            if view is None or not view.warm or 0 < view.share < 1:
                continue
            digest = view.candidate if view.candidate and view.share >= 1 else view.stable
            peers = self._bucket(second, view.workload).peers
            attempts, failures = peers.get(digest, (0, 0))
            peers[digest] = (attempts + row.attempts, failures + row.failures)

    def _is_closed(self, second: int, now: int, bucket: _Bucket, connected: Iterable[ProxyId]) -> bool:
        if second <= now - CLOSES_AFTER_S or _is_urgent(bucket):
            return True
        return all(p in self._reporters and self._reporters[p].latest >= second for p in connected)

    def _block(self, second: int, workload: WorkloadKey, bucket: _Bucket) -> Block:
        for proxy, boot, sequence in bucket.sequences:
            self._close(proxy, boot, sequence)
        for proxy, boot, sequence in bucket.sequences:
            self._count(proxy, boot, sequence)
        self._learn(bucket)
        block = Block(
            workload=workload,
            second=second,
            cohorts=_merged(*bucket.rows.values()),
            share=sum(bucket.shares.values()) / len(bucket.shares) if bucket.shares else 0.0,
            expected=self._expected(bucket, _DIRECTIONS),
            peers=bucket.peers,
            directions={d: self._stratum(bucket, d) for d in _DIRECTIONS if any(d == key[0] for key in bucket.rows)},
        )
        if bucket.pure and bucket.shares and len(block.cohorts) <= 1:
            so_far = self._before.get(workload, verdict.Before())
            self._before[workload] = verdict.known(so_far, block, _halves(bucket))
        return block

    def _close(self, proxy: ProxyId, boot: str, sequence: int) -> None:
        waiting = self._open.get((proxy, boot), set())
        waiting.discard(sequence)
        if not waiting:
            self._open.pop((proxy, boot), None)

    def _stratum(self, bucket: _Bucket, direction: Direction) -> Stratum:
        whole = _merged(*(bucket.rows.get((direction, True, half), {}) for half in _BOTH))
        return Stratum(
            cohorts=_merged(whole, *(bucket.rows.get((direction, False, half), {}) for half in _BOTH)),
            whole=whole,
            expected=self._expected(bucket, (direction,)),
        )

    def _count(self, proxy: ProxyId, boot: str, sequence: int) -> None:
        """Move the mark of what is in blocks; it stops before anything not handed out yet and before fresh gaps."""
        reporter = self._reporters.get(proxy)
        if reporter is None or reporter.boot != boot:
            return
        held = self._open.get((proxy, boot), set())
        while reporter.beyond:
            following = reporter.upto + 1
            if following in reporter.beyond and following not in held:
                reporter.beyond.discard(following)
                reporter.upto = following
            elif following not in reporter.beyond and max(reporter.beyond) - following > KEPT_REPORTS:
                reporter.upto = following
            else:
                break
        self._counted[proxy] = Counted(boot=boot, sequence=reporter.upto)

    def _learn(self, bucket: _Bucket) -> None:
        """What is usual, from a second without a candidate, or for those that came since from one with it."""
        told = [(self._reporters[p].usual, bucket.totals[p]) for p in sorted(bucket.plain) if p in self._reporters]
        if bucket.pure:
            for usual, totals in told:
                usual.late = False
                usual.learn(totals, 1.0)
            return
        known = [(usual.a_second(_DIRECTIONS), sum(totals.values())) for usual, totals in told if usual.is_settled]
        before = sum(usual for usual, _ in known)
        if before <= 0:
            return
        seconds = sum(now for _, now in known) / before
        for usual, totals in told:
            # Before its first request nobody knew of it.
            if not usual.is_settled and (usual.seconds or any(totals.values())):
                usual.late = True
                usual.learn(totals, seconds)

    def _expected(self, bucket: _Bucket, directions: Sequence[Direction]) -> float:
        """The part of these proxies' requests that should have gone to the candidate, if all their usual traffic is known."""
        candidate = total = 0.0
        for proxy, share in bucket.shares.items():
            reporter = self._reporters.get(proxy)
            if reporter is not None and reporter.usual.is_known:
                usual = reporter.usual.a_second(directions)
                total += usual
                candidate += usual * share
            elif share > 0 or any(bucket.totals[proxy][d] for d in directions):
                return 0.0
        return candidate / total if total > 0 else 0.0

    def before(self) -> Mapping[WorkloadKey, verdict.Before]:
        """What each workload did lately while it served nothing but stable."""
        return dict(self._before)

    def ackable(self) -> Mapping[ProxyId, int]:
        """Proxy -> all its reports up to this sequence are in blocks handed out; to be acked once those are durable."""
        return {p: r.upto for p, r in self._reporters.items() if r.upto > 0 and self._has_counted(p, r)}

    def _has_counted(self, proxy: ProxyId, reporter: _Reporter) -> bool:
        counted = self._counted.get(proxy)
        return counted is not None and counted.boot == reporter.boot

    def export(self) -> dict[ProxyId, Counted]:
        """What must survive a kill; give it to Folder() again."""
        return dict(self._counted)


def _connected(proxies: Mapping[ProxyId, ProxyView]) -> dict[WorkloadKey, list[ProxyId]]:
    """Workload -> its connected proxies."""
    found: dict[WorkloadKey, list[ProxyId]] = {}
    for view in proxies.values():
        if view.connected:
            found.setdefault(view.workload, []).append(view.id)
    return found


def _templates(proxies: Mapping[ProxyId, ProxyView]) -> dict[WorkloadKey, str]:
    """Workloads with instances of several templates -> the one whose proxies are compared: where the candidate is, then
    where most are. Two versions of an application differ for reasons of their own."""
    found: dict[WorkloadKey, dict[str, tuple[bool, int]]] = {}
    for view in proxies.values():
        if view.connected and view.warm:
            known = found.setdefault(view.workload, {})
            tried, count = known.get(view.template, (False, 0))
            known[view.template] = (tried or bool(view.candidate), count + 1)
    return {w: max(known, key=lambda name: (known[name], name)) for w, known in found.items() if len(known) > 1}


def _is_evidence(view: ProxyView | None, templates: Mapping[WorkloadKey, str]) -> bool:
    return view is None or (view.warm and view.template == templates.get(view.workload, view.template))


def _share(served: Mapping[Digest, float], report: Report, view: ProxyView | None) -> float:
    """The candidate's share on this proxy throughout the second; a second in which it changed counts the lesser one."""
    if view is None or not view.candidate:
        return 0.0
    now = report.serving.get(view.candidate, 0.0)
    return min(now, served.get(view.candidate, 0.0)) if served else now


def _is_pure(report: Report, served: Mapping[Digest, float], view: ProxyView | None) -> bool:
    """Whether this second tells about stable alone: no candidate, and no change of config within it."""
    changed = bool(served) and set(served) != set(report.serving)
    return view is not None and not view.candidate and len(report.serving) <= 1 and not changed


def _total(bucket: _Bucket, proxy: ProxyId, report: Report) -> None:
    """Vanished traffic must not become usual: what serves a candidate too is not learnt from."""
    totals = bucket.totals.setdefault(proxy, dict.fromkeys(_DIRECTIONS, 0.0))
    for row in report.rows:
        totals[row.direction] += row.total
    if bucket.shares[proxy] > 0 or len(report.serving) > 1:
        bucket.plain.discard(proxy)
    else:
        bucket.plain.add(proxy)


_DIRECTIONS: Final[tuple[Direction, ...]] = ("in", "out")
_BOTH: Final = (False, True)


def _halves(bucket: _Bucket) -> verdict.Halves:
    """A second of one config, by direction and half of the proxies."""
    found: dict[Direction, tuple[Counts, Counts]] = {}
    for direction in _DIRECTIONS:
        sides = [_merged(*(bucket.rows.get((direction, whole, half), {}) for whole in _BOTH)) for half in _BOTH]
        first, second = (next(iter(cohorts.values()), Counts()) for cohorts in sides)
        if first.total or second.total:
            found[direction] = (first, second)
    return found


def _throughout(before: Mapping[Digest, float], now: Mapping[Digest, float]) -> Digest:
    """The only config that served, at the end of the second before as at the end of this one; empty: there were two."""
    sole = _sole(now)
    return sole if not before or _sole(before) == sole else ""


def _sole(serving: Mapping[Digest, float]) -> Digest:
    return next((digest for digest, share in serving.items() if share >= verdict.ALL_MOVED), "")


def _is_urgent(bucket: _Bucket) -> bool:
    """Most of one config's requests fail while another config has been seen as well: not worth waiting a second."""
    return any(_is_failing(bucket, direction) for direction in _DIRECTIONS)


def _is_failing(bucket: _Bucket, direction: Direction) -> bool:
    sums: dict[Digest, list[int]] = {}
    for group, cohorts in bucket.rows.items():
        for digest, counts in cohorts.items() if group[0] == direction else ():
            seen = sums.setdefault(digest, [0, 0])
            seen[0] += counts.total
            seen[1] += counts.bad
    enough = [(total, bad) for total, bad in sums.values() if total >= URGENT_REQUESTS]
    return len(enough) > 1 and any(bad * 2 > total for total, bad in enough)


def _add_rows(groups: dict[_Group, dict[Digest, Counts]], rows: Iterable[Row], throughout: Digest, half: bool) -> None:
    for row in rows:
        cohorts = groups.setdefault((row.direction, row.config == throughout, half), {})
        counts = _counts(row)
        known = cohorts.get(row.config)
        cohorts[row.config] = counts if known is None else verdict.added(known, counts)


def _merged(*groups: Mapping[Digest, Counts]) -> dict[Digest, Counts]:
    sums: dict[Digest, Counts] = {}
    for cohorts in groups:
        for digest, counts in cohorts.items():
            known = sums.get(digest)
            sums[digest] = counts if known is None else verdict.added(known, counts)
    return sums


def _counts(row: Row) -> Counts:
    bad = sum(row.bad.values())
    total = max(0, row.total - row.excused)
    outbound = row.direction == "out" and bool(row.backend)
    return Counts(
        total=total,
        bad=min(bad, total),
        # Only further tries matter: a request refused before its first try must not hide another's second one.
        attempts=total + (max(0, row.attempts - row.total) if outbound else 0),
        refused=sum(count for reason, count in row.bad.items() if reason in REFUSALS),
        latency=tuple(row.latency),
        over=tuple(row.over),
        reasons={row.route: dict(row.bad)} if bad else {},
        by_destination={row.backend.partition("/")[0]: (total, min(bad, total))} if outbound else {},
        by_subset={row.backend: (total, min(bad, total))} if outbound else {},
    )


def encode(counted: Mapping[ProxyId, Counted]) -> bytes:
    return msgspec.json.encode(counted)


def decode(data: bytes) -> dict[ProxyId, Counted]:
    return msgspec.json.decode(data, type=dict[ProxyId, Counted])
