"""What a rollout does about what it sees: one look in, the next state and a list of commands out.

Called once a second (and at every order of a person) by the reconciler, which persists the state before it executes the
commands. Statistics are verdict.py's, seats plan.py's, phases phases.py's; here they are weighed.

Rule: at most one advance per look, and none in a look that saw a failure. Rule: unknown never moves anything.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from backstay.core.rollout import memo as memory
from backstay.core.rollout import phases, plan, verdict
from backstay.core.rollout.memo import Memo, Recovery, Suspect
from backstay.core.rollout.model import (
    BadCause,
    Block,
    Command,
    Digest,
    Evidence,
    Hold,
    Observation,
    Order,
    Phase,
    Promote,
    ProxyId,
    ProxyView,
    Restore,
    Rollout,
    SetSeats,
    Settings,
    Tell,
    Verdict,
    WorkloadKey,
    WorkloadRollout,
)
from backstay.core.rollout.phases import Event

SILENT_S: Final = 5.0
"""A proxy that reports every second and has been silent for this long is not being measured."""
LOST_S: Final = 10.0
"""A proxy gone for this long is lost (reconnecting backs off to 5 s at most)."""
UNKNOWN_S: Final = 3.0
"""Seconds without any measurement before the rollout holds; a hiccup of one report is not worth a phase."""
LEFT_OUT_SHARE: Final = 0.1
"""Part of the affected proxies (at least one) that may be left out for reasons of their own before the rollout holds."""
CUT_OFF_SHARE: Final = 0.5
"""Stable proxies away at the same time that make a lost candidate no evidence."""
RECENT: Final = 0.75
"""What the rate of the last seconds keeps per second: half is forgotten in 2.4 s."""
TEST_LEAST_S: Final = 3.0
TEST_MOST_S: Final = 15.0
TEST_REQUESTS: Final = 30
"""After a wave was taken back: requests, and seconds, to see whether failures fall."""
CONFIRMATIONS: Final = 2
"""DESIGN 6: twice so, fail."""
RECOVERY_SECONDS: Final = 3
RECOVERY_MOST_S: Final = 8.0
RECOVERY_REQUESTS: Final = 30
"""After a rollback: seconds wholly after the last ack, and requests in them, to say whether failures fell."""
REPORT_S: Final = 1.0
"""A report speaks of the second before it."""
RESTORE_PATIENCE_S: Final = 10.0
"""Beyond confirmWithin, a proxy that is here and does not take stable is reported and no longer waited for."""
BAKE_BASELINE: Final = 0.5
"""Share given back to the previous config when a bake suspects itself: both cohorts learn fastest at halves."""
RATE_AFTER_S: Final = 10.0
CAUSES: Final = 5


@dataclass(slots=True)
class _Look:
    """One look in the making."""

    rollout: Rollout
    memo: Memo
    seen: Observation
    stable: Mapping[WorkloadKey, Digest]
    fleet: dict[ProxyId, ProxyView]
    commands: list[Command] = field(default_factory=list)
    moved: bool = False
    """Something moved already; everything else waits for the next look."""

    decoded: dict[WorkloadKey, tuple[msgspec.Raw, verdict.Tests]] = field(default_factory=dict)

    def tests(self, workload: WorkloadKey) -> verdict.Tests:
        """The workload's running tests, decoded at most once a look."""
        raw = self.rollout.workloads[workload].evidence.tests
        known = self.decoded.get(workload)
        if known is None or known[0] is not raw:
            known = self.decoded[workload] = (raw, verdict.load(raw))
        return known[1]

    grouped: dict[WorkloadKey, list[ProxyView]] = field(default_factory=dict)

    def views(self, workload: WorkloadKey) -> list[ProxyView]:
        """The workload's proxies; the fleet is gone through once a look, not once a workload."""
        if not self.grouped:
            for view in self.fleet.values():
                self.grouped.setdefault(view.workload, []).append(view)
        return self.grouped.get(workload, [])

    def judgement(self, workload: WorkloadKey) -> verdict.Judgement:
        """What the workload's tests say; only those that have learnt something in this look are weighed again."""
        raw, settings = self.rollout.workloads[workload].evidence.tests, self.rollout.settings
        known = self.decoded.get(workload)
        if known is not None and known[0] is raw:
            return verdict.judge(known[1], settings)
        return _judged(bytes(raw), settings)

    def needed(self, workload: WorkloadKey) -> float:
        """About how many candidate requests a pass takes."""
        raw, settings = self.rollout.workloads[workload].evidence.tests, self.rollout.settings
        known = self.decoded.get(workload)
        if known is not None and known[0] is raw:
            return verdict.requests_needed(known[1], settings)
        return _needed(bytes(raw), settings)

    def change(self, **fields: object) -> None:
        self.rollout = msgspec.structs.replace(self.rollout, **fields)

    def remember(self, **fields: object) -> None:
        self.memo = msgspec.structs.replace(self.memo, **fields)

    def go(self, event: Event) -> None:
        self.change(phase=phases.after(self.rollout.phase, event))
        self.remember(waited=0.0, unknown_for=0.0)

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.commands.append(Tell(reason=reason, message=message, warning=warning))

    def tell_once(self, key: str, reason: str, message: str) -> None:
        if key not in self.memo.told:
            self.remember(told=(*self.memo.told, key))
            self.tell(reason, message, warning=True)


@functools.lru_cache(maxsize=1024)
def _judged(tests: bytes, settings: Settings) -> verdict.Judgement:
    """Most looks bring no block for most workloads: a hundred times faster than to decode and weigh what is known."""
    return verdict.judge(verdict.load(msgspec.Raw(tests)), settings)


@functools.lru_cache(maxsize=1024)
def _needed(tests: bytes, settings: Settings) -> float:
    return verdict.requests_needed(verdict.load(msgspec.Raw(tests)), settings)


def decide(
    rollout: Rollout, observation: Observation, *, stable: Mapping[WorkloadKey, Digest]
) -> tuple[Rollout, tuple[Command, ...]]:
    """The rollout after this look, and what is to be done about it."""
    if rollout.phase in phases.ENDED:
        return rollout, ()
    look = _Look(rollout, memory.load(rollout.memo), observation, stable, {})
    _age(look)
    look.fleet = _fleet(look)
    before = plan.seating(look.rollout)
    _learn(look)
    for order in observation.orders:
        _obey(look, order)
    _hear_troubles(look)
    _reseat(look)
    if not look.moved:
        _STEPS[look.rollout.phase](look)
    _set_seats(look, before)
    look.change(memo=memory.dump(look.memo), harmed=max(0, round(look.memo.harmed)))
    return look.rollout, tuple(look.commands)


# --- time and fleet ---------------------------------------------------------------------------------------------------


def _age(look: _Look) -> None:
    seconds, rollout = look.seen.elapsed, look.rollout
    # What could not be measured is not counted against the deadline: unknown never moves anything.
    counts = rollout.phase in {Phase.SHIFTING, Phase.BAKING}
    look.change(elapsed=rollout.elapsed + seconds, wave_elapsed=rollout.wave_elapsed + (seconds if counts else 0.0))
    look.remember(
        waited=look.memo.waited + seconds,
        cut_off_ago=look.memo.cut_off_ago + seconds,
        restarted_ago=look.memo.restarted_ago + seconds,
    )


def _fleet(look: _Look) -> dict[ProxyId, ProxyView]:
    """The proxies as seen, plus seated ones nobody has spoken of for a moment: a new operator has to meet them first."""
    missing: dict[ProxyId, float] = {}
    fleet = dict(look.seen.proxies)
    for workload, state in look.rollout.workloads.items():
        for proxy in state.seats:
            if proxy not in fleet:
                away = look.memo.missing.get(proxy, 0.0) + look.seen.elapsed
                missing[proxy] = away
                if away < LOST_S:
                    fleet[proxy] = ProxyView(id=proxy, workload=workload, connected=False, silent_for=away)
    look.remember(missing=missing)
    if look.seen.resumed or _stable_cut_off_now(look, fleet):
        look.remember(cut_off_ago=0.0)
    return fleet


def _stable_cut_off_now(look: _Look, fleet: Mapping[ProxyId, ProxyView]) -> bool:
    seated = _seated(look.rollout)
    others = [view for view in fleet.values() if view.id not in seated]
    away = sum(1 for view in others if not view.connected)
    if others:
        return away >= CUT_OFF_SHARE * len(others)
    if not look.seen.proxies:
        return True  # an operator that has just started has met nobody yet: everybody was cut off from it
    # Everybody has a seat: the fleet as a whole is what there is to compare with, if it is more than one.
    return len(fleet) > 1 and not any(view.connected for view in fleet.values())


def _seated(rollout: Rollout) -> frozenset[ProxyId]:
    return frozenset(proxy for state in rollout.workloads.values() for proxy in state.seats)


def _reseat(look: _Look) -> None:
    testing_bake = look.rollout.phase is Phase.BAKING and look.memo.suspect is not None
    if look.rollout.phase not in phases.MOVING and not testing_bake:
        return
    if _too_many_left_out(look):
        # A candidate that takes its proxies down must not be handed on to one after the other.
        look.rollout = plan.without(look.rollout, look.memo.left_out)
    else:
        look.rollout = plan.seats(look.rollout, look.fleet, look.memo.left_out)


def _set_seats(look: _Look, before: Mapping[WorkloadKey, Mapping[ProxyId, float]]) -> None:
    """Say which workloads' seats are not what they were when the look began, before anything else is done."""
    changed = [name for name, state in look.rollout.workloads.items() if state.seats != before.get(name)]
    look.commands[:0] = [SetSeats(workload=name) for name in changed]


# --- evidence ---------------------------------------------------------------------------------------------------------


def _cohorts(look: _Look, workload: WorkloadKey) -> tuple[Digest, Digest]:
    """(config on trial, config it is compared with)"""
    rollout = look.rollout
    if rollout.phase is Phase.BAKING:
        return look.stable.get(workload, ""), rollout.before.get(workload, "")
    return plan.candidates(rollout).get(workload, ""), plan.stage_stable(rollout, workload, look.stable)


def _learn(look: _Look) -> None:
    newest = max((block.second for block in look.seen.blocks), default=look.memo.newest)
    look.remember(newest=look.seen.second if look.seen.second >= 0 else newest)
    for block in look.seen.blocks:
        state = look.rollout.workloads.get(block.workload)
        if state is not None:
            _learn_block(look, block, state)
    _watch_destinations(look)


def _learn_block(look: _Look, block: Block, state: WorkloadRollout) -> None:
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
    _remember_recent(look, _newly_seen(block.workload, before, after))
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


def _note_first(look: _Look, second: int, before: verdict.Tests, after: verdict.Tests) -> None:
    began = max(0.0, look.rollout.elapsed - max(0, look.memo.newest - second) - REPORT_S)
    first = {
        outcome: began
        for outcome, old, new in zip(verdict.OUTCOMES, before.tracks, after.tracks, strict=True)
        if new.k > old.k and outcome != "vanished"
    }
    if first.keys() - look.memo.first.keys():
        look.remember(first={**first, **look.memo.first})


def _count_harm(look: _Look, view: verdict.Viewed, tests: verdict.Tests) -> None:
    """One user's failed request often shows twice, in what is answered and in what is asked: the greater one counts."""
    harm = view.ours.bad - view.ours.total * verdict.usual_rate(tests)
    if view.aside.bad:
        harm = max(harm, view.aside.bad - view.aside.total * verdict.usual_rate(tests, verdict.ASIDE))
    look.remember(harmed=look.memo.harmed + harm)


def _subject(workload: WorkloadKey, outcome: str) -> str:
    return workload if outcome == verdict.OUTCOMES[verdict.BAD] else f"{workload} {outcome}"


def _newly_seen(workload: WorkloadKey, before: verdict.Tests, after: verdict.Tests) -> dict[str, tuple[int, int]]:
    """What one block added to each outcome, both cohorts together."""
    return {
        _subject(workload, outcome): (
            new.n + new.n_stable - old.n - old.n_stable,
            new.k + new.k_stable - old.k - old.k_stable,
        )
        for outcome, old, new in zip(verdict.OUTCOMES, before.tracks, after.tracks, strict=True)
        if new is not old and outcome != "vanished"
    }


def _remember_recent(look: _Look, seen: Mapping[str, tuple[int, int]]) -> None:
    recent = dict(look.memo.recent)
    for subject, (total, bad) in seen.items():
        n, k = recent.get(subject, (0.0, 0.0))
        recent[subject] = (n * RECENT + total, k * RECENT + bad)
    look.remember(recent=recent)
    suspect = look.memo.suspect
    if suspect is not None and suspect.settled:
        total, bad = seen.get(_subject(suspect.subject, suspect.outcome), (0, 0))
        look.remember(suspect=msgspec.structs.replace(suspect, total=suspect.total + total, bad=suspect.bad + bad))


def _watch_recovery(look: _Look, second: int, view: verdict.Viewed) -> None:
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


def _watch_destinations(look: _Look) -> None:
    """Failures of requests that no candidate decided: harm there is either shared or not ours."""
    if look.rollout.phase not in phases.MOVING:
        return
    watch = dict(look.memo.watch)
    destinations = _destinations(look)
    if destinations:
        _remember_recent(look, destinations)
    for destination, (total, bad) in destinations.items():
        if look.rollout.phase is not Phase.SUSPECTING:
            track = watch.get(destination, verdict.watched(0, 0))
            watch[destination] = verdict.watch(track, total, bad, look.rollout.settings)
    look.remember(watch=watch)


def _destinations(look: _Look) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for block in look.seen.blocks:
        tried = plan.candidates(look.rollout).get(block.workload, "")
        for config, counts in block.cohorts.items():
            if config == tried:
                continue
            for destination, (total, bad) in counts.by_destination.items():
                n, k = sums.get(destination, (0, 0))
                sums[destination] = (n + total, k + bad)
    return sums


# --- judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleetwide:
    """What all workloads of the wave say together."""

    judgements: Mapping[WorkloadKey, verdict.Judgement]
    failing: WorkloadKey | None


def _judge(look: _Look) -> _Fleetwide:
    judged = {name: look.judgement(name) for name in look.rollout.workloads}
    failing = _failing(judged, look.rollout)
    noted = {name: _noted(look, name, judgement, failed=name == failing) for name, judgement in judged.items()}
    look.change(workloads=noted)
    return _Fleetwide(judgements=judged, failing=failing)


def _failing(judged: Mapping[WorkloadKey, verdict.Judgement], rollout: Rollout) -> WorkloadKey | None:
    """The workload to blame if the fleet fails: the mean of e-values has crossed, or most requests of one fail.

    A single workload that crosses (number of workloads) / alpha moves the mean past 1 / alpha, so one test serves both.
    """
    if not judged:
        return None
    loudest = max(judged, key=lambda name: (judged[name].catastrophe, judged[name].worse))
    if judged[loudest].catastrophe:
        return loudest
    mean = verdict.mean_ln([judgement.worse for judgement in judged.values()], len(judged))
    crossed = mean >= -math.log(rollout.settings.false_alarm)
    return loudest if crossed and judged[loudest].confirmed else None


def _noted(look: _Look, name: WorkloadKey, judgement: verdict.Judgement, *, failed: bool) -> WorkloadRollout:
    state = look.rollout.workloads[name]
    known = Verdict.INCONCLUSIVE if judgement.verdict is Verdict.FAIL else judgement.verdict
    passed = state.passed or judgement.verdict is Verdict.PASS
    evidence = state.evidence
    if failed:
        tests = verdict.load(evidence.tests)
        text = verdict.sentence(name, tests, judgement, _moved(state, len(look.views(name))))
        evidence = msgspec.structs.replace(
            evidence, sentence=text, causes=_with_origins(evidence.causes, look.seen.origins.get(name, {}))
        )
    evidence = msgspec.structs.replace(evidence, verdict=Verdict.FAIL if failed else known)
    return msgspec.structs.replace(
        state, evidence=evidence, passed=passed and not failed, proven=state.proven or passed
    )


def _moved(state: WorkloadRollout, proxies: int) -> str:
    """Who is on the new revision, as people count: `2 of 16 proxies`, or a part of the requests of the only one."""
    split = [share for share in state.seats.values() if share < 1.0]
    if split and proxies == 1:
        return f"{plan.percent(split[0])} of its requests"
    return f"{len(state.seats)} of {proxies} proxies" if state.seats else "all proxies"


def _with_origins(causes: Iterable[BadCause], origins: Mapping[str, str]) -> tuple[BadCause, ...]:
    """Lines of git where they are known. Of what the change did not decide itself, the only line that changed."""
    places = set(origins.values())
    only = places.pop() if len(places) == 1 else ""
    named = [
        msgspec.structs.replace(
            cause, origin=cause.origin or origins.get(cause.route, "") or (only if cause.aside else "")
        )
        for cause in causes
    ]
    return tuple(sorted(named, key=lambda cause: (cause.aside, not cause.origin)))


# --- orders of people -------------------------------------------------------------------------------------------------


def _obey(look: _Look, order: Order) -> None:
    rollout = look.rollout
    allowed = {
        "pause": rollout.phase in phases.MOVING and rollout.phase is not Phase.PAUSED,
        "resume": rollout.phase is Phase.PAUSED,
        "promote": rollout.phase in phases.MOVING,
        "promote-full": rollout.phase in phases.MOVING,
        "abort": rollout.phase in phases.MOVING or rollout.phase is Phase.BAKING,
    }[order.verb]
    if look.moved or not allowed:
        look.tell("OrderRefused", f"{order.verb} by {order.actor}: the rollout is {rollout.phase.value}", warning=True)
        return
    look.change(actor=order.actor, reason=order.reason)
    look.moved = True
    _ORDERS[order.verb](look, f"{order.verb} by {order.actor}" + (f": {order.reason}" if order.reason else ""))


def _pause(look: _Look, said: str) -> None:
    look.change(paused_from=look.rollout.phase, sentence=said)
    look.go(Event.PAUSED)
    look.tell("Paused", said)


def _resume(look: _Look, said: str) -> None:
    look.change(paused_from=None, sentence="")
    if any(state.evidence.verdict is Verdict.FAIL for state in look.rollout.workloads.values()):
        # A person looked at the failure and goes on: the same evidence must not stop the rollout again at once.
        look.rollout = plan.seats(plan.give_again(look.rollout), look.fleet, look.memo.left_out)
    look.remember(suspect=None, told=())
    look.go(Event.RESUMED)
    look.tell("Resumed", said)


def _promote(look: _Look, said: str) -> None:
    look.tell("PromotedByPerson", said)
    look.change(sentence="")
    look.remember(suspect=None)
    _advance(look, Event.PROMOTED)


def _promote_full(look: _Look, said: str) -> None:
    look.tell("PromotedByPerson", said)
    look.change(stage=len(look.rollout.stages) - 1, sentence="")
    look.remember(suspect=None)
    _finish(look)


def _abort(look: _Look, said: str) -> None:
    baking = look.rollout.phase is Phase.BAKING
    look.remember(aborted=True)
    look.go(Event.ABORTED)
    _restore(look, said, to_previous=baking)
    look.tell("Aborted", said, warning=True)


_ORDERS: Final[Mapping[str, Callable[[_Look, str], None]]] = {
    "pause": _pause,
    "resume": _resume,
    "promote": _promote,
    "promote-full": _promote_full,
    "abort": _abort,
}


# --- nacks, losses, leases --------------------------------------------------------------------------------------------


def _hear_troubles(look: _Look) -> None:
    if look.rollout.phase not in phases.MOVING:
        return
    _hear_nacks(look)
    _hear_went_back(look)
    _hear_losses(look)


def _hear_nacks(look: _Look) -> None:
    for nack in look.seen.nacks:
        if nack.digest != plan.candidates(look.rollout).get(nack.workload) or look.moved:
            continue
        said = f"{nack.proxy} refused its config: {nack.reason}: {nack.message}"
        if nack.fault == "content":
            _blame(look, nack.workload, said)
            _fail(look, said)
            return
        _leave_out(look, nack.proxy, said)


def _hear_went_back(look: _Look) -> None:
    ours = [went for went in look.seen.went_back if went.digest == plan.candidates(look.rollout).get(went.workload)]
    if look.memo.restarted_ago < look.rollout.settings.confirm_within:
        # No lease given since the stage began anew can have ended yet: these come back late from the same outage.
        ours = [went for went in ours if went.reason == "Restarts"]
    if not ours or look.moved:
        return
    if look.memo.cut_off_ago < look.rollout.settings.confirm_within or _stable_cut_off_now(look, look.fleet):
        _restart(look, f"{len(ours)} proxies went back while stable proxies were cut off as well; that is no evidence")
        return
    blamed = next((went for went in ours if went.reason in {"Restarts", "ControlLost"}), None)
    if blamed is not None:
        said = f"{blamed.proxy} went back to stable by itself ({blamed.reason}) while stable proxies kept theirs"
        _blame(look, blamed.workload, said)
        _fail(look, said)
        return
    for went in ours:
        _leave_out(look, went.proxy, f"{went.proxy} went back to stable by itself ({went.reason})")


def _restart(look: _Look, why: str) -> None:
    look.rollout = plan.seats(plan.restart_stage(look.rollout), look.fleet, look.memo.left_out)
    look.change(restarts=look.rollout.restarts + 1, sentence=why)
    look.go(Event.RESTARTED)
    look.remember(suspect=None, cut_off_ago=1e9, restarted_ago=0.0)
    look.moved = True
    look.tell("StageRestarted", why, warning=True)


def _hear_losses(look: _Look) -> None:
    seated = _seated(look.rollout)
    back = [p for p, why in look.memo.left_out.items() if why == "lost" and p in look.fleet and look.fleet[p].connected]
    if back:
        look.remember(left_out={p: why for p, why in look.memo.left_out.items() if p not in back})
    for view in look.fleet.values():
        if view.id in seated and not view.connected and view.silent_for >= LOST_S:
            look.remember(left_out={**look.memo.left_out, view.id: "lost"})
            look.tell_once(f"lost {view.id}", "ProxyLeftOut", f"{view.id} is lost; the wave goes on without it")


def _leave_out(look: _Look, proxy: ProxyId, why: str) -> None:
    look.remember(left_out={**look.memo.left_out, proxy: why})
    look.tell_once(f"{proxy} {why}", "ProxyLeftOut", f"{why}; the wave goes on without it")


def _blame(look: _Look, workload: WorkloadKey, said: str) -> None:
    state = look.rollout.workloads[workload]
    evidence = msgspec.structs.replace(state.evidence, verdict=Verdict.FAIL, sentence=said)
    look.change(workloads={**look.rollout.workloads, workload: msgspec.structs.replace(state, evidence=evidence)})


# --- phases -----------------------------------------------------------------------------------------------------------


def _preparing(look: _Look) -> None:
    if _failed(look) or _suspicious(look):
        return
    if _seats_acked(look):
        look.go(Event.SEATS_ACKED)
    elif look.memo.waited >= look.rollout.settings.confirm_within:
        _unknown(look, "the candidate was not confirmed by the proxies that are to serve it")


def _seats_acked(look: _Look) -> bool:
    """All seated proxies that are here serve what their seat says, and at least one does (or there is nobody)."""
    here = False
    for name, state in look.rollout.workloads.items():
        for proxy in state.seats:
            view = look.fleet.get(proxy)
            if view is None or not view.connected:
                continue
            wanted = plan.target(look.rollout, name, proxy, look.stable)
            if view.candidate != wanted.candidate or abs(view.share - wanted.share) > plan.EPSILON:
                return False
            here = True
    return here or not _seated(look.rollout)


def _shifting(look: _Look) -> None:
    if _failed(look) or _suspicious(look):
        return
    doubt = _doubt(look)
    if doubt:
        look.remember(unknown_for=look.memo.unknown_for + look.seen.elapsed)
        if look.memo.unknown_for >= UNKNOWN_S:
            _unknown(look, doubt)
        return
    look.remember(unknown_for=0.0)
    _raise_thin(look)
    _maybe_advance(look)


def _holding(look: _Look) -> None:
    if _failed(look) or _suspicious(look):
        return
    doubt = _doubt(look)
    if doubt:
        look.change(sentence=f"holding: {doubt}")
        return
    ran_out = look.rollout.wave_elapsed >= look.rollout.settings.deadline and not _all_passed(look)
    if not ran_out and _seats_acked(look):
        look.change(sentence="")
        look.go(Event.MEASURED)


def _paused(look: _Look) -> None:
    judged = _judge(look)
    if judged.failing is None:
        return
    said = _why(look, judged.failing)
    look.change(sentence=said)
    look.tell_once(f"paused {judged.failing}", "RolloutFailing", said)


def _suspecting(look: _Look) -> None:
    suspect = look.memo.suspect
    if suspect is None or not _is_settled(look, suspect) or _failed(look):
        return
    suspect = msgspec.structs.replace(suspect, elapsed=suspect.elapsed + look.seen.elapsed)
    look.remember(suspect=suspect)
    if _is_tested(suspect):
        _conclude(look, suspect)


def _is_settled(look: _Look, suspect: Suspect) -> bool:
    """Whether the seats of the test are taken; evidence counts from then on, what came before mixes both."""
    if not suspect.settled and (_seats_acked(look) or look.memo.waited >= TEST_MOST_S):
        workloads = {
            name: msgspec.structs.replace(state, evidence=plan.renewed(state.evidence))
            for name, state in look.rollout.workloads.items()
        }
        look.change(workloads=workloads)
        look.remember(suspect=msgspec.structs.replace(suspect, settled=True))
    return suspect.settled


def _is_tested(suspect: Suspect) -> bool:
    enough = suspect.elapsed >= TEST_LEAST_S and suspect.total >= TEST_REQUESTS
    return enough or suspect.elapsed >= TEST_MOST_S


def fell(suspect: Suspect) -> bool:
    """Whether failures fell clearly, given that `kept` of the candidate's share went on during the test.

    Clearly: at least half as much as the taken part explains, and by more than chance (2.3 standard errors, 1 in 100).
    """
    if not suspect.total:
        return False
    now, excess = suspect.bad / suspect.total, suspect.rate - suspect.usual
    fallen = suspect.rate - now
    error = math.sqrt(max(suspect.rate * (1 - suspect.rate), 1e-9) / suspect.total)
    return fallen >= excess * (1.0 - suspect.kept) / 2 and fallen > 2.3 * error


def _conclude(look: _Look, suspect: Suspect) -> None:
    look.moved = True
    look.remember(suspect=None)
    if not fell(suspect):
        look.go(Event.DISMISSED)
        _forget_harm(look, suspect)
        look.tell("HarmDismissed", f"{suspect.sentence}; they did not fall when the wave was taken back: going on")
        return
    look.change(suspicions=look.rollout.suspicions + 1)
    if look.rollout.suspicions >= suspect.needed:
        said = f"{suspect.sentence}; they fell each time the wave was taken back"
        for name in look.rollout.workloads if suspect.kind == "shared" else (suspect.subject,):
            _blame(look, name, said)
        look.remember(evidence_failed=True)
        _fail(look, said)
        return
    look.go(Event.CONFIRMED)
    look.rollout = plan.seats(plan.give_again(look.rollout), look.fleet, look.memo.left_out)
    look.remember(watch={name: verdict.rewatched(track) for name, track in look.memo.watch.items()})
    look.tell("HarmConfirmed", f"{suspect.sentence}; they fell when the wave was taken back: trying once more")


def _forget_harm(look: _Look, suspect: Suspect) -> None:
    """Not ours: what is usual now is the new measure, or the same outage would stop the rollout again."""
    total, bad = look.memo.recent.get(_subject(suspect.subject, suspect.outcome), (0.0, 0.0))
    rate = max(suspect.rate, bad / total if total else 0.0)
    watch = {name: verdict.rewatched(track) for name, track in look.memo.watch.items()}
    if suspect.kind == "shared":
        watch[suspect.subject] = verdict.rewatched(watch[suspect.subject], rate)
    look.remember(watch=watch)
    look.rollout = plan.give_again(look.rollout)
    if suspect.kind == "before-after":
        state = look.rollout.workloads[suspect.subject]
        tests = verdict.rebased(verdict.load(state.evidence.tests), rate, verdict.OUTCOMES.index(suspect.outcome))
        evidence = msgspec.structs.replace(state.evidence, tests=verdict.dump(tests))
        state = msgspec.structs.replace(state, evidence=evidence)
        look.change(workloads={**look.rollout.workloads, suspect.subject: state})
    look.rollout = plan.seats(look.rollout, look.fleet, look.memo.left_out)


# --- failing ----------------------------------------------------------------------------------------------------------


def _failed(look: _Look) -> bool:
    """Judge the wave; on a fail begin to go back (or to test it, where there was nothing to compare with)."""
    judged = _judge(look)
    if judged.failing is None:
        return False
    judgement = judged.judgements[judged.failing]
    if judgement.before_after and not _surely_ours(look, judgement):
        if look.rollout.phase is Phase.SUSPECTING:
            return False  # it is being tested already
        _suspect_workload(look, judged.failing, judgement)
        return True
    look.remember(evidence_failed=True, failed_by=judgement.outcome)
    _fail(look, _why(look, judged.failing))
    return True


def _surely_ours(look: _Look, judgement: verdict.Judgement) -> bool:
    """Before/after, with no wave before this one that passed, and most requests fail."""
    return judgement.catastrophe and look.rollout.wave == 0


def _why(look: _Look, workload: WorkloadKey) -> str:
    return look.rollout.workloads[workload].evidence.sentence


def _cause_text(rollout: Rollout) -> str:
    failing = [state for state in rollout.workloads.values() if state.evidence.verdict is Verdict.FAIL]
    cause = next((state.evidence.causes[0] for state in failing if state.evidence.causes), None)
    if cause is None:
        return ""
    where = f", {cause.origin}" if cause.origin else ""
    return f" Cause: {cause.reason.replace('-', ' ')}, {_spoken(cause.route)}{where}."


def _spoken(route: str) -> str:
    """`routes/<host>:<port>#<rule>` and `inbound:<port>` as people say it."""
    kind, _, port = route.partition(":")
    if kind == "inbound":
        return f"requests to port {port}"
    target, _, rule = route.removeprefix("routes/").partition("#")
    return f"route {target}" + (f" rule {rule}" if rule else "")


def _fail(look: _Look, why: str) -> None:
    look.moved = True
    began = look.memo.first.get(look.memo.failed_by)
    after = look.rollout.elapsed - began if began is not None and look.memo.evidence_failed else 0.0
    look.change(detected_after=after)
    if look.rollout.settings.on_fail == "pause":
        said = f"{why}. Paused: onFail is pause.{_cause_text(look.rollout)}"
        look.change(paused_from=look.rollout.phase, sentence=said)
        look.go(Event.FAILED_PAUSING)
        look.tell("RolloutFailing", said, warning=True)
        return
    took = f"Rolled back after {after:.1f} s." if after else "Rolled back."
    said = f"{why}. {took}{_cause_text(look.rollout)}"
    look.go(Event.FAILED)
    _restore(look, said, to_previous=False)
    look.tell("RolloutFailed", said, warning=True)


def _restore(look: _Look, said: str, *, to_previous: bool) -> None:
    names = tuple(look.rollout.workloads)
    recovery = _recovery(look) if look.memo.evidence_failed else None
    look.rollout = plan.unseated(look.rollout)
    look.change(sentence=said)
    look.remember(recovery=recovery, suspect=None, restored=False)
    look.commands += [Restore(workloads=names, to_previous=to_previous), Hold(sentence=said)]


def _recovery(look: _Look) -> Recovery | None:
    """What to compare with after the rollback; None where it was not failed requests that were wrong."""
    outcome, workloads = look.memo.failed_by, look.rollout.workloads
    if outcome not in {"bad", "aside"}:
        return None
    recent = [look.memo.recent.get(_subject(name, outcome), (0.0, 0.0)) for name in workloads]
    total, bad = sum(n for n, _ in recent), sum(k for _, k in recent)
    tests = [verdict.load(state.evidence.tests) for state in workloads.values()]
    usual = max((verdict.usual_rate(known, verdict.OUTCOMES.index(outcome)) for known in tests), default=0.0)
    return Recovery(outcome=outcome, rate=bad / total, usual=usual) if bad else None


def _rolling_back(look: _Look) -> None:
    if not look.memo.restored:
        if not _stage_restored(look):
            return
        if look.rollout.stage > 0:
            look.change(stage=look.rollout.stage - 1)
            look.remember(waited=0.0)
            look.commands += [SetSeats(workload=name) for name in look.rollout.workloads]
            look.tell("StageUndone", f"{look.rollout.stage} stages are left to undo")
            return
        look.change(restored_after=look.rollout.restored_after + look.memo.waited)
        look.remember(restored=True, waited=0.0)
        if look.memo.recovery is not None:
            # The last ack came within this second, so the one after the next is the first that it preceded whole.
            recovery = msgspec.structs.replace(look.memo.recovery, elapsed=0.0, since=look.memo.newest + 2)
            look.remember(recovery=recovery)
    _check_recovery(look)


def _stage_restored(look: _Look) -> bool:
    """All proxies serve stable, as far as they can be asked; leases of the others have ended."""
    patience = look.rollout.settings.confirm_within
    late: list[ProxyId] = []
    for view in look.fleet.values():
        if view.workload not in look.rollout.workloads:
            continue
        stable = plan.stage_stable(look.rollout, view.workload, look.stable)
        if view.connected and not view.candidate and view.stable in {stable, ""}:
            continue
        if view.connected or max(view.silent_for, look.memo.waited) < patience:
            late.append(view.id)
    if late and look.memo.waited >= patience + RESTORE_PATIENCE_S:
        look.tell_once("not restored", "NotRestored", f"did not confirm stable: {', '.join(sorted(late))}")
        return True
    return not late


def _check_recovery(look: _Look) -> None:
    recovery = look.memo.recovery
    if recovery is not None:
        recovery = msgspec.structs.replace(recovery, elapsed=recovery.elapsed + look.seen.elapsed)
        look.remember(recovery=recovery)
        seconds = recovery.latest - recovery.since + 1
        enough = seconds >= RECOVERY_SECONDS and recovery.total >= RECOVERY_REQUESTS
        if not enough and recovery.elapsed < RECOVERY_MOST_S:
            return
        _tell_recovery(look, recovery)
    look.go(Event.RESTORED_ABORTED if look.memo.aborted else Event.RESTORED)
    look.tell("Restored", f"stable is restored everywhere after {look.rollout.restored_after:.1f} s")


def _tell_recovery(look: _Look, recovery: Recovery) -> None:
    was = plan.percent(recovery.rate)
    if not recovery.total:
        look.tell("RecoveryUnknown", f"{was} of requests failed before the rollback; there was no traffic since")
        return
    now = recovery.bad / recovery.total
    if now <= max(recovery.rate / 2, recovery.usual + look.rollout.settings.tolerance):
        look.tell("Recovered", f"failed requests fell from {was} to {plan.percent(now)}")
        return
    said = f"failed requests did not fall after the rollback: {was} before, {plan.percent(now)} now"
    look.change(sentence=f"{look.rollout.sentence} But {said}.")
    look.tell("NotRecovered", said, warning=True)


# --- suspicion --------------------------------------------------------------------------------------------------------


def _suspicious(look: _Look) -> bool:
    """Failures towards a destination exceed what they were: take the last wave back and see."""
    settings = look.rollout.settings
    over = [name for name, track in look.memo.watch.items() if verdict.exceeds(track, settings)]
    if not over or not _seated(look.rollout):
        return False
    destination = max(over, key=lambda name: (look.memo.watch[name].k, name))
    track = look.memo.watch[destination]
    total, bad = look.memo.recent.get(destination, (0.0, 0.0))
    rate, usual = bad / total if total else 0.0, max(0.0, track.before)
    said = (
        f"failures towards {destination} over all callers rose from {plan.percent(usual)} to {plan.percent(rate)}"
        " since the last wave"
    )
    _take_back(
        look, Suspect(kind="shared", subject=destination, rate=rate, usual=usual, kept=_kept(look), sentence=said)
    )
    return True


def _suspect_workload(look: _Look, workload: WorkloadKey, judgement: verdict.Judgement) -> None:
    tests = verdict.load(look.rollout.workloads[workload].evidence.tests)
    total, bad = look.memo.recent.get(_subject(workload, judgement.outcome), (0.0, 0.0))
    suspect = Suspect(
        kind="before-after",
        subject=workload,
        outcome=judgement.outcome,
        rate=bad / total if total else 0.0,
        usual=verdict.usual_rate(tests, verdict.OUTCOMES.index(judgement.outcome)),
        kept=_kept(look),
        needed=1 if judgement.catastrophe else CONFIRMATIONS,
        sentence=_why(look, workload),
    )
    _take_back(look, suspect)


def _kept(look: _Look) -> float:
    """Part of the candidate's share that stays when the last wave is taken back."""
    names = list(plan.candidates(look.rollout))
    was = sum(look.rollout.workloads[name].share for name in names)
    kept = sum(plan.share_of(look.rollout, name, look.rollout.wave - 1) for name in names)
    return min(1.0, kept / was) if was > 0 else 0.0


def _take_back(look: _Look, suspect: Suspect) -> None:
    look.moved = True
    look.remember(suspect=suspect)
    look.go(Event.SUSPECTED)
    look.rollout = plan.seats(plan.take_back(look.rollout), look.fleet, look.memo.left_out)
    look.tell("HarmSuspected", f"{suspect.sentence}; taking the wave back to see whether they fall", warning=True)


# --- advancing --------------------------------------------------------------------------------------------------------


def _doubt(look: _Look) -> str:
    """Why nothing can be measured; empty: it can."""
    if _too_many_left_out(look):
        out = _left_out(look)
        return f"{len(out)} proxies are left out, {_may_be_left_out(look)} may be: {', '.join(sorted(out))}"
    for name, state in look.rollout.workloads.items():
        if state.share <= 0 or not plan.candidates(look.rollout).get(name):
            continue
        if name in look.seen.updating:
            return look.seen.updating[name]
        heard = [view for proxy in state.seats if _is_heard(view := look.fleet.get(proxy)) and view is not None]
        if state.seats and not heard:
            return f"no proxy of {name} that serves the candidate reports"
        if heard and not any(view.warm for view in heard):
            return f"what serves the candidate of {name} has not run for {look.rollout.settings.warm_up:g} s yet"
        views = look.views(name)
        if views and not state.seats and all(view.id in look.memo.left_out for view in views):
            return f"all proxies of {name} are left out"
    return ""


def _left_out(look: _Look) -> list[ProxyId]:
    return [proxy for proxy in look.memo.left_out if proxy in look.fleet]


def _may_be_left_out(look: _Look) -> int:
    affected = sum(view.workload in look.rollout.workloads for view in look.fleet.values())
    return max(1, math.floor(LEFT_OUT_SHARE * affected))


def _too_many_left_out(look: _Look) -> bool:
    return len(_left_out(look)) > _may_be_left_out(look)


def _is_heard(view: ProxyView | None) -> bool:
    return view is not None and view.connected and view.silent_for < SILENT_S


def _unknown(look: _Look, doubt: str) -> None:
    look.moved = True
    look.change(sentence=f"holding: {doubt}")
    look.go(Event.WENT_UNKNOWN)
    look.tell("RolloutHolding", f"holding: {doubt}", warning=True)


def _active(look: _Look) -> list[WorkloadKey]:
    """Workloads that the current wave moved."""
    return [
        name
        for name in plan.candidates(look.rollout)
        if look.rollout.workloads[name].share > 0 and look.rollout.workloads[name].wave <= look.rollout.wave
    ]


def _all_passed(look: _Look) -> bool:
    return all(look.rollout.workloads[name].passed for name in _active(look) if look.views(name))


def _maybe_advance(look: _Look) -> None:
    settings, active = look.rollout.settings, _active(look)
    nobody = [name for name in active if not look.views(name)]
    look.remember(empty_for=look.memo.empty_for + look.seen.elapsed if nobody else 0.0)
    if look.rollout.wave_elapsed < settings.soak or (nobody and look.memo.empty_for < LOST_S):
        return
    open_ = [name for name in active if not look.rollout.workloads[name].passed and name not in nobody]
    any_passed = any(look.rollout.workloads[name].passed for name in active)
    if not open_ or (any_passed and all(_is_thin(look, name) for name in open_)):
        _pass_wave(look, open_)
    elif look.rollout.wave_elapsed >= settings.deadline:
        _run_out(look, open_, any_passed)


def _is_thin(look: _Look, name: WorkloadKey) -> bool:
    """Too little traffic for a pass to fit into half the deadline, at the share it has."""
    state = look.rollout.workloads[name]
    needed = look.needed(name)
    return _rate(look, name) * state.share * look.rollout.settings.deadline / 2 < needed


def _rate(look: _Look, name: WorkloadKey) -> float:
    evidence, seconds = look.rollout.workloads[name].evidence, look.rollout.wave_elapsed
    if seconds >= RATE_AFTER_S:
        return (evidence.candidate_total + evidence.stable_total) / seconds
    return look.memo.rates.get(memory.rate_key(name, plan.side_of(look.rollout, name)), 0.0)


def _raise_thin(look: _Look) -> None:
    """Give thin traffic a greater share, where that lets a pass fit."""
    raised: dict[WorkloadKey, WorkloadRollout] = {}
    for name in _active(look):
        state = look.rollout.workloads[name]
        if state.passed:
            continue
        needed = look.needed(name)
        rate, own = _rate(look, name), plan.share_of(look.rollout, name, look.rollout.wave)
        most = plan.most_share(rate, own, look.rollout.wave_elapsed)
        share = plan.thin_share(rate, state.share, needed, look.rollout.settings, most=most)
        if share > state.share * 1.2:  # a step worth an assignment, not every flicker of the rate
            raised[name] = msgspec.structs.replace(state, share=share)
    if raised:
        look.change(workloads={**look.rollout.workloads, **raised})
        look.rollout = plan.seats(look.rollout, look.fleet, look.memo.left_out)
        said = ", ".join(f"{name} goes to {plan.percent(state.share)}" for name, state in raised.items())
        look.tell("ShareRaised", f"traffic is thin: {said}")


def _run_out(look: _Look, open_: list[WorkloadKey], any_passed: bool) -> None:
    names = ", ".join(open_)
    if any_passed or look.rollout.settings.on_no_traffic == "proceed":
        look.tell("NoTraffic", f"too little traffic to judge {names} by the deadline; proceeding", warning=True)
        _pass_wave(look, open_)
        return
    said = f"too little traffic to judge {names} by the deadline"
    look.moved = True
    look.change(sentence=f"holding: {said}")
    look.go(Event.RAN_OUT)
    look.tell("RolloutHolding", f"holding: {said}", warning=True)


def _pass_wave(look: _Look, without_proof: list[WorkloadKey]) -> None:
    proof = f"; too little traffic to judge {', '.join(without_proof)}" if without_proof else ""
    look.tell("WavePassed", f"{plan.percent(plan.first_share(look.rollout))} passed{proof}")
    _advance(look, Event.WAVE_PASSED)


def _advance(look: _Look, event: Event) -> None:
    """To the next wave that changes something, else to the next stage, else to the end."""
    look.moved = True
    look.remember(first={})  # what failed in a wave that passed was not this change
    following = plan.next_wave(look.rollout, look.fleet, look.memo.left_out)
    if following is not None:
        look.rollout = following
        look.go(event)
        look.tell("WaveStarted", f"{plan.percent(plan.first_share(look.rollout))} of each affected workload")
    elif look.rollout.stage + 1 < len(look.rollout.stages):
        _next_stage(look)
    else:
        _finish(look)


def _next_stage(look: _Look) -> None:
    look.rollout = plan.seats(plan.enter_stage(look.rollout, look.rollout.stage + 1), look.fleet, look.memo.left_out)
    look.go(Event.STAGE_PASSED)
    stage = look.rollout.stages[look.rollout.stage]
    look.tell("StageStarted", f"stage {look.rollout.stage + 1} of {len(look.rollout.stages)}: {stage.name}")


def _finish(look: _Look) -> None:
    """The last wave passed: the candidate is stable from now on, and watched while it bakes."""
    look.moved = True
    unproven = [name for name, state in look.rollout.workloads.items() if not state.proven]
    workloads = {
        name: msgspec.structs.replace(state, seats={}, share=0.0, evidence=plan.renewed(state.evidence), passed=False)
        for name, state in look.rollout.workloads.items()
    }
    look.change(workloads=workloads, wave_elapsed=0.0, sentence="")
    look.go(Event.LAST_PASSED)
    look.commands.append(Promote())
    look.tell(
        "Live", "live everywhere" + (f"; not proven, for want of traffic: {', '.join(unproven)}" if unproven else "")
    )


# --- baking -----------------------------------------------------------------------------------------------------------


def _baking(look: _Look) -> None:
    if look.memo.suspect is not None:
        _test_bake(look)
        return
    judged = _judge(look)
    if judged.failing is not None:
        _suspect_bake(look, judged.failing, judged.judgements[judged.failing].outcome)
    elif look.rollout.wave_elapsed >= look.rollout.settings.bake_time:
        look.go(Event.BAKED)
        look.tell("Baked", f"kept well for {look.rollout.settings.bake_time:.0f} s")


def _suspect_bake(look: _Look, workload: WorkloadKey, outcome: str) -> None:
    """Time alone may have moved the rate, so the config from before gets half of the requests as a baseline."""
    said = _why(look, workload)
    if not look.rollout.before.get(workload):
        look.remember(evidence_failed=True, failed_by=outcome)
        _fail_bake(look, said)
        return
    tests = verdict.load(look.rollout.workloads[workload].evidence.tests)
    look.remember(
        suspect=Suspect(
            kind="before-after",
            subject=workload,
            outcome=outcome,
            rate=0.0,
            usual=verdict.usual_rate(tests, verdict.OUTCOMES.index(outcome)),
            kept=0.0,
            sentence=said,
        )
    )
    look.rollout = plan.seats(plan.with_share(look.rollout, BAKE_BASELINE), look.fleet)
    look.remember(waited=0.0)
    look.tell("BakeSuspected", f"{said}; comparing with the config from before", warning=True)


def _test_bake(look: _Look) -> None:
    suspect = look.memo.suspect
    if suspect is None or not _is_settled(look, suspect):
        return
    judged = _judge(look)
    if judged.failing is not None:
        look.remember(evidence_failed=True, failed_by=judged.judgements[judged.failing].outcome)
        _fail_bake(look, _why(look, judged.failing))
        return
    suspect = msgspec.structs.replace(suspect, elapsed=suspect.elapsed + look.seen.elapsed)
    look.remember(suspect=suspect)
    if suspect.elapsed >= TEST_MOST_S:
        rate = suspect.bad / suspect.total if suspect.total else suspect.usual
        _end_bake_test(look, rate, suspect.outcome)
        look.tell("HarmDismissed", f"{suspect.sentence}; the config from before does no better: going on")


def _end_bake_test(look: _Look, rate: float, outcome: str = "bad") -> None:
    look.remember(suspect=None)
    index = verdict.OUTCOMES.index(outcome)
    workloads = {
        name: msgspec.structs.replace(
            state,
            seats={},
            share=0.0,
            evidence=Evidence(
                tests=verdict.dump(verdict.rebased(verdict.next_wave(verdict.load(state.evidence.tests)), rate, index))
            ),
        )
        for name, state in look.rollout.workloads.items()
    }
    look.change(workloads=workloads)


def _fail_bake(look: _Look, why: str) -> None:
    look.moved = True
    if look.rollout.settings.on_bake_fail == "alert":
        _end_bake_test(look, 0.0)
        look.change(sentence=why)
        look.tell_once("bake", "BakeFailing", why)
        return
    said = f"{why}. Rolled back while baking.{_cause_text(look.rollout)}"
    look.go(Event.BAKE_FAILED)
    _restore(look, said, to_previous=True)
    look.tell("RolloutFailed", said, warning=True)


def _ended(look: _Look) -> None:
    raise AssertionError(f"ended rollouts are not decided: {look.rollout.phase}")


_STEPS: Final[Mapping[Phase, Callable[[_Look], None]]] = {
    Phase.PREPARING: _preparing,
    Phase.SHIFTING: _shifting,
    Phase.HOLDING: _holding,
    Phase.SUSPECTING: _suspecting,
    Phase.PAUSED: _paused,
    Phase.ROLLING_BACK: _rolling_back,
    Phase.BAKING: _baking,
    Phase.SUCCEEDED: _ended,
    Phase.FAILED: _ended,
    Phase.ABORTED: _ended,
    Phase.SUPERSEDED: _ended,
}
