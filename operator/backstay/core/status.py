"""A MeshView in the shape of the CRDs to come: objects with conditions that any Kubernetes tool reads correctly.

Nothing here looks at a clock or decides what the mesh does; the same functions serve the API, the CLI without an
operator, and later the CRD writer. kstatus rules (what `kubectl wait` and Flux read) that this file keeps:

- Reconciling, Stalled, FetchFailed and RolledBack are abnormal-true: present only while True.
- Reconciling and Stalled are never both present; Ready is always present.
- Ready=True has neither; Stalled means trying again cannot help: git has to change, or a person has to decide.
- lastTransitionTime changes only when a condition's status does. That needs memory, which goes in and comes out as a
  value (`Memory`); a condition that disappears is forgotten.
"""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from backstay.core.durations import spell
from backstay.core.intents import API_VERSION
from backstay.core.problems import Problem, Severity
from backstay.core.rollout.model import (
    Digest,
    HeldSet,
    MeshState,
    Phase,
    RevisionRecord,
    Rollout,
    Verdict,
    WorkloadKey,
    WorkloadRollout,
    WorkloadState,
)
from backstay.core.rollout.plan import wave_count
from backstay.core.snapshot import Document, DocumentKey
from backstay.core.view import MeshView, ProxyStatus
from backstay.redact import clean

Json: TypeAlias = dict[str, Any]
Status: TypeAlias = Literal["True", "False", "Unknown"]
Memory: TypeAlias = Mapping[str, tuple[str, float]]
"""`Kind/name#Condition` -> (status, Unix seconds since when)."""

RUNNING: Final = frozenset(
    {Phase.PREPARING, Phase.SHIFTING, Phase.HOLDING, Phase.SUSPECTING, Phase.PAUSED, Phase.ROLLING_BACK}
)
"""Phases in which proxies are being moved; BAKING is live already and only watched."""

_RUNNING_REASONS: Final = {
    Phase.PREPARING: "Progressing",
    Phase.SHIFTING: "Progressing",
    Phase.HOLDING: "RolloutHolding",
    Phase.SUSPECTING: "SharedHarmSuspected",
    Phase.PAUSED: "RolloutPaused",
    Phase.ROLLING_BACK: "RollingBack",
}
_STARTED_NEW: Final = -1
"""observedGeneration before the first look: greater generations make kstatus say InProgress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    type: str
    status: Status
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Everything there is to show of one view."""

    repository: Json
    rollouts: list[Json]
    intents: list[Json]
    workloads: list[Json]
    proxies: list[Json]
    revisions: list[Json]


def objects(view: MeshView, memory: Memory) -> tuple[Objects, Memory]:
    """All objects of a view, and the memory to pass in next time."""
    scribe = _Scribe(view=view, before=memory)
    shown = Objects(
        repository=_repository(view, scribe),
        rollouts=[_rollout(view, rollout, scribe) for rollout in rollouts_of(view.state)],
        intents=_intents(view, scribe),
        workloads=[_workload(view, key, scribe) for key in _workload_keys(view)],
        proxies=[_proxy(view, proxy, scribe) for _, proxy in sorted(view.proxies.items())],
        revisions=[_revision(view, record) for record in _known_revisions(view)],
    )
    return shown, scribe.after


class Fleet:
    """Proxies by workload, and how many of them serve a given config: counted once however many documents ask, so that
    a thousand documents on a thousand proxies stay cheap."""

    def __init__(self, view: MeshView) -> None:
        self._by_workload: dict[WorkloadKey, list[ProxyStatus]] = {}
        for _, proxy in sorted(view.proxies.items()):
            self._by_workload.setdefault(proxy.view.workload, []).append(proxy)
        self._on_stable: dict[tuple[WorkloadKey, Digest], int] = {}
        self._serving: dict[tuple[WorkloadKey, Digest], int] = {}

    def of(self, workload: WorkloadKey) -> Sequence[ProxyStatus]:
        return self._by_workload.get(workload, ())

    def on_stable(self, workload: WorkloadKey, digest: Digest) -> int:
        """Proxies that serve this stable config, some of them a candidate as well."""
        if (workload, digest) not in self._on_stable:
            found = sum(proxy.view.stable == digest for proxy in self.of(workload))
            self._on_stable[workload, digest] = found
        return self._on_stable[workload, digest]

    def serving_only(self, workload: WorkloadKey, digest: Digest) -> int:
        """Proxies that give every request to this config."""
        if (workload, digest) not in self._serving:
            found = sum(_serves_only(proxy, digest) for proxy in self.of(workload))
            self._serving[workload, digest] = found
        return self._serving[workload, digest]


def list_of(kind: str, items: Sequence[Json]) -> Json:
    return {"apiVersion": API_VERSION, "kind": f"{kind}List", "metadata": {}, "items": list(items)}


class _Scribe:
    """Writes conditions with their transition times, and knows the fleet by workload: the only mutable thing here,
    alive for one call of `objects`."""

    def __init__(self, *, view: MeshView, before: Memory) -> None:
        self.now, self.before, self.generation = view.now, before, view.observed_generation
        self.fleet = Fleet(view)
        self.after: dict[str, tuple[str, float]] = {}

    def write(self, owner: str, conditions: Iterable[Condition]) -> list[Json]:
        return [self._one(owner, condition) for condition in conditions]

    def _one(self, owner: str, condition: Condition) -> Json:
        key = f"{owner}#{condition.type}"
        status, since = self.before.get(key, ("", self.now))
        if status != condition.status:
            since = self.now
        self.after[key] = (condition.status, since)
        return {
            "type": condition.type,
            "status": condition.status,
            "observedGeneration": max(self.generation, 0),
            "lastTransitionTime": timestamp(since),
            "reason": condition.reason,
            "message": clean(condition.message, limit=1024),
        }


def timestamp(seconds: float) -> str:
    """RFC 3339 as Kubernetes writes it; empty for "never"."""
    if seconds <= 0:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha_of(revision: str) -> str:
    """The commit of `main@sha1:<sha>`, or the text itself."""
    return revision.rpartition(":")[2]


def short(revision: str) -> str:
    """`main@sha1:1a2b3c4`: what fits into a sentence."""
    head, colon, sha = revision.rpartition(":")
    return f"{head}{colon}{sha[:8]}"


def rollouts_of(state: MeshState) -> tuple[Rollout, ...]:
    """The present rollout and the finished ones, newest first, each once."""
    current = () if state.rollout is None else (state.rollout,)
    return current + tuple(past for past in state.history if not current or past.id != current[0].id)


def _filled(values: Mapping[str, Any]) -> Json:
    """Without what says nothing, so that objects stay readable."""
    return {key: value for key, value in values.items() if value not in ("", None, (), [], {})}


# --- MeshRepository ---------------------------------------------------------------------------------------------------


def _repository(view: MeshView, scribe: _Scribe) -> Json:
    state = view.state
    spec = {
        "url": clean(view.url),
        "ref": view.ref,
        "path": view.path,
        "interval": spell(view.interval),
        "suspend": state.suspended,
    }
    status = {
        "observedGeneration": view.observed_generation or _STARTED_NEW,
        "conditions": scribe.write(f"MeshRepository/{view.mesh}", repository_conditions(view)),
        **_filled(
            {
                "desiredRevision": state.desired_revision,
                "activeRevision": state.active_revision,
                "lastAttemptedRevision": state.attempted_revision,
                "lastAppliedRevision": state.active_revision,
                "queuedRevision": state.queued,
                "lastHandledReconcileAt": view.handled_reconcile,
                "lastFetchAt": timestamp(view.source.at),
                "suspendedBy": clean(state.suspended_by),
                "rollout": state.rollout.id if state.rollout else "",
            }
        ),
        "held": [_held(held) for held in state.held],
        "problems": [_problem(problem) for problem in view.problems],
        "waiting": len(view.waiting),
        "history": [_history_entry(rollout) for rollout in state.history],
        "operator": _filled(
            {
                "version": view.version,
                "epoch": view.epoch,
                "startedAt": timestamp(view.started_at),
                "fault": clean(view.fault),
            }
        ),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshRepository",
        "metadata": {"name": view.mesh, "generation": view.generation},
        "spec": spec,
        "status": status,
    }


def repository_conditions(view: MeshView) -> tuple[Condition, ...]:
    """Ready first, then what is abnormal, then what is known of the attempted revision."""
    return (*_standing(view), *_validated(view), *_fetch_failed(view), *_rolled_back(view))


def _standing(view: MeshView) -> tuple[Condition, ...]:
    """Ready together with at most one of Reconciling and Stalled: the first that applies."""
    return next(found for found in (applies(view) for applies in _STANDINGS) if found)


def _unobserved(view: MeshView) -> tuple[Condition, ...]:
    if view.observed_generation == view.generation:
        return ()
    message = "the settings of this repository have not been taken up yet"
    return _reconciling("Progressing", message, ready="Unknown")


def _operator_fault(view: MeshView) -> tuple[Condition, ...]:
    return _reconciling("ProgressingWithRetry", view.fault, ready_reason="OperatorFault") if view.fault else ()


def _rollout_runs(view: MeshView) -> tuple[Condition, ...]:
    rollout = view.state.rollout
    if rollout is None or rollout.phase not in RUNNING:
        return ()
    return _reconciling(_RUNNING_REASONS[rollout.phase], _rollout_sentence(rollout))


def _source_stalled(view: MeshView) -> tuple[Condition, ...]:
    return () if view.source.ok or not view.source.stalled else _stalled(view.source.reason, view.source.message)


def _commit_invalid(view: MeshView) -> tuple[Condition, ...]:
    errors = _errors(view)
    return _stalled("ValidationFailed", _validation_sentence(view, errors)) if errors else ()


def _dependency_held(view: MeshView) -> tuple[Condition, ...]:
    return _stalled("HeldDependency", view.held_dependency) if view.held_dependency else ()


def _documents_held(view: MeshView) -> tuple[Condition, ...]:
    return _stalled("RevisionHeld", _held_sentence(view)) if view.state.held else ()


def _calm_standing(view: MeshView) -> tuple[Condition, ...]:
    """Nothing runs, nothing is wrong with the commit: live, on its way, or the remote is away."""
    state = view.state
    behind = not state.active_revision or state.active_revision != state.desired_revision
    if state.suspended and behind:
        return (_ready("False", "Suspended", f"suspended; {_pending_sentence(state)}"),)
    if not view.source.ok:
        return _reconciling("ProgressingWithRetry", view.source.message, ready_reason=view.source.reason)
    if behind or state.queued:
        return _reconciling("Progressing", _pending_sentence(state))
    return (_ready("True", "Succeeded", _live_sentence(view)),)


_STANDINGS: Final = (
    _unobserved,
    _operator_fault,
    _rollout_runs,  # before what only a person can mend: a waiter that sees Stalled gives up
    _source_stalled,
    _commit_invalid,
    _dependency_held,
    _documents_held,
    _calm_standing,
)


def _ready(status: Status, reason: str, message: str) -> Condition:
    return Condition(type="Ready", status=status, reason=reason, message=message)


def _reconciling(
    reason: str, message: str, *, ready: Status = "False", ready_reason: str = ""
) -> tuple[Condition, Condition]:
    return (
        _ready(ready, ready_reason or reason, message),
        Condition(type="Reconciling", status="True", reason=reason, message=message),
    )


def _stalled(reason: str, message: str) -> tuple[Condition, Condition]:
    return _ready("False", reason, message), Condition(type="Stalled", status="True", reason=reason, message=message)


def _errors(view: MeshView) -> list[Problem]:
    return [problem for problem in view.problems if problem.severity is Severity.ERROR]


def _validation_sentence(view: MeshView, errors: Sequence[Problem]) -> str:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{short(view.state.attempted_revision)} is invalid and changes nothing: {errors[0]}{more}"


def _held_sentence(view: MeshView) -> str:
    state = view.state
    count = sum(len(held.documents) for held in state.held)
    commits = ", ".join(sorted({held.commit[:8] for held in state.held}))
    scope = f"{short(state.active_revision)} is partly live" if state.active_revision else "nothing is live yet"
    return f"{scope}: {count} document{'s' * (count != 1)} of {commits} held. {state.held[0].sentence}".strip()


def _pending_sentence(state: MeshState) -> str:
    if state.queued:
        return f"{short(state.queued)} waits for the running rollout"
    if not state.desired_revision:
        return "waiting for the first look at the repository"
    return f"{short(state.desired_revision)} is not live yet"


def _live_sentence(view: MeshView) -> str:
    state = view.state
    text = f"{short(state.active_revision)} is live"
    if state.rollout is not None and state.rollout.phase is Phase.BAKING:
        text += f", watched for {spell(state.rollout.settings.bake_time)}"
    if view.waiting:
        text += f"; {len(view.waiting)} document{'s' * (len(view.waiting) != 1)} waiting for the registry"
    return text + ("; suspended" if state.suspended else "")


def _rollout_sentence(rollout: Rollout) -> str:
    told = rollout.sentence or _loudest_sentence(rollout)
    where = f"rollout {rollout.id} of {short(rollout.cause.revision)}: {rollout.phase.value}"
    wave = f", wave {rollout.wave + 1}" if rollout.phase is not Phase.ROLLING_BACK else ""
    return f"{where}{wave}{'. ' + told if told else ''}"


_LOUDNESS: Final = {Verdict.FAIL: 0, Verdict.UNKNOWN: 1, Verdict.INCONCLUSIVE: 2, Verdict.PASS: 3}


def verdict_of(rollout: Rollout) -> Verdict:
    """The worst verdict over its workloads."""
    verdicts = [workload.evidence.verdict for workload in rollout.workloads.values()]
    return min(verdicts, key=_LOUDNESS.__getitem__, default=Verdict.INCONCLUSIVE)


def _loudest_sentence(rollout: Rollout) -> str:
    evidence = [workload.evidence for _, workload in sorted(rollout.workloads.items())]
    ranked = sorted(evidence, key=lambda item: _LOUDNESS[item.verdict])
    return next((item.sentence for item in ranked if item.sentence), "")


def _validated(view: MeshView) -> tuple[Condition, ...]:
    if not view.state.attempted_revision:
        return ()
    errors = _errors(view)
    if errors:
        return (
            Condition(
                type="Validated", status="False", reason="ValidationFailed", message=_validation_sentence(view, errors)
            ),
        )
    message = f"{short(view.state.attempted_revision)} is valid"
    return (Condition(type="Validated", status="True", reason="Valid", message=message),)


def _fetch_failed(view: MeshView) -> tuple[Condition, ...]:
    if view.source.ok:
        return ()
    reason = view.source.reason or "GitOperationFailed"
    return (Condition(type="FetchFailed", status="True", reason=reason, message=view.source.message),)


def _rolled_back(view: MeshView) -> tuple[Condition, ...]:
    if not view.state.held:
        return ()
    newest = max(view.state.held, key=lambda held: held.since)
    reason = "Ordered" if held_by_person(view.state, newest) else "VerdictFail"
    return (Condition(type="RolledBack", status="True", reason=reason, message=_held_line(newest)),)


def _held_line(held: HeldSet) -> str:
    documents = ", ".join(sorted(held.documents))
    return f"{held.commit[:8]} ({documents}): {held.sentence}"


def held_by_person(state: MeshState, held: HeldSet) -> bool:
    """Whether a person's order (abort, rollback) put this set aside rather than a verdict."""
    for rollout in rollouts_of(state):
        if rollout.id == held.rollout:
            return rollout.phase is Phase.ABORTED or rollout.cause.kind == "rollback"
    return False


def _held(held: HeldSet) -> Json:
    return {
        "commit": held.commit,
        "revision": held.revision,
        "rollout": held.rollout,
        "documents": dict(sorted(held.documents.items())),
        "sentence": clean(held.sentence),
        "since": timestamp(held.since),
    }


def _problem(problem: Problem) -> Json:
    return _filled(
        {
            "file": problem.file,
            "line": problem.line or None,
            "column": problem.column or None,
            "path": problem.path,
            "message": clean(problem.message),
            "reason": problem.reason,
            "severity": problem.severity.value,
            "document": problem.document,
        }
    )


def _history_entry(rollout: Rollout) -> Json:
    return _filled(
        {
            "rollout": rollout.id,
            "revision": rollout.cause.revision,
            "cause": rollout.cause.kind,
            "author": clean(rollout.cause.author),
            "subject": clean(rollout.cause.subject, limit=200),
            "phase": rollout.phase.value,
            "sentence": clean(rollout.sentence),
            "startedAt": timestamp(rollout.started_at),
            "lasted": spell(rollout.elapsed),
            "harmed": rollout.harmed,
        }
    )


# --- MeshRollout ------------------------------------------------------------------------------------------------------


def _rollout(view: MeshView, rollout: Rollout, scribe: _Scribe) -> Json:
    spec = _filled(
        {
            "cause": _filled(
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
            "shares": [_percent(share) for share in rollout.settings.shares],
            "traffic": [_percent(share) for share in rollout.settings.traffic],
        }
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshRollout",
        "metadata": {"name": f"{view.mesh}-{rollout.id}", "generation": 1},
        "spec": spec,
        "status": _rollout_status(view, rollout, scribe),
    }


def _rollout_status(view: MeshView, rollout: Rollout, scribe: _Scribe) -> Json:
    owner = f"MeshRollout/{view.mesh}-{rollout.id}"
    told = {
        "sentence": rollout.sentence or _loudest_sentence(rollout),
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
        **_filled(told),
        "workloads": [
            _rolling_workload(scribe.fleet, rollout, key, workload)
            for key, workload in sorted(rollout.workloads.items())
        ],
    }


def rollout_conditions(rollout: Rollout) -> tuple[Condition, ...]:
    """kstatus for a rollout: running is Reconciling, live is Ready, ended otherwise is Stalled (nothing retries it)."""
    message = _rollout_sentence(rollout)
    if rollout.phase in RUNNING:
        return _reconciling(_RUNNING_REASONS[rollout.phase], message)
    match rollout.phase:
        case Phase.BAKING:
            return (_ready("True", "Baking", message),)
        case Phase.SUCCEEDED:
            return (_ready("True", "Succeeded", message),)
        case Phase.ABORTED:
            return _stalled("Aborted", message)
        case Phase.SUPERSEDED:
            return _stalled("Superseded", message)
        case _:
            return _stalled("VerdictFail", message)


def _rolling_workload(fleet: Fleet, rollout: Rollout, key: WorkloadKey, workload: WorkloadRollout) -> Json:
    evidence = workload.evidence
    proxies = fleet.of(key)
    cohorts = {
        "candidate": {"requests": evidence.candidate_total, "bad": evidence.candidate_bad},
        "stable": {"requests": evidence.stable_total, "bad": evidence.stable_bad},
    }
    causes = [
        _filled({"reason": cause.reason, "route": cause.route, "count": cause.count, "origin": cause.origin})
        for cause in evidence.causes
    ]
    return {
        "workload": key,
        "candidate": _candidate_of(rollout, key),
        "wave": workload.wave + 1,
        "share": _percent(workload.share),
        "seats": {proxy: _percent(share) for proxy, share in sorted(workload.seats.items())},
        "proxies": {"onCandidate": _on_candidate(proxies), "total": len(proxies)},
        "cohorts": cohorts,
        "verdict": evidence.verdict.value,
        "sentence": clean(evidence.sentence),
        "causes": causes,
        "passed": workload.passed,
        "proven": workload.proven,
    }


def _candidate_of(rollout: Rollout, key: WorkloadKey) -> Digest:
    """Its config in the present stage: the newest one up to here that names the workload."""
    for stage in reversed(rollout.stages[: rollout.stage + 1]):
        if key in stage.configs:
            return stage.configs[key]
    return ""


def _on_candidate(proxies: Iterable[ProxyStatus]) -> int:
    return sum(1 for proxy in proxies if proxy.view.candidate and proxy.view.share > 0)


def _percent(share: float) -> float:
    return round(share * 100, 2)


# --- MeshIntent -------------------------------------------------------------------------------------------------------


def _intents(view: MeshView, scribe: _Scribe) -> list[Json]:
    errors = _errors_by_document(view)
    return [_intent(view, key, errors.get(key, ()), scribe) for key in sorted(_document_keys(view) | set(errors))]


def _errors_by_document(view: MeshView) -> dict[DocumentKey, list[Problem]]:
    found: dict[DocumentKey, list[Problem]] = {}
    for problem in _errors(view):
        if problem.document:
            found.setdefault(problem.document, []).append(problem)
    return found


def _document_keys(view: MeshView) -> set[DocumentKey]:
    desired = set(view.desired.documents) if view.desired else set()
    effective = set(view.effective.documents) if view.effective else set()
    return desired | effective | {key for held in view.state.held for key in held.documents}


def _document(view: MeshView, key: DocumentKey) -> Document | None:
    """As git wishes it, else as it is served (a held removal)."""
    for snapshot in (view.desired, view.effective, view.stable):
        if snapshot is not None and key in snapshot.documents:
            return snapshot.documents[key]
    return None


def _intent(view: MeshView, key: DocumentKey, errors: Sequence[Problem], scribe: _Scribe) -> Json:
    kind, namespace, name = key.split("/", 2)
    document = _document(view, key)
    held = _held_set(view, key)
    conditions = intent_conditions(view, scribe.fleet, key, errors)
    updated, total = _updated(view, scribe.fleet, key)
    status = {
        "observedGeneration": max(view.observed_generation, 0),
        "conditions": scribe.write(f"MeshIntent/{key}", conditions),
        "proxies": {"updated": updated, "total": total},
        "workloads": list(view.document_workloads.get(key, ())),
        "state": _intent_state(conditions, held),
        **_filled({"held": _held(held) if held else None}),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshIntent",
        "metadata": {"name": f"{kind.lower()}.{name}", "namespace": namespace, "generation": 1},
        "spec": _intent_spec(view, key, document, errors),
        "status": status,
    }


def _intent_spec(view: MeshView, key: DocumentKey, document: Document | None, errors: Sequence[Problem]) -> Json:
    kind, namespace, name = key.split("/", 2)
    file, line = (document.file, document.line) if document else ("", 0)
    if document is None and errors:
        file, line = errors[0].file, errors[0].line
    return _filled(
        {
            "kind": kind,
            "name": name,
            "namespace": namespace,
            "file": file,
            "line": line or None,
            "revision": view.desired.revision if view.desired else "",
            "digest": document.digest if document else "",
        }
    )


def _intent_state(conditions: Sequence[Condition], held: HeldSet | None) -> str:
    """One word for tables."""
    by_type = {condition.type: condition for condition in conditions}
    if by_type["Accepted"].status == "False":
        return "invalid"
    if held is not None:
        return "held"
    if by_type["ResolvedRefs"].status == "False":
        return "waiting"
    return {"True": "live", "Unknown": "live", "False": "rolling-out"}[by_type["Programmed"].status]


def intent_conditions(
    view: MeshView, fleet: Fleet, key: DocumentKey, errors: Sequence[Problem] = ()
) -> tuple[Condition, ...]:
    return (
        _accepted(view, errors),
        _resolved_refs(view, key),
        _programmed(view, fleet, key),
        _proven(view, key),
    )


def _accepted(view: MeshView, errors: Sequence[Problem]) -> Condition:
    if errors:
        return Condition(type="Accepted", status="False", reason=errors[0].reason, message=str(errors[0]))
    if _errors(view):
        message = (
            f"valid itself, but {short(view.state.attempted_revision)} is invalid as a whole; the last valid one counts"
        )
        return Condition(type="Accepted", status="True", reason="Accepted", message=message)
    return Condition(type="Accepted", status="True", reason="Accepted", message="valid")


def _resolved_refs(view: MeshView, key: DocumentKey) -> Condition:
    problem = view.waiting.get(key)
    if problem is None:
        return Condition(
            type="ResolvedRefs", status="True", reason="ResolvedRefs", message="everything it names exists"
        )
    return Condition(type="ResolvedRefs", status="False", reason=problem.reason, message=str(problem))


def _programmed(view: MeshView, fleet: Fleet, key: DocumentKey) -> Condition:
    held = _held_set(view, key)
    updated, total = _updated(view, fleet, key)
    if held is not None:
        return Condition(type="Programmed", status="False", reason="Held", message=_held_line(held))
    if key in view.waiting and not total:
        return Condition(type="Programmed", status="False", reason="Waiting", message=str(view.waiting[key]))
    if _differs_from_stable(view, key) and not _in_rollout(view, key):
        return Condition(type="Programmed", status="False", reason="Pending", message="its turn has not come yet")
    if not total:
        return Condition(type="Programmed", status="Unknown", reason="NoProxies", message="no proxy carries it")
    counted = f"{updated} of {total} proxies"
    if updated < total or _in_rollout(view, key):
        return Condition(type="Programmed", status="False", reason="Progressing", message=counted)
    return Condition(type="Programmed", status="True", reason="Programmed", message=counted)


def _differs_from_stable(view: MeshView, key: DocumentKey) -> bool:
    desired = view.desired.documents.get(key) if view.desired else None
    stable = view.stable.documents.get(key) if view.stable else None
    return (desired.digest if desired else "") != (stable.digest if stable else "")


def _in_rollout(view: MeshView, key: DocumentKey) -> bool:
    rollout = view.state.rollout
    return rollout is not None and rollout.phase in RUNNING and key in rollout.documents


def _proven(view: MeshView, key: DocumentKey) -> Condition:
    rollout = next((past for past in rollouts_of(view.state) if key in past.documents), None)
    if rollout is None:
        message = "went live without a comparison: nobody used it before"
        return Condition(type="Proven", status="Unknown", reason="NotTried", message=message)
    if rollout.phase in RUNNING:
        return Condition(type="Proven", status="Unknown", reason="Progressing", message=_rollout_sentence(rollout))
    if rollout.phase in (Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED):
        reason = {Phase.FAILED: "VerdictFail", Phase.ABORTED: "Aborted", Phase.SUPERSEDED: "Superseded"}[rollout.phase]
        return Condition(type="Proven", status="False", reason=reason, message=_rollout_sentence(rollout))
    unproven = sorted(name for name, workload in rollout.workloads.items() if not workload.proven)
    if unproven:
        message = f"live, but too little traffic to prove it at {', '.join(unproven)}"
        return Condition(type="Proven", status="False", reason="TooLittleTraffic", message=message)
    return Condition(type="Proven", status="True", reason="Proven", message=f"by rollout {rollout.id}")


def _held_set(view: MeshView, key: DocumentKey) -> HeldSet | None:
    return next((held for held in view.state.held if key in held.documents), None)


def _updated(view: MeshView, fleet: Fleet, key: DocumentKey) -> tuple[int, int]:
    """How many proxies that carry the document serve its newest content to every request, and how many carry it.

    A document that the running rollout does not change says the same in stable and candidate.
    """
    workloads = view.document_workloads.get(key, ())
    total = sum(len(fleet.of(workload)) for workload in workloads)
    stable = {workload: view.state.workloads.get(workload, WorkloadState()).stable for workload in workloads}
    rollout = view.state.rollout
    if rollout is None or not _in_rollout(view, key):
        return sum(fleet.on_stable(workload, stable[workload]) for workload in workloads), total
    targets = {workload: _candidate_of(rollout, workload) or stable[workload] for workload in workloads}
    return sum(fleet.serving_only(workload, targets[workload]) for workload in workloads), total


def _serves_only(proxy: ProxyStatus, digest: Digest) -> bool:
    if proxy.view.candidate == digest:
        return proxy.view.share >= 1.0 or proxy.view.stable == digest
    return proxy.view.stable == digest and not proxy.view.candidate


# --- MeshWorkload, MeshProxy ------------------------------------------------------------------------------------------


def _workload_keys(view: MeshView) -> list[WorkloadKey]:
    return sorted(set(view.registry.workloads) | set(view.state.workloads))


def _workload(view: MeshView, key: WorkloadKey, scribe: _Scribe) -> Json:
    namespace, name = key.split("/", 1)
    proxies = scribe.fleet.of(key)
    known = view.registry.workloads.get(key)
    rollout = view.state.rollout
    rolling = rollout.workloads.get(key) if rollout is not None and rollout.phase in RUNNING else None
    trust_domain = (view.effective.mesh if view.effective else None) or None
    spec = _filled(
        {
            "identity": known.identity(trust_domain.trust_domain) if known and trust_domain else "",
            "serviceAccount": known.service_account if known else "",
            "services": list(known.services) if known else [],
            "engine": known.engine if known else "",
            "gateway": True if known and known.is_gateway else None,
        }
    )
    status = {
        "conditions": scribe.write(f"MeshWorkload/{key}", [_workload_ready(view, key, proxies)]),
        "stable": view.state.workloads.get(key, WorkloadState()).stable,
        "proxies": {
            "total": len(proxies),
            "connected": sum(proxy.view.connected for proxy in proxies),
            "onCandidate": _on_candidate(proxies),
        },
        "parts": len(view.stable_manifests[key].parts) if key in view.stable_manifests else 0,
        **({"rollout": _rolling_workload(scribe.fleet, rollout, key, rolling)} if rolling and rollout else {}),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshWorkload",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": spec,
        "status": status,
    }


def _workload_ready(view: MeshView, key: WorkloadKey, proxies: Sequence[ProxyStatus]) -> Condition:
    words = [sync_of(view, proxy) for proxy in proxies]
    if not words:
        return _ready("Unknown", "NoProxies", "no proxy of this workload has enrolled")
    off = {word: words.count(word) for word in sorted(set(words)) if word not in ("synced", "splitting")}
    if off:
        counted = ", ".join(f"{count} {word}" for word, count in off.items())
        return _ready("False", "ProxiesNotSynced", f"{counted} of {len(words)} proxies")
    return _ready("True", "Synced", f"{len(words)} proxies")


def sync_of(view: MeshView, proxy: ProxyStatus) -> str:
    """synced, splitting (serves two configs, as told), stale (has not acked what it should serve), refused, away."""
    if not proxy.view.connected:
        return "away"
    if proxy.last_nack:
        return "refused"
    wanted = view.state.workloads.get(proxy.view.workload, WorkloadState()).stable
    if proxy.view.stable != wanted:
        return "stale"
    seat = _seat(view, proxy)
    if bool(seat) != bool(proxy.view.candidate) or not math.isclose(seat, proxy.view.share):
        return "stale"
    return "splitting" if proxy.view.candidate else "synced"


def _seat(view: MeshView, proxy: ProxyStatus) -> float:
    rollout = view.state.rollout
    if rollout is None or rollout.phase not in RUNNING:
        return 0.0
    rolling = rollout.workloads.get(proxy.view.workload)
    return rolling.seats.get(proxy.view.id, 0.0) if rolling else 0.0


def _proxy(view: MeshView, proxy: ProxyStatus, scribe: _Scribe) -> Json:
    seen = proxy.view
    namespace = seen.workload.partition("/")[0]
    sync = sync_of(view, proxy)
    ready = _ready("True" if sync in ("synced", "splitting") else "False", sync.capitalize(), proxy.last_nack or sync)
    spec = _filled(
        {"workload": seen.workload, "engine": proxy.engine, "address": proxy.address, "identity": proxy.identity}
    )
    told = {
        "candidate": seen.candidate,
        "version": proxy.version,
        "connectedSince": timestamp(proxy.since) if seen.connected else "",
        "lastReport": timestamp(proxy.last_report),
        "lastNack": clean(proxy.last_nack),
        "wentBack": proxy.went_back,
        "certificateExpires": timestamp(proxy.certificate_expires),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshProxy",
        "metadata": {"name": seen.id, "namespace": namespace, "generation": 1},
        "spec": spec,
        "status": {
            "conditions": scribe.write(f"MeshProxy/{seen.id}", [ready]),
            "connected": seen.connected,
            "sync": sync,
            "stable": seen.stable,
            "share": _percent(seen.share),
            **_filled(told),
        },
    }


# --- revisions --------------------------------------------------------------------------------------------------------

RevisionState: TypeAlias = Literal[
    "live",
    "partly-live",
    "rolling-out",
    "queued",
    "pending",
    "rolled-back",
    "held",
    "invalid",
    "superseded",
    "aborted",
    "seen",
]
_Standing: TypeAlias = tuple[RevisionState, str]


def _known_revisions(view: MeshView) -> list[RevisionRecord]:
    """Commits looked at, newest first; desired comes first even if nobody has looked at it yet."""
    state = view.state
    known = {record.sha for record in state.revisions}
    named = dict.fromkeys((state.desired_revision, state.attempted_revision, state.active_revision))
    fresh = [RevisionRecord(sha=sha_of(name), revision=name) for name in named if name and sha_of(name) not in known]
    return [*fresh, *state.revisions]


def _revision(view: MeshView, record: RevisionRecord) -> Json:
    state, sentence = standing_of(view, record.sha)
    spec = {
        "revision": record.revision,
        "author": clean(record.author),
        "subject": clean(record.subject, limit=200),
        "committedAt": timestamp(record.committed_at),
        "seenAt": timestamp(record.seen_at),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshRevision",
        "metadata": {"name": record.sha},
        "spec": _filled(spec),
        "status": {"state": state, "sentence": clean(sentence)},
    }


def standing_of(view: MeshView, sha: str) -> tuple[RevisionState, str]:
    """Where one commit stands and the sentence that says why: the first that applies."""
    steps = (_set_aside, _found_invalid, _is_live, _waits_for_held, _on_its_way, _recorded)
    return next((found for found in (step(view, sha) for step in steps) if found), ("seen", ""))


def _set_aside(view: MeshView, sha: str) -> _Standing | None:
    for held in view.state.held:
        if sha in (held.commit, sha_of(held.revision)):
            return ("held" if held_by_person(view.state, held) else "rolled-back"), held.sentence
    return None


def _found_invalid(view: MeshView, sha: str) -> _Standing | None:
    errors = _errors(view)
    if errors and sha_of(view.state.attempted_revision) == sha:
        return "invalid", _validation_sentence(view, errors)
    return None


def _is_live(view: MeshView, sha: str) -> _Standing | None:
    if sha_of(view.state.active_revision) != sha:
        return None
    return ("partly-live", _held_sentence(view)) if view.state.held else ("live", _live_sentence(view))


def _waits_for_held(view: MeshView, sha: str) -> _Standing | None:
    waits = view.held_dependency and sha_of(view.state.desired_revision) == sha
    return ("held", view.held_dependency) if waits else None


def _on_its_way(view: MeshView, sha: str) -> _Standing | None:
    running = view.state.rollout
    moved = () if running is None else (*running.cause.commits, sha_of(running.cause.revision))
    if running is not None and running.phase in RUNNING and sha in moved:
        return "rolling-out", _rollout_sentence(running)
    return ("queued", _pending_sentence(view.state)) if sha_of(view.state.queued) == sha else None


def _recorded(view: MeshView, sha: str) -> _Standing | None:
    """What was written down about it. A commit that was never tried by itself is live in what came after it."""
    order = {record.sha: place for place, record in enumerate(view.state.revisions)}
    if sha not in order:
        return ("pending", _pending_sentence(view.state)) if sha_of(view.state.desired_revision) == sha else None
    record = view.state.revisions[order[sha]]
    active = order.get(sha_of(view.state.active_revision))
    if record.outcome == "pending" and active is not None and active < order[sha]:
        return "live", f"contained in {short(view.state.active_revision)}"
    if record.outcome == "pending":
        return "pending", record.sentence or _pending_sentence(view.state)
    return record.outcome, record.sentence
