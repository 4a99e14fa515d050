"""After the last wave: live everywhere, and watched against the time before."""

from typing import Final

import msgspec

from backstay.core.rollout import plan, verdict
from backstay.core.rollout.failing import restore
from backstay.core.rollout.judging import cause_text, judge, sentence_of
from backstay.core.rollout.looking import Look
from backstay.core.rollout.memo import Suspect
from backstay.core.rollout.model import (
    Evidence,
    WorkloadKey,
)
from backstay.core.rollout.phases import Event
from backstay.core.rollout.suspicion import TEST_MOST_S, is_settled

BAKE_BASELINE: Final = 0.5
"""Share given back to the previous config when a bake suspects itself: both cohorts learn fastest at halves."""


def baking(look: Look) -> None:
    if look.memo.suspect is not None:
        _test_bake(look)
        return
    judged = judge(look)
    if judged.failing is not None:
        _suspect_bake(look, judged.failing, judged.judgements[judged.failing].outcome)
    elif look.rollout.wave_elapsed >= look.rollout.settings.bake_time:
        look.go(Event.BAKED)
        look.tell("Baked", f"kept well for {look.rollout.settings.bake_time:.0f} s")


def _suspect_bake(look: Look, workload: WorkloadKey, outcome: str) -> None:
    """Time alone may have moved the rate, so the config from before gets half of the requests as a baseline."""
    said = sentence_of(look, workload)
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


def _test_bake(look: Look) -> None:
    suspect = look.memo.suspect
    if suspect is None or not is_settled(look, suspect):
        return
    judged = judge(look)
    if judged.failing is not None:
        look.remember(evidence_failed=True, failed_by=judged.judgements[judged.failing].outcome)
        _fail_bake(look, sentence_of(look, judged.failing))
        return
    suspect = msgspec.structs.replace(suspect, elapsed=suspect.elapsed + look.seen.elapsed)
    look.remember(suspect=suspect)
    if suspect.elapsed >= TEST_MOST_S:
        rate = suspect.bad / suspect.total if suspect.total else suspect.usual
        _end_bake_test(look, rate, suspect.outcome)
        look.tell("HarmDismissed", f"{suspect.sentence}; the config from before does no better: going on")


def _end_bake_test(look: Look, rate: float, outcome: str = "bad") -> None:
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


def _fail_bake(look: Look, why: str) -> None:
    look.moved = True
    if look.rollout.settings.on_bake_fail == "alert":
        _end_bake_test(look, 0.0)
        look.change(sentence=why)
        look.tell_once("bake", "BakeFailing", why)
        return
    said = f"{why}. Rolled back while baking.{cause_text(look.rollout)}"
    look.go(Event.BAKE_FAILED)
    restore(look, said, to_previous=True)
    look.tell("RolloutFailed", said, warning=True)
