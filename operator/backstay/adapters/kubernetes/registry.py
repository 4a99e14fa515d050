"""Objects of the API server -> the few facts we keep of each -> the core's Registry. Pure: no client, no clock.

Facts are what memory holds for a thousand pods; an object whose facts did not change is no change. Services are known
by their EndpointSlices, never by their selectors: that is what kube-proxy follows as well.
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from backstay.core.inject import PROXY_CONTAINER
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload

Protocol = Literal["http", "tcp"]

ZONE: Final = "topology.kubernetes.io/zone"
SERVICE_OF_SLICE: Final = "kubernetes.io/service-name"
TEMPLATE_HASH: Final = "pod-template-hash"
REVISION_HASH: Final = "controller-revision-hash"
"""What StatefulSets and DaemonSets call the hash of their template."""
GATEWAY: Final = "backstay.dev/gateway"
ENGINE: Final = "backstay.dev/engine"
REACHES: Final = "backstay.dev/reaches"

_TEMPLATE_HASHES: Final = (TEMPLATE_HASH, "rollouts-pod-template-hash")  # the second is Argo Rollouts'
_CRON_JOB: Final = re.compile(r"(.+)-\d{8,10}")  # the CronJob controller appends the scheduled minute since 1970
_HTTP: Final = frozenset({"http", "kubernetes.io/ws", "grpc-web"})
"""Declared protocols that the proxies read as HTTP/1.1; HTTP/2, gRPC and TLS pass as bytes."""
_OTHERS: Final = frozenset(
    {"http2", "https", "grpc", "tcp", "tls", "mongo", "mysql", "redis", "kubernetes.io/h2c", "kubernetes.io/wss"}
)


# --- what of an object is read ------------------------------------------------------------------------------------


class _Shape(msgspec.Struct, rename="camel", kw_only=True):
    """A part of an API object; what is not named here is not looked at."""


class _Owner(_Shape):
    kind: str = ""
    name: str = ""
    controller: bool = False


class _Metadata(_Shape):
    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None
    deletion_timestamp: str | None = None


class _ContainerPort(_Shape):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class _Container(_Shape):
    name: str
    ports: list[_ContainerPort] | None = None


class _PodSpec(_Shape):
    node_name: str = ""
    service_account_name: str = "default"
    host_network: bool = False
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None


class _Condition(_Shape):
    type: str
    status: str


class _PodIP(_Shape):
    ip: str = ""


class _PodStatus(_Shape):
    phase: str = "Pending"
    start_time: str | None = None
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: list[_PodIP] | None = msgspec.field(name="podIPs", default=None)
    conditions: list[_Condition] | None = None


class _Pod(_Shape):
    metadata: _Metadata
    spec: _PodSpec
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _ServicePort(_Shape):
    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    target_port: int | str = 0


class _ServiceSpec(_Shape):
    type: str = "ClusterIP"
    ports: list[_ServicePort] | None = None
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)


class _Service(_Shape):
    metadata: _Metadata
    spec: _ServiceSpec


class _SlicePort(_Shape):
    port: int | None = None
    name: str = ""
    protocol: str = "TCP"


class _EndpointConditions(_Shape):
    ready: bool | None = None
    terminating: bool | None = None


class _Reference(_Shape):
    kind: str = ""
    name: str = ""


class _Endpoint(_Shape):
    addresses: list[str]
    conditions: _EndpointConditions = msgspec.field(default_factory=_EndpointConditions)
    target_ref: _Reference | None = None
    zone: str = ""


class _Slice(_Shape):
    metadata: _Metadata
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class _Named(_Shape):
    metadata: _Metadata


# --- what of an object is kept ------------------------------------------------------------------------------------


class PodFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    namespace: str
    uid: str
    account: str
    workload: str
    """Name of what a person wrote: the Deployment over its ReplicaSet, the CronJob over its Job."""
    node: str
    ips: tuple[str, ...]
    """Primary address first; empty until the kubelet has said it."""
    labels: Mapping[str, str]
    ports: tuple[tuple[int, str], ...]
    """Declared TCP ports of the application's containers, with their names."""
    is_ready: bool
    is_leaving: bool
    """It is being deleted."""
    is_over: bool
    """All its containers have ended for good: a Job's pod, an evicted one."""
    is_meshed: bool
    started_at: float
    is_gateway: bool = False
    engine: Literal["python", "envoy"] = "python"
    reaches: tuple[str, ...] | None = None

    @property
    def id(self) -> str:
        """The registry's instance and the proxy have this id."""
        return f"{self.name}.{self.namespace}"

    @property
    def workload_key(self) -> str:
        return f"{self.namespace}/{self.workload}"


class PortFacts(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    name: str
    target: int | str
    """Number, or the name of a container's port."""
    protocol: Protocol | None
    """None: nobody has declared it."""


class ServiceFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    namespace: str
    ports: tuple[PortFacts, ...]
    addresses: tuple[str, ...]
    """Cluster addresses; none for a headless service."""

    @property
    def key(self) -> str:
        return f"{self.name}.{self.namespace}"


class EndpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    pod: str
    """Name in the slice's namespace; "" for an address that is no pod."""
    address: str
    is_ready: bool
    zone: str = ""


class SliceFacts(msgspec.Struct, frozen=True, kw_only=True):
    namespace: str
    service: str
    """Key `name.namespace`."""
    ports: tuple[tuple[str, int], ...]
    """Name of the service's port -> the number that these endpoints listen on."""
    endpoints: tuple[EndpointFacts, ...]


class NamespaceFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    is_leaving: bool = False


Object = Mapping[str, Any]


def pod_facts(found: Object) -> PodFacts | None:
    pod = msgspec.convert(found, _Pod)
    meta, spec, status = pod.metadata, pod.spec, pod.status
    annotations, labels = meta.annotations or {}, _labels(meta)
    containers = spec.containers or []
    is_meshed = any(each.name == PROXY_CONTAINER for each in [*containers, *(spec.init_containers or [])])
    return PodFacts(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        account=spec.service_account_name,
        workload=_written_by_a_person(meta),
        node=spec.node_name,
        ips=_addresses(status),
        labels=labels,
        ports=tuple(sorted(_declared(each for each in containers if each.name != PROXY_CONTAINER))),
        is_ready=any(each.type == "Ready" and each.status == "True" for each in status.conditions or ()),
        is_leaving=meta.deletion_timestamp is not None,
        is_over=status.phase in ("Succeeded", "Failed"),
        is_meshed=is_meshed and not spec.host_network,
        started_at=_seconds(status.start_time),
        is_gateway=labels.get(GATEWAY) == "true",
        engine="envoy" if annotations.get(ENGINE) == "envoy" else "python",
        reaches=_reaches(annotations.get(REACHES)),
    )


def service_facts(found: Object) -> ServiceFacts | None:
    """None for an ExternalName: it is another name of something outside, whose requests pass through."""
    service = msgspec.convert(found, _Service)
    if service.spec.type == "ExternalName":
        return None
    ports = (each for each in service.spec.ports or () if each.protocol == "TCP")
    return ServiceFacts(
        name=service.metadata.name,
        namespace=service.metadata.namespace,
        ports=tuple(sorted((_port(each) for each in ports), key=lambda each: each.port)),
        addresses=tuple(each for each in service.spec.cluster_ips or () if each not in ("", "None")),
    )


def slice_facts(found: Object) -> SliceFacts | None:
    """None for a slice that belongs to no service, or whose addresses are names."""
    told = msgspec.convert(found, _Slice)
    service = (told.metadata.labels or {}).get(SERVICE_OF_SLICE, "")
    if not service or told.address_type not in ("IPv4", "IPv6"):
        return None
    ports = ((each.name, each.port) for each in told.ports or () if each.protocol == "TCP" and each.port)
    return SliceFacts(
        namespace=told.metadata.namespace,
        service=f"{service}.{told.metadata.namespace}",
        ports=tuple(sorted(ports)),
        endpoints=tuple(sorted(map(_endpoint, told.endpoints or ()), key=lambda each: (each.pod, each.address))),
    )


def node_zone(found: Object) -> str:
    return (msgspec.convert(found, _Named).metadata.labels or {}).get(ZONE, "")


def namespace_facts(found: Object) -> NamespaceFacts:
    meta = msgspec.convert(found, _Named).metadata
    return NamespaceFacts(
        name=meta.name,
        labels=meta.labels or {},
        # Others keep long things here; these two decide who injects.
        annotations={key: value for key, value in (meta.annotations or {}).items() if "linkerd" in key},
        is_leaving=meta.deletion_timestamp is not None,
    )


def _port(told: _ServicePort) -> PortFacts:
    return PortFacts(
        port=told.port,
        name=told.name,
        target=told.target_port or told.port,
        protocol=declared_protocol(told.app_protocol, told.name),
    )


def _endpoint(told: _Endpoint) -> EndpointFacts:
    is_pod = told.target_ref is not None and told.target_ref.kind == "Pod"
    return EndpointFacts(
        pod=told.target_ref.name if told.target_ref is not None and is_pod else "",
        address=told.addresses[0],
        # "nil should be interpreted as ready" says the API.
        is_ready=told.conditions.ready is not False and not told.conditions.terminating,
        zone=told.zone,
    )


def _declared(containers: Iterable[_Container]) -> Iterator[tuple[int, str]]:
    for container in containers:
        for port in container.ports or ():
            if port.protocol == "TCP":
                yield port.container_port, port.name


def _labels(meta: _Metadata) -> dict[str, str]:
    labels = dict(meta.labels or {})
    if REVISION_HASH in labels:
        labels.setdefault(TEMPLATE_HASH, labels[REVISION_HASH])
    return labels


def _addresses(status: _PodStatus) -> tuple[str, ...]:
    others = [each.ip for each in status.pod_ips or ()]
    return tuple(dict.fromkeys(ip for ip in [status.pod_ip, *others] if ip))


def _reaches(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(filter(None, (each.strip() for each in text.split(","))))


def _seconds(timestamp: str | None) -> float:
    return dt.datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def _written_by_a_person(meta: _Metadata) -> str:
    owner = next((each for each in meta.owner_references or () if each.controller), None)
    if owner is None or owner.kind == "Node":  # a static pod belongs to its node
        return meta.name
    if owner.kind == "ReplicaSet":
        hashes = (f"-{(meta.labels or {}).get(key)}" for key in _TEMPLATE_HASHES)
        return next((owner.name.removesuffix(each) for each in hashes if owner.name.endswith(each)), owner.name)
    if owner.kind == "Job" and (found := _CRON_JOB.fullmatch(owner.name)):
        return found[1]
    return owner.name


def declared_protocol(app_protocol: str, name: str) -> Protocol | None:
    """What a port says of itself: `appProtocol` first, then the prefix of its name (`http-admin`), Istio's habit."""
    if app_protocol:
        return "http" if app_protocol.lower() in _HTTP else "tcp"
    for prefix in (name, "-".join(name.split("-")[:2]), name.split("-")[0]):
        if prefix in _HTTP:
            return "http"
        if prefix in _OTHERS:
            return "tcp"
    return None


# --- all of it together -------------------------------------------------------------------------------------------


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
    return Registry(services=services, workloads=workloads, instances=instances)


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
    return Service(name=facts.name, namespace=facts.namespace, ports=tuple(ports))


def _workloads(
    pods: Mapping[str, PodFacts], places: _Places, services: Iterable[ServiceFacts]
) -> dict[str, Workload]:
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
        engine=newest.engine,
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


def _inbound(
    pod: PodFacts, behind: Mapping[str, Mapping[str, int]], services: Mapping[str, Service]
) -> dict[int, int]:
    """Equal numbers under interception; the service's idea of a named port leads to this pod's own number."""
    inbound = {number: number for number, _ in pod.ports}
    for key, ports in behind.items():
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
