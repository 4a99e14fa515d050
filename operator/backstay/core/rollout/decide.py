"""What a rollout does about what it sees: one look in, the next state and a list of commands out.

Called once a second (and at every order of a person) by the reconciler, which persists the state before it executes the
commands. Statistics are verdict.py's, seats plan.py's, phases phases.py's; what follows from them is said next door, a
module for each kind of consequence, and all of them change the one `Look` that is begun and ended here.

Rule: at most one advance per look, and none in a look that saw a failure. Rule: unknown never moves anything.
"""

from collections.abc import Callable, Mapping
from typing import Final

from backstay.core.rollout import memo as memory
from backstay.core.rollout import phases, plan
from backstay.core.rollout.advancing import doubt_about, hold_for, maybe_advance, raise_thin, too_little_for, unproven
from backstay.core.rollout.baking import baking
from backstay.core.rollout.failing import rolling_back
from backstay.core.rollout.judging import judge, sentence_of
from backstay.core.rollout.learning import learn
from backstay.core.rollout.looking import Look, fleet_of, grow_older, seats_acked, too_many_left_out
from backstay.core.rollout.model import (
    Command,
    Digest,
    Observation,
    Phase,
    ProxyId,
    Rollout,
    SetSeats,
    WorkloadKey,
)
from backstay.core.rollout.obeying import obey
from backstay.core.rollout.phases import Event
from backstay.core.rollout.suspicion import has_failed, suspecting, suspicious
from backstay.core.rollout.troubles import hear_troubles

UNKNOWN_S: Final = 3.0
"""Seconds without any measurement before the rollout holds; a hiccup of one report is not worth a phase."""


def decide(
    rollout: Rollout, observation: Observation, *, stable: Mapping[WorkloadKey, Digest]
) -> tuple[Rollout, tuple[Command, ...]]:
    """The rollout after this look, and what is to be done about it."""
    if rollout.phase in phases.ENDED:
        return rollout, ()
    look = Look(rollout, memory.load(rollout.memo), observation, stable, {})
    grow_older(look)
    look.fleet = fleet_of(look)
    before = plan.seating(look.rollout)
    learn(look)
    for order in observation.orders:
        obey(look, order)
    hear_troubles(look)
    _reseat(look)
    if not look.moved:
        _STEPS[look.rollout.phase](look)
    _set_seats(look, before)
    look.change(memo=memory.dump(look.memo), harmed=max(0, round(look.memo.harmed)))
    return look.rollout, tuple(look.commands)


def _reseat(look: Look) -> None:
    testing_bake = look.rollout.phase is Phase.BAKING and look.memo.suspect is not None
    if look.rollout.phase not in phases.MOVING and not testing_bake:
        return
    if too_many_left_out(look):
        # A candidate that takes its proxies down must not be handed on to one after the other.
        look.rollout = plan.without(look.rollout, look.memo.left_out)
    else:
        look.rollout = plan.seats(look.rollout, look.fleet, look.memo.left_out)


def _set_seats(look: Look, before: Mapping[WorkloadKey, Mapping[ProxyId, float]]) -> None:
    """Say which workloads' seats are not what they were when the look began, before anything else is done."""
    changed = [name for name, state in look.rollout.workloads.items() if state.seats != before.get(name)]
    look.commands[:0] = [SetSeats(workload=name) for name in changed]


def _preparing(look: Look) -> None:
    if has_failed(look) or suspicious(look):
        return
    if seats_acked(look):
        look.go(Event.SEATS_ACKED)
    elif look.memo.waited >= look.rollout.settings.confirm_within:
        hold_for(look, "the candidate was not confirmed by the proxies that are to serve it")


def _shifting(look: Look) -> None:
    if has_failed(look) or suspicious(look):
        return
    doubt = doubt_about(look)
    if doubt:
        look.remember(unknown_for=look.memo.unknown_for + look.seen.elapsed)
        if look.memo.unknown_for >= UNKNOWN_S:
            hold_for(look, doubt)
        return
    look.remember(unknown_for=0.0)
    raise_thin(look)
    maybe_advance(look)


def _holding(look: Look) -> None:
    if has_failed(look) or suspicious(look):
        return
    doubt = doubt_about(look)
    if doubt:
        look.change(sentence=f"holding: {doubt}")
        return
    open_ = unproven(look)
    if open_ and look.rollout.wave_elapsed >= look.rollout.settings.deadline:
        look.change(sentence=f"holding: {too_little_for(open_)}")  # it may have held for another reason meanwhile
        return
    if seats_acked(look):
        look.change(sentence="")
        look.go(Event.MEASURED)


def _paused(look: Look) -> None:
    judged = judge(look)
    if judged.failing is None:
        return
    said = sentence_of(look, judged.failing)
    look.change(sentence=said)
    look.tell_once(f"paused {judged.failing}", "RolloutFailing", said)


def _ended(look: Look) -> None:
    raise AssertionError(f"ended rollouts are not decided: {look.rollout.phase}")


_STEPS: Final[Mapping[Phase, Callable[[Look], None]]] = {
    Phase.PREPARING: _preparing,
    Phase.SHIFTING: _shifting,
    Phase.HOLDING: _holding,
    Phase.SUSPECTING: suspecting,
    Phase.PAUSED: _paused,
    Phase.ROLLING_BACK: rolling_back,
    Phase.BAKING: baking,
    Phase.SUCCEEDED: _ended,
    Phase.FAILED: _ended,
    Phase.ABORTED: _ended,
    Phase.SUPERSEDED: _ended,
}
