"""Stages, waves and seats: which proxy serves which config now, and what a new rollout starts with.

Everything is derived from the rollout's state and the fleet as it is, so calling it again changes nothing. Choices are
made by a hash of rollout and proxy, never by chance: an operator that was killed chooses the same seats again.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from backstay.core.rollout import memo, verdict
from backstay.core.rollout.model import (
    Cause,
    Command,
    Digest,
    Evidence,
    Phase,
    ProxyId,
    ProxyView,
    Rollout,
    SetSeats,
    Settings,
    Side,
    Stage,
    Tell,
    Verdict,
    WorkloadKey,
    WorkloadRollout,
)

EPSILON: Final = 1e-9
"""Shares are sums of decimal fractions; below this a rest is rounding, not a seat."""
THIN_SHARE_MAX: Final = 0.5
"""DESIGN 6: thin traffic raises the share to at most half, so that a baseline of the same size remains."""
FIRST_LOOK_REQUESTS: Final = 5.0
"""Requests a second with which a wave begins, if its own share has fewer: as many as show that nothing works."""
RAISE_AFTER_S: Final = 3.0
RAISE_EVERY_S: Final = 1.5
"""Thin traffic's share begins to grow once the first second's requests must have been judged (one to happen, up to two to
be reported), then doubles: what breaks everything costs a handful of requests, also where a wave will need half of them.
From 5 % to a half takes 7.5 s, little of any deadline."""

_SERVES_STABLE: Final = frozenset(
    {Phase.ROLLING_BACK, Phase.BAKING, Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED}
)


class Target(NamedTuple):
    """What one proxy is to serve."""

    stable: Digest
    candidate: Digest
    """Empty: none."""
    share: float


def waves(settings: Settings) -> tuple[float, ...]:
    """The shares of one pass over the fleet. Immediate and traffic steps move everybody at once, still watched."""
    return (1.0,) if settings.immediate or settings.traffic else settings.shares


def wave_count(rollout: Rollout) -> int:
    """Waves of the stage: gateways move after everything else, so a fleet with both goes through the list twice."""
    gateways = _gateways(rollout)
    mixed = bool(gateways) and any(w not in gateways for w in candidates(rollout))
    return len(waves(rollout.settings)) * (2 if mixed else 1)


def candidates(rollout: Rollout) -> Mapping[WorkloadKey, Digest]:
    """Workload -> the config that the current stage tries."""
    return rollout.stages[rollout.stage].configs if rollout.stages else {}


def stage_stable(rollout: Rollout, workload: WorkloadKey, stable: Mapping[WorkloadKey, Digest]) -> Digest:
    """What the workload's proxies fall back to now: stable with the parts of all earlier stages."""
    if rollout.phase in {Phase.BAKING, Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED}:
        return stable.get(workload, "")
    for stage in reversed(rollout.stages[: rollout.stage]):
        if workload in stage.configs:
            return stage.configs[workload]
    return stable.get(workload, "")


def target(rollout: Rollout, workload: WorkloadKey, proxy: ProxyId, stable: Mapping[WorkloadKey, Digest]) -> Target:
    """What this proxy is to serve."""
    base = stage_stable(rollout, workload, stable)
    state = rollout.workloads.get(workload)
    share = state.seats.get(proxy, 0.0) if state else 0.0
    candidate = _tried(rollout, workload)
    if share <= 0 or not candidate or candidate == base:
        return Target(base, "", 0.0)
    return Target(base, candidate, share)


def targets(
    rollout: Rollout, stable: Mapping[WorkloadKey, Digest], proxies: Mapping[ProxyId, ProxyView] | None = None
) -> Mapping[ProxyId, Target]:
    """Targets of all seated proxies; with `proxies` also of every other proxy of an affected workload."""
    placed = {proxy: workload for workload, state in rollout.workloads.items() for proxy in state.seats}
    if proxies:
        placed |= {view.id: view.workload for view in proxies.values() if view.workload in rollout.workloads}
    return {proxy: target(rollout, workload, proxy, stable) for proxy, workload in placed.items()}


def _tried(rollout: Rollout, workload: WorkloadKey) -> Digest:
    if rollout.phase is Phase.BAKING:
        # Only a bake that suspects itself gives seats: to the config from before the promotion, as a baseline.
        return rollout.before.get(workload, "")
    return "" if rollout.phase in _SERVES_STABLE else candidates(rollout).get(workload, "")


# --- shares -----------------------------------------------------------------------------------------------------------


def _gateways(rollout: Rollout) -> frozenset[WorkloadKey]:
    return frozenset(rollout.gateways)


def share_of(rollout: Rollout, workload: WorkloadKey, wave: int) -> float:
    """The share wave number `wave` asks of this workload."""
    if workload not in candidates(rollout) or wave < 0:
        return 0.0
    shares = waves(rollout.settings)
    if workload in _gateways(rollout) and any(w not in _gateways(rollout) for w in candidates(rollout)):
        wave -= len(shares)
    return shares[min(wave, len(shares) - 1)] if wave >= 0 else 0.0


def thin_share(requests_per_s: float, share: float, needed: float, settings: Settings, *, most: float = 1.0) -> float:
    """The share at which a pass fits half the deadline: never below the one it has, at most a half, and `most` for now."""
    if requests_per_s <= 0 or share <= 0 or share >= THIN_SHARE_MAX or settings.immediate or settings.traffic:
        return share
    return max(share, min(THIN_SHARE_MAX, most, needed / (requests_per_s * settings.deadline / 2)))


def most_share(requests_per_s: float, own: float, elapsed: float) -> float:
    """How far thin traffic may raise a wave's own share, so many seconds after the wave began."""
    first = max(own, FIRST_LOOK_REQUESTS / requests_per_s) if requests_per_s > 0 else own
    doublings = math.floor((elapsed - RAISE_AFTER_S) / RAISE_EVERY_S) + 1 if elapsed >= RAISE_AFTER_S else 0
    return float(min(1.0, first * 2 ** min(doublings, 30)))


# --- seats ------------------------------------------------------------------------------------------------------------


def seats(rollout: Rollout, proxies: Mapping[ProxyId, ProxyView], left_out: Iterable[ProxyId] = ()) -> Rollout:
    """The same rollout with seats that fit the fleet as it is."""
    out = frozenset(left_out)
    fleet = _by_workload(rollout, proxies, out)
    budget = _whole_budget(rollout, fleet)
    changed: dict[WorkloadKey, WorkloadRollout] = {}
    for workload in sorted(rollout.workloads, key=lambda name: _rank(rollout.id, name)):
        state = rollout.workloads[workload]
        given = _seat(rollout.id, state, fleet.get(workload, ()), budget)
        budget -= sum(1 for view in fleet.get(workload, ()) if not view.can_split and view.id in given)
        changed[workload] = state if given == state.seats else msgspec.structs.replace(state, seats=given)
    ordered = {name: changed[name] for name in rollout.workloads}
    return msgspec.structs.replace(rollout, workloads=ordered)


def _by_workload(
    rollout: Rollout, proxies: Mapping[ProxyId, ProxyView], out: frozenset[ProxyId]
) -> dict[WorkloadKey, list[ProxyView]]:
    """Proxies that can hold a seat. One that is away keeps its seat until its lease must have ended."""
    fleet: dict[WorkloadKey, list[ProxyView]] = {}
    for view in proxies.values():
        state = rollout.workloads.get(view.workload)
        if state is None or view.id in out:
            continue
        waits = view.id in state.seats and view.silent_for < rollout.settings.confirm_within
        if view.connected or waits:
            fleet.setdefault(view.workload, []).append(_undivided(view) if view.workload in rollout.whole else view)
    return fleet


def _undivided(view: ProxyView) -> ProxyView:
    return msgspec.structs.replace(view, can_split=False)


def _whole_budget(rollout: Rollout, fleet: Mapping[WorkloadKey, Sequence[ProxyView]]) -> int:
    """How many proxies that cannot split may have moved by now: the share of all such proxies, rounded up.

    Without it every single-replica workload of a non-splitting engine would move in the first wave.
    """
    asked = 0.0
    for workload, views in fleet.items():
        asked += rollout.workloads[workload].share * sum(1 for view in views if not view.can_split)
    return math.ceil(asked - EPSILON)


def _seat(
    rollout_id: str, state: WorkloadRollout, views: Sequence[ProxyView], whole_budget: int
) -> dict[ProxyId, float]:
    wanted = state.share * len(views)
    if wanted <= EPSILON:
        return {}
    order = sorted(views, key=lambda view: _preference(rollout_id, state, view))
    whole = math.floor(wanted + EPSILON)
    if any(view.can_split for view in order):
        return _split_seats(order, whole, wanted - whole)
    rounded = math.ceil(wanted - EPSILON)
    count = rounded if state.share >= 1.0 else max(whole, min(rounded, whole_budget))
    return {view.id: 1.0 for view in order[:count]}


def _split_seats(order: Sequence[ProxyView], whole: int, rest: float) -> dict[ProxyId, float]:
    given = {view.id: 1.0 for view in order[:whole]}
    if rest <= EPSILON:
        return given
    splitting = next((view for view in order[whole:] if view.can_split), None)
    if splitting is None:
        # Only whole-seat engines are left: the split one gives its whole seat to the next and takes the rest itself.
        splitting = next(view for view in order[:whole] if view.can_split)
        given[order[whole].id] = 1.0
    given[splitting.id] = rest
    return given


def _preference(rollout_id: str, state: WorkloadRollout, view: ProxyView) -> tuple[float, bool, bool, str]:
    """Who holds a seat keeps it; then the warm, then those who are here, then by hash."""
    return (-state.seats.get(view.id, 0.0), not view.warm, not view.connected, _rank(rollout_id, view.id))


def _rank(rollout_id: str, name: str) -> str:
    return hashlib.sha256(f"{rollout_id}\0{name}".encode()).hexdigest()


# --- beginning and moving on ------------------------------------------------------------------------------------------


def begin(
    *,
    id: str,
    cause: Cause,
    settings: Settings,
    stages: tuple[Stage, ...],
    stable: Mapping[WorkloadKey, Digest],
    documents: Iterable[str],
    proxies: Mapping[ProxyId, ProxyView],
    now: float,
    carry: Rollout | None = None,
    before: Mapping[WorkloadKey, verdict.Before] | None = None,
    gaining: tuple[str, ...] = (),
    sides: tuple[dict[WorkloadKey, Side], ...] = (),
    whole: tuple[WorkloadKey, ...] = (),
) -> tuple[Rollout, tuple[Command, ...]]:
    """A new rollout with its first seats.

    `carry` is the rollout it supersedes: workloads whose stages are the same keep wave, seats and evidence. `before` is
    what stable did lately (evidence.Folder.before()), `gaining` the `service:port/subset` that traffic steps ramp up,
    `sides` which requests the changed parts decide, per stage (diff.sides); `whole` whose proxies change their engine.
    """
    affected = sorted({workload for stage in stages for workload in stage.configs})
    gateways = {view.workload for view in proxies.values() if view.is_gateway}
    kept = _carried(carry, stages, stable, affected)
    rollout = Rollout(
        id=id,
        cause=cause,
        settings=settings,
        phase=Phase.PREPARING,
        stages=stages,
        stage=carry.stage if carry is not None and kept else 0,
        workloads={name: kept.get(name) or _fresh(name, before, _first_side(sides, name)) for name in affected},
        documents=tuple(documents),
        started_at=now,
        supersessions=carry.supersessions + 1 if carry is not None else 0,
        gateways=tuple(name for name in affected if name in gateways),
        before={name: stable.get(name, "") for name in affected},
        gaining=gaining,
        sides=sides,
        whole=whole,
        memo=memo.dump(memo.begin(before or {}, affected)),
    )
    first = min((state.wave for name, state in rollout.workloads.items() if name in candidates(rollout)), default=0)
    rollout = seats(enter_wave(rollout, first), proxies)
    said = (
        f"{_many(len(affected), 'workload')}, {_many(len(stages), 'stage')}, first wave {percent(first_share(rollout))}"
    )
    return rollout, (*(SetSeats(workload=name) for name in affected), Tell(reason="RolloutStarted", message=said))


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")


def _fresh(workload: WorkloadKey, before: Mapping[WorkloadKey, verdict.Before] | None, side: Side) -> WorkloadRollout:
    known = before.get(workload) if before else None
    if known is None:
        return WorkloadRollout()
    return WorkloadRollout(evidence=Evidence(tests=verdict.dump(verdict.seed(known, side))))


def _first_side(sides: Iterable[Mapping[WorkloadKey, Side]], workload: WorkloadKey) -> Side:
    return next((stage[workload] for stage in sides if workload in stage), "both")


def side_of(rollout: Rollout, workload: WorkloadKey) -> Side:
    """Which requests the config on trial decides: the stage's, or all stages' once it is live."""
    stages = rollout.sides
    if rollout.phase not in _SERVES_STABLE or rollout.phase is Phase.ROLLING_BACK:
        stages = stages[rollout.stage : rollout.stage + 1]
    found = {stage[workload] for stage in stages if workload in stage}
    return found.pop() if len(found) == 1 else "both"


def _carried(
    carry: Rollout | None,
    stages: tuple[Stage, ...],
    stable: Mapping[WorkloadKey, Digest],
    affected: Iterable[WorkloadKey],
) -> dict[WorkloadKey, WorkloadRollout]:
    """Workloads that may keep what they have: the same steps from the same stable, in the same stage of the same list."""
    if carry is None or carry.phase in _SERVES_STABLE:
        return {}
    done = carry.stage
    if len(stages) <= done or tuple(s.name for s in stages) != tuple(s.name for s in carry.stages):
        return {}
    if any(stages[n].configs != carry.stages[n].configs for n in range(done)):
        return {}
    return {
        name: carry.workloads[name]
        for name in affected
        if name in carry.workloads
        and carry.before.get(name, "") == stable.get(name, "")
        and [s.configs.get(name) for s in stages] == [s.configs.get(name) for s in carry.stages]
    }


def enter_wave(rollout: Rollout, wave: int) -> Rollout:
    """The rollout in this wave: shares asked for, evidence of the wave empty (what was learnt of rates stays)."""
    workloads = {name: _at_wave(rollout, name, state, wave) for name, state in rollout.workloads.items()}
    return msgspec.structs.replace(rollout, wave=wave, workloads=workloads, wave_elapsed=0.0)


def _at_wave(rollout: Rollout, name: WorkloadKey, state: WorkloadRollout, wave: int) -> WorkloadRollout:
    if state.wave > wave:  # carried over and ahead of the others: it waits with what it has
        return state
    ahead = state.wave == wave  # a first wave, or one that it was carried into: keeps what it knows
    share = share_of(rollout, name, wave)
    evidence = state.evidence if ahead else renewed(state.evidence)
    return msgspec.structs.replace(
        state,
        wave=wave,
        share=max(share, state.share),  # what thin traffic has raised already stays out
        evidence=evidence,
        passed=ahead and state.passed,
    )


def renewed(evidence: Evidence) -> Evidence:
    """Evidence for a new wave: tests start again, the rates and burstiness learnt so far are kept."""
    return Evidence(tests=verdict.dump(verdict.next_wave(verdict.load(evidence.tests))))


def restart_stage(rollout: Rollout) -> Rollout:
    """The stage from its first wave, with nothing proven and nobody seated."""
    fresh = {
        name: WorkloadRollout(evidence=renewed(state.evidence), seats={}) for name, state in rollout.workloads.items()
    }
    return enter_wave(msgspec.structs.replace(rollout, workloads=fresh), 0)


def next_wave(
    rollout: Rollout, proxies: Mapping[ProxyId, ProxyView], left_out: Iterable[ProxyId] = ()
) -> Rollout | None:
    """The rollout in its next wave that differs from this one; None when there is none: the stage is through."""
    last = wave_count(rollout)
    wave = rollout.wave + 1
    out = tuple(left_out)
    while wave < last:
        moved = seats(enter_wave(rollout, wave), proxies, out)
        if seating(moved) != seating(rollout):
            return moved
        wave += 1
    return None


def enter_stage(rollout: Rollout, stage: int) -> Rollout:
    """Another stage from its first wave."""
    return restart_stage(msgspec.structs.replace(rollout, stage=stage))


def take_back(rollout: Rollout) -> Rollout:
    """The current wave's step undone for all workloads in it; evidence starts again."""
    return _with_shares(rollout, rollout.wave - 1)


def give_again(rollout: Rollout) -> Rollout:
    """The current wave once more after it was taken back; evidence starts again."""
    return _with_shares(rollout, rollout.wave)


def _with_shares(rollout: Rollout, wave: int) -> Rollout:
    workloads = {
        name: msgspec.structs.replace(
            state, share=share_of(rollout, name, wave), evidence=renewed(state.evidence), passed=False
        )
        for name, state in rollout.workloads.items()
        if state.wave == rollout.wave
    }
    return msgspec.structs.replace(rollout, workloads={**rollout.workloads, **workloads}, wave_elapsed=0.0)


def with_share(rollout: Rollout, share: float) -> Rollout:
    """All workloads at this share, with fresh evidence: how a bake compares itself with the config before it."""
    workloads = {
        name: msgspec.structs.replace(state, share=share, evidence=renewed(state.evidence))
        for name, state in rollout.workloads.items()
    }
    return msgspec.structs.replace(rollout, workloads=workloads)


def seating(rollout: Rollout) -> dict[WorkloadKey, dict[ProxyId, float]]:
    return {name: state.seats for name, state in rollout.workloads.items()}


def unseated(rollout: Rollout) -> Rollout:
    """Nobody serves the candidate."""
    workloads = {
        name: msgspec.structs.replace(state, seats={}, share=0.0, passed=False)
        for name, state in rollout.workloads.items()
    }
    return msgspec.structs.replace(rollout, workloads=workloads)


def without(rollout: Rollout, left_out: Iterable[ProxyId]) -> Rollout:
    """The same seats, but none for these."""
    out = frozenset(left_out)
    workloads = {
        name: msgspec.structs.replace(state, seats={p: s for p, s in state.seats.items() if p not in out})
        for name, state in rollout.workloads.items()
    }
    return msgspec.structs.replace(rollout, workloads=workloads)


def first_share(rollout: Rollout) -> float:
    return max((state.share for state in rollout.workloads.values()), default=0.0)


def percent(share: float) -> str:
    """`5 %`, `0.2 %`: one digit after the point where it says something."""
    value = share * 100
    return f"{value:.0f} %" if value >= 9.95 or abs(value - round(value)) < 0.05 else f"{value:.1f} %"


def unproven(rollout: Rollout) -> tuple[WorkloadKey, ...]:
    """Workloads whose candidate has not been judged good in the current wave."""
    return tuple(n for n, s in rollout.workloads.items() if not s.proven and s.evidence.verdict is not Verdict.PASS)
