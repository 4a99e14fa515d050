"""`backstay plan`: which workloads a change touches, what of them, and in which stages and waves it would go out.

The same function that plans for the operator (reconciler/planning.py) plans here; this module only fetches its input
and writes its answer down.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from backstay.cli.exits import Exit, Failed, OperatorAway
from backstay.cli.files import Files, read_folder, read_revision
from backstay.cli.output import emit
from backstay.cli.registries import Declared, declared, running
from backstay.cli.session import Session, output_option, pass_session
from backstay.cli.validate import DEFAULT_NAMESPACE, problem_lines
from backstay.core import memory
from backstay.core.compile import PartCache, compile_mesh
from backstay.core.diff import PartChange, new_engines
from backstay.core.held import changed_documents
from backstay.core.registry import Registry
from backstay.core.rollout.plan import waves
from backstay.core.snapshot import Snapshot
from backstay.core.validate import validate
from backstay.reconciler.planning import MeshPlan, Wanted, mesh_rollout, plan_mesh, settings_for


@click.command
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option(
    "--from", "old_revision", metavar="REV", default="", help="Compare with this commit instead of the live mesh."
)
@click.option(
    "-w", "--workloads", type=click.Path(path_type=Path), help="Services and workloads, instead of the live ones."
)
@click.option(
    "-n", "--namespace", default="", help="Of documents that do not name theirs; else the workloads file says."
)
@click.option("--exit-code", is_flag=True, help="End with 1 if anything would change.")
@output_option()
@pass_session
def plan(
    session: Session,
    folder: Path,
    old_revision: str,
    workloads: Path | None,
    namespace: str,
    exit_code: bool,
    output: str,
) -> None:
    """Show what the documents in DIR would change. `-o wide` adds each part's difference.

    Compared are the folder as it is, committed or not, and the live mesh, or with --from a commit.
    """
    known = _known(session, workloads)
    registry, namespace = known.registry, namespace or known.namespace
    new = _snapshot(read_folder(folder), registry, namespace)
    old = _snapshot(read_revision(folder, old_revision), None, namespace) if old_revision else _live(session)
    made, parts = make_plan(old, new, registry)
    data = plan_object(made, old, new, known.rollout_defaults)
    emit(output, data, lambda wide: "\n".join(plan_lines(data, made, parts if wide else {})))
    for conflict in made.conflict:
        session.say(str(conflict))
    sys.exit(Exit.NO if exit_code and (made.changes or data["documents"]) else Exit.OK)


def _known(session: Session, workloads: Path | None) -> Declared:
    if workloads is not None:
        return declared(workloads)
    try:
        return running(session.client(), DEFAULT_NAMESPACE)
    except OperatorAway as away:
        hint = "name the services and workloads with --workloads FILE, or start an operator"
        raise Failed(f"{away.message}, so nothing says which workloads exist", hint=hint) from away


def _snapshot(files: Files, registry: Registry | None, namespace: str) -> Snapshot:
    """Raises Failed, with every problem, for documents that could not go live anyway."""
    result = validate(
        files.contents, revision=files.revision, registry=registry, default_namespace=namespace, refused=files.refused
    )
    if result.snapshot is None:
        told = "\n".join(line for problem in result.errors for line in problem_lines(problem, files.contents))
        raise Failed(f"{files.revision} is invalid:\n{told}", code=Exit.NO)
    return result.snapshot


def _live(session: Session) -> Snapshot:
    try:
        answer = session.client().get("/v1/snapshot", which="stable")
    except OperatorAway as away:
        raise Failed(
            f"{away.message}, so there is no live mesh to compare with", hint="name a commit with --from REV"
        ) from away
    blobs = {digest: msgspec.json.encode(body) for digest, body in answer["blobs"].items()}
    return memory.recall(answer["digest"], blobs)


def make_plan(old: Snapshot, new: Snapshot, registry: Registry) -> tuple[MeshPlan, Mapping[str, bytes]]:
    """The plan, and the bytes of all parts of both sides."""
    before = compile_mesh(old, registry)
    wanted = Wanted(
        desired=new, stable=old, held=(), kept={}, registry=registry, base=before.manifests, parts=before.parts
    )
    made = plan_mesh(wanted, PartCache())
    return made, {**before.parts, **made.parts}


def plan_object(
    made: MeshPlan, old: Snapshot, new: Snapshot, rollout_defaults: Mapping[str, object] = {}
) -> dict[str, Any]:
    """`rollout_defaults` count where the Mesh document says nothing."""
    changed = sorted(changed_documents(old.documents, new.documents))
    touched = [new.documents[key] for key in made.documents if key in new.documents]
    settings = settings_for(mesh_rollout(new, rollout_defaults), touched)
    stages = made.staged.stages if made.staged else ()
    return {
        "apiVersion": "backstay.dev/v1alpha1",
        "kind": "MeshPlan",
        "from": old.revision,
        "to": new.revision,
        "documents": [
            {"document": key, "place": _place(key, old, new), "change": _verb(key, old, new)} for key in changed
        ],
        "waiting": [str(problem) for _, problem in sorted(made.waiting.items())],
        "conflicts": [str(problem) for problem in made.conflict],
        "workloads": _workloads(made),
        "stages": [{"name": stage.name, "workloads": sorted(stage.configs)} for stage in stages],
        "strategy": "Immediate" if settings.immediate else "Progressive",
        "waves": [round(share * 100, 2) for share in waves(settings)],
        "traffic": [round(share * 100, 2) for share in settings.traffic],
        "soakSeconds": settings.soak,
        "engines": _engines(made),
    }


def _verb(key: str, old: Snapshot, new: Snapshot) -> str:
    if key not in old.documents:
        return "added"
    return "changed" if key in new.documents else "removed"


def _place(key: str, old: Snapshot, new: Snapshot) -> str:
    document = new.documents.get(key) or old.documents[key]
    return document.place()


def _engines(made: MeshPlan) -> list[str]:
    """Workloads whose proxies change what does their traffic."""
    return list(new_engines(made.base, made.staged, made.parts)) if made.staged else []


def _workloads(made: MeshPlan) -> list[dict[str, Any]]:
    found: dict[str, list[PartChange]] = {}
    for change in made.changes:
        found.setdefault(change.workload, []).append(change)
    return [
        {"workload": workload, "parts": [_part(change, made) for change in changes]}
        for workload, changes in sorted(found.items())
    ]


def _part(change: PartChange, made: MeshPlan) -> dict[str, Any]:
    origins = made.compiled.origins.get(change.new) if made.compiled else None
    places = list(dict.fromkeys(origins.rules.values())) if origins else []
    verb = "changed" if change.old and change.new else "added" if change.new else "removed"
    return {
        "key": change.key,
        "change": verb,
        "old": change.old,
        "new": change.new,
        "origins": [p for p in places if p],
    }


def plan_lines(data: Mapping[str, Any], made: MeshPlan, parts: Mapping[str, bytes]) -> Iterator[str]:
    """The plan as text; with `parts` every part's difference as well."""
    if not data["documents"] and not data["workloads"]:
        yield "nothing changes"
        return
    for document in data["documents"]:
        yield f"{_mark(document['change'])} {document['document']}  {document['place']}"
    yield from (f"waits: {line}" for line in data["waiting"])
    yield from (f"conflict: {line}" for line in data["conflicts"])
    if not data["workloads"]:
        yield "no proxy's config changes: live at once"
        return
    for workload in data["workloads"]:
        yield f"\n{click.style(workload['workload'], bold=True)}"
        for part in workload["parts"]:
            yield f"  {_mark(part['change'])} {part['key']}  {', '.join(part['origins'])}".rstrip()
            yield from (f"      {line}" for line in _difference(part, parts))
    yield ""
    yield from _rollout_lines(data)


def _rollout_lines(data: Mapping[str, Any]) -> Iterator[str]:
    for number, stage in enumerate(data["stages"], start=1):
        yield f"stage {number} ({stage['name']}): {', '.join(stage['workloads'])}"
    if data["strategy"] == "Immediate":
        yield "strategy Immediate: everyone at once"
        return
    name = "traffic steps" if data["traffic"] else "waves"
    steps = ", ".join(f"{share:g} %" for share in data["traffic"] or data["waves"])
    yield f"{name}: {steps}, at least {data['soakSeconds']:g} s each"
    if data["engines"]:
        yield f"another engine for {', '.join(data['engines'])}: each of their proxies starts it and moves as a whole"


def _mark(change: str) -> str:
    sign, color = {"added": ("+", "green"), "removed": ("-", "red")}.get(change, ("~", "yellow"))
    return click.style(sign, fg=color)


def _difference(part: Mapping[str, Any], parts: Mapping[str, bytes]) -> Iterator[str]:
    """Unified diff of a part's two contents, without the headers."""
    if not parts:
        return
    old, new = (_pretty(parts.get(part[side], b"")) for side in ("old", "new"))
    for line in [*difflib.unified_diff(old, new, lineterm="", n=2)][2:]:
        color = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        yield click.style(line, fg=color) if color else line


def _pretty(content: bytes) -> list[str]:
    return msgspec.json.format(content, indent=2).decode().splitlines() if content else []
