"""A MeshView in the shape of the CRDs to come: objects with conditions that any Kubernetes tool reads correctly.

Nothing here looks at a clock or decides what the mesh does; the same functions serve the API, the CLI without an
operator, and later the CRD writer. kstatus rules (what `kubectl wait` and Flux read) that this file keeps:

- Reconciling, Stalled, FetchFailed and RolledBack are abnormal-true: present only while True.
- Reconciling and Stalled are never both present; Ready is always present.
- Ready=True has neither; Stalled means trying again cannot help: git has to change, or a person has to decide.
- lastTransitionTime changes only when a condition's status does. That needs memory, which goes in and comes out as a
  value (`Memory`); a condition that disappears is forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from backstay.core.intents import API_VERSION
from backstay.core.status.common import (
    RUNNING,
    Condition,
    Fleet,
    Json,
    Memory,
    Scribe,
    Status,
    held_by_person,
    rollouts_of,
    sha_of,
    short,
    timestamp,
)
from backstay.core.status.intents import Intents, intent_conditions, intent_objects
from backstay.core.status.proxies import proxy_object, sync_of
from backstay.core.status.repository import repository_conditions, repository_object
from backstay.core.status.revisions import RevisionState, known_revisions, revision_object, standing_of
from backstay.core.status.rollouts import rollout_conditions, rollout_object
from backstay.core.status.sentences import verdict_of
from backstay.core.status.workloads import workload_keys, workload_object
from backstay.core.view import MeshView

__all__ = [
    "RUNNING",
    "Condition",
    "Fleet",
    "Json",
    "Memory",
    "Objects",
    "RevisionState",
    "Status",
    "held_by_person",
    "intent_conditions",
    "list_of",
    "objects",
    "repository_conditions",
    "rollout_conditions",
    "rollouts_of",
    "sha_of",
    "short",
    "standing_of",
    "sync_of",
    "timestamp",
    "verdict_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Everything there is to show of one view."""

    repository: Json
    rollouts: list[Json]
    intents: list[Json]
    workloads: list[Json]
    proxies: list[Json]
    revisions: list[Json]
    by_document: Intents
    """`intents`, and what they were made from."""


def objects(view: MeshView, memory: Memory, last: Objects | None = None) -> tuple[Objects, Memory]:
    """All objects of a view, and the memory to pass in next time. `last` are those of the view before: of a thousand
    documents most are shown as they were."""
    scribe = Scribe(view=view, before=memory)
    intents = intent_objects(view, scribe, last.by_document if last else None)
    shown = Objects(
        repository=repository_object(view, scribe),
        rollouts=[rollout_object(view, rollout, scribe) for rollout in rollouts_of(view.state)],
        intents=list(intents.objects.values()),
        by_document=intents,
        workloads=[workload_object(view, key, scribe) for key in workload_keys(view)],
        proxies=[proxy_object(view, proxy, scribe) for _, proxy in sorted(view.proxies.items())],
        revisions=[revision_object(view, record) for record in known_revisions(view)],
    )
    return shown, scribe.after


def list_of(kind: str, items: Sequence[Json]) -> Json:
    return {"apiVersion": API_VERSION, "kind": f"{kind}List", "metadata": {}, "items": list(items)}
