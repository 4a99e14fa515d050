"""Facts of the API server's objects -> the core's Registry. Pure: no client, no clock.

Services are known by their EndpointSlices, never by their selectors: that is what kube-proxy follows as well.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from backstay.adapters.kubernetes.facts import (
    EndpointFacts,
    PodFacts,
    PortFacts,
    Protocol,
    ServiceFacts,
    SliceFacts,
    declared_protocol,
)
from backstay.core.registry import TEMPLATE, Instance, Registry, Service, ServicePort, Update, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the API server said, by `namespace/name`; nodes and namespaces by name."""

    pods: Mapping[str, PodFacts] = field(default_factory=dict)
    services: Mapping[str, ServiceFacts] = field(default_factory=dict)
    slices: Mapping[str, SliceFacts] = field(default_factory=dict)
    zones: Mapping[str, str] = field(default_factory=dict)
    """Node -> its zone."""


def build(facts: Facts, former: Iterable[Workload] = ()) -> Registry:
    """The registry these facts mean. `former` workloads have no pod at the moment and are kept all the same."""
    pods = {key: pod for key, pod in facts.pods.items() if not pod.is_over}
    places = _Places.of(facts, pods)
    services = {each.key: _service(each, places) for each in facts.services.values()}
    workloads = {each.key: each for each in former}
    workloads |= _workloads(pods, places, facts.services.values())
    workloads |= {each.key: each for each in _outside(places, services)}
    instances = {pod.id: _instance(pod, key, places, services, facts.zones) for key, pod in pods.items() if pod.ips}
    instances |= {each.id: each for each in _outside_instances(places)}
    return Registry(services=services, workloads=workloads, instances=instances, updates=_updates(pods.values()))


def _updates(pods: Iterable[PodFacts]) -> dict[str, Update]:
    """Workloads with pods of several templates: a Deployment, StatefulSet or DaemonSet that progresses. The pods say it
    as well as the controllers' statuses do, and they are watched anyway."""
    found: dict[str, dict[str, list[float]]] = {}
    for pod in pods:
        template = pod.labels.get(TEMPLATE, "")
        if template and not pod.is_leaving:
            found.setdefault(pod.workload_key, {}).setdefault(template, []).append(pod.created_at)
    return {key: _update(templates) for key, templates in found.items() if len(templates) > 1}


def _update(templates: Mapping[str, list[float]]) -> Update:
    """The template whose first pod came last is the new one."""
    newest = max(templates, key=lambda name: (min(templates[name]), name))
    return Update(
        began_at=min(templates[newest]), updated=len(templates[newest]), total=sum(map(len, templates.values()))
    )


class Departed:
    """Workloads whose last pod has gone. Scaled to zero they keep their config for a while; deleted they are forgotten."""

    def __init__(self, remember: float) -> None:
        self._remember = remember
        self._gone: dict[str, tuple[float, Workload]] = {}
        self._alive: set[str] = set()

    def after(self, former: Registry, alive: set[str], now: float) -> list[Workload]:
        """Those to keep beside the `alive` ones; `former` still knows what they were like."""
        kept = {key: each for key, each in self._gone.items() if key not in alive and now - each[0] < self._remember}
        left = (former.workloads[key] for key in self._alive - alive if key in former.workloads)
        kept |= {workload.key: (now, workload) for workload in left if _may_return(workload, former)}
        self._gone, self._alive = kept, set(alive)
        return [workload for _, workload in kept.values()]


def _may_return(workload: Workload, former: Registry) -> bool:
    """A pod that nobody owns is its own workload, and does not come back."""
    return f"{workload.name}.{workload.namespace}" not in former.instances


@dataclass(frozen=True, slots=True)
class _Places:
    """What the slices say, turned around: by pod, and by service."""

    behind: Mapping[str, Mapping[str, Mapping[str, int]]]
    """Pod -> service -> name of the service's port -> the pod's port."""
    ready: Mapping[str, bool]
    """Pod -> whether some slice calls it ready."""
    strangers: Mapping[str, tuple[tuple[EndpointFacts, Mapping[str, int]], ...]]
    """Service -> endpoints that are no pods."""
    numbers: Mapping[tuple[str, str], Counter[int]]
    """Service and name of its port -> how many endpoints listen where."""

    @classmethod
    def of(cls, facts: Facts, pods: Mapping[str, PodFacts]) -> "_Places":
        behind: dict[str, dict[str, dict[str, int]]] = {}
        ready: dict[str, bool] = {}
        strangers: dict[str, list[tuple[EndpointFacts, Mapping[str, int]]]] = {}
        numbers: dict[tuple[str, str], Counter[int]] = {}
        for found in facts.slices.values():
            ports = dict(found.ports)
            for name, number in found.ports:
                numbers.setdefault((found.service, name), Counter())[number] += len(found.endpoints)
            for endpoint in found.endpoints:
                pod = f"{found.namespace}/{endpoint.pod}"
                if not endpoint.pod:
                    strangers.setdefault(found.service, []).append((endpoint, ports))
                elif pod in pods:
                    behind.setdefault(pod, {}).setdefault(found.service, {}).update(ports)
                    ready[pod] = ready.get(pod, False) or endpoint.is_ready
        return cls(behind, ready, {key: tuple(each) for key, each in strangers.items()}, numbers)

    def target(self, service: str, port: PortFacts) -> int:
        """The port most endpoints listen on; a named target may differ from pod to pod while a Deployment rolls."""
        if isinstance(port.target, int):
            return port.target
        found = self.numbers.get((service, port.name))
        return max(found, key=lambda number: (found[number], -number)) if found else port.port


def _service(facts: ServiceFacts, places: _Places) -> Service:
    ports = (
        ServicePort(
            port=each.port, name=each.name, target_port=places.target(facts.key, each), protocol=each.protocol or "tcp"
        )
        for each in facts.ports
    )
    return Service(name=facts.name, namespace=facts.namespace, ports=tuple(ports), addresses=facts.addresses)


def _workloads(pods: Mapping[str, PodFacts], places: _Places, services: Iterable[ServiceFacts]) -> dict[str, Workload]:
    declared = {each.key: {port.name: port.protocol for port in each.ports} for each in services}
    grouped: dict[str, list[str]] = {}
    for key, pod in pods.items():
        grouped.setdefault(pod.workload_key, []).append(key)
    return {name: _workload(keys, pods, places, declared) for name, keys in grouped.items()}


def _workload(
    keys: Iterable[str],
    pods: Mapping[str, PodFacts],
    places: _Places,
    declared: Mapping[str, Mapping[str, Protocol | None]],
) -> Workload:
    found = sorted(keys, key=lambda key: (pods[key].started_at, key))
    newest = pods[found[-1]]
    services = {service for key in found for service in places.behind.get(key, ()) if service in declared}
    return Workload(
        name=newest.workload,
        namespace=newest.namespace,
        service_account=newest.account,
        services=tuple(sorted(services)),
        ports=_ports(found, pods, places, declared),
        reaches=newest.reaches,
        is_gateway=newest.is_gateway,
    )


def _ports(
    keys: Iterable[str],
    pods: Mapping[str, PodFacts],
    places: _Places,
    declared: Mapping[str, Mapping[str, Protocol | None]],
) -> tuple[tuple[int, Protocol], ...]:
    """Ports that its containers declare or its services lead to. What somebody declared beats silence; where two differ
    the port is tcp, which passes everything."""
    said: dict[int, set[Protocol]] = {}
    for key in keys:
        for number, name in pods[key].ports:
            _say(said, number, declared_protocol("", name))
        for service, ports in places.behind.get(key, {}).items():
            for name, number in ports.items():
                _say(said, number, declared.get(service, {}).get(name))
    return tuple((number, "http" if found == {"http"} else "tcp") for number, found in sorted(said.items()))


def _say(said: dict[int, set[Protocol]], number: int, protocol: Protocol | None) -> None:
    said.setdefault(number, set()).update(() if protocol is None else (protocol,))


def _instance(
    pod: PodFacts, key: str, places: _Places, services: Mapping[str, Service], zones: Mapping[str, str]
) -> Instance:
    return Instance(
        id=pod.id,
        workload=pod.workload_key,
        address=pod.ips[0],
        inbound=_inbound(pod, places.behind.get(key, {}), services),
        labels=pod.labels,
        ready=not pod.is_leaving and places.ready.get(key, pod.is_ready),
        meshed=pod.is_meshed,
        zone=zones.get(pod.node, ""),
        started_at=pod.started_at,
        service_account=pod.account,
    )


def _inbound(pod: PodFacts, behind: Mapping[str, Mapping[str, int]], services: Mapping[str, Service]) -> dict[int, int]:
    """Equal numbers under interception; the service's idea of a named port leads to this pod's own number."""
    inbound = {number: number for number, _ in pod.ports}
    for ports in behind.values():
        inbound |= {number: number for number in ports.values()}
    for key, ports in behind.items():
        service = services.get(key)
        for port in service.ports if service else ():
            if port.name in ports:
                inbound[port.target_port] = ports[port.name]
    return dict(sorted(inbound.items()))


def _outside(places: _Places, services: Mapping[str, Service]) -> Iterator[Workload]:
    """Addresses that somebody wrote into a slice by hand: a database outside, the API server itself."""
    for key in places.strangers:
        service = services.get(key)
        if service is not None:
            yield Workload(
                name=_outside_name(service.name), namespace=service.namespace, service_account="", services=(key,)
            )


def _outside_name(service: str) -> str:
    """A name that no object of the API can have."""
    return f"endpoints:{service}"


def _outside_instances(places: _Places) -> Iterator[Instance]:
    for key, endpoints in places.strangers.items():
        service, _, namespace = key.partition(".")
        for endpoint, ports in endpoints:
            yield Instance(
                id=f"{endpoint.address}.{service}.{namespace}",
                workload=f"{namespace}/{_outside_name(service)}",
                address=endpoint.address,
                inbound={number: number for number in ports.values()},
                ready=endpoint.is_ready,
                meshed=False,
                zone=endpoint.zone,
            )
