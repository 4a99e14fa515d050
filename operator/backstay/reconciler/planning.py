"""From what git wants and what exists to what should run: the pure half of the loop.

`plan_mesh` answers, for one moment: which documents take effect, what every workload's stable config is, and which
staged change leads from there to what is wanted. The loop turns the answer into a rollout, or finds there is nothing to
do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from backstay.config.model import Backend, Manifest, decode_part
from backstay.core import intents, ramp
from backstay.core.compile import Compiled, PartCache, compile_mesh
from backstay.core.diff import PartChange, Staged, fresh_hosts, part_changes, stage, with_fresh
from backstay.core.durations import seconds
from backstay.core.held import Effective, changed_documents, effective
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry, Service, ServicePort, qualify
from backstay.core.rollout.model import Digest, HeldSet, Settings, Stage, WorkloadKey
from backstay.core.snapshot import Document, DocumentKey, Snapshot
from backstay.core.validate import rules

HOLDING_KINDS = ("Authorization", "Authentication", "Gateway")
"""Kinds whose changes wait for a person rather than go on unproven (DESIGN section 6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the plan is made from."""

    desired: Snapshot
    stable: Snapshot | None
    held: tuple[HeldSet, ...]
    kept: Mapping[DocumentKey, Document]
    registry: Registry
    base: Mapping[WorkloadKey, Manifest]
    """Stable manifests so far."""
    frozen: Mapping[WorkloadKey, Digest] = field(default_factory=dict)
    parts: Mapping[Digest, bytes] = field(default_factory=dict)
    """Bytes of every part of `base`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    effective: Effective
    conflict: tuple[Problem, ...]
    """Why the effective snapshot cannot work (a document depends on a held one); nothing else is filled in then."""
    waiting: Mapping[DocumentKey, Problem]
    base: Mapping[WorkloadKey, Manifest]
    """Stable manifests with new workloads and parts nobody has served yet taken up."""
    target: Mapping[WorkloadKey, Manifest]
    compiled: Compiled | None
    staged: Staged | None
    changes: tuple[PartChange, ...]
    documents: tuple[DocumentKey, ...]
    """Changed documents that contributed changed parts."""
    gaining: tuple[str, ...] = ()
    """Traffic steps: the destinations that gain weight."""
    parts: Mapping[Digest, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a plan's configs come from."""

    workloads: Mapping[DocumentKey, tuple[WorkloadKey, ...]] = field(default_factory=dict)
    """Document -> workloads whose config holds parts made from it."""
    places: Mapping[Digest, tuple[str, ...]] = field(default_factory=dict)
    """Part -> the `file:line` places it was made from."""


def provenance(made: MeshPlan) -> Provenance:
    if made.compiled is None:
        return Provenance()
    origins = made.compiled.origins
    found: dict[DocumentKey, set[WorkloadKey]] = {}
    for workload, manifest in made.compiled.manifests.items():
        for digest in manifest.parts.values():
            for key in origins[digest].documents:
                found.setdefault(key, set()).add(workload)
    return Provenance(
        workloads={key: tuple(sorted(workloads)) for key, workloads in found.items()},
        places={digest: tuple(dict.fromkeys(item.rules.values())) for digest, item in origins.items()},
    )


def plan_mesh(wanted: Wanted, cache: PartCache) -> MeshPlan:
    waiting = _waiting(wanted.desired, wanted.registry, wanted.kept)
    result = effective(wanted.desired, wanted.held, wanted.kept, waiting)
    registry = _with_vanished(wanted)
    conflict = _conflicts(result, registry)
    if conflict:
        return _nothing(result, conflict, waiting, wanted)
    compiled = compile_mesh(result.snapshot, registry, cache)
    base, parts = _base(wanted, registry, compiled)
    target = _target(wanted, base, compiled)
    changes = part_changes(base, target)
    staged = stage(base, target, parts)
    documents = contributing(changes, compiled, wanted, result.snapshot)
    steps = _ramp(wanted, result.snapshot, documents, base, cache)
    if steps is not None:
        staged = steps
    return MeshPlan(
        effective=result,
        conflict=(),
        waiting=waiting,
        base=base,
        target=target,
        compiled=compiled,
        staged=staged,
        changes=tuple(changes),
        documents=documents,
        gaining=() if steps is None else _gaining(wanted, result.snapshot, documents),
        parts={**parts, **staged.parts},
    )


def _gaining(wanted: Wanted, target: Snapshot, documents: tuple[DocumentKey, ...]) -> tuple[str, ...]:
    return ramp.gaining(wanted.stable.documents if wanted.stable else {}, target.documents, documents)


def _ramp(
    wanted: Wanted,
    target: Snapshot,
    documents: tuple[DocumentKey, ...],
    base: Mapping[WorkloadKey, Manifest],
    cache: PartCache,
) -> Staged | None:
    """One stage a traffic step, where the change is one of weights and its documents ask for steps."""
    changed = [target.documents[key] for key in documents if key in target.documents]
    settings = settings_for(target.mesh.rollout, changed)
    if wanted.stable is None or settings.immediate or not settings.traffic:
        return None
    snapshots = ramp.ramped(wanted.stable.documents, target, documents, settings.traffic)
    if snapshots is None:
        return None
    stages: list[Stage] = []
    manifests: dict[Digest, Manifest] = {}
    parts: dict[Digest, bytes] = {}
    for snapshot in snapshots:
        compiled = compile_mesh(snapshot, _with_vanished(wanted), cache)
        moved = {key: m for key, m in compiled.manifests.items() if key in base and m.parts != base[key].parts}
        configs = {key: compiled.digests[key] for key in moved}
        manifests.update({configs[key]: manifest for key, manifest in moved.items()})
        parts.update(compiled.parts)
        stages.append(Stage(name="move", configs=configs))
    return Staged(stages=tuple(stages), manifests=manifests, parts=parts)


def _nothing(
    result: Effective, conflict: tuple[Problem, ...], waiting: Mapping[DocumentKey, Problem], wanted: Wanted
) -> MeshPlan:
    return MeshPlan(
        effective=result,
        conflict=conflict,
        waiting=waiting,
        base=wanted.base,
        target=wanted.base,
        compiled=None,
        staged=None,
        changes=(),
        documents=(),
        parts=wanted.parts,
    )


def _waiting(desired: Snapshot, registry: Registry, kept: Mapping[DocumentKey, Document]) -> dict[DocumentKey, Problem]:
    """Documents that name something the registry does not have yet; one that works already keeps working."""
    found: dict[DocumentKey, Problem] = {}
    for problem in rules.waiting(tuple(desired.documents.values()), registry):
        if problem.document in desired.documents:
            known = kept.get(problem.document)
            if known is None or known.digest != desired.documents[problem.document].digest:
                found.setdefault(problem.document, problem)
    return found


def _conflicts(result: Effective, registry: Registry) -> tuple[Problem, ...]:
    """Errors that only holding back can have caused: the commit itself was valid."""
    if not result.held and not result.waiting:
        return ()
    problems = rules.check(tuple(result.snapshot.documents.values()), registry, is_complete=True)
    return tuple(problem for problem in problems if problem.severity is Severity.ERROR)


def _with_vanished(wanted: Wanted) -> Registry:
    """A service that stable documents are about keeps its config while it is away from the registry."""
    if wanted.stable is None:
        return wanted.registry
    missing: dict[str, Service] = {}
    for manifest in wanted.base.values():
        for key, digest in manifest.parts.items():
            name = key.removeprefix("backend/").rpartition(":")[0]
            if key.startswith("backend/") and name not in wanted.registry.services and name not in missing:
                service = _remembered(name, manifest, wanted.parts)
                if service is not None and digest:
                    missing[name] = service
    about = {_about(document) for document in wanted.stable.documents.values()}
    kept = {name: service for name, service in missing.items() if any(name in names for names in about)}
    if not kept:
        return wanted.registry
    return Registry(
        services={**wanted.registry.services, **kept},
        workloads=wanted.registry.workloads,
        instances=wanted.registry.instances,
    )


def _remembered(name: str, manifest: Manifest, parts: Mapping[Digest, bytes]) -> Service | None:
    """A service as its backend parts describe it; target ports do not matter without endpoints."""
    ports = []
    for key, digest in manifest.parts.items():
        if key.startswith(f"backend/{name}:") and digest in parts:
            part = decode_part(parts[digest])
            if isinstance(part, Backend):
                ports.append(ServicePort(port=part.port, target_port=part.port, protocol=part.protocol))
    service, _, namespace = name.rpartition(".")
    return Service(name=service, namespace=namespace, ports=tuple(ports)) if ports else None


def _about(document: Document) -> frozenset[str]:
    """Services a document names."""
    spec, namespace = document.spec, document.metadata.namespace
    names: set[str] = set()
    if isinstance(spec, intents.RouteSpec):
        names = {*spec.hosts, *(ref.name for rule in spec.rules for _, ref in intents.service_refs(rule))}
    elif isinstance(spec, intents.BackendSpec):
        names = {spec.service}
    return frozenset(qualify(name, namespace) for name in names)


def _base(
    wanted: Wanted, registry: Registry, compiled: Compiled
) -> tuple[dict[WorkloadKey, Manifest], dict[Digest, bytes]]:
    """Stable manifests: as they were, plus what needs no waves."""
    parts = {**wanted.parts, **compiled.parts}
    base = {key: wanted.base[key] for key in wanted.base if key in compiled.manifests}
    newcomers = [key for key in compiled.manifests if key not in base]
    if newcomers:
        proven = compiled if wanted.stable is None else compile_mesh(wanted.stable, registry)
        parts.update(proven.parts)
        base.update({key: proven.manifests[key] for key in newcomers})
    fresh = fresh_hosts(wanted.base, compiled.manifests, registry.services)
    if wanted.base and fresh:
        base = {key: with_fresh(manifest, compiled.manifests[key], fresh) for key, manifest in base.items()}
    return base, parts


def _target(wanted: Wanted, base: Mapping[WorkloadKey, Manifest], compiled: Compiled) -> dict[WorkloadKey, Manifest]:
    """What is wanted, except where exactly that failed before for another cause than a commit."""
    return {
        key: base[key] if wanted.frozen.get(key) == compiled.digests[key] else manifest
        for key, manifest in compiled.manifests.items()
    }


def contributing(
    changes: Iterable[PartChange], compiled: Compiled, wanted: Wanted, target: Snapshot
) -> tuple[DocumentKey, ...]:
    """Changed documents that stand behind changed parts, removed ones included."""
    old = wanted.stable.documents if wanted.stable else {}
    changed = changed_documents(old, target.documents)
    found: set[DocumentKey] = set()
    hosts: set[str] = set()
    for change in changes:
        origins = compiled.origins.get(change.new)
        if origins is not None:
            found.update(origins.documents)
        hosts.add(change.key)
    removed = {key for key in changed if key not in target.documents and _touches(old[key], hosts)}
    return tuple(sorted((found & changed) | removed))


def _touches(document: Document, part_keys: Iterable[str]) -> bool:
    """True if a part with one of these keys can have come from the document."""
    if document.kind == "Mesh":
        return True
    if document.kind in HOLDING_KINDS:
        return any(key in ("authorization", "listeners") for key in part_keys)
    names = _about(document)
    return any(key.partition("/")[2].rpartition(":")[0] in names for key in part_keys)


def mesh_rollout(snapshot: Snapshot, defaults: Mapping[str, object]) -> intents.MeshRollout:
    """The Mesh document's `spec.rollout`, and `defaults` (of the same form) where it says nothing."""
    if not defaults:
        return snapshot.mesh.rollout
    documents = (document for document in snapshot.documents.values() if document.kind == "Mesh")
    said = next(((document.raw.get("spec") or {}).get("rollout") or {} for document in documents), {})
    return msgspec.convert({**defaults, **said}, intents.MeshRollout)


def settings_for(mesh: intents.MeshRollout, documents: Iterable[Document]) -> Settings:
    """The Mesh's defaults, overridden by the documents that change."""
    rollouts = [(document.kind, document.spec.rollout) for document in documents if hasattr(document.spec, "rollout")]
    own = [(kind, spec) for kind, spec in rollouts if isinstance(spec, intents.DocumentRollout)]
    pause = any(spec.on_fail == "pause" for _, spec in own) or (
        mesh.on_fail == "pause" and not any(spec.on_fail == "rollback" for _, spec in own)
    )
    holds = [spec.on_no_traffic or ("hold" if kind in HOLDING_KINDS else mesh.on_no_traffic) for kind, spec in own]
    traffic = next((spec.traffic for _, spec in own if isinstance(spec, intents.TrafficSteps) and spec.traffic), ())
    return Settings(
        shares=tuple(share / 100 for share in mesh.shares),
        soak=seconds(mesh.soak),
        deadline=max(seconds(mesh.deadline), seconds(mesh.soak)),  # defaults and document may say one each
        warm_up=seconds(mesh.warm_up),
        tolerance=max(mesh.tolerance, mesh.margin) / 100,
        margin=mesh.margin / 100,
        on_fail="pause" if pause else "rollback",
        on_no_traffic="hold" if "hold" in holds else (mesh.on_no_traffic if not holds else "proceed"),
        confirm_within=seconds(mesh.confirm_within),
        bake_time=seconds(mesh.bake_time),
        on_bake_fail=mesh.on_bake_fail,
        immediate=bool(own) and all(spec.strategy == "Immediate" for _, spec in own),
        traffic=tuple(share / 100 for share in traffic),
    )


def expected_refusals(documents: Iterable[Document]) -> tuple[tuple[str, str, str], ...]:
    """(source, host, path) of every `expectRefused` in these documents."""
    found = []
    for document in documents:
        rollout = getattr(document.spec, "rollout", None)
        if isinstance(rollout, intents.DocumentRollout):
            found += [(item.source, item.host, item.path) for item in rollout.expect_refused]
    return tuple(dict.fromkeys(found))


def final_configs(staged: Staged) -> dict[WorkloadKey, Digest]:
    """Each affected workload's config after the last stage."""
    final: dict[WorkloadKey, Digest] = {}
    for item in staged.stages:
        final.update(item.configs)
    return final
