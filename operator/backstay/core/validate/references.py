"""Rules about names: documents said twice, and things a document names that another one or the registry must have.

What no document could mend is an error; what the registry may still bring is WAITING (`ServiceNotFound`,
`WorkloadNotFound`); a subset without instances is only a warning, because evidence decides about it.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Final

from backstay.core.compile.facts import DEFAULT_HTTP_PORT, default_port
from backstay.core.compile.gateway import is_for_mesh
from backstay.core.intents import (
    AuthenticationSpec,
    AuthorizationSpec,
    BackendSpec,
    GatewaySpec,
    MeshSpec,
    RouteSpec,
    ServiceRef,
    WorkloadSelector,
)
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry, Service, Workload
from backstay.core.snapshot import Document
from backstay.core.suggest import NAMES, did_you_mean
from backstay.core.validate.facts import Facts, problem, service_key

# --- said twice -------------------------------------------------------------------------------------------------------


def duplicate_documents(facts: Facts) -> Iterator[Problem]:
    first: dict[str, Document] = {}
    for document in facts.documents:
        earlier = first.setdefault(document.key, document)
        if earlier is not document:
            message = f"{document.key} is already defined in {earlier.place('metadata.name')}, expected it once"
            yield problem(document, "metadata.name", "DuplicateDocument", message)


def several_meshes(facts: Facts) -> Iterator[Problem]:
    for document, _ in facts.of(MeshSpec):
        if facts.mesh_document is not None and document.key != facts.mesh_document.key:
            message = (
                f"a second Mesh, expected at most one; the first is in {facts.mesh_document.place('metadata.name')}"
            )
            yield problem(document, "metadata.name", "SeveralMeshes", message)


def conflicting_hosts(facts: Facts) -> Iterator[Problem]:
    namespaces = _namespaces(facts.registry) if facts.registry else frozenset()
    first: dict[tuple[str, int | None], tuple[Document, str]] = {}
    for document, spec in facts.of(RouteSpec):
        for index, host in enumerate(spec.hosts if is_for_mesh(spec) else ()):
            path = f"spec.hosts[{index}]"
            is_own = facts.registry is not None and not _means_a_service(host, namespaces)
            key = (service_key(host, document), spec.port or (DEFAULT_HTTP_PORT if is_own else None))
            earlier, place = first.setdefault(key, (document, path))
            if (earlier, place) != (document, path):
                where = f"port {key[1]} of host {key[0]!r}" if key[1] else f"host {key[0]!r}"
                message = f"{where} is already routed in {earlier.place(place)}, expected one Route for it"
                yield problem(document, path, "ConflictingHosts", message)


def conflicting_backends(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        service = service_key(spec.service, document)
        earlier = facts.backends[service]
        if earlier.key != document.key:
            message = f"service {service!r} already has a Backend in {earlier.place('spec.service')}, expected one"
            yield problem(document, "spec.service", "ConflictingBackends", message)


def duplicate_subsets(facts: Facts) -> Iterator[Problem]:
    for document, spec in facts.of(BackendSpec):
        names: dict[str, int] = {}
        for index, subset in enumerate(spec.subsets):
            earlier = names.setdefault(subset.name, index)
            if earlier != index:
                line = document.place(f"spec.subsets[{earlier}]")
                message = f"subset {subset.name!r} is already defined in {line}, expected it once"
                yield problem(document, f"spec.subsets[{index}].name", "DuplicateSubset", message)


# --- named, and defined by another document ---------------------------------------------------------------------------


def unknown_subsets(facts: Facts) -> Iterator[Problem]:
    for document, _, path, ref in facts.refs:
        if ref.subset is not None:
            message = _unknown_subset(facts, service_key(ref.name, document), ref.subset)
            if message:
                yield problem(document, f"{path}.subset", "UnknownSubset", message)


def _unknown_subset(facts: Facts, service: str, subset: str) -> str:
    backend = facts.backends.get(service)
    if backend is None:
        missing = f"subset {subset!r} is not defined, expected a Backend of service {service!r} that defines it"
        return missing if facts.is_complete else ""
    names = [known.name for known in backend.spec.subsets] if isinstance(backend.spec, BackendSpec) else []
    if subset in names:
        return ""
    expected = f"one of {', '.join(names)}" if names else "it to be defined there"
    place = backend.place("spec.subsets")
    return f"subset {subset!r} is not defined in {place}, expected {expected}{did_you_mean(subset, names, NAMES)}"


# --- named, and the registry must have it -----------------------------------------------------------------------------


def services_not_there(facts: Facts) -> Iterator[Problem]:
    if facts.registry is None:
        return
    known = {**facts.externals, **facts.registry.services}
    hints: dict[str, str] = {}
    for document, path, name in _service_names(facts, facts.registry):
        key = service_key(name, document)
        if key not in known:
            if key not in hints:
                hints[key] = did_you_mean(key, known, NAMES) if len(hints) < _MOST_HINTS else ""
            message = f"service {key!r} is not there yet, the document waits for it{hints[key]}"
            yield problem(document, path, "ServiceNotFound", message, Severity.WAITING)


_MOST_HINTS: Final = 10  # a registry that lacks more was not mistyped, and each hint compares with every service


def _service_names(facts: Facts, registry: Registry) -> Iterator[tuple[Document, str, str]]:
    for document, _, path, ref in facts.refs:
        yield document, f"{path}.name", ref.name
    for document, backend in facts.of(BackendSpec):
        yield document, "spec.service", backend.service
    namespaces = _namespaces(registry)
    for document, route in facts.of(RouteSpec):
        for index, host in enumerate(route.hosts if is_for_mesh(route) else ()):
            if _means_a_service(host, namespaces):
                yield document, f"spec.hosts[{index}]", host


def _namespaces(registry: Registry) -> frozenset[str]:
    return frozenset(service.namespace for service in registry.services.values())


def _means_a_service(host: str, namespaces: Set[str]) -> bool:
    """A name without dots, or `name.namespace` of a namespace that has services; any other host is the user's own."""
    name, dot, rest = host.partition(".")
    return name != "*" and (not dot or rest in namespaces)


def unknown_ports(facts: Facts) -> Iterator[Problem]:
    for document, spec, path, ref in facts.refs:
        service = facts.service(ref.name, document)
        if service is None:
            continue
        at, why, wanted = _wanted_ports(facts, document, spec, path, ref)
        has = _ports(service)
        for port in sorted(wanted - set(has)):
            message = f"service {service.key!r} has no port {port}{why}, expected {_one_of(has)}"
            yield problem(document, at, "UnknownPort", message)
    for document, spec in facts.of(RouteSpec):
        yield from _missing_host_port(facts, document, spec)


def _wanted_ports(
    facts: Facts, document: Document, spec: RouteSpec, path: str, ref: ServiceRef
) -> tuple[str, str, set[int]]:
    """Where a backendRef says which ports it needs, in which words, and which."""
    if ref.port is not None:
        return f"{path}.port", "", {ref.port}
    if not is_for_mesh(spec):
        service = facts.service(ref.name, document)
        return f"{path}.port", " (left out: the service's only one, or 80)", {default_port(service)}
    if spec.port is not None:
        return f"{path}.name", " (the route's port)", {spec.port}
    return f"{path}.name", " (a port of the route's host)", _http_ports_of_hosts(facts, document, spec)


def _http_ports_of_hosts(facts: Facts, document: Document, spec: RouteSpec) -> set[int]:
    hosts = (facts.service(host, document) for host in spec.hosts)
    return {port.port for host in hosts if host for port in host.ports if port.protocol == "http"}


def _missing_host_port(facts: Facts, document: Document, spec: RouteSpec) -> Iterator[Problem]:
    for host in spec.hosts:
        service = facts.service(host, document)
        if service is not None and spec.port is not None and spec.port not in _ports(service):
            message = f"host {service.key!r} has no port {spec.port}, expected {_one_of(_ports(service))}"
            yield problem(document, "spec.port", "UnknownPort", message)


def _ports(service: Service) -> list[int]:
    return [port.port for port in service.ports]


def _one_of(ports: Iterable[int]) -> str:
    known = ", ".join(str(port) for port in sorted(ports))
    return f"one of {known}" if "," in known else known or "a service with ports"


def ports_not_http(facts: Facts) -> Iterator[Problem]:
    for document, spec, path, ref in facts.refs:
        wanted = ref.port or spec.port
        service = facts.service(ref.name, document)
        if service and any(port.port == wanted and port.protocol != "http" for port in service.ports):
            at = f"{path}.port" if ref.port else f"{path}.name"
            message = (
                f"port {wanted} of service {service.key!r} is not HTTP, expected an HTTP port: Routes are for HTTP"
            )
            yield problem(document, at, "PortNotHttp", message)


def empty_subsets(facts: Facts) -> Iterator[Problem]:
    if facts.registry is None:
        return
    labels_of = _labels_by_service(facts.registry)
    for document, spec in facts.of(BackendSpec):
        instances = labels_of.get(service_key(spec.service, document), [])
        for index, subset in enumerate(spec.subsets):
            if instances and not any(_carries(labels, subset.labels) for labels in instances):
                message = (
                    f"no instance of {service_key(spec.service, document)!r} carries {_labels(subset.labels)}, "
                    f"requests to subset {subset.name!r} would find nobody; {_seen(instances, subset.labels)}"
                )
                path = f"spec.subsets[{index}].labels"
                yield problem(document, path, "SubsetSelectsNothing", message, Severity.WARNING)


def _labels_by_service(registry: Registry) -> dict[str, list[Mapping[str, str]]]:
    """Labels of the instances behind every service, in one pass over the registry."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for instance in registry.instances.values():
        workload = registry.workloads.get(instance.workload)
        for service in workload.services if workload is not None else ():
            found.setdefault(service, []).append(instance.labels)
    return found


def _carries(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


_SHOWN: Final = 5  # enough to see the typing mistake


def _seen(instances: Iterable[Mapping[str, str]], wanted: Mapping[str, str]) -> str:
    """What instances carry for the same keys."""
    seen = sorted({f"{key}={labels[key]}" for labels in instances for key in wanted if key in labels})
    return f"they carry {', '.join(seen[:_SHOWN])}" if seen else f"none carries {' or '.join(sorted(wanted))}"


def workloads_not_there(facts: Facts) -> Iterator[Problem]:
    if facts.registry is None:
        return
    for document, selector in _selectors(facts):
        namespace = document.metadata.namespace
        known = [w.name for w in facts.registry.workloads.values() if w.namespace == namespace]
        for index, name in enumerate(selector.workloads):
            if name not in known:
                hint = did_you_mean(name, known, NAMES)
                message = f"workload {f'{namespace}/{name}'!r} is not there yet, the document waits for it{hint}"
                path = f"spec.selector.workloads[{index}]"
                yield problem(document, path, "WorkloadNotFound", message, Severity.WAITING)


def _selectors(facts: Facts) -> Iterator[tuple[Document, WorkloadSelector]]:
    for document in facts.documents:
        if isinstance(document.spec, AuthenticationSpec | AuthorizationSpec | GatewaySpec):
            yield document, document.spec.selector


def ports_not_served(facts: Facts) -> Iterator[Problem]:
    if facts.registry is None:
        return
    for document, selector in _selectors(facts):
        served = _served_ports(facts.registry, document, selector)
        for path, port in _named_ports(document):
            if served and port not in served:
                message = f"no selected workload serves port {port}, expected {_one_of(served)}"
                yield problem(document, path, "PortNotServed", message, Severity.WARNING)


def _served_ports(registry: Registry, document: Document, selector: WorkloadSelector) -> set[int]:
    def is_selected(workload: Workload) -> bool:
        named = not selector.workloads or workload.name in selector.workloads
        return named and workload.namespace == document.metadata.namespace

    return {port for workload in registry.workloads.values() if is_selected(workload) for port, _ in workload.ports}


def _named_ports(document: Document) -> Iterator[tuple[str, int]]:
    if isinstance(document.spec, AuthenticationSpec):
        for index, item in enumerate(document.spec.mtls.ports):
            yield f"spec.mtls.ports[{index}].port", item.port
    elif isinstance(document.spec, AuthorizationSpec):
        for number, rule in enumerate(document.spec.rules):
            for index, operation in enumerate(rule.to):
                for place, port in enumerate(operation.ports):
                    yield f"spec.rules[{number}].to[{index}].ports[{place}]", port
