"""The MeshRepository: what is wished, what is live, and the one standing of the mesh.

Rule: `_STANDINGS` is the whole order of what Ready, Reconciling and Stalled say; nothing else writes them.
"""

from typing import Final

from backstay.core.durations import spell
from backstay.core.intents import API_VERSION
from backstay.core.problems import Problem
from backstay.core.rollout.model import (
    Rollout,
)
from backstay.core.status.common import (
    RUNNING,
    RUNNING_REASONS,
    Condition,
    Json,
    Scribe,
    errors_of,
    filled,
    held_by_person,
    held_object,
    ready_condition,
    reconciling,
    short,
    stalled,
    timestamp,
)
from backstay.core.status.sentences import (
    held_line,
    held_sentence,
    live_sentence,
    pending_sentence,
    rollout_sentence,
    validation_sentence,
)
from backstay.core.view import MeshView
from backstay.redact import clean

_STARTED_NEW: Final = -1
"""observedGeneration before the first look: greater generations make kstatus say InProgress."""


_TOLD_AWAY: Final = 10
"""Of the proxies that are not let in: one sidecar's release is the reason for all of them."""


def repository_object(view: MeshView, scribe: Scribe) -> Json:
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
        **filled(
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
        "held": [held_object(held) for held in state.held],
        "problems": [_problem(problem) for problem in view.problems],
        "waiting": len(view.waiting),
        "turnedAway": [
            {"proxy": name, "message": clean(proxy.turned_away)}
            for name, proxy in sorted(view.proxies.items())
            if proxy.turned_away
        ][:_TOLD_AWAY],
        "history": [_history_entry(rollout) for rollout in state.history],
        "operator": filled(
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
    return reconciling("Progressing", message, ready="Unknown")


def _operator_fault(view: MeshView) -> tuple[Condition, ...]:
    return reconciling("ProgressingWithRetry", view.fault, ready_reason="OperatorFault") if view.fault else ()


def _rollout_runs(view: MeshView) -> tuple[Condition, ...]:
    rollout = view.state.rollout
    if rollout is None or rollout.phase not in RUNNING:
        return ()
    return reconciling(RUNNING_REASONS[rollout.phase], rollout_sentence(rollout))


def _source_stalled(view: MeshView) -> tuple[Condition, ...]:
    return () if view.source.ok or not view.source.stalled else stalled(view.source.reason, view.source.message)


def _commit_invalid(view: MeshView) -> tuple[Condition, ...]:
    errors = errors_of(view)
    return stalled("ValidationFailed", validation_sentence(view, errors)) if errors else ()


def _dependency_held(view: MeshView) -> tuple[Condition, ...]:
    return stalled("HeldDependency", view.held_dependency) if view.held_dependency else ()


def _documents_held(view: MeshView) -> tuple[Condition, ...]:
    return stalled("RevisionHeld", held_sentence(view)) if view.state.held else ()


def _calm_standing(view: MeshView) -> tuple[Condition, ...]:
    """Nothing runs, nothing is wrong with the commit: live, on its way, or the remote is away."""
    state = view.state
    behind = not state.active_revision or state.active_revision != state.desired_revision
    if state.suspended and behind:
        return (ready_condition("False", "Suspended", f"suspended; {pending_sentence(state)}"),)
    if not view.source.ok:
        return reconciling("ProgressingWithRetry", view.source.message, ready_reason=view.source.reason)
    if behind or state.queued:
        return reconciling("Progressing", pending_sentence(state))
    return (ready_condition("True", "Succeeded", live_sentence(view)),)


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


def _validated(view: MeshView) -> tuple[Condition, ...]:
    if not view.state.attempted_revision:
        return ()
    errors = errors_of(view)
    if errors:
        return (
            Condition(
                type="Validated", status="False", reason="ValidationFailed", message=validation_sentence(view, errors)
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
    return (Condition(type="RolledBack", status="True", reason=reason, message=held_line(newest)),)


def _problem(problem: Problem) -> Json:
    return filled(
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
    return filled(
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
