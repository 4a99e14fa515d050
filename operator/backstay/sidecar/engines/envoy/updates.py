"""In which order Envoy's files are replaced, and how its answer is read. Pure.

Make before break: what routes lead to is there before they do, and goes when none does any more. So no request meets a route
whose cluster is not there, whatever changes at once.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backstay.sidecar.engines.envoy.api import Json
from backstay.sidecar.engines.envoy.files import Folder, response
from backstay.sidecar.engines.envoy.render import Rendered

ANSWERS: Final = (
    "/stats?filter=%5E(cluster_manager%5C.cds%5C.%7Clistener_manager%5C.(lds%5C.%7Ctotal_listeners_warming)%7Chttp%5C."
    ".*%5C.rds%5C.%7Cextension_config_discovery%5C.).*(version_text%7Cupdate_rejected%7Cwarming%7Cconfig_reload)%24"
)
CLUSTERS: Final = "cluster_manager.cds"
FILTERS: Final = "extension_config_discovery.http_filter"
LISTENERS: Final = "listener_manager.lds"
WARMING: Final = "listener_manager.total_listeners_warming"
_REJECTED: Final = "config update rejected: "
_CONSTRAINT: Final = re.compile(r"Proto constraint validation failed \((.*)\)")


@dataclass(frozen=True, slots=True)
class Write:
    """One file to replace."""

    path: Path
    resources: tuple[Json, ...]
    subscription: str = ""
    """Prefix of Envoy's statistics about who reads it; empty: nobody waits for that."""


@dataclass(frozen=True, slots=True)
class Step:
    """Files that are replaced together, and whose taking up is awaited before the next step."""

    writes: tuple[Write, ...]


def steps(before: Rendered | None, after: Rendered, folder: Folder) -> list[Step]:
    """What to do for Envoy to go from one to the other; steps without a write are left out."""
    old_clusters = before.clusters if before is not None else []
    kept = [cluster for cluster in old_clusters if cluster["name"] not in {each["name"] for each in after.clusters}]
    routes_used = _used(after)
    found = [
        Step(tuple(_changed(before.secrets if before else {}, after.secrets, folder.secret))),
        Step(tuple(_changed_filters(before, after, folder))),
        Step(tuple(_added(before.endpoints if before else {}, after.endpoints, folder))),
        Step(_one(old_clusters, [*after.clusters, *kept], folder.clusters, CLUSTERS)),
        Step(tuple(_changed_endpoints(before, after, folder))),
        Step(
            (
                *_changed_routes(before, after, folder, routes_used),
                *_one(before.listeners if before else None, after.listeners, folder.listeners, LISTENERS),
            )
        ),
        Step(_one([*after.clusters, *kept], after.clusters, folder.clusters, CLUSTERS)),
    ]
    return [step for step in found if step.writes]


def _one(before: list[Json] | None, after: list[Json], path: Path, subscription: str) -> tuple[Write, ...]:
    return () if before == after else (Write(path, tuple(after), subscription),)


def _changed(before: Mapping[str, Json], after: Mapping[str, Json], place: Callable[[str], Path]) -> Iterable[Write]:
    return [Write(place(name), (found,)) for name, found in sorted(after.items()) if before.get(name) != found]


def _added(before: Mapping[str, Json], after: Mapping[str, Json], folder: Folder) -> Iterable[Write]:
    """Envoy wants a cluster's file of endpoints to be there when it hears of the cluster."""
    return [Write(folder.endpoints(name), (found,)) for name, found in sorted(after.items()) if name not in before]


def _changed_endpoints(before: Rendered | None, after: Rendered, folder: Folder) -> Iterable[Write]:
    known = before.endpoints if before is not None else {}
    staying = {name: found for name, found in after.endpoints.items() if name in known}
    return _changed(known, staying, folder.endpoints)


def _changed_filters(before: Rendered | None, after: Rendered, folder: Folder) -> list[Write]:
    """Waited for where a listener reads them already."""
    known = before.filters if before is not None else {}
    return [
        Write(folder.filter(name), (found,), f"{FILTERS}.{name}" if name in known else "")
        for name, found in sorted(after.filters.items())
        if known.get(name) != found
    ]


def _changed_routes(before: Rendered | None, after: Rendered, folder: Folder, used: frozenset[str]) -> list[Write]:
    known = before.routes if before is not None else {}
    were_used = _used(before) if before is not None else frozenset()
    return [
        Write(folder.routes(name), (found,), f"http.{name}.rds.{name}" if name in used & were_used else "")
        for name, found in sorted(after.routes.items())
        if known.get(name) != found
    ]


def _used(rendered: Rendered) -> frozenset[str]:
    """Names of the route configurations that some listener reads."""
    return frozenset(_route_names(rendered.listeners))


def _route_names(found: object) -> Iterable[str]:
    if isinstance(found, dict):
        if "route_config_name" in found:
            yield found["route_config_name"]
        for value in found.values():
            yield from _route_names(value)
    elif isinstance(found, list):
        for value in found:
            yield from _route_names(value)


def encode(write: Write, version: str) -> bytes:
    return response(version, list(write.resources))


# --- Envoy's answer ------------------------------------------------------------------------------------------------


def is_taken(step: Step, version: str, before: Mapping[str, str], values: Mapping[str, str]) -> bool:
    """Envoy serves what this step wrote. `before`: its answers until then."""
    waits = [write.subscription for write in step.writes if write.subscription]
    is_warm = LISTENERS not in waits or values.get(WARMING, "0") == "0"
    return is_warm and all(_has_read(each, version, before, values) for each in waits)


def _has_read(subscription: str, version: str, before: Mapping[str, str], values: Mapping[str, str]) -> bool:
    if subscription.startswith(FILTERS):  # Envoy tells no version of these
        count = f"{subscription}.config_reload"
        return values.get(count, "0") != before.get(count, "0")
    return values.get(f"{subscription}.version_text") == version


def rejected(step: Step, before: Mapping[str, str], values: Mapping[str, str]) -> bool:
    """Envoy has refused something of this step."""
    names = (f"{write.subscription}.update_rejected" for write in step.writes if write.subscription)
    return any(int(values.get(name, "0")) > int(before.get(name, "0")) for name in names)


def words(lines: Iterable[str]) -> str:
    """Envoy's own message about the last update that it refused. It may put all of a rejected message before what is wrong."""
    text = "\n".join(lines).rpartition(_REJECTED)[2]
    constraint = _CONSTRAINT.search(text)
    if constraint is not None:
        return constraint[1]
    return text.partition("\n")[0].strip() or "Envoy refused the update and did not say why"
