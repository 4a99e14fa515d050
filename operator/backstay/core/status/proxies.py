"""MeshProxy: one proxy, and whether it serves what it should."""

import math

from backstay.core.intents import API_VERSION
from backstay.core.rollout.model import (
    WorkloadState,
)
from backstay.core.status.common import RUNNING, Json, Scribe, filled, percent, ready_condition, timestamp
from backstay.core.view import MeshView, ProxyStatus
from backstay.redact import clean


def sync_of(view: MeshView, proxy: ProxyStatus) -> str:
    """synced, splitting (serves two configs, as told), stale (has not acked what it should serve), away, refused (it has
    refused its config, or the operator refuses it)."""
    if not proxy.view.connected and not proxy.turned_away:
        return "away"
    if proxy.last_nack or proxy.turned_away:
        return "refused"
    wanted = view.state.workloads.get(proxy.view.workload, WorkloadState()).stable
    if proxy.view.stable != wanted:
        return "stale"
    seat = _seat(view, proxy)
    if bool(seat) != bool(proxy.view.candidate) or not math.isclose(seat, proxy.view.share):
        return "stale"
    return "splitting" if proxy.view.candidate else "synced"


def _seat(view: MeshView, proxy: ProxyStatus) -> float:
    rollout = view.state.rollout
    if rollout is None or rollout.phase not in RUNNING:
        return 0.0
    rolling = rollout.workloads.get(proxy.view.workload)
    return rolling.seats.get(proxy.view.id, 0.0) if rolling else 0.0


def proxy_object(view: MeshView, proxy: ProxyStatus, scribe: Scribe) -> Json:
    seen = proxy.view
    namespace = seen.workload.partition("/")[0]
    sync = sync_of(view, proxy)
    standing = ready_condition(
        "True" if sync in ("synced", "splitting") else "False",
        sync.capitalize(),
        proxy.turned_away or proxy.last_nack or sync,
    )
    spec = filled(
        {"workload": seen.workload, "engine": proxy.engine, "address": proxy.address, "identity": proxy.identity}
    )
    told = {
        "candidate": seen.candidate,
        "version": proxy.version,
        "connectedSince": timestamp(proxy.since) if seen.connected else "",
        "lastReport": timestamp(proxy.last_report),
        "lastNack": clean(proxy.last_nack),
        "turnedAway": clean(proxy.turned_away),
        "wentBack": proxy.went_back,
        "certificateExpires": timestamp(proxy.certificate_expires),
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "MeshProxy",
        "metadata": {"name": seen.id, "namespace": namespace, "generation": 1},
        "spec": spec,
        "status": {
            "conditions": scribe.write(f"MeshProxy/{seen.id}", [standing]),
            "connected": seen.connected,
            "sync": sync,
            "stable": seen.stable,
            "share": percent(seen.share),
            **filled(told),
        },
    }
