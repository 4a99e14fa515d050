"""Builders: a registry in one line, a snapshot from YAML text."""

from collections.abc import Mapping, Sequence
from typing import Literal

from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload
from backstay.core.snapshot import Snapshot
from backstay.core.validate import validate


def snapshot(text: str, revision: str = "main@sha1:1", file: str = "mesh.yaml") -> Snapshot:
    """A valid snapshot in namespace shop; fails with the problems otherwise."""
    result = validate({file: text.encode()}, revision=revision, default_namespace="shop")
    assert result.snapshot is not None, "\n".join(map(str, result.problems))
    return result.snapshot


def service(name: str, port: int = 80, target: int = 8080, protocol: Literal["http", "tcp"] = "http") -> Service:
    return Service(name=name, namespace="shop", ports=(ServicePort(port=port, target_port=target, protocol=protocol),))


def workload(name: str, *services: str, reaches: Sequence[str] | None = None) -> Workload:
    return Workload(
        name=name,
        namespace="shop",
        service_account=name,
        services=tuple(f"{item}.shop" for item in services),
        ports=((8080, "http"),) if services else (),
        reaches=None if reaches is None else tuple(reaches),
    )


def registry(
    services: Sequence[str] = ("a", "b"),
    workloads: Sequence[Workload] | None = None,
    replicas: int = 1,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> Registry:
    """Services with a workload each, unless told otherwise."""
    found = [workload(name, name) for name in services] if workloads is None else list(workloads)
    instances = [
        Instance(
            id=f"{item.name}-{number}",
            workload=item.key,
            address=f"127.1.{index}.{number + 1}",
            inbound={8080: 18080},
            labels=(labels or {}).get(item.name, {}),
        )
        for index, item in enumerate(found)
        for number in range(replicas)
    ]
    made = [service(name) for name in services]
    return Registry(
        services={item.key: item for item in made},
        workloads={item.key: item for item in found},
        instances={item.id: item for item in instances},
    )
