"""Two validated revisions -> a review of the change between them: pure, for `backstay review` and for the operator alike."""

from collections.abc import Iterable
from dataclasses import dataclass

from backstay.core.compile import Compiled
from backstay.core.diff import part_changes, stage
from backstay.core.evaluate import World
from backstay.core.intents import GuardrailSpec
from backstay.core.judging import check_world, settled
from backstay.core.registry import Registry
from backstay.core.review.report import (
    Report,
    Rollout,
    Touched,
    access_changes,
    compared,
    document_changes,
    remark,
    request_changes,
    untouched,
)
from backstay.core.rollout.plan import waves
from backstay.core.snapshot import Snapshot
from backstay.core.validate import Validated
from backstay.reconciler.planning import settings_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two revisions, validated."""

    revision: str
    validated: Validated


def review_of(base: Side, head: Side, registry: Registry, notes: tuple[str, ...] = ()) -> Report:
    """Everything that can be said. An invalid head is not compared; an invalid base is as if there were none."""
    if head.validated.snapshot is None:
        problems = tuple(map(remark, head.validated.problems))
        return Report(base=base.revision, head=head.revision, valid=False, problems=problems, notes=notes)
    before = base.validated.snapshot
    if before is None:
        count = len(base.validated.errors)
        notes = (*notes, f"{base.revision} is invalid ({count} problems), so the whole of {head.revision} is compared")
        before = Snapshot(revision=base.revision, documents={})
    return _compared(before, head.validated.snapshot, head, registry, notes)


def _compared(before: Snapshot, after: Snapshot, head: Side, registry: Registry, notes: tuple[str, ...]) -> Report:
    old, new = compared(settled(before, registry), settled(after, registry), registry)
    judged = check_world(before, new, audit=True)
    guarded = [problem for problem in judged.problems if problem.reason.startswith("Guardrail")]
    broken = [problem for problem in judged.problems if problem not in guarded]
    touched = tuple(touched_workloads(old.compiled, new.compiled, registry))
    return Report(
        base=before.revision,
        head=head.revision,
        valid=not any(problem in judged.errors for problem in broken),
        problems=(*map(remark, head.validated.problems), *map(remark, broken)),
        guardrails=tuple(map(remark, guarded)),
        documents=tuple(document_changes(before, after)),
        requests=tuple(request_changes(old, new)),
        access=tuple(access_changes(old, new)),
        touched=touched,
        rollout=rollout_of(old, new),
        untouched=untouched(old, new, touched),
        notes=(*notes, *_notes(before, after)),
    )


def _notes(before: Snapshot, after: Snapshot) -> Iterable[str]:
    """Guardrails that come or change judge only what follows them."""
    for document in after.documents.values():
        known = before.documents.get(document.key)
        if isinstance(document.spec, GuardrailSpec) and (known is None or known.digest != document.digest):
            yield f"{document.key} ({document.place()}) is new or changed: it judges the commits after this one"


def touched_workloads(old: Compiled, new: Compiled, registry: Registry) -> Iterable[Touched]:
    parts: dict[str, list[str]] = {}
    for change in part_changes(old.manifests, new.manifests):
        parts.setdefault(change.workload, []).append(change.key)
    counts: dict[str, int] = {}
    for instance in registry.instances.values():
        counts[instance.workload] = counts.get(instance.workload, 0) + instance.meshed
    for workload, keys in sorted(parts.items()):
        yield Touched(workload=workload, proxies=counts.get(workload, 0), parts=tuple(keys))


def rollout_of(old: World, new: World) -> Rollout:
    """Stages and waves as the operator would plan them for this change alone."""
    staged = stage(old.compiled.manifests, new.compiled.manifests, {**old.compiled.parts, **new.compiled.parts})
    if not staged.stages:
        return Rollout()
    before, documents = old.snapshot.documents, new.snapshot.documents
    changed = [item for key, item in documents.items() if key not in before or before[key].digest != item.digest]
    settings = settings_for(new.snapshot.mesh.rollout, changed)
    if settings.immediate:
        return Rollout(strategy="Immediate", stages=tuple(item.name for item in staged.stages))
    shares = settings.traffic or waves(settings)
    return Rollout(
        strategy="Progressive",
        stages=tuple(item.name for item in staged.stages),
        waves=tuple(round(share * 100, 2) for share in shares),
        soak_seconds=settings.soak,
        least_seconds=settings.soak * len(shares) * len(staged.stages),
    )
