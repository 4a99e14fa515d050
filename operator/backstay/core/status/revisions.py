"""MeshRevision: where one commit stands, in one word and one sentence."""

from typing import Literal, TypeAlias

from backstay.core.intents import API_VERSION
from backstay.core.rollout.model import RevisionRecord
from backstay.core.status.common import RUNNING, Json, errors_of, filled, held_by_person, sha_of, short, timestamp
from backstay.core.status.sentences import (
    held_sentence,
    live_sentence,
    pending_sentence,
    rollout_sentence,
    validation_sentence,
)
from backstay.core.view import MeshView
from backstay.redact import clean

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


def known_revisions(view: MeshView) -> list[RevisionRecord]:
    """Commits looked at, newest first; desired comes first even if nobody has looked at it yet."""
    state = view.state
    known = {record.sha for record in state.revisions}
    named = dict.fromkeys((state.desired_revision, state.attempted_revision, state.active_revision))
    fresh = [RevisionRecord(sha=sha_of(name), revision=name) for name in named if name and sha_of(name) not in known]
    return [*fresh, *state.revisions]


def revision_object(view: MeshView, record: RevisionRecord) -> Json:
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
        "spec": filled(spec),
        "status": {"state": state, "sentence": clean(sentence)},
    }


def standing_of(view: MeshView, sha: str) -> tuple[RevisionState, str]:
    """Where one commit stands and the sentence that says why: the first that applies."""
    steps = (_set_aside, _found_invalid, _is_live, _waits_for_held, _on_its_way, _went_back_with, _recorded)
    return next((found for found in (step(view, sha) for step in steps) if found), ("seen", ""))


def _set_aside(view: MeshView, sha: str) -> _Standing | None:
    """The commit whose documents are held. One that was only rolled out together with it still has its own way to go."""
    for held in view.state.held:
        if sha == held.commit:
            return ("held" if held_by_person(view.state, held) else "rolled-back"), held.sentence
    return None


def _found_invalid(view: MeshView, sha: str) -> _Standing | None:
    errors = errors_of(view)
    if errors and sha_of(view.state.attempted_revision) == sha:
        return "invalid", validation_sentence(view, errors)
    return None


def _is_live(view: MeshView, sha: str) -> _Standing | None:
    if sha_of(view.state.active_revision) != sha:
        return None
    return ("partly-live", held_sentence(view)) if view.state.held else ("live", live_sentence(view))


def _waits_for_held(view: MeshView, sha: str) -> _Standing | None:
    waits = view.held_dependency and sha_of(view.state.desired_revision) == sha
    return ("held", view.held_dependency) if waits else None


def _on_its_way(view: MeshView, sha: str) -> _Standing | None:
    running = view.state.rollout
    moved = () if running is None else (*running.cause.commits, sha_of(running.cause.revision))
    if running is not None and running.phase in RUNNING and sha in moved:
        return "rolling-out", rollout_sentence(running)
    return ("queued", pending_sentence(view.state)) if sha_of(view.state.queued) == sha else None


def _went_back_with(view: MeshView, sha: str) -> _Standing | None:
    """The newest commit of a rollout that failed for another commit's sake, and nothing has come of it since."""
    found = next((held for held in view.state.held if sha_of(held.revision) == sha), None)
    if found is None:
        return None
    return ("held" if held_by_person(view.state, found) else "rolled-back"), found.sentence


def _recorded(view: MeshView, sha: str) -> _Standing | None:
    """What was written down about it. A commit that was never tried by itself is live in what came after it."""
    order = {record.sha: place for place, record in enumerate(view.state.revisions)}
    if sha not in order:
        return ("pending", pending_sentence(view.state)) if sha_of(view.state.desired_revision) == sha else None
    record = view.state.revisions[order[sha]]
    active = order.get(sha_of(view.state.active_revision))
    if record.outcome == "pending" and active is not None and active < order[sha]:
        return "live", f"contained in {short(view.state.active_revision)}"
    if record.outcome == "pending":
        return "pending", record.sentence or pending_sentence(view.state)
    return record.outcome, record.sentence
