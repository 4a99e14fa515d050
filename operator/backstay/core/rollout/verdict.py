"""Is the candidate worse, is it good enough: tests one may look at every second without raising false alarms.

Running e-values: P(E ever >= 1/alpha) <= alpha while the candidate is no worse, at whatever moments one looks. One block
(one second of one workload) multiplies each E by a factor whose parameters were fixed before the block was seen. Bursts
are met by effective sample sizes: a cohort whose counts scatter phi times more than independent requests would counts
as n/phi requests; the factor stays an e-value because the border point is chosen for those sizes (Turner and Grünwald's
condition holds for any positive sizes, and x**eta is concave).

Rule: everything here is a function of counters. Tests are small values, persisted as JSON in Evidence.tests; the same
blocks in the same order give the same tests, before and after a kill.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from math import exp, inf, log, log1p
from typing import Final, NamedTuple, TypeAlias

import msgspec

from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.core.rollout.model import Block, Counts, Digest, Direction, Settings, Side, State, Stratum, Verdict

ALTERNATIVES: Final = (0.02, 0.05, 0.15, 0.4, 0.95)
"""Rates of the candidate that the tests bet on (verdict.md), beside one learnt from its own past."""

OUTCOMES: Final = ("bad", "slow", "retried", "connect", "vanished", "aside")
BAD, SLOW, RETRIED, CONNECT, VANISHED, ASIDE = range(6)
"""All are about the requests that the changed parts decide, except `aside`: failures in the other direction, seen at
whole proxies only (a caller whose own calls all end well may still answer nonsense with what it was given)."""
WEIGHTS: Final = (0.6, 0.08, 0.08, 0.08, 0.08, 0.08)
"""Mixture over outcomes (a fixed mean of e-values is an e-value): failed requests are what most bad commits cause, so
they pay ln(1/0.6) instead of ln 6; bench-verdict: with a half, total failure at 2 requests/s costs two more of them."""
MARGINS: Final = (0.0, 0.01, 0.01, 0.01, 0.0, 0.0)
"""Least margin per outcome over Settings.margin: a percentage point for latency (verdict.md 3) and for rare events."""

PHI_START: Final = 2.0
"""Dispersion before any block was seen: with 1, strong bursts in the first seconds are false alarms (verdict.md)."""
TOGETHER: Final = 0.05
"""Correlation within a second and cohort that is expected before anything is known; two requests a second cannot
scatter like twenty."""
DOUBT: Final = 0.05
DOUBT_MOST: Final = 5.0
"""Adds nothing to independent requests, and a third to strong bursts of hundreds of requests a second; bench-verdict: without
it one wave in a hundred of such services failed wrongly. What is not bursty but broken from one second to the next scatters
far more, and must not be doubted away."""
PHI_KNOWN: Final = 1.2
KNOWN_BAD: Final = 30.0
"""With this many bad requests in the baseline its burstiness is known, and only a little is added for doubt."""
PHI_WEIGHT: Final = 8.0
"""Blocks that the starting dispersion counts for; bench-verdict: 4 lets bursts through, 16 costs harm."""
MEMORY: Final = 0.995
"""What a tally keeps per block: half of it is forgotten in 140 s, an outage within ten minutes."""
FORGOTTEN: Final = 0.5
"""A destination with less than half a remembered request is not remembered."""
RATE_MEMORY: Final = 0.95
"""Requests per second are a mean over the last 20 s."""
PRIOR_RATE: Final = 0.005
PRIOR_REQUESTS: Final = 100.0
"""A cohort nobody has seen yet is taken to fail 0.5 % with the weight of 100 requests."""
FIRST: Final = 0.75
LATE_BLOCKS: Final = 600
"""Three quarters of the stake are bet from the wave's first block on, the rest evenly over the next ten minutes, so
that harm which begins late (a leak, a cache that empties) is not buried under the good past."""
HEAVY: Final = 0.3
HEAVY_LEAST: Final = 5
"""A decision needs bad requests in two different blocks, unless one block alone had at least 5 and this share of them."""
HEAVY_BESIDE: Final = 0.1
"""... while stable had at most this share: in an outage of both, one second says little about which has it worse."""
GAIN_MAX: Final = 4.0
"""No other single block may earn more than this (ln): one burst never decides, and by the next it is known as one.
bench-verdict: without it one wave in six of a busy service with rare strong bursts failed wrongly."""
CONFIRMED_BLOCKS: Final = 2
STRANGE_BLOCKS: Final = 5
STRANGE_REQUESTS: Final = 10
"""Where nothing at all is known of stable (an operator just started), the first seconds of busy cohorts only teach how
bursty it is; bench-verdict: 20 of 200 such waves with strong bursts failed wrongly otherwise."""
PASS_BETS: Final = (0.5, 0.35, 0.15)
"""Stakes on "no worse" at the baseline's rate over minutes, at its rate of the last seconds (an outage that is over
must not make good traffic look unlikely), and on "half the tolerance worse"."""
LATELY_REQUESTS: Final = 20.0
FALLEN: Final = 4.0
"""Two standard errors below the remembered rate is clearly below it. bench-verdict: costs nothing; five seconds of outage a
minute ago would otherwise cost five times the harm."""
LATELY: Final = 0.8
"""What the rate of the last seconds keeps per block: half is forgotten in 3 s."""
SHARED_JUMP: Final = 4.0
"""A block that scatters this much (two standard errors) is held against other proxies' rate in the same second (the
other cohort, or the other half of stable): what moves both is an outage, not burstiness, and must not blunt the test for
minutes."""
LATE_MOST: Final = 0.05
"""The most that one second says of any latency bound: five times what the p99 allows. A service that is slow in every
second moves the bound all the same; a few seconds in which the whole machine stood still do not."""
BEFORE_AFTER_MARGIN: Final = 0.01
BEFORE_AFTER_FACTOR: Final = 0.5
"""Before/after, time itself moves the rate: 1 pp or half of the rate, the larger (verdict.md 3)."""
BEFORE_LEAST: Final = 50
"""Requests that must be known from before for a before/after test to bet at all."""
HANG: Final = LATENCY_BOUNDS_MS.index(500)
"""Open for half a second: far beyond what a cold pool or a handshake takes."""
ALL_MOVED: Final = 0.999
VANISH_FRACTION: Final = 0.7
VANISH_BETS: Final = (0.1, 0.4, 0.6)
"""Null: at least 0.7 of the expected share arrives; the bets are on these fractions of it."""
PHI_PLANNED_MAX: Final = 4.0
"""For estimating how many requests a pass takes: one past outage must not look like traffic too thin to judge."""
VANISH_BLOCKS: Final = 10
"""Seconds with too little traffic before it counts: clients come and go, and reconnect elsewhere."""
VANISH_PHI: Final = 4.0
"""Connections are long and callers uneven, so shares of traffic scatter more than failures do."""
LN_MAX: Final = 690.0
"""e**690 still is a float; evidence beyond it is the same evidence."""

TallyT: TypeAlias = tuple[float, float, float, float]


class Tally(NamedTuple):
    """What is remembered of one cohort's outcome: fading sums."""

    n: float = 0.0
    k: float = 0.0
    scatter: float = 0.0
    """Sum of (k - np)^2 / np(1-p)."""
    blocks: float = 0.0


class Track(State, frozen=True, kw_only=True, array_like=True):
    """The running tests of one outcome."""

    worse: tuple[float, ...] = ()
    """ln of the invested stake per bet; empty: nothing bet yet."""
    better: tuple[float, ...] = ()
    started: int = 0
    """Blocks in which the candidate had traffic."""
    bad_blocks: int = 0
    heavy: bool = False
    candidate: TallyT = Tally()
    stable: TallyT = Tally()
    lately: tuple[float, float] = (0.0, 0.0)
    """Fading (requests, bad) of stable over the last seconds."""
    n: int = 0
    k: int = 0
    """Candidate's sums in this wave."""
    n_stable: int = 0
    k_stable: int = 0
    before: float = -1.0
    """Rate before the wave, for a wave that leaves no baseline; -1: unknown."""


class Tests(State, frozen=True, kw_only=True):
    """All running tests of one workload in one wave."""

    tracks: tuple[Track, ...] = (Track(),) * len(OUTCOMES)
    over: tuple[float, ...] = ()
    """Fading sum of the baseline's requests per latency bound crossed; last element: all requests."""
    before_after: bool = False
    """The last block had no baseline by design."""
    side: Side = "both"
    """The requests that everything but `aside` is about."""


class Known(State, frozen=True, kw_only=True):
    """What is known of requests under stable."""

    tracks: tuple[TallyT, ...] = (Tally(),) * len(OUTCOMES)
    over: tuple[float, ...] = ()
    requests_per_s: float = 0.0
    heard: float = 0.0
    """Weight of the seconds behind requests_per_s, 1 after many: a mean over two seconds must not begin at zero."""


class Before(Known, frozen=True, kw_only=True):
    """What a workload did under stable before the rollout, as evidence.Folder remembers it."""

    sides: dict[Direction, Known] = {}
    """The same by direction, once there was any request in it."""
    destinations: dict[str, tuple[float, float]] = {}
    """Outbound `service:port` -> fading (total, bad)."""


class Judgement(State, frozen=True, kw_only=True):
    """What the tests say now. Logarithms are natural; the fleet's verdict is the mean over workloads (judging.py)."""

    verdict: Verdict
    worse: float
    """ln E against "no worse", over all outcomes."""
    better: float
    """ln E against "worse by the tolerance"."""
    outcome: str = "bad"
    """The outcome that says most."""
    before_after: bool = False
    catastrophe: bool = False
    confirmed: bool = False
    """Bad requests in two blocks, or one heavy block."""


def dump(tests: Tests) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(tests))


_decoder: Final = msgspec.json.Decoder(Tests | None)


def load(raw: msgspec.Raw) -> Tests:
    tests = _decoder.decode(raw) or Tests()
    missing = len(OUTCOMES) - len(tests.tracks)  # state of an operator that knew fewer outcomes
    return msgspec.structs.replace(tests, tracks=(*tests.tracks, *(Track(),) * missing)) if missing else tests


def seed(before: Before, side: Side = "both") -> Tests:
    """Tests that know how stable behaved before the rollout: rates, burstiness, latency."""
    ours = known_of(before, side)
    tallies = list(ours.tracks)
    if side != "both":
        tallies[ASIDE] = before.sides.get(_OTHER[side], _UNKNOWN).tracks[BAD]
    tracks = tuple(Track(stable=tally, before=_rate_before(tally, Tally())) for tally in tallies)
    return Tests(tracks=tracks, over=ours.over, side=side)


def known_of(before: Before, side: Side) -> Known:
    """What is known of the requests of this side."""
    if side == "both" or not before.sides:
        return before
    return before.sides.get(side, _UNKNOWN)


_UNKNOWN: Final = Known()
_OTHER: Final[Mapping[Direction, Direction]] = {"in": "out", "out": "in"}


def _facing(tests: Tests, side: Side) -> Tests:
    """The tests turned to this side. What was learnt of one direction is kept as knowledge of just that."""
    if tests.side == side:
        return tests
    tracks = list(tests.tracks)
    if "both" in (tests.side, side):
        return msgspec.structs.replace(tests, side=side)
    tracks[BAD], tracks[ASIDE] = tracks[ASIDE], tracks[BAD]
    tracks[SLOW] = tracks[RETRIED] = tracks[VANISHED] = Track()
    return Tests(tracks=tuple(tracks), side=side)


def next_wave(tests: Tests) -> Tests:
    """Tests for a new wave: stakes start again, what was learnt about both cohorts stays."""
    tracks = tuple(
        Track(
            candidate=t.candidate,
            stable=t.stable,
            lately=t.lately,
            before=_rate_before(t.stable, t.candidate, t.before),
        )
        for t in tests.tracks
    )
    return Tests(tracks=tracks, over=tests.over, side=tests.side)


def _rate_before(stable: TallyT, candidate: TallyT, known: float = -1.0) -> float:
    n, k = stable[0] + candidate[0], stable[1] + candidate[1]
    return (k + 0.5) / (n + 1) if n >= BEFORE_LEAST else known


Halves: TypeAlias = Mapping[Direction, tuple[Counts, Counts]]
"""The same requests by direction, of every other proxy and of the rest: what moves both is nobody's burst."""


def known(before: Before, block: Block, halves: Halves | None = None) -> Before:
    """What is known of stable after one more second in which nothing else was served."""
    split = halves or {}
    total = _sum(block.cohorts.values())
    all_ = _learnt(before, total, block, tuple(_sum(side) for side in zip(*split.values(), strict=True)))
    directions: set[Direction] = {*before.sides, *block.directions}
    sides: dict[Direction, Known] = {}
    for direction in directions:
        stratum = block.directions.get(direction)
        seen = _sum(stratum.cohorts.values()) if stratum else _NOTHING
        # Most workloads only answer: then there is nothing to tell apart.
        sides[direction] = (
            all_
            if len(directions) == 1
            else _learnt(before.sides.get(direction, _UNKNOWN), seen, block, split.get(direction, ()))
        )
    destinations = {name: (n * MEMORY, k * MEMORY) for name, (n, k) in before.destinations.items() if n > FORGOTTEN}
    for name, (requests, bad) in total.by_destination.items():
        n, k = destinations.get(name, (0.0, 0.0))
        destinations[name] = (n + requests, k + bad)
    return Before(
        tracks=all_.tracks,
        over=all_.over,
        requests_per_s=all_.requests_per_s,
        heard=all_.heard,
        sides=sides,
        destinations=destinations,
    )


def _learnt(so_far: Known, seen: Counts, block: Block, halves: Sequence[Counts]) -> Known:
    slow = _slow_index(so_far.over)
    tallies = list(so_far.tracks)
    tallies[BAD] = _of_halves(tallies[BAD], seen, halves, lambda part: (part.total, part.bad))
    if slow >= 0:
        tallies[SLOW] = _of_halves(tallies[SLOW], seen, halves, lambda part: _slow(part, slow))
    tallies[RETRIED] = _of_halves(tallies[RETRIED], seen, halves, lambda part: (part.total, _retried(part)))
    for attempts, failures in block.peers.values():
        tallies[CONNECT] = remember(tallies[CONNECT], attempts, failures)
    heard = so_far.heard * RATE_MEMORY + (1 - RATE_MEMORY)
    return Known(
        tracks=tuple(tallies),
        over=remember_latency(so_far.over, seen),
        requests_per_s=so_far.requests_per_s + (seen.total - so_far.requests_per_s) * (1 - RATE_MEMORY) / heard,
        heard=heard,
    )


def _of_halves(
    tally: TallyT, seen: Counts, halves: Sequence[Counts], outcome: Callable[[Counts], tuple[int, int]]
) -> TallyT:
    """The tally with one more second. Where both halves of the proxies moved alike, it scatters as they differ."""
    learnt = remember(tally, *outcome(seen))
    scatter = learnt[2] - tally[2] * MEMORY
    if scatter <= SHARED_JUMP or len(halves) != 2:
        return learnt
    one, other = (outcome(half) for half in halves)
    rate = (learnt[1] + 0.5) / (learnt[0] + 1.0)
    if not (_moved(one, rate) == _moved(other, rate) != 0):
        return learnt
    apart = max(_apart(one, other), _apart(other, one))
    return (*learnt[:2], tally[2] * MEMORY + min(scatter, apart), learnt[3])


def _moved(half: tuple[int, int], rate: float) -> int:
    """1: it jumped above the rate; -1: it is below, as calm seconds are after an outage; 0: neither says anything."""
    n, k = half
    if k < n * rate:
        return -1
    return 1 if n and _scatter(n, k, rate) > SHARED_JUMP else 0


def _scatter(n: int, k: int, rate: float) -> float:
    return (k - n * rate) ** 2 / (n * rate * (1.0 - rate))


def _apart(one: tuple[int, int], other: tuple[int, int]) -> float:
    """How these requests scatter around the rate of others in the same second, which is known that well."""
    (n, k), (m, j) = one, other
    return _scatter(n, k, (j + 0.5) / (m + 1.0)) / (1.0 + n / m)


def _sum(parts: Iterable[Counts]) -> Counts:
    total: Counts | None = None
    for counts in parts:
        total = counts if total is None else added(total, counts)
    return total or _NOTHING


_NOTHING: Final = Counts()


def added(one: Counts, other: Counts) -> Counts:
    """The sum of two cohorts."""
    return Counts(
        total=one.total + other.total,
        bad=one.bad + other.bad,
        attempts=one.attempts + other.attempts,
        refused=one.refused + other.refused,
        latency=_sums(one.latency, other.latency),
        over=_sums(one.over, other.over),
        reasons=_reasons(one.reasons, other.reasons) if one.reasons and other.reasons else one.reasons or other.reasons,
        by_destination=_pairs(one.by_destination, other.by_destination),
        by_subset=_pairs(one.by_subset, other.by_subset),
    )


def _reasons(one: Mapping[str, Mapping[str, int]], other: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    sums = {route: dict(reasons) for route, reasons in one.items()}
    for route, reasons in other.items():
        mine = sums.setdefault(route, {})
        for reason, count in reasons.items():
            mine[reason] = mine.get(reason, 0) + count
    return sums


def _sums(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple([a + b for a, b in zip_longest(one, other, fillvalue=0)])


def _pairs(one: dict[str, tuple[int, int]], other: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if not one or not other:
        return one or other
    sums = dict(one)
    for name, (total, bad) in other.items():
        n, k = sums.get(name, (0, 0))
        sums[name] = (n + total, k + bad)
    return sums


# --- one block ----------------------------------------------------------------------------------------------------


def observe(
    tests: Tests,
    block: Block,
    candidate: Digest,
    stable: Digest,
    settings: Settings,
    *,
    gaining: Sequence[str] = (),
    side: Side = "both",
) -> Tests:
    """The tests after one more block. `gaining`: compare destinations instead of configs (traffic steps)."""
    tests = _facing(tests, side)
    view = viewed(block, candidate, stable, gaining=gaining, side=side)
    ours, theirs = view.ours, view.theirs
    alone = not gaining and block.share >= ALL_MOVED
    tracks = list(tests.tracks)
    bad = _Seen(ours.total, ours.bad, theirs.total, theirs.bad)
    tracks[BAD] = _two(tracks[BAD], bad, settings.margin, alone=alone, settings=settings, may_pass=True)
    if not gaining:
        tracks[SLOW] = _observe_slow(tests, ours, theirs, alone=alone, settings=settings)
        retried = _Seen(ours.total, _retried(ours), theirs.total, _retried(theirs))
        tracks[RETRIED] = _rare(tracks[RETRIED], retried, MARGINS[RETRIED], alone=alone, settings=settings)
        if block.peers:
            called = _Seen(*block.peers.get(candidate, (0, 0)), *block.peers.get(stable, (0, 0)))
            tracks[CONNECT] = _rare(tracks[CONNECT], called, MARGINS[CONNECT], alone=alone, settings=settings)
        if 0 < view.expected < ALL_MOVED:
            tracks[VANISHED] = _vanished(tracks[VANISHED], ours.total, ours.total + theirs.total, view.expected)
        aside = _Seen(view.aside.total, view.aside.bad, view.aside_stable.total, view.aside_stable.bad)
        if aside.n or aside.nb:
            tracks[ASIDE] = _two(tracks[ASIDE], aside, settings.margin, alone=alone, settings=settings)
    return Tests(tracks=tuple(tracks), over=remember_latency(tests.over, theirs), before_after=alone, side=side)


def _observe_slow(tests: Tests, ours: Counts, theirs: Counts, *, alone: bool, settings: Settings) -> Track:
    """Slow is what crosses the bound at or above the baseline's p99, fixed before the block.

    No single second of slow answers decides, only one of no answers: in the second in which everybody goes over, pools are
    cold and every new connection is made at once, and a busy machine that stands still slows whoever asks just then.
    """
    bound = _slow_index(tests.over)
    if bound < 0:
        return tests.tracks[SLOW]
    seen = _Seen(*_slow(ours, bound), *_slow(theirs, bound))
    hang = _hanging(ours, max(bound, HANG)) >= HEAVY_LEAST
    return _two(tests.tracks[SLOW], seen, MARGINS[SLOW], alone=alone, settings=settings, at_once=hang)


def _hanging(counts: Counts, bound: int) -> int:
    """Requests, at least, that crossed this bound and have not been answered: those answered beyond it crossed it too."""
    if bound >= len(counts.over):
        return 0
    answered = sum(counts.latency[bound + 1 :]) if counts.latency else counts.total
    return counts.over[bound] - answered


class Viewed(NamedTuple):
    """A block as one rollout looks at it."""

    ours: Counts
    """The candidate's requests, of the side that changed."""
    theirs: Counts
    expected: float = 0.0
    aside: Counts = _NOTHING
    """Whole candidate proxies' requests of the other direction."""
    aside_stable: Counts = _NOTHING


_NO_STRATUM: Final = Stratum(cohorts={})


def viewed(
    block: Block, candidate: Digest, stable: Digest, *, gaining: Sequence[str] = (), side: Side = "both"
) -> Viewed:
    """The candidate's requests and the baseline's, like compared with like."""
    if gaining:
        return Viewed(*_by_destination(block, gaining))
    if side == "both" or not block.directions:
        return Viewed(block.cohorts.get(candidate, _NOTHING), block.cohorts.get(stable, _NOTHING), block.expected)
    main = block.directions.get(side, _NO_STRATUM)
    other = block.directions.get(_OTHER[side], _NO_STRATUM)
    return Viewed(
        ours=main.cohorts.get(candidate, _NOTHING),
        theirs=main.cohorts.get(stable, _NOTHING),
        expected=main.expected if block.expected > 0 else 0.0,
        aside=other.whole.get(candidate, _NOTHING),
        aside_stable=other.whole.get(stable, _NOTHING),
    )


def _by_destination(block: Block, gaining: Sequence[str]) -> tuple[Counts, Counts]:
    services = {name.rsplit("/", 1)[0] for name in gaining}
    sums = {True: [0, 0], False: [0, 0]}
    for counts in block.cohorts.values():
        for name, (total, bad) in counts.by_subset.items():
            if name.rsplit("/", 1)[0] in services:
                side = sums[name in gaining]
                side[0] += total
                side[1] += bad
    return Counts(total=sums[True][0], bad=sums[True][1]), Counts(total=sums[False][0], bad=sums[False][1])


def _retried(counts: Counts) -> int:
    """Requests that took another try, as far as sums can tell (a storm's further tries say nothing new)."""
    return max(0, min(counts.total, counts.attempts - counts.total))


def _slow(counts: Counts, bound: int) -> tuple[int, int]:
    """(requests, those that crossed the bound); a request still open past the bound counts now, not when it ends."""
    crossed = counts.over[bound] if bound < len(counts.over) else 0
    return max(counts.total, crossed), crossed


def _slow_index(over: tuple[float, ...]) -> int:
    """The bound at or above the baseline's p99 so far; -1: not known."""
    if not over or over[-1] < BEFORE_LEAST:
        return -1
    allowed = over[-1] * 0.01
    return next((i for i in range(len(over) - 1) if over[i] <= allowed), -1)


def remember_latency(over: tuple[float, ...], counts: Counts) -> tuple[float, ...]:
    if not counts.total or not counts.over:
        return over
    old = over or (0.0,) * (len(LATENCY_BOUNDS_MS) + 1)
    most = LATE_MOST * counts.total
    # Decimals are cut: they carry nothing and the state is persisted on every transition.
    return (
        *[round(a * MEMORY + min(b, most), 3) for a, b in zip(old[:-1], counts.over, strict=False)],
        round(old[-1] * MEMORY + counts.total, 3),
    )


def remember(tally: TallyT, n: int, k: int, others: int = 0, others_bad: int = 0) -> TallyT:
    """The tally with one more block; `others` is the other cohort in the same second."""
    if not n:
        return tally
    sum_n, sum_k = tally[0] * MEMORY + n, tally[1] * MEMORY + k
    scatter = _scatter(n, k, (sum_k + 0.5) / (sum_n + 1.0))
    if scatter > SHARED_JUMP and others:
        scatter = min(scatter, _apart((n, k), (others, others_bad)))
    return (sum_n, sum_k, tally[2] * MEMORY + scatter, tally[3] * MEMORY + 1.0)


def _rate(tally: TallyT) -> float:
    return (tally[1] + PRIOR_RATE * PRIOR_REQUESTS) / (tally[0] + PRIOR_REQUESTS)


def _expected(track: Track) -> float:
    """Stable's rate to reckon with: that of the last seconds once it is clearly below the remembered one.

    An outage that is over is remembered for minutes, and a bet against its rate cannot see a few failures in a hundred.
    """
    rate = _rate(track.stable)
    n, k = track.lately
    fallen = n * rate - k
    if fallen <= 0 or fallen * fallen <= FALLEN * n * rate * (1.0 - rate):
        return rate
    return (k + rate * LATELY_REQUESTS) / (n + LATELY_REQUESTS)


def _phi(tally: TallyT, start: float) -> float:
    return max(1.0, (PHI_WEIGHT * start + tally[2]) / (PHI_WEIGHT + tally[3]))


def _doubted(phi: float) -> float:
    """A dispersion that is great comes from a few bursts, so it is known badly, and more often too small than too great."""
    return phi + min(DOUBT_MOST, DOUBT * max(0.0, phi - PHI_START) ** 2)


def _phi_expected(baseline: TallyT, n: int) -> float:
    """Dispersion to begin with for blocks of n requests, from how the baseline's requests hang together."""
    blocks = baseline[3]
    unknown = min(PHI_START, 1.0 + (n - 1) * TOGETHER)
    per_block = baseline[0] / blocks if blocks else 0.0
    if blocks < STRANGE_BLOCKS - 1 or per_block <= 1.5:
        return unknown
    together = min(1.0, max(0.0, (baseline[2] / blocks - 1.0) / (per_block - 1.0)))
    expected = 1.0 + (n - 1) * together
    return max(PHI_KNOWN, expected) if baseline[1] >= KNOWN_BAD else max(unknown, expected)


def _two(
    track: Track,
    seen: "_Seen",
    margin: float,
    *,
    alone: bool,
    settings: Settings,
    may_pass: bool = False,
    at_once: bool = True,
) -> Track:
    """One outcome after one more block. `may_pass`: also whether it is good enough, which only failed requests decide.
    `at_once`: one heavy block may decide by itself."""
    if not seen.n:
        return _heard_stable(track, seen) if seen.nb else track
    heavy = at_once and _is_heavy(seen)
    phi = min(float(seen.n), _doubted(_phi(track.candidate, _phi_expected(track.stable, seen.n))))
    learnt = (track.candidate[1] + 0.5) / (track.candidate[0] + 10.0)
    bets = (*ALTERNATIVES, learnt)
    if alone:
        worse, better = _alone(track, seen, bets, margin, phi, settings)
    else:
        worse, better = _compared(track, seen, bets, margin, phi, settings, heavy=heavy, may_pass=may_pass)
    return Track(
        worse=worse,
        better=better if may_pass else (),
        started=track.started + 1,
        bad_blocks=track.bad_blocks + (seen.k > 0),
        heavy=track.heavy or heavy,
        candidate=remember(track.candidate, seen.n, seen.k, seen.nb, seen.kb),
        stable=remember(track.stable, seen.nb, seen.kb, seen.n, seen.k),
        lately=_lately(track, seen),
        n=track.n + seen.n,
        k=track.k + seen.k,
        n_stable=track.n_stable + seen.nb,
        k_stable=track.k_stable + seen.kb,
        before=track.before,
    )


class _Seen(NamedTuple):
    """One outcome in one block: (requests, bad) of candidate and baseline."""

    n: int
    k: int
    nb: int = 0
    kb: int = 0


_Stakes: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]


def _most_gain(track: Track, seen: _Seen, *, heavy: bool) -> float:
    """What one block may earn: the past decides, except that one heavy block is believed."""
    if heavy:
        return inf
    strange = track.stable[3] < STRANGE_BLOCKS and seen.n >= STRANGE_REQUESTS
    return 0.0 if strange else GAIN_MAX


def _is_heavy(seen: _Seen) -> bool:
    return seen.k >= HEAVY_LEAST and seen.k >= HEAVY * seen.n and seen.kb <= HEAVY_BESIDE * seen.nb


def _heard_stable(track: Track, seen: _Seen) -> Track:
    return msgspec.structs.replace(
        track,
        stable=remember(track.stable, seen.nb, seen.kb),
        lately=_lately(track, seen),
        n_stable=track.n_stable + seen.nb,
        k_stable=track.k_stable + seen.kb,
    )


def _compared(
    track: Track,
    seen: _Seen,
    bets: Sequence[float],
    margin: float,
    phi: float,
    settings: Settings,
    *,
    heavy: bool,
    may_pass: bool,
) -> _Stakes:
    b = _expected(track)
    scale = 1.0 / phi
    phi_b = _phi(track.stable, min(PHI_START, 1.0 + max(0, seen.nb - 1) * TOGETHER))
    scale_b = 1.0 / min(float(max(1, seen.nb)), phi_b)  # requests of one second that share one fate are one observation
    most = _most_gain(track, seen, heavy=heavy)
    gains = [min(most, _pair(seen, a, b, margin, scale, scale_b)) if a > b + margin else 0.0 for a in bets]
    worse = _invest(track, track.worse, gains)
    if not may_pass:
        return worse, ()
    tolerance = max(settings.tolerance, margin)
    n, k = track.lately
    lately = (k + PRIOR_RATE * LATELY_REQUESTS) / (n + LATELY_REQUESTS) if n else b
    tries = (b, lately, b + tolerance / 2)
    bases = (b, lately, b)
    gains = [_pair(seen, a, base, tolerance, scale, scale_b) for a, base in zip(tries, bases, strict=True)]
    return worse, _invest(track, track.better, gains)


def _alone(track: Track, seen: _Seen, bets: Sequence[float], margin: float, phi: float, settings: Settings) -> _Stakes:
    """Before/after: against the rate before the wave, which time itself may have moved."""
    if track.before < 0:
        return _invest(track, track.worse, [0.0] * len(bets)), _invest(track, track.better, [0.0] * len(PASS_BETS))
    wide = max(BEFORE_AFTER_MARGIN, BEFORE_AFTER_FACTOR * track.before)
    null = min(0.98, track.before + max(margin, wide))
    limit = min(0.99, track.before + max(settings.tolerance, wide))
    gains = [_one(seen.n, seen.k, a, null) / phi if a > null else 0.0 for a in bets]
    tries = (track.before, track.before, (track.before + limit) / 2)
    return _invest(track, track.worse, gains), _invest(
        track, track.better, [_one(seen.n, seen.k, min(a, limit), limit) / phi for a in tries]
    )


def _lately(track: Track, seen: _Seen) -> tuple[float, float]:
    return track.lately[0] * LATELY + seen.nb, track.lately[1] * LATELY + seen.kb


_FIRST_STAKE: Final = log(FIRST)
_LATE_STAKE: Final = log((1.0 - FIRST) / LATE_BLOCKS)


def _rare(track: Track, seen: _Seen, margin: float, *, alone: bool, settings: Settings) -> Track:
    """An outcome that is usually absent: nothing is bet before its first case, which the past decides, not the block."""
    if not (seen.k or seen.kb or track.n):
        return track
    if not track.candidate[1]:
        return msgspec.structs.replace(
            _heard_stable(track, seen),
            candidate=remember(track.candidate, seen.n, seen.k),
            n=track.n + seen.n,
            k=track.k + seen.k,
            bad_blocks=track.bad_blocks + (seen.k > 0),
        )
    return _two(track, seen, margin, alone=alone, settings=settings)


def _invest(track: Track, invested_so_far: tuple[float, ...], gains: Sequence[float]) -> tuple[float, ...]:
    """Add this block's stake to what is invested, then let it earn the block's factor."""
    old = invested_so_far or (-inf,) * len(gains)
    if track.started > LATE_BLOCKS:
        return tuple([max(-LN_MAX, min(LN_MAX, x + gain)) for x, gain in zip(old, gains, strict=True)])
    stake = _LATE_STAKE if track.started else _FIRST_STAKE
    invested = []
    for x, gain in zip(old, gains, strict=True):
        high, low = (x, stake) if x >= stake else (stake, x)
        total = high + log1p(exp(low - high)) + gain
        invested.append(max(-LN_MAX, min(LN_MAX, total)))
    return tuple(invested)


def _one(n: int, k: int, a: float, null: float) -> float:
    """ln likelihood ratio of rate a against rate null."""
    return k * log(a / null) + (n - k) * log((1.0 - a) / (1.0 - null))


def _pair(seen: _Seen, a: float, b: float, margin: float, scale: float, scale_b: float) -> float:
    """ln of one block's factor for the bet (a, b), tempered by each cohort's dispersion."""
    n, k, nb, kb = seen
    m = border(a, b, margin, n * scale, nb * scale_b)
    gain = scale * (k * log(a / (m + margin)) + (n - k) * log((1.0 - a) / (1.0 - m - margin)))
    if nb:
        gain += scale_b * (kb * log(b / m) + (nb - kb) * log((1.0 - b) / (1.0 - m)))
    return gain


def border(a: float, b: float, margin: float, size: float, size_b: float) -> float:
    """m of the point (m + margin, m) that minimises size * KL(a, m + margin) + size_b * KL(b, m).

    The derivative times its denominators is a cubic with one root between b and a - margin; Newton's steps on it stay
    inside a shrinking bracket.
    """
    away = a - margin
    if size_b <= 0:
        return min(max(away, 1e-12), 1.0 - margin - 1e-12)
    low, high = (b, away) if b < away else (max(away, 0.0), b)
    m = (size * min(max(away, low), high) + size_b * b) / (size + size_b)
    for _ in range(60):
        x = m + margin
        u, v = m * (1.0 - m), x * (1.0 - x)
        value = size * (x - a) * u + size_b * (m - b) * v
        if not value:
            return m
        if value > 0:
            high = m
        else:
            low = m
        slope = size * (u + (x - a) * (1.0 - 2.0 * m)) + size_b * (v + (m - b) * (1.0 - 2.0 * x))
        step = m - value / slope if slope else m
        if not low <= step <= high:
            step = (low + high) / 2  # of which nothing is known, however near it is
        elif abs(step - m) <= 1e-4 * m:  # Newton's next error is the square of this one
            return step
        m = step
    return m


def _vanished(track: Track, arrived: int, total: int, expected: float) -> Track:
    """Of all requests in the block, how many reached the candidate, against its expected share."""
    if not total:
        return track
    null = VANISH_FRACTION * expected
    scale = 1.0 / _phi(track.candidate, VANISH_PHI)
    bets = [fraction * expected for fraction in VANISH_BETS]
    gains = [scale * _one(total, arrived, bet, null) for bet in bets]
    worse = _invest(track, track.worse, gains)
    return Track(
        worse=worse,
        started=track.started + 1,
        bad_blocks=track.bad_blocks + (arrived < null * total),
        candidate=remember(track.candidate, total, total - arrived),
        n=track.n + total,
        k=track.k + arrived,
        before=expected,
    )


# --- harm that both cohorts share ---------------------------------------------------------------------------------


def watched(total: float, bad: float) -> Track:
    """A watch over one destination, knowing its requests before the rollout."""
    return Track(before=_rate_before((total, bad, 0.0, 0.0), Tally()))


def watch(track: Track, total: int, bad: int, settings: Settings) -> Track:
    """One more second of a destination's requests against its rate from before."""
    return _two(track, _Seen(total, bad), settings.margin, alone=True, settings=settings)


def exceeds(track: Track, settings: Settings) -> bool:
    """More fail than before the rollout, surely."""
    return track.bad_blocks >= CONFIRMED_BLOCKS and _ln_worse(track) >= -log(settings.false_alarm)


def rewatched(track: Track, rate: float = -1.0) -> Track:
    """The watch begun again, from another usual rate if given."""
    return Track(before=rate if rate >= 0 else track.before, candidate=track.candidate)


def usual_rate(tests: Tests, outcome: int = BAD) -> float:
    """How many requests fail anyway: stable's rate, as far as it is known."""
    track = tests.tracks[outcome]
    if track.stable[0] >= BEFORE_LEAST:
        return track.stable[1] / track.stable[0]
    return max(0.0, track.before)


def rebased(tests: Tests, rate: float, outcome: int = BAD) -> Tests:
    """The same tests with another rate from before for an outcome: what changed has turned out not to be ours."""
    tracks = list(tests.tracks)
    tracks[outcome] = msgspec.structs.replace(tracks[outcome], before=max(rate, tracks[outcome].before))
    return msgspec.structs.replace(tests, tracks=tuple(tracks))


# --- judging ------------------------------------------------------------------------------------------------------


_LN_PASS_BETS: Final = tuple(log(bet) for bet in PASS_BETS)
_LN_WEIGHTS: Final = tuple(log(weight) for weight in WEIGHTS)


def judge(tests: Tests, settings: Settings) -> Judgement:
    """What this workload alone says; its fail threshold is judging.py's (the mean over all workloads)."""
    per_outcome = [_ln_worse(track) for track in tests.tracks]
    weighted = [value + weight for value, weight in zip(per_outcome, _LN_WEIGHTS, strict=True)]
    worse = mean_ln(weighted, 1)
    loudest = weighted.index(max(weighted))
    track = tests.tracks[loudest]
    confirmed = track.bad_blocks >= (VANISH_BLOCKS if loudest == VANISHED else CONFIRMED_BLOCKS) or track.heavy
    ruined = _ruined(tests, settings)
    catastrophe = ruined >= 0
    better = _ln_better(tests.tracks[BAD])
    return Judgement(
        verdict=_verdict(worse, better, confirmed, catastrophe, per_outcome, settings),
        worse=worse,
        better=better,
        outcome=OUTCOMES[ruined if catastrophe else loudest],
        before_after=tests.before_after,
        catastrophe=catastrophe,
        confirmed=confirmed or catastrophe,
    )


def _verdict(
    worse: float, better: float, confirmed: bool, catastrophe: bool, per_outcome: Iterable[float], settings: Settings
) -> Verdict:
    if catastrophe or (confirmed and worse >= -log(settings.false_alarm)):
        return Verdict.FAIL
    suspicious = max(per_outcome) >= -log(settings.missed)
    if better >= -log(settings.missed) and not suspicious:
        return Verdict.PASS
    return Verdict.INCONCLUSIVE


def _ln_worse(track: Track) -> float:
    """ln E of one outcome: the mean over bets of what is invested, plus what is not yet."""
    if not track.started:
        return 0.0
    return _with_cash(track, mean_ln(track.worse, len(track.worse)))


def _ln_better(track: Track) -> float:
    if not track.better:
        return 0.0
    return _with_cash(track, mean_ln([x + bet for x, bet in zip(track.better, _LN_PASS_BETS, strict=True)], 1))


def _with_cash(track: Track, invested: float) -> float:
    cash = (1.0 - FIRST) * max(0.0, 1.0 - (track.started - 1) / LATE_BLOCKS)
    return mean_ln((invested, log(cash)), 1) if cash > 0 else invested


def _ruined(tests: Tests, settings: Settings) -> int:
    """The outcome that says that next to nothing works any more; -1: none does."""
    if _most_fail(tests.tracks[BAD], settings):
        return BAD
    aside = tests.tracks[ASIDE]
    compared = tests.before_after or aside.n_stable >= HEAVY_LEAST
    return ASIDE if compared and _most_fail(aside, settings) else -1


def _most_fail(track: Track, settings: Settings) -> bool:
    """Most of at least 5 requests so far fail, and neither stable's rate nor chance explains it."""
    if track.n < HEAVY_LEAST or track.k * 2 <= track.n:
        return False
    usual = max(_rate(track.stable), (track.k_stable + 0.5) / (track.n_stable + 1) if track.n_stable else 0.0)
    null, rate = min(0.99, usual + settings.margin), track.k / track.n
    if rate <= null:
        return False
    surprise = rate * log(rate / null) + (0.0 if rate == 1.0 else (1.0 - rate) * log((1.0 - rate) / (1.0 - null)))
    return track.n * surprise >= -log(settings.false_alarm)


def mean_ln(values: Sequence[float], count: int) -> float:
    """ln of (the sum of e**value) / count."""
    top = max(values)
    if top == -inf:
        return -inf
    return top + log(sum([exp(value - top) for value in values])) - log(count)


def requests_needed(tests: Tests, settings: Settings) -> float:
    """About how many candidate requests a pass takes at the baseline's rate and dispersion."""
    stable = tests.tracks[BAD].stable
    b = stable[1] / stable[0] if stable[0] >= BEFORE_LEAST else 0.0
    worse = min(0.99, b + max(settings.tolerance, settings.margin))
    per_request = (b * log(b / worse) if b > 0 else 0.0) + (1.0 - b) * log((1.0 - b) / (1.0 - worse))
    return -log(settings.missed) / per_request * min(PHI_PLANNED_MAX, _phi(stable, 1.0))


# --- words ----------------------------------------------------------------------------------------------------------

_WHAT: Final = {
    "bad": "requests failed",
    "aside in": "requests that it made failed",
    "aside out": "requests that it answered failed",
    "aside both": "requests failed",
    "slow": "requests were slow",
    "retried": "requests needed another try",
    "connect": "connections failed",
}


def sentence(workload: str, tests: Tests, judgement: Judgement, moved: str) -> str:
    """What a user reads, without the ending (rolled back after ...; cause: ...). `moved`: `2 of 16 proxies`."""
    head = f"{workload.rsplit('/', 1)[-1]}, {moved} on the new revision: "
    track = tests.tracks[OUTCOMES.index(judgement.outcome)]
    odds = f"; chance of that without a cause under 1 in {_odds(judgement.worse):,}"
    if judgement.outcome == "vanished":
        got, due = track.k / max(1, track.n), track.before
        return f"{head}{_percent(got)} of the requests arrived there, {_percent(due)} were expected{odds}"
    what = _WHAT[f"aside {tests.side}" if judgement.outcome == "aside" else judgement.outcome]
    body = f"{track.k:,} of {track.n:,} {what} ({_percent(track.k / max(1, track.n))})"
    if judgement.before_after:
        was = f"before/after: {_percent(track.before)} before" if track.before >= 0 else "nothing to compare with"
        return f"{head}{body}, {was}{odds}"
    others = (
        f"{track.k_stable:,} of {track.n_stable:,} on the others ({_percent(track.k_stable / max(1, track.n_stable))})"
    )
    return f"{head}{body}, {others}{odds}"


def _odds(ln_e: float) -> int:
    """A round number below E: nobody believes digits, and beyond a million they say nothing."""
    known = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    return max((value for value in known if ln_e >= log(value)), default=2)


def _percent(share: float) -> str:
    value = share * 100
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.095 else f"{value:.2f} %"
