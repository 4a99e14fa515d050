"""MeshIntent: one document, and whether it is accepted, resolved, programmed and proven."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backstay.core.intents import API_VERSION
from backstay.core.problems import Problem
from backstay.core.rollout.model import (
    HeldSet,
    Phase,
    WorkloadState,
)
from backstay.core.snapshot import Document, DocumentKey
from backstay.core.status.common import (
    RUNNING,
    Condition,
    Fleet,
    Json,
    Scribe,
    candidate_of,
    errors_of,
    filled,
    held_object,
    rollouts_of,
    short,
)
from backstay.core.status.sentences import held_line, rollout_sentence
from backstay.core.view import MeshView

CONDITIONS: Final = ("Accepted", "ResolvedRefs", "Programmed", "Proven")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intents:
    """What was shown last, and what it was made from: most looks change nothing about most documents."""

    objects: Mapping[DocumentKey, Json]
    made_from: "Inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that documents outside the running rollout are shown by. Two of them are equal if nothing of that has
    changed; the large values are compared by identity, since they are replaced and never altered."""

    large: tuple[object, ...]
    small: tuple[object, ...]

    def equals(self, other: "Inputs") -> bool:
        same = all(mine is theirs for mine, theirs in zip(self.large, other.large, strict=True))
        return same and self.small == other.small


def inputs_of(view: MeshView) -> Inputs:
    state = view.state
    stable = Counter((proxy.view.workload, proxy.view.stable) for proxy in view.proxies.values())
    return Inputs(
        large=(view.desired, view.effective, view.stable, view.document_workloads, view.waiting),
        small=(
            view.problems,
            view.observed_generation,
            state.attempted_revision,
            state.held,
            state.history,
            {key: item.stable for key, item in state.workloads.items()},
            stable,
            state.rollout.documents if state.rollout else (),
        ),
    )


def intent_objects(view: MeshView, scribe: Scribe, last: Intents | None = None) -> Intents:
    """Objects by document, in order; those of `last` where nothing that they show can have changed."""
    now = inputs_of(view)
    moving = set(view.state.rollout.documents) if view.state.rollout else set()
    if last is None or not last.made_from.equals(now):
        errors = _errors_by_document(view)
        keys = sorted(_document_keys(view) | set(errors))
        return Intents(objects={key: _intent(view, key, errors.get(key, ()), scribe) for key in keys}, made_from=now)
    errors = _errors_by_document(view) if moving else {}
    objects = dict(last.objects)
    for key in objects:
        if key in moving:
            objects[key] = _intent(view, key, errors.get(key, ()), scribe)
        else:
            scribe.keep(f"MeshIntent/{key}", CONDITIONS)
    return Intents(objects=objects, made_from=now)


def _errors_by_document(view: MeshView) -> dict[DocumentKey, list[Problem]]:
    found: dict[DocumentKey, list[Problem]] = {}
    for problem in errors_of(view):
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


def _intent(view: MeshView, key: DocumentKey, errors: Sequence[Problem], scribe: Scribe) -> Json:
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
        **filled({"held": held_object(held) if held else None}),
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
    return filled(
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
    if errors_of(view):
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
        return Condition(type="Programmed", status="False", reason="Held", message=held_line(held))
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
        return Condition(type="Proven", status="Unknown", reason="Progressing", message=rollout_sentence(rollout))
    if rollout.phase in (Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED):
        reason = {Phase.FAILED: "VerdictFail", Phase.ABORTED: "Aborted", Phase.SUPERSEDED: "Superseded"}[rollout.phase]
        return Condition(type="Proven", status="False", reason=reason, message=rollout_sentence(rollout))
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
    targets = {workload: candidate_of(rollout, workload) or stable[workload] for workload in workloads}
    return sum(fleet.serving_only(workload, targets[workload]) for workload in workloads), total
