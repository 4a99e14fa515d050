"""The documents and services of one compilation, looked up by what they are about."""

import msgspec

from backstay.config.model import digest_of
from backstay.core.compile.facts import Index
from backstay.core.compile.gateway import is_for_mesh, selected
from backstay.core.externals import external_services, let_out
from backstay.core.intents import (
    AuthenticationSpec,
    AuthorizationSpec,
    BackendSpec,
    GatewaySpec,
    RouteSpec,
    WorkloadSelector,
)
from backstay.core.registry import Registry, Workload, qualify
from backstay.core.snapshot import Document, Snapshot


def index(snapshot: Snapshot, registry: Registry) -> Index:
    mesh_document = next((d for d in snapshot.documents.values() if d.kind == "Mesh"), None)
    mesh = snapshot.mesh
    traffic = msgspec.structs.replace(mesh, rollout=type(mesh.rollout)())
    documents = sorted(snapshot.documents.values(), key=lambda document: document.key)
    externals = external_services(documents)
    outside = {host: service for host, (service, _) in sorted(externals.items())}
    return Index(
        mesh=mesh,
        mesh_document=mesh_document,
        mesh_digest=digest_of(msgspec.json.encode(traffic, order="sorted")),
        services={**outside, **dict(sorted(registry.services.items()))},
        externals={host: document for host, (_, document) in externals.items() if host not in registry.services},
        egress_hosts=let_out(documents),
        routes=_routes(documents),
        backends={
            qualify(d.spec.service, d.metadata.namespace): d for d in documents if isinstance(d.spec, BackendSpec)
        },
        authentication=_authentication(documents, registry),
        gateways=_gateways(documents, registry),
        attached=tuple(d for d in documents if isinstance(d.spec, RouteSpec) and d.spec.parent_refs),
        authorization=_authorization(documents, registry),
    )


def _routes(documents: list[Document]) -> dict[tuple[str, int], Document]:
    routes = {}
    for document in documents:
        if isinstance(document.spec, RouteSpec) and is_for_mesh(document.spec):
            for host in document.spec.hosts:
                routes[(qualify(host, document.metadata.namespace), document.spec.port or 0)] = document
    return routes


def _gateways(documents: list[Document], registry: Registry) -> dict[str, tuple[Document, ...]]:
    gateways = [document for document in documents if isinstance(document.spec, GatewaySpec)]
    found = {w.key: tuple(g for g in gateways if selected(g, w)) for w in registry.workloads.values()}
    return {workload: chosen for workload, chosen in found.items() if chosen}


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


def _authorization(documents: list[Document], registry: Registry) -> dict[str, tuple[Document, ...]]:
    policies = [(d, d.spec.selector) for d in documents if isinstance(d.spec, AuthorizationSpec)]
    return {
        workload.key: tuple(d for d, selector in policies if selects(selector, d.metadata.namespace, workload))
        for workload in registry.workloads.values()
    }
