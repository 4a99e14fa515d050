"""Failures that nothing beside them can explain: the wave is taken back, and what happens then decides.

Where there is no other half to compare with, a change is told from a coincidence by undoing it.
"""

import math
from typing import Final

import msgspec

from backstay.core.rollout import plan, verdict
from backstay.core.rollout.failing import blame, fail
from backstay.core.rollout.judging import judge, sentence_of
from backstay.core.rollout.learning import subject_of
from backstay.core.rollout.looking import LOST_S, Look, seated_proxies, serves_target
from backstay.core.rollout.memo import Suspect
from backstay.core.rollout.model import (
    Phase,
    ProxyView,
    WorkloadKey,
)
from backstay.core.rollout.phases import Event

TEST_LEAST_S: Final = 3.0
TEST_REQUESTS: Final = 30
"""After a wave was taken back: seconds, and requests, to see whether failures fall."""
TEST_MOST_S: Final = 15.0
"""What proxies get to take the wave back, and what a test lasts that gets few requests, at least."""
CONFIRMATIONS: Final = 2
"""DESIGN 6: twice so, fail."""


def suspecting(look: Look) -> None:
    suspect = look.memo.suspect
    if suspect is None or not is_settled(look, suspect) or has_failed(look):
        return
    suspect = msgspec.structs.replace(suspect, elapsed=suspect.elapsed + look.seen.elapsed)
    look.remember(suspect=suspect)
    if _is_tested(look, suspect):
        _conclude(look, suspect)


def is_settled(look: Look, suspect: Suspect) -> bool:
    """Whether what the test asks is served; evidence counts from then on, what came before mixes both."""
    if not suspect.settled and _is_served(look):
        workloads = {
            name: msgspec.structs.replace(state, evidence=plan.renewed(state.evidence))
            for name, state in look.rollout.workloads.items()
        }
        look.change(workloads=workloads)
        # The last ack came within this second, so the one after the next is the first that it preceded whole.
        look.remember(suspect=msgspec.structs.replace(suspect, settled=True, since=look.memo.newest + 2))
    return suspect.settled


def _is_served(look: Look) -> bool:
    """Everybody of the affected workloads serves what the test asks, or has had the time to.

    Proxies that a new operator has not met yet go on with what the last one told them: they get the time to come back.
    """
    if look.memo.cut_off_ago < LOST_S:
        return False
    return look.memo.waited >= TEST_MOST_S or all(
        _serves(look, view) for view in look.fleet.values() if view.workload in look.rollout.workloads
    )


def _serves(look: Look, view: ProxyView) -> bool:
    if not view.connected:
        return view.silent_for >= look.rollout.settings.confirm_within  # its lease has ended
    return serves_target(look, view)


def _is_tested(look: Look, suspect: Suspect) -> bool:
    """No requests are no answer, few are one only when a wave would not wait for more either."""
    if suspect.total >= TEST_REQUESTS:
        return suspect.elapsed >= TEST_LEAST_S
    return suspect.total > 0 and suspect.elapsed >= max(TEST_MOST_S, look.rollout.settings.deadline)


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


def _conclude(look: Look, suspect: Suspect) -> None:
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
            blame(look, name, said)
        look.remember(evidence_failed=True)
        fail(look, said)
        return
    look.go(Event.CONFIRMED)
    look.rollout = plan.seats(plan.give_again(look.rollout), look.fleet, look.memo.left_out)
    look.remember(watch={name: verdict.rewatched(track) for name, track in look.memo.watch.items()})
    look.tell("HarmConfirmed", f"{suspect.sentence}; they fell when the wave was taken back: trying once more")


def _forget_harm(look: Look, suspect: Suspect) -> None:
    """Not ours: what is usual now is the new measure, or the same outage would stop the rollout again."""
    total, bad = look.memo.recent.get(subject_of(suspect.subject, suspect.outcome), (0.0, 0.0))
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


def has_failed(look: Look) -> bool:
    """Judge the wave; on a fail begin to go back (or to test it, where there was nothing to compare with)."""
    judged = judge(look)
    if judged.failing is None:
        return False
    judgement = judged.judgements[judged.failing]
    if judgement.before_after and not _surely_ours(look, judgement):
        if look.rollout.phase is Phase.SUSPECTING:
            return False  # it is being tested already
        _suspect_workload(look, judged.failing, judgement)
        return True
    look.remember(evidence_failed=True, failed_by=judgement.outcome)
    fail(look, sentence_of(look, judged.failing))
    return True


def _surely_ours(look: Look, judgement: verdict.Judgement) -> bool:
    """Before/after, with no wave before this one that passed, and most requests fail."""
    return judgement.catastrophe and look.rollout.wave == 0


def suspicious(look: Look) -> bool:
    """Failures towards a destination exceed what they were: take the last wave back and see."""
    settings = look.rollout.settings
    over = [name for name, track in look.memo.watch.items() if verdict.exceeds(track, settings)]
    if not over or not seated_proxies(look.rollout):
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


def _suspect_workload(look: Look, workload: WorkloadKey, judgement: verdict.Judgement) -> None:
    tests = verdict.load(look.rollout.workloads[workload].evidence.tests)
    total, bad = look.memo.recent.get(subject_of(workload, judgement.outcome), (0.0, 0.0))
    suspect = Suspect(
        kind="before-after",
        subject=workload,
        outcome=judgement.outcome,
        rate=bad / total if total else 0.0,
        usual=verdict.usual_rate(tests, verdict.OUTCOMES.index(judgement.outcome)),
        kept=_kept(look),
        needed=1 if judgement.catastrophe else CONFIRMATIONS,
        sentence=sentence_of(look, workload),
    )
    _take_back(look, suspect)


def _kept(look: Look) -> float:
    """Part of the candidate's share that stays when the last wave is taken back."""
    names = list(plan.candidates(look.rollout))
    was = sum(look.rollout.workloads[name].share for name in names)
    kept = sum(plan.share_of(look.rollout, name, look.rollout.wave - 1) for name in names)
    return min(1.0, kept / was) if was > 0 else 0.0


def _take_back(look: Look, suspect: Suspect) -> None:
    look.moved = True
    look.remember(suspect=suspect)
    look.go(Event.SUSPECTED)
    look.rollout = plan.seats(plan.take_back(look.rollout), look.fleet, look.memo.left_out)
    look.tell("HarmSuspected", f"{suspect.sentence}; taking the wave back to see whether they fall", warning=True)
