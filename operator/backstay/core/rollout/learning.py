"""What a look learns from reports: counts into tests, the first failures, harm, and how often requests fail at present."""

from collections.abc import Mapping
from typing import Final

import msgspec

from backstay.core.rollout import phases, plan, verdict
from backstay.core.rollout.looking import Look
from backstay.core.rollout.model import (
    BadCause,
    Block,
    Digest,
    Evidence,
    Phase,
    WorkloadKey,
    WorkloadRollout,
)

RECENT: Final = 0.75
"""What the rate of the last seconds keeps per second: half is forgotten in 2.4 s."""
REPORT_S: Final = 1.0
"""A report speaks of the second before it."""
CAUSES: Final = 5


def _cohorts(look: Look, workload: WorkloadKey) -> tuple[Digest, Digest]:
    """(config on trial, config it is compared with)"""
    rollout = look.rollout
    if rollout.phase is Phase.BAKING:
        return look.stable.get(workload, ""), rollout.before.get(workload, "")
    return plan.candidates(rollout).get(workload, ""), plan.stage_stable(rollout, workload, look.stable)


def learn(look: Look) -> None:
    newest = max((block.second for block in look.seen.blocks), default=look.memo.newest)
    look.remember(newest=look.seen.second if look.seen.second >= 0 else newest)
    for block in look.seen.blocks:
        state = look.rollout.workloads.get(block.workload)
        if state is not None:
            _learn_block(look, block, state)
    _watch_destinations(look)


def _learn_block(look: Look, block: Block, state: WorkloadRollout) -> None:
    candidate, stable = _cohorts(look, block.workload)
    if look.rollout.phase is Phase.BAKING:
        block = msgspec.structs.replace(block, share=1.0 - block.share if look.memo.suspect else 1.0, expected=0.0)
    rollout, side = look.rollout, plan.side_of(look.rollout, block.workload)
    view = verdict.viewed(block, candidate, stable, gaining=rollout.gaining, side=side)
    if rollout.phase is Phase.ROLLING_BACK:
        _watch_recovery(look, block.second, view)
        return
    if not candidate or candidate == stable:
        return
    before = look.tests(block.workload)
    after = verdict.observe(before, block, candidate, stable, rollout.settings, gaining=rollout.gaining, side=side)
    _count_harm(look, view, after)
    _note_first(look, block.second, before, after)
    newly = _newly_seen(block.workload, before, after)
    _remember_recent(look, newly)
    _test_suspicion(look, block.second, newly)
    evidence = _added(state.evidence, view, after)
    look.decoded[block.workload] = (evidence.tests, after)
    look.change(workloads={**rollout.workloads, block.workload: msgspec.structs.replace(state, evidence=evidence)})


def _added(evidence: Evidence, view: verdict.Viewed, tests: verdict.Tests) -> Evidence:
    ours, theirs = view.ours, view.theirs
    return msgspec.structs.replace(
        evidence,
        candidate_total=evidence.candidate_total + ours.total,
        candidate_bad=evidence.candidate_bad + ours.bad,
        stable_total=evidence.stable_total + theirs.total,
        stable_bad=evidence.stable_bad + theirs.bad,
        tests=verdict.dump(tests),
        causes=_causes(evidence.causes, view) if ours.bad or view.aside.bad else evidence.causes,
    )


def _causes(known: tuple[BadCause, ...], view: verdict.Viewed) -> tuple[BadCause, ...]:
    causes = {(cause.route, cause.reason): cause for cause in known}
    for reasons, aside in ((view.ours.reasons, False), (view.aside.reasons, True)):
        for route, bad in reasons.items():
            for reason, count in bad.items():
                old = causes.get((route, reason), BadCause(reason=reason, route=route, count=0, aside=aside))
                causes[route, reason] = msgspec.structs.replace(old, count=old.count + count)
    ordered = sorted(causes.values(), key=lambda cause: (cause.aside, -cause.count, cause.route, cause.reason))
    return tuple(ordered[:CAUSES])


def _note_first(look: Look, second: int, before: verdict.Tests, after: verdict.Tests) -> None:
    began = max(0.0, look.rollout.elapsed - max(0, look.memo.newest - second) - REPORT_S)
    first = {
        outcome: began
        for outcome, old, new in zip(verdict.OUTCOMES, before.tracks, after.tracks, strict=True)
        if new.k > old.k and outcome != "vanished"
    }
    if first.keys() - look.memo.first.keys():
        look.remember(first={**first, **look.memo.first})


def _count_harm(look: Look, view: verdict.Viewed, tests: verdict.Tests) -> None:
    """One user's failed request often shows twice, in what is answered and in what is asked: the greater one counts."""
    harm = view.ours.bad - view.ours.total * verdict.usual_rate(tests)
    if view.aside.bad:
        harm = max(harm, view.aside.bad - view.aside.total * verdict.usual_rate(tests, verdict.ASIDE))
    look.remember(harmed=look.memo.harmed + harm)


def subject_of(workload: WorkloadKey, outcome: str) -> str:
    return workload if outcome == verdict.OUTCOMES[verdict.BAD] else f"{workload} {outcome}"


def _newly_seen(workload: WorkloadKey, before: verdict.Tests, after: verdict.Tests) -> dict[str, tuple[int, int]]:
    """What one block added to each outcome, both cohorts together."""
    return {
        subject_of(workload, outcome): (
            new.n + new.n_stable - old.n - old.n_stable,
            new.k + new.k_stable - old.k - old.k_stable,
        )
        for outcome, old, new in zip(verdict.OUTCOMES, before.tracks, after.tracks, strict=True)
        if new is not old and outcome != "vanished"
    }


def _remember_recent(look: Look, seen: Mapping[str, tuple[int, int]]) -> None:
    recent = dict(look.memo.recent)
    for subject, (total, bad) in seen.items():
        n, k = recent.get(subject, (0.0, 0.0))
        recent[subject] = (n * RECENT + total, k * RECENT + bad)
    look.remember(recent=recent)


def _test_suspicion(look: Look, second: int, seen: Mapping[str, tuple[int, int]]) -> None:
    """Only seconds count in which nobody served any more what was taken back, however late they are reported."""
    suspect = look.memo.suspect
    if suspect is None or not suspect.settled or second < suspect.since:
        return
    total, bad = seen.get(subject_of(suspect.subject, suspect.outcome), (0, 0))
    if total:
        look.remember(suspect=msgspec.structs.replace(suspect, total=suspect.total + total, bad=suspect.bad + bad))


def _watch_recovery(look: Look, second: int, view: verdict.Viewed) -> None:
    """Only what stable decided counts, in seconds wholly after: requests from before may still end badly for a while."""
    recovery = look.memo.recovery
    if recovery is None or recovery.since < 0 or second < recovery.since:
        return
    seen = view.aside_stable if recovery.outcome == "aside" else view.theirs
    recovery = msgspec.structs.replace(
        recovery,
        total=recovery.total + seen.total,
        bad=recovery.bad + seen.bad,
        latest=max(recovery.latest, second),
    )
    look.remember(recovery=recovery)


def _watch_destinations(look: Look) -> None:
    """Failures of requests that no candidate decided: harm there is either shared or not ours."""
    if look.rollout.phase not in phases.MOVING:
        return
    watch = dict(look.memo.watch)
    destinations: dict[str, tuple[int, int]] = {}
    for block in look.seen.blocks:
        asked = _destinations(look, block)
        _test_suspicion(look, block.second, asked)
        for destination, (total, bad) in asked.items():
            n, k = destinations.get(destination, (0, 0))
            destinations[destination] = (n + total, k + bad)
    if destinations:
        _remember_recent(look, destinations)
    for destination, (total, bad) in destinations.items():
        if look.rollout.phase is not Phase.SUSPECTING:
            track = watch.get(destination, verdict.watched(0, 0))
            watch[destination] = verdict.watch(track, total, bad, look.rollout.settings)
    look.remember(watch=watch)


def _destinations(look: Look, block: Block) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    tried = plan.candidates(look.rollout).get(block.workload, "")
    for config, counts in block.cohorts.items():
        if config == tried:
            continue
        for destination, (total, bad) in counts.by_destination.items():
            n, k = sums.get(destination, (0, 0))
            sums[destination] = (n + total, k + bad)
    return sums
