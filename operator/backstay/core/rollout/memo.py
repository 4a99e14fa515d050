"""decide.py's working memory between two looks, persisted with the rollout (Rollout.memo)."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from backstay.core.rollout import verdict
from backstay.core.rollout.model import ProxyId, State, WorkloadKey


class Suspect(State, frozen=True, kw_only=True):
    """Harm that is being tested by taking the last wave back."""

    kind: Literal["shared", "before-after"]
    subject: str
    """Destination, or workload."""
    rate: float
    """Share of bad requests when it was suspected."""
    usual: float
    """Share before the rollout."""
    kept: float
    """Part of the candidate's share that stays while it is tested."""
    needed: int = 2
    """Confirmations that make it a fail."""
    settled: bool = False
    """The seats taken back have been acked; from now on requests count."""
    elapsed: float = 0.0
    total: int = 0
    bad: int = 0
    sentence: str = ""


class Recovery(State, frozen=True, kw_only=True):
    """After a rollback: did errors fall?"""

    rate: float
    usual: float
    elapsed: float = 0.0
    total: int = 0
    bad: int = 0


class Memo(State, frozen=True, kw_only=True):
    watch: dict[str, verdict.Track] = {}
    """Destination -> test of its failures over all requests that no candidate decided."""
    recent: dict[str, tuple[float, float]] = {}
    """Destination or workload -> fading (total, bad) of the last seconds."""
    rates: dict[WorkloadKey, float] = {}
    """Requests per second of each workload."""
    left_out: dict[ProxyId, str] = {}
    missing: dict[ProxyId, float] = {}
    """Seated proxy that nobody speaks of -> seconds since then."""
    unknown_for: float = 0.0
    empty_for: float = 0.0
    """Seconds for which affected workloads without any proxy were seen to have none."""
    cut_off_ago: float = 1e9
    """Seconds since stable proxies were cut off as well."""
    waited: float = 0.0
    """Seconds the current phase has lasted."""
    first_bad: float = -1.0
    """Rollout.elapsed when the first bad candidate request was reported."""
    harmed: float = 0.0
    suspect: Suspect | None = None
    recovery: Recovery | None = None
    aborted: bool = False
    restored: bool = False
    evidence_failed: bool = False
    """The rollback is because of bad requests, so their falling can be checked."""
    told: tuple[str, ...] = ()


_decoder: Final = msgspec.json.Decoder(Memo | None)


def load(raw: msgspec.Raw) -> Memo:
    return _decoder.decode(raw) or Memo()


def dump(memo: Memo) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(memo))


def begin(before: Mapping[WorkloadKey, verdict.Before]) -> Memo:
    """The memory of a new rollout: what every caller's requests towards each destination were like before it."""
    sums: dict[str, tuple[float, float]] = {}
    for known in before.values():
        for destination, (total, bad) in known.destinations.items():
            n, k = sums.get(destination, (0.0, 0.0))
            sums[destination] = (n + total, k + bad)
    return Memo(
        watch={name: verdict.watched(n, k) for name, (n, k) in sums.items()},
        rates={name: known.requests_per_s for name, known in before.items()},
    )
