"""What one compilation knows: its documents and services by what they are about, and the hosts that need routes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from backstay.core import intents
from backstay.core.intents import MeshSpec
from backstay.core.registry import Service, qualify
from backstay.core.snapshot import Document

DEFAULT_HTTP_PORT: Final = 80
"""Port of a route whose host is no service and which names none: what a URL without a port means (RFC 9110 4.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """A host and port that needs a routes part, and the Route that says how, if one does."""

    host: str
    port: int
    document: Document | None

    @property
    def spec(self) -> intents.RouteSpec | None:
        return self.document.spec if self.document and isinstance(self.document.spec, intents.RouteSpec) else None

    def backends(self) -> tuple[str, ...]:
        """`service:port` of every backend its rules may choose."""
        if self.spec is None or self.document is None:
            return (f"{self.host}:{self.port}",)
        namespace = self.document.metadata.namespace
        return tuple(
            f"{qualify(ref.name, namespace)}:{ref.port or self.port}"
            for rule in self.spec.rules
            for _, ref in intents.service_refs(rule)
        )


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
