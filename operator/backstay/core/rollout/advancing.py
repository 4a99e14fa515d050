"""Going on: whether a wave has passed, what comes next, and what to do where traffic is thin or nothing is known."""

from typing import Final

import msgspec

from backstay.core.rollout import memo as memory
from backstay.core.rollout import plan
from backstay.core.rollout.looking import LOST_S, Look, is_heard, left_out_of, may_be_left_out, too_many_left_out
from backstay.core.rollout.model import (
    Promote,
    WorkloadKey,
    WorkloadRollout,
)
from backstay.core.rollout.phases import Event

RATE_AFTER_S: Final = 10.0


def doubt_about(look: Look) -> str:
    """Why nothing can be measured; empty: it can."""
    if too_many_left_out(look):
        out = left_out_of(look)
        return f"{len(out)} proxies are left out, {may_be_left_out(look)} may be: {', '.join(sorted(out))}"
    for name, state in look.rollout.workloads.items():
        if state.share <= 0 or not plan.candidates(look.rollout).get(name):
            continue
        if name in look.seen.updating:
            return look.seen.updating[name]
        heard = [view for proxy in state.seats if is_heard(view := look.fleet.get(proxy)) and view is not None]
        if state.seats and not heard:
            return f"no proxy of {name} that serves the candidate reports"
        if heard and not any(view.warm for view in heard):
            return f"what serves the candidate of {name} has not run for {look.rollout.settings.warm_up:g} s yet"
        views = look.views(name)
        if views and not state.seats and all(view.id in look.memo.left_out for view in views):
            return f"all proxies of {name} are left out"
        there = bool(views) or name in look.seen.running
        if there and not look.rollout.settings.immediate and not any(view.connected for view in views):
            # They run somewhere and would all get it at once when they come back, untried; Immediate asks for just that.
            return f"no proxy of {name} is connected"
    return ""


def hold_for(look: Look, doubt: str) -> None:
    look.moved = True
    look.change(sentence=f"holding: {doubt}")
    look.go(Event.WENT_UNKNOWN)
    look.tell("RolloutHolding", f"holding: {doubt}", warning=True)


def _active(look: Look) -> list[WorkloadKey]:
    """Workloads that the current wave moved."""
    return [
        name
        for name in plan.candidates(look.rollout)
        if look.rollout.workloads[name].share > 0 and look.rollout.workloads[name].wave <= look.rollout.wave
    ]


def unproven(look: Look) -> list[WorkloadKey]:
    """Workloads of the current wave that have not passed and have somebody who could."""
    return [name for name in _active(look) if look.views(name) and not look.rollout.workloads[name].passed]


def too_little_for(names: list[WorkloadKey]) -> str:
    return f"too little traffic to judge {', '.join(names)} by the deadline"


def maybe_advance(look: Look) -> None:
    settings, active = look.rollout.settings, _active(look)
    nobody = [name for name in active if not look.views(name)]
    look.remember(empty_for=look.memo.empty_for + look.seen.elapsed if nobody else 0.0)
    if look.rollout.wave_elapsed < settings.soak or (nobody and look.memo.empty_for < LOST_S):
        return
    open_ = unproven(look)
    any_passed = any(look.rollout.workloads[name].passed for name in active)
    if not open_ or (any_passed and all(_is_thin(look, name) for name in open_)):
        _pass_wave(look, open_)
    elif look.rollout.wave_elapsed >= settings.deadline:
        _run_out(look, open_, any_passed)


def _is_thin(look: Look, name: WorkloadKey) -> bool:
    """Too little traffic for a pass to fit into half the deadline, at the share it has."""
    state = look.rollout.workloads[name]
    needed = look.needed(name)
    return _rate(look, name) * state.share * look.rollout.settings.deadline / 2 < needed


def _rate(look: Look, name: WorkloadKey) -> float:
    evidence, seconds = look.rollout.workloads[name].evidence, look.rollout.wave_elapsed
    if seconds >= RATE_AFTER_S:
        return (evidence.candidate_total + evidence.stable_total) / seconds
    return look.memo.rates.get(memory.rate_key(name, plan.side_of(look.rollout, name)), 0.0)


def raise_thin(look: Look) -> None:
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


def _run_out(look: Look, open_: list[WorkloadKey], any_passed: bool) -> None:
    said = too_little_for(open_)
    if any_passed or look.rollout.settings.on_no_traffic == "proceed":
        look.tell("NoTraffic", f"{said}; proceeding", warning=True)
        _pass_wave(look, open_)
        return
    look.moved = True
    look.change(sentence=f"holding: {said}")
    look.go(Event.RAN_OUT)
    look.tell("RolloutHolding", f"holding: {said}", warning=True)


def _pass_wave(look: Look, without_proof: list[WorkloadKey]) -> None:
    proof = f"; too little traffic to judge {', '.join(without_proof)}" if without_proof else ""
    look.tell("WavePassed", f"{plan.percent(plan.first_share(look.rollout))} passed{proof}")
    advance(look, Event.WAVE_PASSED)


def advance(look: Look, event: Event) -> None:
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
        finish(look)


def _next_stage(look: Look) -> None:
    look.rollout = plan.seats(plan.enter_stage(look.rollout, look.rollout.stage + 1), look.fleet, look.memo.left_out)
    look.go(Event.STAGE_PASSED)
    stage = look.rollout.stages[look.rollout.stage]
    look.tell("StageStarted", f"stage {look.rollout.stage + 1} of {len(look.rollout.stages)}: {stage.name}")


def finish(look: Look) -> None:
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
