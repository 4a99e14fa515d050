"""MeshWorkload: one workload and its proxies."""

from collections.abc import Sequence

from backstay.core.intents import API_VERSION
from backstay.core.rollout.model import (
    WorkloadKey,
    WorkloadState,
)
from backstay.core.status.common import RUNNING, Condition, Json, Scribe, filled, on_candidate, ready_condition
from backstay.core.status.proxies import sync_of
from backstay.core.status.rollouts import rolling_workload
from backstay.core.view import MeshView, ProxyStatus


def workload_keys(view: MeshView) -> list[WorkloadKey]:
    return sorted(set(view.registry.workloads) | set(view.state.workloads))


def workload_object(view: MeshView, key: WorkloadKey, scribe: Scribe) -> Json:
    namespace, name = key.split("/", 1)
    proxies = scribe.fleet.of(key)
    known = view.registry.workloads.get(key)
    rollout = view.state.rollout
    rolling = rollout.workloads.get(key) if rollout is not None and rollout.phase in RUNNING else None
    spec = filled(
        {
            "identity": known.identity(scribe.trust_domain) if known and scribe.trust_domain else "",
            "serviceAccount": known.service_account if known else "",
            "services": list(known.services) if known else [],
            "engine": known.engine if known else "",
            "gateway": True if known and known.is_gateway else None,
        }
    )
    status = {
        "conditions": scribe.write(f"MeshWorkload/{key}", [_workload_ready(view, key, proxies)]),
        "stable": view.state.workloads.get(key, WorkloadState()).stable,
        "proxies": {
            "total": len(proxies),
            "connected": sum(proxy.view.connected for proxy in proxies),
            "onCandidate": on_candidate(proxies),
        },
        "parts": len(view.stable_manifests[key].parts) if key in view.stable_manifests else 0,
        **({"rollout": rolling_workload(scribe.fleet, rollout, key, rolling)} if rolling and rollout else {}),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshWorkload",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": spec,
        "status": status,
    }


def _workload_ready(view: MeshView, key: WorkloadKey, proxies: Sequence[ProxyStatus]) -> Condition:
    words = [sync_of(view, proxy) for proxy in proxies]
    if not words:
        return ready_condition("Unknown", "NoProxies", "no proxy of this workload has enrolled")
    off = {word: words.count(word) for word in sorted(set(words)) if word not in ("synced", "splitting")}
    if off:
        counted = ", ".join(f"{count} {word}" for word, count in off.items())
        return ready_condition("False", "ProxiesNotSynced", f"{counted} of {len(words)} proxies")
    return ready_condition("True", "Synced", f"{len(words)} proxies")
