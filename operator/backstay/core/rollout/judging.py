"""What the tests of all workloads say together, and in which words."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from backstay.core.rollout import plan, verdict
from backstay.core.rollout.looking import Look
from backstay.core.rollout.model import (
    BadCause,
    Rollout,
    Verdict,
    WorkloadKey,
    WorkloadRollout,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleetwide:
    """What all workloads of the wave say together."""

    judgements: Mapping[WorkloadKey, verdict.Judgement]
    failing: WorkloadKey | None


def judge(look: Look) -> _Fleetwide:
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


def _noted(look: Look, name: WorkloadKey, judgement: verdict.Judgement, *, failed: bool) -> WorkloadRollout:
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


def sentence_of(look: Look, workload: WorkloadKey) -> str:
    return look.rollout.workloads[workload].evidence.sentence


def cause_text(rollout: Rollout) -> str:
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
