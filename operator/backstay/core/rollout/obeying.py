"""Orders of people."""

from collections.abc import Callable, Mapping
from typing import Final

from backstay.core.rollout import phases, plan
from backstay.core.rollout.advancing import advance, finish
from backstay.core.rollout.failing import restore
from backstay.core.rollout.looking import Look
from backstay.core.rollout.model import (
    Order,
    Phase,
    Verdict,
)
from backstay.core.rollout.phases import Event


def obey(look: Look, order: Order) -> None:
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


def _pause(look: Look, said: str) -> None:
    look.change(paused_from=look.rollout.phase, sentence=said)
    look.go(Event.PAUSED)
    look.tell("Paused", said)


def _resume(look: Look, said: str) -> None:
    look.change(paused_from=None, sentence="")
    if any(state.evidence.verdict is Verdict.FAIL for state in look.rollout.workloads.values()):
        # A person looked at the failure and goes on: the same evidence must not stop the rollout again at once.
        look.rollout = plan.seats(plan.give_again(look.rollout), look.fleet, look.memo.left_out)
    look.remember(suspect=None, told=())
    look.go(Event.RESUMED)
    look.tell("Resumed", said)


def _promote(look: Look, said: str) -> None:
    look.tell("PromotedByPerson", said)
    look.change(sentence="")
    look.remember(suspect=None)
    advance(look, Event.PROMOTED)


def _promote_full(look: Look, said: str) -> None:
    look.tell("PromotedByPerson", said)
    look.change(stage=len(look.rollout.stages) - 1, sentence="")
    look.remember(suspect=None)
    finish(look)


def _abort(look: Look, said: str) -> None:
    baking = look.rollout.phase is Phase.BAKING
    look.remember(aborted=True)
    look.go(Event.ABORTED)
    restore(look, said, to_previous=baking)
    look.tell("Aborted", said, warning=True)


_ORDERS: Final[Mapping[str, Callable[[Look, str], None]]] = {
    "pause": _pause,
    "resume": _resume,
    "promote": _promote,
    "promote-full": _promote_full,
    "abort": _abort,
}
