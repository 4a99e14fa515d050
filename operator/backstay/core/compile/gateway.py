"""Gateways and the Routes that hold there -> what a gateway workload listens on, and the rules of each host.

Where a Route holds is decided here once, for validation and compilation alike: a host that a Route and a listener have in
common, as in Gateway API, the narrower of the two.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from backstay.config import model
from backstay.config.match import narrower
from backstay.core import intents
from backstay.core.registry import Registry, Workload
from backstay.core.snapshot import Document

_PROTOCOLS: Final[Mapping[str, Literal["http", "https", "tls"]]] = {"HTTP": "http", "HTTPS": "https", "TLS": "tls"}
EVERY_HOST: Final = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A Route at one host of one listener."""

    gateway: Document
    listener: intents.GatewayListener
    host: str
    parent: int
    """Index of the parentRef."""
    asked: int
    """Index of the Route's host."""


def is_for_mesh(spec: intents.RouteSpec) -> bool:
    """Whether callers' proxies go by the Route."""
    return not spec.parent_refs or any(ref.kind == "Mesh" for ref in spec.parent_refs)


def key_of(gateway: Document) -> str:
    return f"{gateway.metadata.namespace}/{gateway.metadata.name}"


def parent_key(ref: intents.ParentRef, route: Document) -> str:
    return f"{ref.namespace or route.metadata.namespace}/{ref.name}"


def attachments(route: Document, gateways: Mapping[str, Document]) -> Iterator[Attachment]:
    """Everywhere a Route holds at gateways; nothing for parents that are not there."""
    spec = route.spec
    if not isinstance(spec, intents.RouteSpec):
        return
    for parent, ref in enumerate(spec.parent_refs):
        gateway = gateways.get(parent_key(ref, route)) if ref.kind == "Gateway" else None
        if gateway is not None:
            yield from _at(gateway, ref, parent, spec.hosts)


def _at(gateway: Document, ref: intents.ParentRef, parent: int, hosts: Sequence[str]) -> Iterator[Attachment]:
    for listener in listeners_of(gateway):
        if ref.section_name in (None, listener.name):
            for asked, host in enumerate(hosts):
                for common in dict.fromkeys(narrower(own, host) for own in listener.hosts or EVERY_HOST):
                    if common is not None:
                        yield Attachment(gateway=gateway, listener=listener, host=common, parent=parent, asked=asked)


def listeners_of(gateway: Document) -> tuple[intents.GatewayListener, ...]:
    return gateway.spec.listeners if isinstance(gateway.spec, intents.GatewaySpec) else ()


def routes_at(gateway: Document, routes: Iterable[Document]) -> dict[tuple[str, int], Document]:
    """(host, port) -> the Route for it. Where two claim one (validation says so) the first by name has it."""
    found: dict[tuple[str, int], Document] = {}
    gateways = {key_of(gateway): gateway}
    for route in sorted(routes, key=lambda route: route.key):
        for item in attachments(route, gateways):
            found.setdefault((item.host, item.listener.port), route)
    return found


def listener_parts(gateways: Iterable[Document]) -> tuple[model.GatewayListener, ...]:
    return tuple(_listener(gateway, listener) for gateway in gateways for listener in listeners_of(gateway))


def _listener(gateway: Document, spec: intents.GatewayListener) -> model.GatewayListener:
    tls = spec.tls or intents.GatewayTls()
    return model.GatewayListener(
        name=f"{key_of(gateway)}/{spec.name}",
        port=spec.port,
        protocol=_PROTOCOLS[spec.protocol],
        hosts=tuple(sorted(spec.hosts)) or EVERY_HOST,
        secret=f"{gateway.metadata.namespace}/{tls.secret_ref.name}" if tls.secret_ref else "",
        min_tls=tls.min_version,
        redirect_port=_https_port(gateway) if spec.redirect_to_https else 0,
    )


def _https_port(gateway: Document) -> int:
    return next((item.port for item in listeners_of(gateway) if item.protocol == "HTTPS"), 443)


def secrets_of(documents: Iterable[Document], registry: Registry) -> dict[str, frozenset[str]]:
    """Workload -> names (`<namespace>/<name>`) of the secrets that its gateways show. Nobody else is sent them."""
    wanted: dict[str, set[str]] = {}
    for document in documents:
        if isinstance(document.spec, intents.GatewaySpec):
            names = {item.secret for item in listener_parts((document,)) if item.secret}
            for workload in registry.workloads.values():
                if selected(document, workload):
                    wanted.setdefault(workload.key, set()).update(names)
    return {workload: frozenset(names) for workload, names in wanted.items() if names}


def selected(gateway: Document, workload: Workload) -> bool:
    """Whether the workload opens this gateway's ports: one of those it names, else every gateway of its namespace."""
    spec = gateway.spec
    if not isinstance(spec, intents.GatewaySpec) or workload.namespace != gateway.metadata.namespace:
        return False
    return workload.name in spec.selector.workloads or (workload.is_gateway and not spec.selector.workloads)
