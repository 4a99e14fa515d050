"""What exists now: services, the workloads that run them, and their instances.

The registry is a value: platforms (local processes, Kubernetes) build one and hand it to the loop. Services, ports and
workloads go into configs; instances only into live data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

TEMPLATE: Final = "pod-template-hash"
"""Label of instances that a controller makes from a template: which one. Kubernetes has it on the pods of a Deployment."""


def qualify(host: str, namespace: str) -> str:
    """`sa-logic` -> `sa-logic.shop`; a name with dots is what it is."""
    return host if "." in host or host == "*" else f"{host}.{namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    port: int
    name: str = ""
    target_port: int
    """The port the application listens on."""
    protocol: Literal["http", "tcp"] = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    namespace: str
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...] = ()
    """Virtual addresses that stand for it (a cluster's service IPs); none on one machine."""

    @property
    def key(self) -> str:
        return f"{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    name: str
    namespace: str
    service_account: str
    services: tuple[str, ...] = ()
    """Keys of the services its instances are behind."""
    ports: tuple[tuple[int, Literal["http", "tcp"]], ...] = ()
    """The application's own ports with their protocols, sorted."""
    reaches: tuple[str, ...] | None = None
    """Hosts it declares to call (`sa-logic`, `sa-logic.shop`); None: it did not say, so it may reach every service."""
    is_gateway: bool = False
    engine: Literal["python", "envoy"] = "python"

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def identity(self, trust_domain: str) -> str:
        """SPIFFE ID of its instances, `spiffe://<trust-domain>/ns/<ns>/sa/<sa>` (Istio's form)."""
        return f"spiffe://{trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running copy of a workload: a process or a pod. Its id is its proxy's id as well."""

    id: str
    workload: str
    """Key of its workload."""
    address: str
    inbound: Mapping[int, int] = field(default_factory=dict)
    """Application port -> the port other proxies connect to at `address` (equal under interception)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    meshed: bool = True
    zone: str = ""
    started_at: float = 0.0
    service_account: str = ""
    """Where it differs from its workload's: pods of two accounts stand side by side while a Deployment rolls."""

    @property
    def template(self) -> str:
        """Instances of two templates are two versions of an application; empty: the platform has no such thing."""
        return self.labels.get(TEMPLATE, "")

    def identity(self, workload: Workload, trust_domain: str) -> str:
        """Its own SPIFFE ID, `workload` being its own."""
        account = self.service_account or workload.service_account
        return f"spiffe://{trust_domain}/ns/{workload.namespace}/sa/{account}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A workload whose instances are being replaced by those of another template: its own rollout."""

    began_at: float
    """Unix seconds."""
    updated: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    services: Mapping[str, Service] = field(default_factory=dict)
    """By key `name.namespace`."""
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    """By key `namespace/name`."""
    instances: Mapping[str, Instance] = field(default_factory=dict)
    """By id."""
    updates: Mapping[str, Update] = field(default_factory=dict)
    """Workload -> its own rollout, as long as it has instances of two templates."""

    def of_service(self, service: str) -> Iterator[Instance]:
        """Instances behind a service, ready or not."""
        for instance in self.instances.values():
            workload = self.workloads.get(instance.workload)
            if workload is not None and service in workload.services:
                yield instance

    def of_workload(self, workload: str) -> Iterator[Instance]:
        return (instance for instance in self.instances.values() if instance.workload == workload)


UPDATE_MOST_S: Final = 600.0
"""What a Deployment may take before Kubernetes calls it stuck (progressDeadlineSeconds). Whoever keeps two templates side
by side for longer wants them so."""


def under_way(registry: Registry, now: float) -> dict[str, str]:
    """Workload -> what its own rollout has come to, while it progresses."""
    return {
        workload: f"{workload} is being updated itself, {update.updated} of {update.total} instances so far"
        for workload, update in registry.updates.items()
        if now - update.began_at < UPDATE_MOST_S
    }


def running(registry: Registry) -> frozenset[str]:
    """Workloads with an instance that is ready and has a proxy."""
    return frozenset(item.workload for item in registry.instances.values() if item.ready and item.meshed)


DOUBT_FROM: Final = 4
"""Instances below which a loss of half is an ordinary event: one of two restarting."""


def has_lost_half(old: Registry, new: Registry) -> bool:
    """A registry that is suddenly empty or halved is more often a broken list than a broken mesh: ask twice."""
    before = sum(instance.ready for instance in old.instances.values())
    after = sum(instance.ready for instance in new.instances.values())
    return is_half_lost(before, after)


def is_half_lost(before: int, after: int) -> bool:
    return before >= DOUBT_FROM and after <= before / 2
