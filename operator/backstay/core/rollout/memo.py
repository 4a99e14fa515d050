"""decide.py's working memory between two looks, persisted with the rollout (Rollout.memo)."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from backstay.core.rollout import verdict
from backstay.core.rollout.model import ProxyId, Side, State, WorkloadKey


class Suspect(State, frozen=True, kw_only=True):
    """Harm that is being tested by taking the last wave back."""

    kind: Literal["shared", "before-after"]
    subject: str
    """Destination, or workload."""
    outcome: str = "bad"
    """What was seen at the workload: the same is watched during the test."""
    rate: float
    """Share of bad requests when it was suspected."""
    usual: float
    """Share before the rollout."""
    kept: float
    """Part of the candidate's share that stays while it is tested."""
    needed: int = 2
    """Confirmations that make it a fail."""
    settled: bool = False
    """The wave taken back has been acked by everybody it was taken from."""
    since: int = -1
    """The first second that counts: wholly after that."""
    elapsed: float = 0.0
    total: int = 0
    bad: int = 0
    sentence: str = ""


class Recovery(State, frozen=True, kw_only=True):
    """After a rollback: did errors fall?"""

    outcome: str = "bad"
    rate: float
    usual: float
    since: int = -1
    """The first second that counts: wholly after all proxies had acked; -1: not known yet."""
    latest: int = -1
    elapsed: float = 0.0
    total: int = 0
    bad: int = 0


class Memo(State, frozen=True, kw_only=True):
    watch: dict[str, verdict.Track] = {}
    """Destination -> test of its failures over all requests that no candidate decided."""
    recent: dict[str, tuple[float, float]] = {}
    """Destination, workload, or `workload outcome` -> fading (total, bad) of the last seconds."""
    rates: dict[str, float] = {}
    """`rate_key` -> requests per second before the rollout."""
    left_out: dict[ProxyId, str] = {}
    missing: dict[ProxyId, float] = {}
    """Seated proxy that nobody speaks of -> seconds since then."""
    unknown_for: float = 0.0
    empty_for: float = 0.0
    """Seconds for which affected workloads without any proxy were seen to have none."""
    cut_off_ago: float = 1e9
    """Seconds since stable proxies were cut off as well."""
    restarted_ago: float = 1e9
    """Seconds since the stage began anew after proxies were cut off."""
    waited: float = 0.0
    """Seconds the current phase has lasted."""
    first: dict[str, float] = {}
    """Outcome -> Rollout.elapsed when the second began in which a candidate's request first showed it; since the last
    wave passed."""
    newest: int = -1
    """The operator's second at the last look."""
    harmed: float = 0.0
    suspect: Suspect | None = None
    recovery: Recovery | None = None
    aborted: bool = False
    restored: bool = False
    evidence_failed: bool = False
    """The rollback is because of bad requests, so their falling can be checked."""
    failed_by: str = "bad"
    """The outcome behind it."""
    told: tuple[str, ...] = ()


_SIDES: Final[tuple[Side, ...]] = ("in", "out", "both")
_decoder: Final = msgspec.json.Decoder(Memo | None)


def load(raw: msgspec.Raw) -> Memo:
    return _decoder.decode(raw) or Memo()


def dump(memo: Memo) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(memo))


def rate_key(workload: WorkloadKey, side: Side) -> str:
    return f"{workload} {side}"


def begin(before: Mapping[WorkloadKey, verdict.Before], affected: Iterable[WorkloadKey]) -> Memo:
    """The memory of a new rollout: what every caller's requests towards each destination were like before it."""
    sums: dict[str, tuple[float, float]] = {}
    for known in before.values():
        for destination, (total, bad) in known.destinations.items():
            n, k = sums.get(destination, (0.0, 0.0))
            sums[destination] = (n + total, k + bad)
    return Memo(
        watch={name: verdict.watched(n, k) for name, (n, k) in sums.items()},
        rates={
            rate_key(name, side): verdict.known_of(seen, side).requests_per_s
            for name in affected
            if (seen := before.get(name)) is not None
            for side in _SIDES
        },
    )
