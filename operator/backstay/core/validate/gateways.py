"""Rules about Gateways, and about the Routes that hold there."""

from collections.abc import Iterator, Mapping
from typing import Final

from backstay.core.compile.gateway import (
    EVERY_HOST,
    Attachment,
    attachments,
    is_for_mesh,
    key_of,
    listeners_of,
    parent_key,
    selected,
)
from backstay.core.intents import GatewayListener, GatewaySpec, RouteSpec
from backstay.core.problems import Problem, Severity
from backstay.core.snapshot import Document
from backstay.core.suggest import NAMES, did_you_mean
from backstay.core.validate.facts import Facts, problem


def _gateways(facts: Facts) -> Mapping[str, Document]:
    return {key_of(document): document for document, _ in facts.of(GatewaySpec)}


def _listeners(facts: Facts) -> Iterator[tuple[Document, str, GatewayListener]]:
    for document, spec in facts.of(GatewaySpec):
        for index, listener in enumerate(spec.listeners):
            yield document, f"spec.listeners[{index}]", listener


# --- listeners --------------------------------------------------------------------------------------------------------


def listener_names(facts: Facts) -> Iterator[Problem]:
    first: dict[tuple[str, str], str] = {}
    for document, path, listener in _listeners(facts):
        earlier = first.setdefault((document.key, listener.name), path)
        if earlier != path:
            message = (
                f"the listener in {document.place(earlier)} is called {listener.name!r} too, expected another name"
            )
            yield problem(document, f"{path}.name", "DuplicateListener", message)


def listener_ports(facts: Facts) -> Iterator[Problem]:
    """HTTP, HTTPS and passed-through TLS are told apart by port only."""
    first: dict[tuple[str, int], tuple[str, GatewayListener]] = {}
    for document, path, listener in _listeners(facts):
        place, earlier = first.setdefault((document.key, listener.port), (path, listener))
        if earlier.protocol != listener.protocol:
            message = (
                f"port {listener.port} is {earlier.protocol} in {document.place(place)}, "
                f"expected one protocol for a port, not {listener.protocol} as well"
            )
            yield problem(document, f"{path}.protocol", "ListenerPortTaken", message)
        if listener.port in RESERVED_PORTS:
            message = f"port {listener.port} is the proxy's own, expected another one"
            yield problem(document, f"{path}.port", "ListenerPortTaken", message)


RESERVED_PORTS: Final = frozenset((15000, 15001, 15006, 15021, 15090))
"""Admin, outbound, inbound, health and Prometheus of every proxy, as in Istio."""


def listener_hosts(facts: Facts) -> Iterator[Problem]:
    first: dict[tuple[str, int, str], str] = {}
    for document, path, listener in _listeners(facts):
        for index, host in enumerate(listener.hosts or EVERY_HOST):
            at = f"{path}.hosts[{index}]"
            earlier = first.setdefault((document.key, listener.port, host), at)
            if earlier != at:
                message = f"host {host!r} of port {listener.port} is already served in {document.place(earlier)}, expected it once"
                yield problem(document, at, "DuplicateListenerHost", message)


def listener_tls(facts: Facts) -> Iterator[Problem]:
    for document, path, listener in _listeners(facts):
        if listener.protocol == "HTTPS" and (listener.tls is None or listener.tls.secret_ref is None):
            message = "HTTPS without `tls.secretRef`, expected the name of a certificate and its key"
            yield problem(document, path, "ListenerTls", message)
        elif listener.protocol != "HTTPS" and listener.tls is not None:
            message = f"`tls` means nothing with protocol {listener.protocol}, expected it to be left out"
            yield problem(document, f"{path}.tls", "ListenerTls", message)


def redirects_to_nowhere(facts: Facts) -> Iterator[Problem]:
    for document, path, listener in _listeners(facts):
        if not listener.redirect_to_https:
            continue
        if listener.protocol != "HTTP":
            message = f"a listener of protocol {listener.protocol} has nothing to redirect, expected HTTP"
            yield problem(document, f"{path}.redirectToHttps", "ListenerTls", message)
        elif all(other.protocol != "HTTPS" for other in listeners_of(document)):
            message = "no listener of this Gateway speaks HTTPS, expected one to redirect to"
            yield problem(document, f"{path}.redirectToHttps", "ListenerTls", message)


def shared_ports(facts: Facts) -> Iterator[Problem]:
    """Two Gateways whose selectors name the same workload, and that both want a port of it."""
    known = [(document, spec) for document, spec in facts.of(GatewaySpec)]
    for number, (document, spec) in enumerate(known):
        for earlier, other in known[:number]:
            if document.metadata.namespace != earlier.metadata.namespace or not _share(spec, other):
                continue
            taken = {listener.port for listener in other.listeners}
            for index, listener in enumerate(spec.listeners):
                if listener.port in taken:
                    place = earlier.place("spec.listeners")
                    message = (
                        f"{earlier.key} in {place} has port {listener.port} of the same workload, expected another"
                    )
                    yield problem(document, f"spec.listeners[{index}].port", "ListenerPortTaken", message)


def _share(one: GatewaySpec, other: GatewaySpec) -> bool:
    names = set(one.selector.workloads), set(other.selector.workloads)
    return bool(names[0] & names[1]) or names == (set(), set())


def selected_workloads(facts: Facts) -> Iterator[Problem]:
    if facts.registry is None:
        return
    for document, spec in facts.of(GatewaySpec):
        chosen = [w for w in facts.registry.workloads.values() if selected(document, w)]
        for index, name in enumerate(spec.selector.workloads):
            workload = next((w for w in chosen if w.name == name), None)
            if workload is not None and not workload.is_gateway:
                message = f"workload {workload.key!r} is no gateway: its proxy has no ports for callers from outside"
                path = f"spec.selector.workloads[{index}]"
                yield problem(document, path, "NotAGateway", message, Severity.WARNING)
        if not chosen and not spec.selector.workloads:
            message = f"namespace {document.metadata.namespace!r} has no gateway workload, nobody opens these ports"
            yield problem(document, "spec.listeners", "NotAGateway", message, Severity.WARNING)


# --- Routes that hold there -------------------------------------------------------------------------------------------


def parent_names(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(RouteSpec):
        for index, ref in enumerate(spec.parent_refs):
            path = f"spec.parentRefs[{index}]"
            if ref.kind == "Gateway" and ref.name is None:
                yield problem(document, path, "MissingField", "`name` is missing, expected it here")
            elif ref.kind == "Mesh" and (ref.name or ref.namespace or ref.section_name):
                message = "`kind: Mesh` beside a name, expected nothing else: there is one mesh"
                yield problem(document, path, "UnknownGateway", message)


def unknown_gateways(facts: Facts) -> Iterator[Problem]:
    gateways = _gateways(facts)
    for document, spec in facts.of(RouteSpec):
        for index, ref in enumerate(spec.parent_refs):
            if ref.kind != "Gateway" or ref.name is None:
                continue
            path, gateway = f"spec.parentRefs[{index}]", gateways.get(parent_key(ref, document))
            if gateway is None:
                if facts.is_complete:
                    hint = did_you_mean(parent_key(ref, document), gateways, NAMES)
                    message = (
                        f"Gateway {parent_key(ref, document)!r} is not defined, expected a document that defines it"
                    )
                    yield problem(document, f"{path}.name", "UnknownGateway", message + hint)
                continue
            names = [listener.name for listener in listeners_of(gateway)]
            if ref.section_name is not None and ref.section_name not in names:
                message = f"{gateway.key} has no listener {ref.section_name!r}, expected one of {', '.join(names)}"
                yield problem(document, f"{path}.sectionName", "UnknownGateway", message)


def _attached(facts: Facts) -> Iterator[tuple[Document, Attachment]]:
    gateways = _gateways(facts)
    for document, _ in facts.of(RouteSpec):
        for item in attachments(document, gateways):
            yield document, item


def hosts_not_served(facts: Facts) -> Iterator[Problem]:
    """Every host must be served by some listener that the Route names; a Route that is for the mesh as well may have more."""
    gateways = _gateways(facts)
    for document, spec in facts.of(RouteSpec):
        if is_for_mesh(spec) or any(parent_key(ref, document) not in gateways for ref in spec.parent_refs):
            continue
        served = {item.asked for item in attachments(document, gateways)}
        for index, host in enumerate(spec.hosts):
            if index not in served:
                message = f"no listener of {_parents(document, spec)} serves {host!r}, expected one of its hosts"
                yield problem(document, f"spec.hosts[{index}]", "HostNotServed", message)


def _parents(document: Document, spec: RouteSpec) -> str:
    return ", ".join(f"Gateway {parent_key(ref, document)!r}" for ref in spec.parent_refs)


def conflicting_routes(facts: Facts) -> Iterator[Problem]:
    first: dict[tuple[str, int, str], tuple[Document, int]] = {}
    for document, item in _attached(facts):
        key = (key_of(item.gateway), item.listener.port, item.host)
        earlier, asked = first.setdefault(key, (document, item.asked))
        if earlier is not document:
            place = earlier.place(f"spec.hosts[{asked}]")
            message = (
                f"host {item.host!r} at port {item.listener.port} of {item.gateway.key} is already routed in {place}, "
                "expected one Route for it"
            )
            yield problem(document, f"spec.hosts[{item.asked}]", "ConflictingHosts", message)


def passthrough_routes(facts: Facts) -> Iterator[Problem]:
    """Nothing of a connection that is passed through can be read, so only whole ones can be sent somewhere."""
    seen = set()
    for document, item in _attached(facts):
        if item.listener.protocol != "TLS" or document.key in seen or not isinstance(document.spec, RouteSpec):
            continue
        seen.add(document.key)
        for number, rule in enumerate(document.spec.rules):
            if rule.matches or rule.filters or rule.retry or rule.fault or rule.session_persistence:
                message = (
                    f"{item.gateway.key} passes TLS through at port {item.listener.port}, expected `backendRefs` only"
                )
                yield problem(document, f"spec.rules[{number}]", "PassthroughRule", message)
