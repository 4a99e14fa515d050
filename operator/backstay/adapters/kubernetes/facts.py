"""Objects of the API server -> the few facts we keep of each. Pure.

Facts are what memory holds for a thousand pods; an object whose facts did not change is no change. registry.py makes the
core's Registry of them.
"""

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from backstay.core.inject import PROXY_CONTAINER, REDIRECT
from backstay.core.registry import TEMPLATE

Protocol = Literal["http", "tcp"]

ZONE: Final = "topology.kubernetes.io/zone"
SERVICE_OF_SLICE: Final = "kubernetes.io/service-name"
REVISION_HASH: Final = "controller-revision-hash"
"""What StatefulSets and DaemonSets call the hash of their template."""
GATEWAY: Final = "backstay.dev/gateway"
REACHES: Final = "backstay.dev/reaches"

_TEMPLATE_HASHES: Final = (TEMPLATE, "rollouts-pod-template-hash")  # the second is Argo Rollouts'
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
    creation_timestamp: str | None = None
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
    has_proxy: bool
    is_meshed: bool
    """Callers meet its proxy: something takes their connections there."""
    started_at: float
    created_at: float = 0.0
    is_gateway: bool = False
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
    has_proxy = any(each.name == PROXY_CONTAINER for each in [*containers, *(spec.init_containers or [])])
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
        has_proxy=has_proxy,
        is_meshed=has_proxy and annotations.get(REDIRECT) != "disabled",
        started_at=_seconds(status.start_time),
        created_at=_seconds(meta.creation_timestamp),
        is_gateway=labels.get(GATEWAY) == "true",
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
        # Others keep long things here (kubectl the whole object); ours and those that decide who injects are kept.
        annotations={key: value for key, value in (meta.annotations or {}).items() if _matters(key)},
        is_leaving=meta.deletion_timestamp is not None,
    )


def _matters(annotation: str) -> bool:
    return annotation.startswith(("backstay.dev/", "linkerd.io/"))


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
        labels.setdefault(TEMPLATE, labels[REVISION_HASH])
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
    for prefix in (name, "-".join(name.split("-")[:2]), name.split("-", maxsplit=1)[0]):
        if prefix in _HTTP:
            return "http"
        if prefix in _OTHERS:
            return "tcp"
    return None
