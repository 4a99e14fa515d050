"""Playbooks for rollouts: a fleet in memory that acks what it is told, and looks as short expressions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from backstay.core.rollout import plan, verdict
from backstay.core.rollout.decide import decide
from backstay.core.rollout.model import (
    Block,
    Cause,
    Command,
    Counts,
    Nacked,
    Observation,
    Order,
    Phase,
    Promote,
    ProxyView,
    Restore,
    Rollout,
    Settings,
    Stage,
    Stratum,
    Tell,
    WentBack,
)

WEB = "shop/web"
GOOD = (1000, 0)
QUICK = Settings(soak=2.0, deadline=60.0, bake_time=5.0)
CAUSE = Cause(kind="commit", revision="main@sha1:abc", commits=("abc",))


def stage(name: Any = "move", **configs: str) -> Stage:
    return Stage(name=name, configs={f"shop/{key}": digest for key, digest in configs.items()})


def fleet(count: int, workload: str = WEB, **fields: Any) -> dict[str, ProxyView]:
    name = workload.rsplit("/", 1)[-1]
    common: dict[str, Any] = {"connected": True, "stable": "old"} | fields
    views = [ProxyView(id=f"{name}-{n}", workload=workload, **common) for n in range(count)]
    return {view.id: view for view in views}


def counts(total: int, bad: int, **fields: Any) -> Counts:
    reasons = {"routes/sa-logic:80#main": {"no-healthy-upstream": bad}} if bad else {}
    given: dict[str, Any] = {"total": total, "bad": bad, "attempts": total, "reasons": reasons} | fields
    return Counts(**given)


def two_way(
    out: tuple[Counts, Counts], answered: tuple[Counts, Counts], whole: tuple[Counts, Counts] | None = None
) -> Block:
    """A second of `web` at half: (candidate, stable) of the requests it made and of those it answered.

    `whole` are the answered ones of proxies that served one config alone; without it all of them.
    """

    def cohorts(pair: tuple[Counts, Counts]) -> dict[str, Counts]:
        return {"new": pair[0], "old": pair[1]}

    return Block(
        workload=WEB,
        second=0,
        cohorts={"new": verdict.added(out[0], answered[0]), "old": verdict.added(out[1], answered[1])},
        share=0.5,
        directions={
            "out": Stratum(cohorts=cohorts(out), whole={}),
            "in": Stratum(cohorts=cohorts(answered), whole=cohorts(whole or answered)),
        },
    )


@dataclass
class Play:
    """One rollout being played. Methods return self, so that a story is one expression."""

    rollout: Rollout
    proxies: dict[str, ProxyView]
    stable: dict[str, str]
    acks: bool = True
    second: int = 0
    commands: list[Command] = field(default_factory=list)
    last: tuple[Command, ...] = ()

    @property
    def reasons(self) -> list[str]:
        return [command.reason for command in self.commands if isinstance(command, Tell)]

    @property
    def phase(self) -> Phase:
        return self.rollout.phase

    @property
    def on_candidate(self) -> dict[str, float]:
        return {p: t.share for p, t in plan.targets(self.rollout, self.stable, self.proxies).items() if t.candidate}

    def ack(self) -> "Play":
        """Every connected proxy takes what it is told."""
        for proxy, target in plan.targets(self.rollout, self.stable, self.proxies).items():
            view = self.proxies.get(proxy)
            if view is not None and view.connected:
                self.proxies[proxy] = msgspec.structs.replace(
                    view, stable=target.stable, candidate=target.candidate, share=target.share
                )
        return self

    def look(
        self,
        candidate: tuple[int, int] | Counts | None = None,
        stable: tuple[int, int] | Counts | None = None,
        *,
        workload: str = WEB,
        blocks: tuple[Block, ...] | None = None,
        seconds: float = 1.0,
        **seen: Any,
    ) -> "Play":
        """One look: a block of (requests, bad) per cohort, unless blocks are given."""
        if blocks is None:
            blocks = self.block(workload, candidate, stable)
        observation = Observation(
            elapsed=seconds, now=1e9 + self.second, proxies=dict(self.proxies), blocks=blocks, **seen
        )
        self.second += 1
        self.rollout, self.last = decide(self.rollout, observation, stable=self.stable)
        self.commands += self.last
        for command in self.last:
            self._execute(command)
        return self.ack() if self.acks else self

    def looks(self, times: int, *args: Any, **kwargs: Any) -> "Play":
        for _ in range(times):
            self.look(*args, **kwargs)
        return self

    def until(self, phase: Phase, *args: Any, limit: int = 2000, **kwargs: Any) -> "Play":
        for _ in range(limit):
            if self.rollout.phase is phase:
                return self
            self.look(*args, **kwargs)
        raise AssertionError(f"never {phase}, still {self.rollout.phase}: {self.rollout.sentence}; {self.reasons}")

    def order(self, verb: Any, actor: str = "ann", reason: str = "", **kwargs: Any) -> "Play":
        return self.look(orders=(Order(verb=verb, actor=actor, reason=reason),), **kwargs)

    def nack(self, proxy: str, fault: Any, workload: str = WEB, **kwargs: Any) -> "Play":
        nacked = Nacked(
            proxy=proxy,
            workload=workload,
            digest=self.tried(workload),
            fault=fault,
            reason="DiskFull",
            message="no space",
        )
        return self.look(nacks=(nacked,), **kwargs)

    def went_back(self, proxies: tuple[str, ...], reason: str, workload: str = WEB, **seen: Any) -> "Play":
        went = tuple(WentBack(proxy=p, workload=workload, digest=self.tried(workload), reason=reason) for p in proxies)
        return self.look(went_back=went, **seen)

    def view(self, proxy: str, **fields: Any) -> "Play":
        self.proxies[proxy] = msgspec.structs.replace(self.proxies[proxy], **fields)
        return self

    def tried(self, workload: str = WEB) -> str:
        return plan.candidates(self.rollout).get(workload, "")

    def block(self, workload: str, candidate: Any, stable: Any, **fields: Any) -> tuple[Block, ...]:
        """What the workload's cohorts saw; a cohort that nothing serves sees nothing."""
        views = [view for view in self.proxies.values() if view.workload == workload]
        share = sum(view.share for view in views) / len(views) if views else 0.0
        cohorts: dict[str, Counts] = {}
        tried, base = self._cohorts(workload)
        if candidate is not None and (share > 0 or self.phase is Phase.BAKING):
            cohorts[tried] = candidate if isinstance(candidate, Counts) else counts(*candidate)
        if stable is not None and share < 1:
            cohorts[base] = stable if isinstance(stable, Counts) else counts(*stable)
        return (
            (Block(workload=workload, second=self.second, cohorts=cohorts, share=share, expected=share, **fields),)
            if cohorts
            else ()
        )

    def _cohorts(self, workload: str) -> tuple[str, str]:
        if self.phase is Phase.BAKING:
            return self.stable[workload], self.rollout.before[workload]
        return self.tried(workload), plan.stage_stable(self.rollout, workload, self.stable)

    def _execute(self, command: Command) -> None:
        if isinstance(command, Promote):
            for step in self.rollout.stages:
                self.stable |= step.configs
        if isinstance(command, Restore) and command.to_previous:
            self.stable |= self.rollout.before


def play(
    proxies: dict[str, ProxyView] | int = 8,
    *,
    stages: tuple[Stage, ...] = (),
    settings: Settings = QUICK,
    stable: Mapping[str, str] | None = None,
    before: Mapping[str, verdict.Before] | None = None,
    **begin: Any,
) -> Play:
    """A rollout that has just begun, its first seats acked."""
    views = fleet(proxies) if isinstance(proxies, int) else dict(proxies)
    known = dict(stable or {view.workload: "old" for view in views.values()})
    rollout, commands = plan.begin(
        **{
            "id": "r1",
            "cause": CAUSE,
            "settings": settings,
            "stages": stages or (stage(web="new"),),
            "stable": known,
            "documents": ("shop/Route/web",),
            "proxies": views,
            "now": 1e9,
            "before": before,
            **begin,
        }
    )
    return Play(rollout, views, known, commands=list(commands)).ack()


def calm(
    requests: int = 1000, seconds: int = 60, destination: str = "", bad: int = 0, *, both_ways: bool = False
) -> verdict.Before:
    """A workload that has served stable for a while; both ways: as many requests answered as made."""
    seen = counts(requests, bad, by_destination={destination: (requests, bad)} if destination else {})
    stratum = Stratum(cohorts={"old": seen})
    known = verdict.Before()
    for second in range(seconds):
        block = Block(
            workload=WEB,
            second=second,
            cohorts={"old": verdict.added(seen, seen) if both_ways else seen},
            directions={"in": stratum, "out": stratum} if both_ways else {},
        )
        known = verdict.known(known, block)
    return known
