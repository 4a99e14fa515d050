"""Two validated revisions -> a review of the change between them: pure, for `backstay review` and for the operator alike."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from backstay.core.compile import declared
from backstay.core.diff import stage
from backstay.core.documents import parse
from backstay.core.evaluate import World
from backstay.core.intents import GuardrailSpec
from backstay.core.judging import check_world, settled
from backstay.core.registry import Registry
from backstay.core.review.report import (
    Report,
    Rollout,
    Touched,
    changes,
    compared,
    document_changes,
    remark,
    untouched,
)
from backstay.core.review.traffic import Traffic, refused_plaintext, replayed
from backstay.core.rollout.plan import waves
from backstay.core.snapshot import Snapshot
from backstay.core.validate import Cache, Validated
from backstay.reconciler.planning import mesh_rollout, settings_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two revisions, validated."""

    revision: str
    validated: Validated


def base_side(files: Mapping[str, bytes], revision: str, *, default_namespace: str, cache: Cache) -> Side:
    """The base as its documents say; the rules about a whole commit were asked when it was merged."""
    parsed = parse(files, default_namespace=default_namespace, valid_cache=cache)
    documents = {document.key: document for document in parsed.documents}
    snapshot = None if parsed.problems else Snapshot(revision=revision, documents=documents)
    validated = Validated(snapshot=snapshot, documents=parsed.documents, problems=parsed.problems)
    return Side(revision=revision, validated=validated)


Seen: TypeAlias = Callable[[World, World], tuple[str, ...]]
"""What recorded traffic says of two worlds: plaintext callers that would be refused."""


def review_of(
    base: Side,
    head: Side,
    registry: Registry,
    notes: tuple[str, ...] = (),
    seen: Seen = lambda old, new: (),
    traffic: Traffic | None = None,
    rollout_defaults: Mapping[str, object] = {},
) -> Report:
    """Everything that can be said. An invalid head is not compared; an invalid base is as if there were none.

    `traffic` is what a live mesh was asked lately: requests are put through both revisions, and callers without a certificate
    that a stricter mode would refuse are named. `rollout_defaults` count where the Mesh document says nothing.
    """
    if head.validated.snapshot is None:
        problems = tuple(map(remark, head.validated.problems))
        return Report(base=base.revision, head=head.revision, valid=False, problems=problems, notes=notes)
    before = base.validated.snapshot
    if before is None:
        count = len(base.validated.errors)
        notes = (*notes, f"{base.revision} is invalid ({count} problems), so the whole of {head.revision} is compared")
        before = Snapshot(revision=base.revision, documents={})
    return _compared(before, head.validated.snapshot, head, registry, notes, seen, traffic, rollout_defaults)


def _compared(
    before: Snapshot,
    after: Snapshot,
    head: Side,
    registry: Registry,
    notes: tuple[str, ...],
    seen: Seen,
    traffic: Traffic | None,
    rollout_defaults: Mapping[str, object],
) -> Report:
    old, new = compared(settled(before, registry), settled(after, registry), registry)
    judged = check_world(before, after, new, audit=True)
    guarded = [problem for problem in judged.problems if problem.reason.startswith("Guardrail")]
    broken = [problem for problem in judged.problems if problem not in guarded]
    touched = tuple(touched_workloads(old, new, registry))
    requests, access = changes(old, new)
    return Report(
        base=before.revision,
        head=head.revision,
        valid=not any(problem in judged.errors for problem in broken),
        problems=(*map(remark, head.validated.problems), *map(remark, broken)),
        guardrails=tuple(map(remark, guarded)),
        documents=tuple(document_changes(before, after)),
        requests=requests,
        access=access,
        touched=touched,
        rollout=rollout_of(old, new, rollout_defaults),
        plaintext=(*seen(old, new), *(refused_plaintext(traffic, old, new) if traffic is not None else ())),
        traffic=replayed(traffic, old, new) if traffic is not None else None,
        untouched=untouched(old, new, touched),
        notes=(*notes, *_notes(before, after)),
    )


def _notes(before: Snapshot, after: Snapshot) -> Iterable[str]:
    """Guardrails that come or change judge only what follows them."""
    for document in after.documents.values():
        known = before.documents.get(document.key)
        if isinstance(document.spec, GuardrailSpec) and (known is None or known.digest != document.digest):
            yield f"{document.key} ({document.place()}) is new or changed: it judges the commits after this one"


def touched_workloads(old: World, new: World, registry: Registry) -> Iterable[Touched]:
    """Workloads whose config changes. Those that reach the same hosts share what they send by, which is compared once."""
    counts: dict[str, int] = {}
    for instance in registry.instances.values():
        counts[instance.workload] = counts.get(instance.workload, 0) + instance.meshed
    shared: dict[object, list[str]] = {}
    for key in sorted(old.compiled.manifests.keys() & new.compiled.manifests.keys()):
        before, after = old.manifest(key).parts, new.manifest(key).parts
        kind = (declared(registry.workloads[key]), key if registry.workloads[key].is_gateway else "")
        if kind not in shared:
            shared[kind] = [
                name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)
            ]
        own = [name for name in OWN_PARTS if before.get(name) != after.get(name)]
        parts = (*own, *(name for name in shared[kind] if name not in OWN_PARTS))
        if parts:
            yield Touched(workload=key, proxies=counts.get(key, 0), parts=parts)


OWN_PARTS: Final = ("authorization", "listeners")
"""Parts that are about what a workload's own proxy accepts."""


def rollout_of(old: World, new: World, defaults: Mapping[str, object] = {}) -> Rollout:
    """Stages and waves as the operator would plan them for this change alone."""
    chosen = _representatives(old, new)
    manifests = [{key: world.manifest(key) for key in chosen} for world in (old, new)]
    staged = stage(manifests[0], manifests[1], {**old.compiled.parts, **new.compiled.parts})
    if not staged.stages:
        return Rollout()
    before, documents = old.snapshot.documents, new.snapshot.documents
    changed = [item for key, item in documents.items() if key not in before or before[key].digest != item.digest]
    settings = settings_for(mesh_rollout(new.snapshot, defaults), changed)
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


def _representatives(old: World, new: World) -> list[str]:
    """One workload of each that reach the same hosts, and all whose own parts change: they show every stage."""
    found: dict[object, str] = {}
    for key in sorted(old.compiled.manifests.keys() & new.compiled.manifests.keys()):
        before, after = old.manifest(key).parts, new.manifest(key).parts
        workload = new.registry.workloads[key]
        has_own = workload.is_gateway or any(before.get(name) != after.get(name) for name in OWN_PARTS)
        found.setdefault(key if has_own else declared(workload), key)
    return list(found.values())
