"""Going back: the end of a candidate, stable restored everywhere, and whether that helped."""

from typing import Final

import msgspec

from backstay.core.rollout import plan, verdict
from backstay.core.rollout.judging import cause_text
from backstay.core.rollout.learning import subject_of
from backstay.core.rollout.looking import Look
from backstay.core.rollout.memo import Recovery
from backstay.core.rollout.model import (
    Hold,
    ProxyId,
    Restore,
    SetSeats,
    Verdict,
    WorkloadKey,
)
from backstay.core.rollout.phases import Event

RECOVERY_SECONDS: Final = 3
RECOVERY_MOST_S: Final = 8.0
RECOVERY_REQUESTS: Final = 30
"""After a rollback: seconds wholly after the last ack, and requests in them, to say whether failures fell."""
RESTORE_PATIENCE_S: Final = 10.0
"""Beyond confirmWithin, a proxy that is here and does not take stable is reported and no longer waited for."""


def blame(look: Look, workload: WorkloadKey, said: str) -> None:
    state = look.rollout.workloads[workload]
    evidence = msgspec.structs.replace(state.evidence, verdict=Verdict.FAIL, sentence=said)
    look.change(workloads={**look.rollout.workloads, workload: msgspec.structs.replace(state, evidence=evidence)})


def fail(look: Look, why: str) -> None:
    look.moved = True
    began = look.memo.first.get(look.memo.failed_by)
    after = look.rollout.elapsed - began if began is not None and look.memo.evidence_failed else 0.0
    look.change(detected_after=after)
    if look.rollout.settings.on_fail == "pause":
        said = f"{why}. Paused: onFail is pause.{cause_text(look.rollout)}"
        look.change(paused_from=look.rollout.phase, sentence=said)
        look.go(Event.FAILED_PAUSING)
        look.tell("RolloutFailing", said, warning=True)
        return
    took = f"Rolled back after {after:.1f} s." if after else "Rolled back."
    said = f"{why}. {took}{cause_text(look.rollout)}"
    look.go(Event.FAILED)
    restore(look, said, to_previous=False)
    look.tell("RolloutFailed", said, warning=True)


def restore(look: Look, said: str, *, to_previous: bool) -> None:
    names = tuple(look.rollout.workloads)
    recovery = _recovery(look) if look.memo.evidence_failed else None
    look.rollout = plan.unseated(look.rollout)
    look.change(sentence=said)
    look.remember(recovery=recovery, suspect=None, restored=False)
    look.commands += [Restore(workloads=names, to_previous=to_previous), Hold(sentence=said)]


def _recovery(look: Look) -> Recovery | None:
    """What to compare with after the rollback; None where it was not failed requests that were wrong."""
    outcome, workloads = look.memo.failed_by, look.rollout.workloads
    if outcome not in {"bad", "aside"}:
        return None
    recent = [look.memo.recent.get(subject_of(name, outcome), (0.0, 0.0)) for name in workloads]
    total, bad = sum(n for n, _ in recent), sum(k for _, k in recent)
    tests = [verdict.load(state.evidence.tests) for state in workloads.values()]
    usual = max((verdict.usual_rate(known, verdict.OUTCOMES.index(outcome)) for known in tests), default=0.0)
    return Recovery(outcome=outcome, rate=bad / total, usual=usual) if bad else None


def rolling_back(look: Look) -> None:
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


def _stage_restored(look: Look) -> bool:
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


def _check_recovery(look: Look) -> None:
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


def _tell_recovery(look: Look, recovery: Recovery) -> None:
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
