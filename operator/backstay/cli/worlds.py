"""What verbs that evaluate need: a snapshot from a folder, a commit or the live mesh, and a registry to ask about."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from backstay.cli.exits import Exit, Failed, OperatorAway
from backstay.cli.files import Files, read_folder, read_revision
from backstay.cli.registries import Declared, declared, expected, running, saved_defaults, saved_traffic
from backstay.cli.session import Session
from backstay.cli.validate import DEFAULT_NAMESPACE, problem_lines
from backstay.core import memory
from backstay.core.durations import spell
from backstay.core.evaluate import World, world
from backstay.core.registry import Registry, Workload
from backstay.core.snapshot import Snapshot
from backstay.core.suggest import did_you_mean
from backstay.core.validate import Cache, rules, validate

_Command = TypeVar("_Command", bound=Callable[..., Any])
OLD_REGISTRY = 24 * 3600.0  # seconds; endpoints change daily with deployments, older ones are worth a word


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which documents and which registry a question is about."""

    folder: Path
    at: str
    live: bool
    workloads: Path | None
    registry: Path | None
    namespace: str


def where_options(command: _Command) -> _Command:
    """The options that choose documents and registry, the same for every verb that evaluates."""
    for option in reversed(
        (
            click.option(
                "-d", "--dir", "folder", type=click.Path(path_type=Path), default=".", help="Folder of the documents."
            ),
            click.option("--at", metavar="REV", default="", help="The documents of this commit."),
            click.option("--live", is_flag=True, help="The documents that are live now."),
            click.option(
                "-w", "--workloads", type=click.Path(path_type=Path), help="Services and workloads, from a file."
            ),
            click.option(
                "--registry",
                type=click.Path(path_type=Path),
                help="Services, workloads and instances, from a JSON file.",
            ),
            click.option("-n", "--namespace", default="", help="Of names without one; else the workloads file says."),
        )
    ):
        command = option(command)
    return command


def registry_of(session: Session, workloads: Path | None, registry: Path | None, *, traffic: bool = False) -> Declared:
    """From a workloads file, a JSON file, or the running operator; with `traffic`, what that knows of requests too. Raises
    Failed."""
    if workloads is not None:
        found = declared(workloads)
        return replace(found, registry=expected(workloads))
    if registry is not None:
        known, data = registry_file(session, registry)
        return Declared(
            registry=known,
            namespace=DEFAULT_NAMESPACE,
            traffic=saved_traffic(data) if traffic else None,
            rollout_defaults=saved_defaults(data),
        )
    try:
        return running(session.client(), DEFAULT_NAMESPACE, traffic=traffic)
    except OperatorAway as away:
        hint = "name them with --workloads FILE or --registry FILE, or start an operator"
        raise Failed(f"{away.message}, so nothing says which workloads exist", hint=hint) from away


def registry_file(session: Session, path: Path) -> tuple[Registry, bytes]:
    """A registry that was saved before, and the file; its age is said, because endpoints change."""
    try:
        data = path.read_bytes()
        age = max(time.time() - path.stat().st_mtime, 0.0)
        found: Registry = msgspec.json.decode(data, type=Registry)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise Failed(
            f"{path}: {error}", hint="`backstay route registry` of a running operator writes such a file"
        ) from error
    if age > OLD_REGISTRY:
        session.say(f"{path} is {spell(age)} old: workloads and instances may have changed since")
    return found, data


def snapshot_of(files: Files, registry: Registry | None, namespace: str, cache: Cache | None = None) -> Snapshot:
    """Raises Failed, with every problem, for documents that could not go live anyway."""
    result = validate(
        files.contents,
        revision=files.revision,
        registry=registry,
        default_namespace=namespace,
        refused=files.refused,
        cache=cache,
    )
    if result.snapshot is None:
        told = "\n".join(line for problem in result.errors for line in problem_lines(problem, files.contents))
        raise Failed(f"{files.revision} is invalid:\n{told}", code=Exit.NO)
    return result.snapshot


def live_snapshot(session: Session) -> Snapshot:
    answer = session.client().get("/v1/snapshot", which="stable")
    blobs = {digest: msgspec.json.encode(body) for digest, body in answer["blobs"].items()}
    return memory.recall(answer["digest"], blobs)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """While many documents are read, which are all kept: looking for garbage among them takes a tenth of the time, and at the
    end of the process as much again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def load(session: Session, where: Where) -> tuple[World, str]:
    """The compiled world, and the namespace of names without one. Raises Failed."""
    with without_collector():
        return _load(session, where)


def _load(session: Session, where: Where) -> tuple[World, str]:
    known = registry_of(session, where.workloads, where.registry)
    namespace = where.namespace or known.namespace
    if where.live:
        snapshot = live_snapshot(session)
    else:
        files = read_revision(where.folder, where.at) if where.at else read_folder(where.folder)
        snapshot = snapshot_of(files, known.registry, namespace)
    return world(settled(session, snapshot, known.registry), known.registry), namespace


def settled(session: Session, snapshot: Snapshot, registry: Registry) -> Snapshot:
    """Without the documents that wait for something the registry does not have: they do nothing yet, and it is said."""
    waiting = {problem.document: problem for problem in rules.waiting(tuple(snapshot.documents.values()), registry)}
    for problem in waiting.values():
        session.say(f"waits, and is left out: {problem}")
    left: Mapping[str, Any] = {key: item for key, item in snapshot.documents.items() if key not in waiting}
    return Snapshot(revision=snapshot.revision, documents=left)


def workload_named(name: str, registry: Registry, namespace: str) -> Workload:
    """`sa-webapp`, `shop/sa-webapp`. Raises Failed, with what was probably meant."""
    for key in (name, f"{namespace}/{name}"):
        if key in registry.workloads:
            return registry.workloads[key]
    same = [item for item in registry.workloads.values() if item.name == name]
    if len(same) == 1:
        return same[0]
    if same:
        names = ", ".join(sorted(item.key for item in same))
        raise Failed(f"{name!r} may be any of {names}", hint="say the full name")
    near = did_you_mean(name, (*registry.workloads, *(item.name for item in registry.workloads.values())))
    raise Failed(f"no workload {name!r}{near}", hint=f"known: {_some(registry)}", code=Exit.NO)


def _some(registry: Registry) -> str:
    names = sorted(registry.workloads)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"
