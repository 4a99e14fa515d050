"""What tools that follow kstatus (Flux, Argo CD's generic check, `kubectl wait`'s users) make of an object."""

from collections.abc import Mapping
from typing import Any


def kstatus(item: Mapping[str, Any]) -> str:
    """Compute's answer, after its documented order of rules: `InProgress`, `Failed` or `Current`."""
    status = item.get("status") or {}
    if status.get("observedGeneration") != item["metadata"].get("generation"):
        return "InProgress"
    found = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    for one in status.get("conditions") or ():
        if one["type"] == "Reconciling" and one["status"] == "True":
            return "InProgress"
        if one["type"] == "Stalled" and one["status"] == "True":
            return "Failed"
    return "Current" if found.get("Ready", "True") == "True" else "InProgress"
