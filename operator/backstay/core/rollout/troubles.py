"""What proxies do besides reporting: refuse a config, go back by themselves, or vanish."""

from backstay.core.rollout import phases, plan
from backstay.core.rollout.failing import blame, fail
from backstay.core.rollout.looking import LOST_S, Look, seated_proxies, stable_cut_off_now
from backstay.core.rollout.model import (
    ProxyId,
)
from backstay.core.rollout.phases import Event


def hear_troubles(look: Look) -> None:
    if look.rollout.phase not in phases.MOVING:
        return
    _hear_nacks(look)
    _hear_went_back(look)
    _hear_losses(look)


def _hear_nacks(look: Look) -> None:
    for nack in look.seen.nacks:
        if nack.digest != plan.candidates(look.rollout).get(nack.workload) or look.moved:
            continue
        said = f"{nack.proxy} refused its config: {nack.reason}: {nack.message}"
        if nack.fault == "content":
            blame(look, nack.workload, said)
            fail(look, said)
            return
        _leave_out(look, nack.proxy, said)


def _hear_went_back(look: Look) -> None:
    ours = [went for went in look.seen.went_back if went.digest == plan.candidates(look.rollout).get(went.workload)]
    if look.memo.restarted_ago < look.rollout.settings.confirm_within:
        # No lease given since the stage began anew can have ended yet: these come back late from the same outage.
        ours = [went for went in ours if went.reason == "Restarts"]
    if not ours or look.moved:
        return
    if look.memo.cut_off_ago < look.rollout.settings.confirm_within or stable_cut_off_now(look, look.fleet):
        _restart(look, f"{len(ours)} proxies went back while stable proxies were cut off as well; that is no evidence")
        return
    blamed = next((went for went in ours if went.reason in {"Restarts", "ControlLost"}), None)
    if blamed is not None:
        said = f"{blamed.proxy} went back to stable by itself ({blamed.reason}) while stable proxies kept theirs"
        blame(look, blamed.workload, said)
        fail(look, said)
        return
    for went in ours:
        _leave_out(look, went.proxy, f"{went.proxy} went back to stable by itself ({went.reason})")


def _restart(look: Look, why: str) -> None:
    look.rollout = plan.seats(plan.restart_stage(look.rollout), look.fleet, look.memo.left_out)
    look.change(restarts=look.rollout.restarts + 1, sentence=why)
    look.go(Event.RESTARTED)
    look.remember(suspect=None, cut_off_ago=1e9, restarted_ago=0.0)
    look.moved = True
    look.tell("StageRestarted", why, warning=True)


def _hear_losses(look: Look) -> None:
    seated = seated_proxies(look.rollout)
    back = [p for p, why in look.memo.left_out.items() if why == "lost" and p in look.fleet and look.fleet[p].connected]
    if back:
        look.remember(left_out={p: why for p, why in look.memo.left_out.items() if p not in back})
    for view in look.fleet.values():
        if view.id in seated and not view.connected and view.silent_for >= LOST_S:
            look.remember(left_out={**look.memo.left_out, view.id: "lost"})
            look.tell_once(f"lost {view.id}", "ProxyLeftOut", f"{view.id} is lost; the wave goes on without it")


def _leave_out(look: Look, proxy: ProxyId, why: str) -> None:
    look.remember(left_out={**look.memo.left_out, proxy: why})
    look.tell_once(f"{proxy} {why}", "ProxyLeftOut", f"{why}; the wave goes on without it")
