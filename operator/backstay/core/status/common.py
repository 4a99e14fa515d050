"""What all kinds of objects share: conditions, transition times, the fleet counted once, and how values are spelled."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from backstay.core.problems import Problem, Severity
from backstay.core.rollout.model import (
    Digest,
    HeldSet,
    MeshState,
    Phase,
    Rollout,
    WorkloadKey,
)
from backstay.core.view import MeshView, ProxyStatus
from backstay.redact import clean

Json: TypeAlias = dict[str, Any]

Status: TypeAlias = Literal["True", "False", "Unknown"]

Memory: TypeAlias = Mapping[str, tuple[str, float]]
"""`Kind/name#Condition` -> (status, Unix seconds since when)."""

RUNNING: Final = frozenset(
    {Phase.PREPARING, Phase.SHIFTING, Phase.HOLDING, Phase.SUSPECTING, Phase.PAUSED, Phase.ROLLING_BACK}
)
"""Phases in which proxies are being moved; BAKING is live already and only watched."""

RUNNING_REASONS: Final = {
    Phase.PREPARING: "Progressing",
    Phase.SHIFTING: "Progressing",
    Phase.HOLDING: "RolloutHolding",
    Phase.SUSPECTING: "SharedHarmSuspected",
    Phase.PAUSED: "RolloutPaused",
    Phase.ROLLING_BACK: "RollingBack",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    type: str
    status: Status
    reason: str
    message: str


class Fleet:
    """Proxies by workload, and how many of them serve a given config: counted once however many documents ask, so that
    a thousand documents on a thousand proxies stay cheap."""

    def __init__(self, view: MeshView) -> None:
        self._by_workload: dict[WorkloadKey, list[ProxyStatus]] = {}
        for _, proxy in sorted(view.proxies.items()):
            self._by_workload.setdefault(proxy.view.workload, []).append(proxy)
        self._on_stable: dict[tuple[WorkloadKey, Digest], int] = {}
        self._serving: dict[tuple[WorkloadKey, Digest], int] = {}

    def of(self, workload: WorkloadKey) -> Sequence[ProxyStatus]:
        return self._by_workload.get(workload, ())

    def on_stable(self, workload: WorkloadKey, digest: Digest) -> int:
        """Proxies that serve this stable config, some of them a candidate as well."""
        if (workload, digest) not in self._on_stable:
            found = sum(proxy.view.stable == digest for proxy in self.of(workload))
            self._on_stable[workload, digest] = found
        return self._on_stable[workload, digest]

    def serving_only(self, workload: WorkloadKey, digest: Digest) -> int:
        """Proxies that give every request to this config."""
        if (workload, digest) not in self._serving:
            found = sum(_serves_only(proxy, digest) for proxy in self.of(workload))
            self._serving[workload, digest] = found
        return self._serving[workload, digest]


class Scribe:
    """Writes conditions with their transition times, and knows the fleet by workload: the only mutable thing here,
    alive for one call of `objects`."""

    def __init__(self, *, view: MeshView, before: Memory) -> None:
        self.now, self.before, self.generation = view.now, before, view.observed_generation
        self.fleet = Fleet(view)
        self.trust_domain = view.effective.mesh.trust_domain if view.effective else ""
        self.after: dict[str, tuple[str, float]] = {}
        # A thousand documents say the same few things since the same few moments; cleaning a text costs 60 microseconds.
        self._clean: dict[str, str] = {}
        self._timestamps: dict[float, str] = {}

    def keep(self, owner: str, conditions: Iterable[str]) -> None:
        """What was written of the owner's conditions last time stands."""
        for type_ in conditions:
            key = f"{owner}#{type_}"
            if key in self.before:
                self.after[key] = self.before[key]

    def write(self, owner: str, conditions: Iterable[Condition]) -> list[Json]:
        return [self._one(owner, condition) for condition in conditions]

    def _one(self, owner: str, condition: Condition) -> Json:
        key = f"{owner}#{condition.type}"
        status, since = self.before.get(key, ("", self.now))
        if status != condition.status:
            since = self.now
        self.after[key] = (condition.status, since)
        return {
            "type": condition.type,
            "status": condition.status,
            "observedGeneration": max(self.generation, 0),
            "lastTransitionTime": self._timestamp(since),
            "reason": condition.reason,
            "message": self._cleaned(condition.message),
        }

    def _cleaned(self, text: str) -> str:
        if text not in self._clean:
            self._clean[text] = clean(text, limit=1024)
        return self._clean[text]

    def _timestamp(self, seconds: float) -> str:
        if seconds not in self._timestamps:
            self._timestamps[seconds] = timestamp(seconds)
        return self._timestamps[seconds]


def timestamp(seconds: float) -> str:
    """RFC 3339 as Kubernetes writes it; empty for "never"."""
    if seconds <= 0:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha_of(revision: str) -> str:
    """The commit of `main@sha1:<sha>`, or the text itself."""
    return revision.rpartition(":")[2]


def short(revision: str) -> str:
    """`main@sha1:1a2b3c4`: what fits into a sentence."""
    head, colon, sha = revision.rpartition(":")
    return f"{head}{colon}{sha[:8]}"


def rollouts_of(state: MeshState) -> tuple[Rollout, ...]:
    """The present rollout and the finished ones, newest first, each once."""
    current = () if state.rollout is None else (state.rollout,)
    return current + tuple(past for past in state.history if not current or past.id != current[0].id)


def filled(values: Mapping[str, Any]) -> Json:
    """Without what says nothing, so that objects stay readable."""
    return {key: value for key, value in values.items() if value not in ("", None, (), [], {})}


def ready_condition(status: Status, reason: str, message: str) -> Condition:
    return Condition(type="Ready", status=status, reason=reason, message=message)


def reconciling(
    reason: str, message: str, *, ready: Status = "False", ready_reason: str = ""
) -> tuple[Condition, Condition]:
    return (
        ready_condition(ready, ready_reason or reason, message),
        Condition(type="Reconciling", status="True", reason=reason, message=message),
    )


def stalled(reason: str, message: str) -> tuple[Condition, Condition]:
    return ready_condition("False", reason, message), Condition(
        type="Stalled", status="True", reason=reason, message=message
    )


def errors_of(view: MeshView) -> list[Problem]:
    return [problem for problem in view.problems if problem.severity is Severity.ERROR]


def held_by_person(state: MeshState, held: HeldSet) -> bool:
    """Whether a person's order (abort, rollback) put this set aside rather than a verdict."""
    for rollout in rollouts_of(state):
        if rollout.id == held.rollout:
            return rollout.phase is Phase.ABORTED or rollout.cause.kind == "rollback"
    return False


def held_object(held: HeldSet) -> Json:
    return {
        "commit": held.commit,
        "revision": held.revision,
        "rollout": held.rollout,
        "documents": dict(sorted(held.documents.items())),
        "sentence": clean(held.sentence),
        "since": timestamp(held.since),
    }


def candidate_of(rollout: Rollout, key: WorkloadKey) -> Digest:
    """Its config in the present stage: the newest one up to here that names the workload."""
    for stage in reversed(rollout.stages[: rollout.stage + 1]):
        if key in stage.configs:
            return stage.configs[key]
    return ""


def on_candidate(proxies: Iterable[ProxyStatus]) -> int:
    return sum(1 for proxy in proxies if proxy.view.candidate and proxy.view.share > 0)


def percent(share: float) -> float:
    return round(share * 100, 2)


def _serves_only(proxy: ProxyStatus, digest: Digest) -> bool:
    if proxy.view.candidate == digest:
        return proxy.view.share >= 1.0 or proxy.view.stable == digest
    return proxy.view.stable == digest and not proxy.view.candidate
