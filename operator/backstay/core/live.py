"""Registry -> live data: the endpoints behind every service port, as callers reach them."""

from collections.abc import Mapping
from typing import TypeVar

from backstay.config.wire import Endpoint
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload


def endpoints(registry: Registry, trust_domain: str) -> dict[str, list[Endpoint]]:
    """`service.namespace:port` -> its ready endpoints, in the order of their ids."""
    found: dict[str, list[Endpoint]] = {
        f"{service.key}:{port.port}": [] for service in registry.services.values() for port in service.ports
    }
    for instance in sorted(registry.instances.values(), key=lambda instance: instance.id):
        workload = registry.workloads.get(instance.workload)
        if workload is None or not instance.ready:
            continue
        for name in workload.services:
            service = registry.services.get(name)
            if service is not None:
                _add(found, service, instance, workload, trust_domain)
    return found


def _add(
    found: dict[str, list[Endpoint]], service: Service, instance: Instance, workload: Workload, trust_domain: str
) -> None:
    for port in service.ports:
        reachable = _reachable_port(port, instance)
        if reachable:
            found[f"{service.key}:{port.port}"].append(
                Endpoint(
                    id=instance.id,
                    address=instance.address,
                    port=reachable,
                    identity=instance.identity(workload, trust_domain) if instance.meshed else "",
                    labels=dict(instance.labels),
                    zone=instance.zone,
                    workload=instance.workload,
                )
            )


def _reachable_port(port: ServicePort, instance: Instance) -> int:
    """Where to connect for a service port; 0 if the instance does not serve it."""
    if not instance.inbound:
        return port.target_port
    return instance.inbound.get(port.target_port, 0)


def addresses(registry: Registry) -> dict[str, list[str]]:
    """`service.namespace` -> its virtual addresses, where it has any."""
    return {key: list(service.addresses) for key, service in registry.services.items() if service.addresses}


Each = TypeVar("Each")


def changed(old: Mapping[str, list[Each]], new: Mapping[str, list[Each]]) -> dict[str, list[Each]]:
    """Services whose endpoints (or addresses) differ; a service that is gone has none."""
    delta = {key: value for key, value in new.items() if old.get(key) != value}
    delta.update({key: [] for key in old if key not in new})
    return delta
