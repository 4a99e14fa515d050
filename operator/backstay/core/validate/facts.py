"""What the rules look at: the documents of a commit by what they are about, and the registry where there is one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from backstay.core.externals import external_services
from backstay.core.intents import BackendSpec, MeshSpec, RouteRule, RouteSpec, ServiceRef, service_refs
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry, Service, qualify
from backstay.core.snapshot import Document, Position

SpecT = TypeVar("SpecT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    documents: Sequence[Document]
    registry: Registry | None
    is_complete: bool
    """False when a file or a document could not be read: what seems to be missing may be in there."""
    mesh: MeshSpec
    mesh_document: Document | None
    backends: Mapping[str, Document]
    """Service -> its Backend; the first where there are several."""
    externals: Mapping[str, Service]
    """Hosts outside of the mesh that callers may ask for by HTTP."""
    by_type: Mapping[type, Sequence[Document]]
    """Sorted out once: there are three dozen rules, and each wants one kind."""
    route_rules: Sequence[tuple[Document, str, RouteRule]]
    """Every rule of every Route, with its path: put together once, because most rules of a commit look at them."""
    refs: Sequence[tuple[Document, RouteSpec, str, ServiceRef]]
    """Every service that a Route names as backend or mirror, with its path."""

    def of(self, spec_type: type[SpecT]) -> Iterator[tuple[Document, SpecT]]:
        """Documents of one kind with their specs."""
        for found, documents in self.by_type.items():
            if not issubclass(found, spec_type):
                continue
            for document in documents:
                if isinstance(document.spec, spec_type):  # for the type checker: they all are
                    yield document, document.spec

    def service(self, name: str, document: Document) -> Service | None:
        """The service a name in this document means, if the registry has it, or an ExternalService does."""
        key = service_key(name, document)
        return (self.registry.services.get(key) or self.externals.get(key)) if self.registry else None


Rule: TypeAlias = Callable[[Facts], Iterable[Problem]]


def gather(documents: Sequence[Document], registry: Registry | None, *, is_complete: bool) -> Facts:
    backends: dict[str, Document] = {}
    by_type: dict[type, list[Document]] = {}
    mesh_document = None
    for document in documents:
        by_type.setdefault(type(document.spec), []).append(document)
        if isinstance(document.spec, BackendSpec):
            backends.setdefault(service_key(document.spec.service, document), document)
        elif isinstance(document.spec, MeshSpec) and mesh_document is None:
            mesh_document = document
    mesh = mesh_document.spec if mesh_document and isinstance(mesh_document.spec, MeshSpec) else MeshSpec()
    routes = [(item, item.spec) for item in by_type.get(RouteSpec, ()) if isinstance(item.spec, RouteSpec)]
    return Facts(
        documents=documents,
        registry=registry,
        is_complete=is_complete,
        mesh=mesh,
        mesh_document=mesh_document,
        backends=backends,
        externals={host: service for host, (service, _) in external_services(documents).items()},
        by_type=by_type,
        route_rules=[
            (item, f"spec.rules[{number}]", rule) for item, spec in routes for number, rule in enumerate(spec.rules)
        ],
        refs=[
            (item, spec, f"spec.rules[{number}].{path}", ref)
            for item, spec in routes
            for number, rule in enumerate(spec.rules)
            for path, ref in service_refs(rule)
        ],
    )


def service_key(name: str, document: Document) -> str:
    return qualify(name, document.metadata.namespace)


def problem(document: Document, path: str, reason: str, message: str, severity: Severity = Severity.ERROR) -> Problem:
    """A problem at a path, or at the nearest parent that stands in the file (a default does not)."""
    line, column = position(document, path)
    return Problem(
        file=document.file,
        line=line,
        column=column,
        path=path,
        message=message,
        reason=reason,
        severity=severity,
        document=document.key,
    )


def position(document: Document, path: str) -> Position:
    while path not in document.positions and path:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return document.positions.get(path, (document.line, 1))
