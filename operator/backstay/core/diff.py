"""Two sets of configs -> what changes, for whom, and in which order it may go out.

The order matters only where servers change what they accept: first they accept more (expand), then callers move, then
servers accept less (contract), so that no request fails because of the order in which proxies hear of a commit. Outbound
parts change whole on one proxy and need no order among themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from backstay.config.model import (
    Authorization,
    InboundPort,
    Listeners,
    Manifest,
    Part,
    Policy,
    config_digest,
    decode_part,
    digest_of,
    encode_part,
)
from backstay.core.rollout.model import Side, Stage

StageName = Literal["expand", "move", "contract"]
_ORDER: Final[tuple[StageName, ...]] = ("expand", "move", "contract")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartChange:
    """One part of one workload's config that differs; an empty digest means it is not there."""

    workload: str
    key: str
    old: str
    new: str


def part_changes(old: Mapping[str, Manifest], new: Mapping[str, Manifest]) -> list[PartChange]:
    """Every differing part of every workload that has a config on both sides."""
    changes = []
    for workload in sorted(old.keys() & new.keys()):
        before, after = old[workload].parts, new[workload].parts
        changes += [
            PartChange(workload=workload, key=key, old=before.get(key, ""), new=after.get(key, ""))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
    return changes


def fresh_hosts(old: Mapping[str, Manifest], new: Mapping[str, Manifest], services: Iterable[str]) -> set[str]:
    """`host:port` of routes and backends that no proxy has served so far: services new to the registry.

    A host of the user's own may have been passed through before, so its first Route is a change like any other.
    """
    known = {_target(key) for manifest in old.values() for key in manifest.parts if "/" in key}
    names = set(services)
    wanted = {_target(key) for manifest in new.values() for key in manifest.parts if "/" in key}
    return {target for target in wanted - known if target.rpartition(":")[0] in names}


def _target(key: str) -> str:
    return key.partition("/")[2]


def with_fresh(old: Manifest, new: Manifest, fresh: set[str]) -> Manifest:
    """The old config plus the parts about hosts nobody has served yet: they need no waves."""
    added = {
        key: digest
        for key, digest in new.parts.items()
        if key not in old.parts and "/" in key and _target(key) in fresh
    }
    return msgspec.structs.replace(old, parts={**old.parts, **added}) if added else old


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """The stages of a change with every manifest they name, and parts that exist only on the way."""

    stages: tuple[Stage, ...]
    manifests: Mapping[str, Manifest]
    """By config digest."""
    parts: Mapping[str, bytes]
    """Unions made for the expand stage, by digest."""


def stage(old: Mapping[str, Manifest], new: Mapping[str, Manifest], parts: Mapping[str, bytes]) -> Staged:
    """Order a change. Stages in which nothing differs are left out; no stage at all means nothing changes."""
    made: dict[str, bytes] = {}
    steps: dict[StageName, dict[tuple[str, str], str]] = {name: {} for name in _ORDER}
    for change in part_changes(old, new):
        for name, digest in _split(change, parts, made):
            steps[name][(change.workload, change.key)] = digest
    manifests: dict[str, Manifest] = {}
    stages = []
    current = {workload: dict(manifest.parts) for workload, manifest in old.items()}
    for name in _ORDER:
        configs = {}
        for workload in sorted({workload for workload, _ in steps[name]}):
            _replace(current[workload], {key: d for (w, key), d in steps[name].items() if w == workload})
            manifest = Manifest(workload=workload, parts=dict(current[workload]), schema=new[workload].schema)
            configs[workload] = config_digest(manifest)
            manifests[configs[workload]] = manifest
        if configs:
            stages.append(Stage(name=name, configs=configs))
    return Staged(stages=tuple(stages), manifests=manifests, parts=made)


def sides(base: Mapping[str, Manifest], staged: Staged, parts: Mapping[str, bytes]) -> tuple[dict[str, Side], ...]:
    """Per stage: which requests the parts of each workload that change decide, those it answers or those it makes."""
    current = dict(base)
    found: list[dict[str, Side]] = []
    for step in staged.stages:
        news = {workload: staged.manifests[digest] for workload, digest in step.configs.items()}
        found.append({workload: _side(current[workload], new, parts) for workload, new in news.items()})
        current.update(news)
    return tuple(found)


def new_engines(base: Mapping[str, Manifest], staged: Staged, parts: Mapping[str, bytes]) -> tuple[str, ...]:
    """Workloads whose proxies change what does their traffic: none of them can serve both configs at once."""
    found = set[str]()
    for step in staged.stages:
        for workload, digest in step.configs.items():
            if workload in base and _engine(base[workload], parts) != _engine(staged.manifests[digest], parts):
                found.add(workload)
    return tuple(sorted(found))


def _engine(manifest: Manifest, parts: Mapping[str, bytes]) -> str:
    digest = manifest.parts.get("listeners", "")
    part = decode_part(parts[digest]) if digest in parts else None
    return part.engine if isinstance(part, Listeners) else ""


def _side(old: Manifest, new: Manifest, parts: Mapping[str, bytes]) -> Side:
    known: set[Side] = {
        _side_of(key, old.parts.get(key, ""), new.parts.get(key, ""), parts)
        for key in old.parts.keys() | new.parts.keys()
        if old.parts.get(key) != new.parts.get(key)
    }
    return known.pop() if len(known) == 1 else "both"


def _side_of(key: str, old: str, new: str, parts: Mapping[str, bytes]) -> Side:
    if "/" in key:
        return "out"
    if key == "authorization":
        return "in"
    before, after = (decode_part(parts[digest]) if digest in parts else None for digest in (old, new))
    if not isinstance(before, Listeners) or not isinstance(after, Listeners):
        return "both"
    decides_nothing_inbound = ("access_log", "log_percent", "tracing", "egress", "egress_hosts", "gateway")
    told: dict[str, Any] = {name: getattr(after, name) for name in decides_nothing_inbound}
    if msgspec.structs.replace(before, **told) == after:
        return "out"  # what happens to hosts nobody described; a gateway sends on what comes in; a log decides nothing
    return "in" if before.egress == after.egress else "both"


def _replace(parts: dict[str, str], changes: Mapping[str, str]) -> None:
    for key, digest in changes.items():
        if digest:
            parts[key] = digest
        else:
            parts.pop(key, None)


def _split(change: PartChange, parts: Mapping[str, bytes], made: dict[str, bytes]) -> list[tuple[StageName, str]]:
    """The digests a part goes through, with the stage of each."""
    if not change.old or not change.new or change.key not in ("listeners", "authorization"):
        return [("move", change.new)]
    old, new = decode_part(parts[change.old]), decode_part(parts[change.new])
    union = _union(old, new)
    if union is None:
        return [("move", change.new)]
    data = encode_part(union)
    digest = digest_of(data)
    if digest == change.new:
        return [("expand", change.new)]
    if digest == change.old:
        return [("contract", change.new)]
    made[digest] = data
    return [("expand", digest), ("contract", change.new)]


def _union(old: Part, new: Part) -> Part | None:
    """A part that accepts what either accepts; None where the two differ in nothing that servers accept."""
    match old, new:
        case Authorization(), Authorization():
            return _union_of_policies(old, new)
        case Listeners(), Listeners() if _accepts(old) != _accepts(new):
            return _union_of_listeners(old, new)
        case _:
            return None


def _accepts(part: Listeners) -> dict[int, str]:
    return {item.port: item.mtls for item in part.inbound}


def _union_of_listeners(old: Listeners, new: Listeners) -> Listeners:
    """Everything else as new: access logs and egress concern this proxy alone."""
    before = _accepts(old)
    inbound = tuple(
        item if before.get(item.port, item.mtls) == item.mtls else _permissive(item) for item in new.inbound
    )
    return msgspec.structs.replace(new, inbound=inbound)


def _permissive(item: InboundPort) -> InboundPort:
    return msgspec.structs.replace(item, mtls="permissive")


def _union_of_policies(old: Authorization, new: Authorization) -> Authorization:
    """Deny only what both deny, allow what either allows; no allow policy at all means everybody is allowed."""
    allows = [_of(part, "allow") for part in (old, new)]
    denies = [policy for policy in _of(old, "deny") if policy in _of(new, "deny")]
    allowed = list(dict.fromkeys((*allows[0], *allows[1]))) if all(allows) else []
    policies = (*_of(new, "audit"), *denies, *allowed)
    merged = Authorization(policies=tuple(policies))
    for side in (new, old):
        if set(side.policies) == set(merged.policies):
            return side
    return merged


def _of(part: Authorization, action: str) -> list[Policy]:
    return [policy for policy in part.policies if policy.action == action]
