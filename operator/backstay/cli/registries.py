"""Registries for verbs that compile without a platform: from a workloads file, or from the operator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from backstay.cli.exits import Failed
from backstay.core.registry import Instance, Registry

if TYPE_CHECKING:
    from backstay.cli.client import Client
    from backstay.core.review.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a workloads file says. Nothing runs yet, so there are no instances."""

    registry: Registry
    namespace: str
    """Of documents that do not name theirs, as `backstay up` would have it."""
    traffic: "Traffic | None" = None
    """What the mesh was asked lately, where a running operator or a saved registry tells it."""
    rollout_defaults: Mapping[str, object] = field(default_factory=dict)
    """`spec.rollout` where the Mesh document says nothing, as the operator has it of its MeshRepository."""


def declared(path: Path) -> Declared:
    """Raises Failed, with every problem of the file."""
    from backstay.adapters.processes import workloads_file  # 40 ms that other registries need not pay

    try:
        found = workloads_file.read(path)
    except workloads_file.WorkloadsFileInvalid as error:
        raise Failed("\n".join(map(str, error.problems))) from error
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}") from error
    registry = Registry(services=found.services(), workloads=found.workloads())
    return Declared(registry=registry, namespace=found.contents.namespace)


def expected(path: Path) -> Registry:
    """The registry once everything in a workloads file runs: labels decide who answers, so instances are needed."""
    from backstay.adapters.processes import workloads_file  # as above

    known = declared(path).registry
    instances = {}
    for key, entry in workloads_file.read(path).entries().items():
        for number in range(entry.replicas):
            id = f"{key.replace('/', '-')}-{number + 1}"
            instances[id] = Instance(
                id=id, workload=key, address="", labels=entry.labels, meshed=entry.sidecar, zone=entry.zone
            )
    return Registry(services=known.services, workloads=known.workloads, instances=instances)


def running(client: "Client", namespace: str, *, traffic: bool = False) -> Declared:
    """What the running operator knows; with `traffic`, of requests too. Raises OperatorAway, Failed (an older operator)."""
    data = client.text("/v1/registry")
    return Declared(
        registry=msgspec.json.decode(data, type=Registry),
        namespace=namespace,
        traffic=live_traffic(client) if traffic else None,
        rollout_defaults=saved_defaults(data),
    )


def live_registry(client: "Client") -> Registry:
    """What the running operator sees. Raises OperatorAway."""
    return msgspec.json.decode(client.text("/v1/registry"), type=Registry)


def live_traffic(client: "Client") -> "Traffic":
    """What its proxies have told the running operator of requests. Raises OperatorAway, Failed (an older operator)."""
    from backstay.core.review.traffic import Traffic  # reviews only

    return msgspec.json.decode(client.text("/v1/traffic"), type=Traffic)


def saved_defaults(data: bytes) -> Mapping[str, object]:
    """The rollout defaults in a registry that an operator wrote down. Raises msgspec.DecodeError."""
    found = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("rolloutDefaults")
    return msgspec.json.decode(found, type=dict[str, object]) if found is not None else {}


def saved_traffic(data: bytes) -> "Traffic | None":
    """The traffic in a registry file that was written with it. Raises msgspec.DecodeError."""
    from backstay.core.review.traffic import Traffic  # as above

    found = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("traffic")
    return msgspec.json.decode(found, type=Traffic) if found is not None else None
