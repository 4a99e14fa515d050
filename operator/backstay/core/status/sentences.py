"""The sentences that status says: one place, so that a table, a condition and a commit status say the same."""

from collections.abc import Sequence
from typing import Final

from backstay.core.durations import spell
from backstay.core.problems import Problem
from backstay.core.rollout.model import (
    HeldSet,
    MeshState,
    Phase,
    Rollout,
    Verdict,
    WorkloadRollout,
)
from backstay.core.status.common import short
from backstay.core.view import MeshView
from backstay.redact import clean


def validation_sentence(view: MeshView, errors: Sequence[Problem]) -> str:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{short(view.state.attempted_revision)} is invalid and changes nothing: {errors[0]}{more}"


def held_sentence(view: MeshView) -> str:
    state = view.state
    count = sum(len(held.documents) for held in state.held)
    commits = ", ".join(sorted({held.commit[:8] for held in state.held}))
    scope = f"{short(state.active_revision)} is partly live" if state.active_revision else "nothing is live yet"
    return f"{scope}: {count} document{'s' * (count != 1)} of {commits} held. {state.held[0].sentence}".strip()


def pending_sentence(state: MeshState) -> str:
    if state.queued:
        return f"{short(state.queued)} waits for the running rollout"
    if not state.desired_revision:
        return "waiting for the first look at the repository"
    return f"{short(state.desired_revision)} is not live yet"


def live_sentence(view: MeshView) -> str:
    state = view.state
    text = f"{short(state.active_revision)} is live"
    if state.rollout is not None and state.rollout.phase is Phase.BAKING:
        text += f", watched for {spell(state.rollout.settings.bake_time)}"
    if view.waiting:
        text += f"; {len(view.waiting)} document{'s' * (len(view.waiting) != 1)} waiting for the registry"
    text += turned_away_sentence(view)
    return text + ("; suspended" if state.suspended else "")


def turned_away_sentence(view: MeshView) -> str:
    """Who keeps serving and cannot be told anything any more; empty while nobody is."""
    away = [(name, proxy.turned_away) for name, proxy in sorted(view.proxies.items()) if proxy.turned_away]
    if not away:
        return ""
    name, why = away[0]
    more = f" and {len(away) - 1} more" if len(away) > 1 else ""
    return f"; {name}{more} not let in: {clean(why)}"


def rollout_sentence(rollout: Rollout) -> str:
    told = rollout.sentence or loudest_sentence(rollout)
    where = f"rollout {rollout.id} of {short(rollout.cause.revision)}: {rollout.phase.value}"
    wave = f", wave {rollout.wave + 1}" if rollout.phase is not Phase.ROLLING_BACK else ""
    return f"{where}{wave}{'. ' + told if told else ''}"


_LIVE: Final = (Phase.BAKING, Phase.SUCCEEDED)
_LOUDNESS: Final = {Verdict.FAIL: 0, Verdict.UNKNOWN: 1, Verdict.INCONCLUSIVE: 2, Verdict.PASS: 3}


def verdict_of(rollout: Rollout) -> Verdict:
    """The worst verdict over its workloads."""
    verdicts = [_verdict_on(rollout, workload) for workload in rollout.workloads.values()]
    return min(verdicts, key=_LOUDNESS.__getitem__, default=Verdict.INCONCLUSIVE)


def _verdict_on(rollout: Rollout, workload: WorkloadRollout) -> Verdict:
    """What was proven before it went live stays so: a look while it bakes has few requests and says little."""
    found = workload.evidence.verdict
    if rollout.phase in _LIVE and workload.proven and found is Verdict.INCONCLUSIVE:
        return Verdict.PASS
    return found


def loudest_sentence(rollout: Rollout) -> str:
    evidence = [workload.evidence for _, workload in sorted(rollout.workloads.items())]
    ranked = sorted(evidence, key=lambda item: _LOUDNESS[item.verdict])
    return next((item.sentence for item in ranked if item.sentence), "")


def held_line(held: HeldSet) -> str:
    documents = ", ".join(sorted(held.documents))
    return f"{held.commit[:8]} ({documents}): {held.sentence}"
