"""MeshRollout: one rollout, running or past, with its workloads, seats and cohorts."""

from backstay.core.durations import spell
from backstay.core.intents import API_VERSION
from backstay.core.rollout.model import (
    Phase,
    Rollout,
    WorkloadKey,
    WorkloadRollout,
)
from backstay.core.rollout.plan import wave_count
from backstay.core.status.common import (
    RUNNING,
    RUNNING_REASONS,
    Condition,
    Fleet,
    Json,
    Scribe,
    candidate_of,
    filled,
    on_candidate,
    percent,
    ready_condition,
    reconciling,
    stalled,
    timestamp,
)
from backstay.core.status.sentences import loudest_sentence, rollout_sentence, verdict_of
from backstay.core.view import MeshView
from backstay.redact import clean


def rollout_object(view: MeshView, rollout: Rollout, scribe: Scribe) -> Json:
    spec = filled(
        {
            "cause": filled(
                {
                    "kind": rollout.cause.kind,
                    "revision": rollout.cause.revision,
                    "commits": list(rollout.cause.commits),
                    "author": clean(rollout.cause.author),
                    "subject": clean(rollout.cause.subject, limit=200),
                }
            ),
            "documents": list(rollout.documents),
            "stages": [
                {"name": stage.name, "configs": dict(sorted(stage.configs.items()))} for stage in rollout.stages
            ],
            "strategy": "Immediate" if rollout.settings.immediate else "Progressive",
            "shares": [percent(share) for share in rollout.settings.shares],
            "traffic": [percent(share) for share in rollout.settings.traffic],
        }
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshRollout",
        "metadata": {"name": f"{view.mesh}-{rollout.id}", "generation": 1},
        "spec": spec,
        "status": _rollout_status(view, rollout, scribe),
    }


def _rollout_status(view: MeshView, rollout: Rollout, scribe: Scribe) -> Json:
    owner = f"MeshRollout/{view.mesh}-{rollout.id}"
    told = {
        "sentence": rollout.sentence or loudest_sentence(rollout),
        "startedAt": timestamp(rollout.started_at),
        "elapsed": spell(rollout.elapsed),
        "waveElapsed": spell(rollout.wave_elapsed),
        "actor": clean(rollout.actor),
        "reason": clean(rollout.reason),
        "detectedAfter": spell(rollout.detected_after) if rollout.detected_after else "",
        "restoredAfter": spell(rollout.restored_after) if rollout.restored_after else "",
        "pausedFrom": rollout.paused_from.value if rollout.paused_from else "",
        "suspicions": rollout.suspicions or None,
        "restarts": rollout.restarts or None,
        "supersessions": rollout.supersessions or None,
    }
    return {
        "observedGeneration": 1,
        "conditions": scribe.write(owner, rollout_conditions(rollout)),
        "id": rollout.id,
        "phase": rollout.phase.value,
        "stage": rollout.stages[rollout.stage].name if rollout.stage < len(rollout.stages) else "",
        "stageNumber": rollout.stage + 1,
        "stages": len(rollout.stages),
        "wave": rollout.wave + 1,
        "waves": wave_count(rollout),
        "verdict": verdict_of(rollout).value,
        "harmed": rollout.harmed,
        **filled(told),
        "workloads": [
            rolling_workload(scribe.fleet, rollout, key, workload)
            for key, workload in sorted(rollout.workloads.items())
        ],
    }


def rollout_conditions(rollout: Rollout) -> tuple[Condition, ...]:
    """kstatus for a rollout: running is Reconciling, live is Ready, ended otherwise is Stalled (nothing retries it)."""
    message = rollout_sentence(rollout)
    if rollout.phase in RUNNING:
        return reconciling(RUNNING_REASONS[rollout.phase], message)
    match rollout.phase:
        case Phase.BAKING:
            return (ready_condition("True", "Baking", message),)
        case Phase.SUCCEEDED:
            return (ready_condition("True", "Succeeded", message),)
        case Phase.ABORTED:
            return stalled("Aborted", message)
        case Phase.SUPERSEDED:
            return stalled("Superseded", message)
        case _:
            return stalled("VerdictFail", message)


def rolling_workload(fleet: Fleet, rollout: Rollout, key: WorkloadKey, workload: WorkloadRollout) -> Json:
    evidence = workload.evidence
    proxies = fleet.of(key)
    cohorts = {
        "candidate": {"requests": evidence.candidate_total, "bad": evidence.candidate_bad},
        "stable": {"requests": evidence.stable_total, "bad": evidence.stable_bad},
    }
    causes = [
        filled({"reason": cause.reason, "route": cause.route, "count": cause.count, "origin": cause.origin})
        for cause in evidence.causes
    ]
    return {
        "workload": key,
        "candidate": candidate_of(rollout, key),
        "wave": workload.wave + 1,
        "share": percent(workload.share),
        "seats": {proxy: percent(share) for proxy, share in sorted(workload.seats.items())},
        "proxies": {"onCandidate": on_candidate(proxies), "total": len(proxies)},
        "cohorts": cohorts,
        "verdict": evidence.verdict.value,
        "sentence": clean(evidence.sentence),
        "causes": causes,
        "passed": workload.passed,
        "proven": workload.proven,
    }
