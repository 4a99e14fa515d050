"""What one compilation knows: its documents and services by what they are about, and the hosts that need routes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backstay.core import intents
from backstay.core.compile.gateway import routes_at
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

    gateway: bool = False
    """At a gateway's port, not in the mesh."""
    services: Mapping[str, Service] = field(default_factory=dict, repr=False)

    @property
    def spec(self) -> intents.RouteSpec | None:
        return self.document.spec if self.document and isinstance(self.document.spec, intents.RouteSpec) else None

    @property
    def namespace(self) -> str:
        return self.document.metadata.namespace if self.document else ""

    @property
    def key(self) -> str:
        return f"{'gateway' if self.gateway else 'routes'}/{self.host}:{self.port}"

    def backends(self) -> tuple[str, ...]:
        """`service:port` of every backend its rules may choose, and of those that get copies."""
        if self.spec is None:
            return (f"{self.host}:{self.port}",)
        refs = (ref for rule in self.spec.rules for _, ref in intents.service_refs(rule))
        return tuple(self.backend_name(ref) for ref in refs)

    def backend_name(self, ref: intents.ServiceRef) -> str:
        service = qualify(ref.name, self.namespace)
        return f"{service}:{ref.port or self._default_port(service)}"

    def _default_port(self, service: str) -> int:
        """In the mesh the port that the caller asked for; a gateway's port says nothing about the service's."""
        if not self.gateway:
            return self.port
        return default_port(self.services.get(service))


def default_port(service: Service | None) -> int:
    """The only port of a service, or 80."""
    ports = [port.port for port in service.ports] if service else []
    return ports[0] if len(ports) == 1 else DEFAULT_HTTP_PORT


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
    gateways: Mapping[str, tuple[Document, ...]]
    """Workload -> the Gateways whose ports it opens."""
    attached: tuple[Document, ...]
    """Routes that hold at gateways."""
    externals: Mapping[str, Document] = field(default_factory=dict)
    """Host outside of the mesh -> its ExternalService; they are among `services`."""
    egress_hosts: tuple[str, ...] = ()

    def ingress(self, workload: str) -> Iterator[Routed]:
        """Every (host, port) that a gateway workload gets a routes part for."""
        for gateway in self.gateways.get(workload, ()):
            for (host, port), document in routes_at(gateway, self.attached).items():
                yield Routed(host=host, port=port, document=document, gateway=True, services=self.services)

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
