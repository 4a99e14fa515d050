"""One look of a rollout in the making: what is seen, what follows from it so far, and who is there to be seen.

Everything else in this package that decides takes a `Look`, changes it, and hands it on; decide.py begins and ends it.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from backstay.core.rollout import phases, plan, verdict
from backstay.core.rollout.memo import Memo
from backstay.core.rollout.model import (
    Command,
    Digest,
    Observation,
    Phase,
    ProxyId,
    ProxyView,
    Rollout,
    Settings,
    Tell,
    WorkloadKey,
)
from backstay.core.rollout.phases import Event

SILENT_S: Final = 5.0
"""A proxy that reports every second and has been silent for this long is not being measured."""
LOST_S: Final = 10.0
"""A proxy gone for this long is lost (reconnecting backs off to 5 s at most)."""
LEFT_OUT_SHARE: Final = 0.1
"""Part of the affected proxies (at least one) that may be left out for reasons of their own before the rollout holds."""
CUT_OFF_SHARE: Final = 0.5
"""Stable proxies away at the same time that make a lost candidate no evidence."""


@dataclass(slots=True)
class Look:
    """One look in the making."""

    rollout: Rollout
    memo: Memo
    seen: Observation
    stable: Mapping[WorkloadKey, Digest]
    fleet: dict[ProxyId, ProxyView]
    commands: list[Command] = field(default_factory=list)
    moved: bool = False
    """Something moved already; everything else waits for the next look."""

    decoded: dict[WorkloadKey, tuple[msgspec.Raw, verdict.Tests]] = field(default_factory=dict)

    def tests(self, workload: WorkloadKey) -> verdict.Tests:
        """The workload's running tests, decoded at most once a look."""
        raw = self.rollout.workloads[workload].evidence.tests
        known = self.decoded.get(workload)
        if known is None or known[0] is not raw:
            known = self.decoded[workload] = (raw, verdict.load(raw))
        return known[1]

    grouped: dict[WorkloadKey, list[ProxyView]] = field(default_factory=dict)

    def views(self, workload: WorkloadKey) -> list[ProxyView]:
        """The workload's proxies; the fleet is gone through once a look, not once a workload."""
        if not self.grouped:
            for view in self.fleet.values():
                self.grouped.setdefault(view.workload, []).append(view)
        return self.grouped.get(workload, [])

    def judgement(self, workload: WorkloadKey) -> verdict.Judgement:
        """What the workload's tests say; only those that have learnt something in this look are weighed again."""
        raw, settings = self.rollout.workloads[workload].evidence.tests, self.rollout.settings
        known = self.decoded.get(workload)
        if known is not None and known[0] is raw:
            return verdict.judge(known[1], settings)
        return _judged(bytes(raw), settings)

    def needed(self, workload: WorkloadKey) -> float:
        """About how many candidate requests a pass takes."""
        raw, settings = self.rollout.workloads[workload].evidence.tests, self.rollout.settings
        known = self.decoded.get(workload)
        if known is not None and known[0] is raw:
            return verdict.requests_needed(known[1], settings)
        return _needed(bytes(raw), settings)

    def change(self, **fields: object) -> None:
        self.rollout = msgspec.structs.replace(self.rollout, **fields)

    def remember(self, **fields: object) -> None:
        self.memo = msgspec.structs.replace(self.memo, **fields)

    def go(self, event: Event) -> None:
        self.change(phase=phases.after(self.rollout.phase, event))
        self.remember(waited=0.0, unknown_for=0.0)

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.commands.append(Tell(reason=reason, message=message, warning=warning))

    def tell_once(self, key: str, reason: str, message: str) -> None:
        if key not in self.memo.told:
            self.remember(told=(*self.memo.told, key))
            self.tell(reason, message, warning=True)


@functools.lru_cache(maxsize=1024)
def _judged(tests: bytes, settings: Settings) -> verdict.Judgement:
    """Most looks bring no block for most workloads: a hundred times faster than to decode and weigh what is known."""
    return verdict.judge(verdict.load(msgspec.Raw(tests)), settings)


@functools.lru_cache(maxsize=1024)
def _needed(tests: bytes, settings: Settings) -> float:
    return verdict.requests_needed(verdict.load(msgspec.Raw(tests)), settings)


def grow_older(look: Look) -> None:
    seconds, rollout = look.seen.elapsed, look.rollout
    # What could not be measured is not counted against the deadline: unknown never moves anything.
    counts = rollout.phase in {Phase.SHIFTING, Phase.BAKING}
    look.change(elapsed=rollout.elapsed + seconds, wave_elapsed=rollout.wave_elapsed + (seconds if counts else 0.0))
    look.remember(
        waited=look.memo.waited + seconds,
        cut_off_ago=look.memo.cut_off_ago + seconds,
        restarted_ago=look.memo.restarted_ago + seconds,
    )


def fleet_of(look: Look) -> dict[ProxyId, ProxyView]:
    """The proxies as seen, plus seated ones nobody has spoken of for a moment: a new operator has to meet them first."""
    missing: dict[ProxyId, float] = {}
    fleet = dict(look.seen.proxies)
    for workload, state in look.rollout.workloads.items():
        for proxy in state.seats:
            if proxy not in fleet:
                away = look.memo.missing.get(proxy, 0.0) + look.seen.elapsed
                missing[proxy] = away
                if away < LOST_S:
                    fleet[proxy] = ProxyView(id=proxy, workload=workload, connected=False, silent_for=away)
    look.remember(missing=missing)
    if look.seen.resumed or stable_cut_off_now(look, fleet):
        look.remember(cut_off_ago=0.0)
    return fleet


def stable_cut_off_now(look: Look, fleet: Mapping[ProxyId, ProxyView]) -> bool:
    seated = seated_proxies(look.rollout)
    others = [view for view in fleet.values() if view.id not in seated]
    away = sum(1 for view in others if not view.connected)
    if others:
        return away >= CUT_OFF_SHARE * len(others)
    if not look.seen.proxies:
        return True  # an operator that has just started has met nobody yet: everybody was cut off from it
    # Everybody has a seat: the fleet as a whole is what there is to compare with, if it is more than one.
    return len(fleet) > 1 and not any(view.connected for view in fleet.values())


def seated_proxies(rollout: Rollout) -> frozenset[ProxyId]:
    return frozenset(proxy for state in rollout.workloads.values() for proxy in state.seats)


def seats_acked(look: Look) -> bool:
    """All seated proxies that are here serve what their seat says, and at least one does (or there is nobody)."""
    here = False
    for state in look.rollout.workloads.values():
        for proxy in state.seats:
            view = look.fleet.get(proxy)
            if view is None or not view.connected:
                continue
            if not serves_target(look, view):
                return False
            here = True
    return here or not seated_proxies(look.rollout)


def serves_target(look: Look, view: ProxyView) -> bool:
    """Whether a proxy has acked what the rollout wants of it now."""
    wanted = plan.target(look.rollout, view.workload, view.id, look.stable)
    return view.candidate == wanted.candidate and abs(view.share - wanted.share) <= plan.EPSILON


def left_out_of(look: Look) -> list[ProxyId]:
    return [proxy for proxy in look.memo.left_out if proxy in look.fleet]


def may_be_left_out(look: Look) -> int:
    affected = sum(view.workload in look.rollout.workloads for view in look.fleet.values())
    return max(1, math.floor(LEFT_OUT_SHARE * affected))


def too_many_left_out(look: Look) -> bool:
    return len(left_out_of(look)) > may_be_left_out(look)


def is_heard(view: ProxyView | None) -> bool:
    return view is not None and view.connected and view.silent_for < SILENT_S
