"""How long a candidate may be served without the operator's word, and what a start finds fit to serve. Pure.

Within one process the boot clock alone decides. Across a restart the wall clock is a second bound and the boot's id a
third, because a clock that began anew could make a lease endless.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from backstay.sidecar.clock import Instant

RESTARTS_TO_GO_BACK: Final = 2
RESTART_WINDOW: Final = 60.0  # seconds; with the two above: "two restarts within a minute"

Reason = Literal["LeaseEnded", "ControlLost", "Restarts"]


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to serve one candidate until `ends`. Lies on disk as well."""

    candidate: str
    length: float
    ends: float
    """By the boot clock."""
    ends_wall: float
    boot: str
    confirmed: bool = False
    """A report was acked since the swap: the way to the operator works under this candidate."""


def begin(candidate: str, length: float, now: Instant, *, before: Lease | None = None) -> Lease:
    """The operator has said so. Of the lease before it counts whether this very candidate was confirmed already."""
    return Lease(
        candidate=candidate,
        length=length,
        ends=now.since_boot + length,
        ends_wall=now.wall + length,
        boot=now.boot,
        confirmed=before is not None and before.candidate == candidate and before.confirmed,
    )


def renew(lease: Lease, now: Instant) -> Lease:
    """A report was acked."""
    return msgspec.structs.replace(begin(lease.candidate, lease.length, now), confirmed=True)


def is_over(lease: Lease, now: Instant) -> bool:
    """Within the process that began or took over the lease."""
    return now.since_boot >= lease.ends


def outlives_restart(lease: Lease, now: Instant) -> bool:
    """Whether a new process may go on under it."""
    same_boot = lease.boot == now.boot
    sane = lease.ends - now.since_boot <= lease.length and lease.ends_wall - now.wall <= lease.length
    return same_boot and sane and not is_over(lease, now) and now.wall < lease.ends_wall


def why_it_ended(lease: Lease, *, connected: bool) -> Reason:
    """Lost control: not one ack since the swap, and no connection at the end of the confirm window."""
    return "LeaseEnded" if connected or lease.confirmed else "ControlLost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a starting process may serve of what lies on its disk."""

    with_candidate: bool
    went_back: Literal["", "LeaseEnded", "Restarts"]
    restarts: tuple[float, ...]
    """Boot clock times of the latest unclean starts with a candidate, this one included."""


def after_deaths(before: Sequence[float], count: int, now: Instant) -> tuple[float, ...]:
    """Boot clock times of the latest deaths of an engine's process under a candidate, with `count` more now."""
    return (*(at for at in before if now.since_boot - at < RESTART_WINDOW), *[now.since_boot] * count)


def at_start(*, candidate: str, lease: Lease | None, restarts: Sequence[float], was_clean: bool, now: Instant) -> Start:
    """Decide at process start. A start after an orderly end is not counted: the platform wanted it."""
    if not candidate:
        return Start(with_candidate=False, went_back="", restarts=())
    recent = [at for at in restarts if 0 <= now.since_boot - at < RESTART_WINDOW]
    counted = tuple(recent if was_clean else [*recent, now.since_boot])
    start = Start(with_candidate=True, went_back="", restarts=counted)
    if len(counted) >= RESTARTS_TO_GO_BACK:
        return replace(start, with_candidate=False, went_back="Restarts")
    if lease is None or lease.candidate != candidate or not outlives_restart(lease, now):
        return replace(start, with_candidate=False, went_back="LeaseEnded")
    return start
