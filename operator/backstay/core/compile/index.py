"""The documents and services of one compilation, looked up by what they are about."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from backstay.config.model import digest_of
from backstay.core.compile.outbound import Routed
from backstay.core.intents import (
    AuthenticationSpec,
    AuthorizationSpec,
    BackendSpec,
    MeshSpec,
    RouteSpec,
    WorkloadSelector,
)
from backstay.core.registry import Registry, Service, Workload
from backstay.core.snapshot import Document, Snapshot

DEFAULT_HTTP_PORT = 80
"""Port of a route whose host is no service and which names none: what a URL without a port means (RFC 9110 4.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    mesh: MeshSpec
    mesh_document: Document | None
    mesh_digest: str
    """Of what the Mesh says about traffic: its rollout settings change no config."""
    services: Mapping[str, Service]
    routes: Mapping[tuple[str, int], Document]
    """(host, port) -> Route; port 0 stands for every port the Route does not name."""
    backends: Mapping[str, Document]
    authentication: Mapping[str, Document]
    """Workload -> the one policy that selects it most closely."""
    authorization: Mapping[str, tuple[Document, ...]]

    def routed(self) -> Iterator[Routed]:
        """Every (host, port) that gets a routes part: HTTP ports of services, then hosts of the user's own."""
        for service in self.services.values():
            for port in service.ports:
                if port.protocol == "http":
                    document = self.routes.get((service.key, port.port)) or self.routes.get((service.key, 0))
                    yield Routed(host=service.key, port=port.port, document=document)
        for (host, wanted), document in self.routes.items():
            if host not in self.services:
                yield Routed(host=host, port=wanted or DEFAULT_HTTP_PORT, document=document)


def qualify(host: str, namespace: str) -> str:
    """`sa-logic` -> `sa-logic.shop`; a name with dots is what it is."""
    return host if "." in host else f"{host}.{namespace}"


def index(snapshot: Snapshot, registry: Registry) -> Index:
    mesh_document = next((d for d in snapshot.documents.values() if d.kind == "Mesh"), None)
    mesh = snapshot.mesh
    traffic = msgspec.structs.replace(mesh, rollout=type(mesh.rollout)())
    documents = sorted(snapshot.documents.values(), key=lambda document: document.key)
    return Index(
        mesh=mesh,
        mesh_document=mesh_document,
        mesh_digest=digest_of(msgspec.json.encode(traffic, order="sorted")),
        services=dict(sorted(registry.services.items())),
        routes=_routes(documents),
        backends={
            qualify(d.spec.service, d.metadata.namespace): d for d in documents if isinstance(d.spec, BackendSpec)
        },
        authentication=_authentication(documents, registry),
        authorization={w.key: _authorizations(documents, w) for w in registry.workloads.values()},
    )


def _routes(documents: list[Document]) -> dict[tuple[str, int], Document]:
    routes = {}
    for document in documents:
        if isinstance(document.spec, RouteSpec):
            for host in document.spec.hosts:
                routes[(qualify(host, document.metadata.namespace), document.spec.port or 0)] = document
    return routes


def selects(selector: WorkloadSelector, namespace: str, workload: Workload) -> bool:
    return workload.namespace == namespace and (not selector.workloads or workload.name in selector.workloads)


def _authentication(documents: list[Document], registry: Registry) -> dict[str, Document]:
    """A policy that names the workload beats one for the whole namespace (Istio's order: the narrower wins)."""
    found: dict[str, Document] = {}
    for document in documents:
        if not isinstance(document.spec, AuthenticationSpec):
            continue
        named = bool(document.spec.selector.workloads)
        for workload in registry.workloads.values():
            if selects(document.spec.selector, document.metadata.namespace, workload) and (
                named or workload.key not in found
            ):
                found[workload.key] = document
    return found


def _authorizations(documents: list[Document], workload: Workload) -> tuple[Document, ...]:
    return tuple(
        document
        for document in documents
        if isinstance(document.spec, AuthorizationSpec)
        and selects(document.spec.selector, document.metadata.namespace, workload)
    )
