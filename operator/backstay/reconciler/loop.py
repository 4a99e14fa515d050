"""One mesh's reconciliation: look, decide, write down, act; once a second, and at once when something happened.

Every step is in this order on purpose: nothing is told to a proxy and no report is acknowledged before the state that
says so is durable. So an operator that is killed between any two lines continues the same rollout from the last state,
and what it had already told is told again, which proxies take as nothing new.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

import msgspec

from backstay import __version__
from backstay.config.model import Manifest, config_digest
from backstay.config.wire import Endpoint, Live
from backstay.core import live
from backstay.core.compile import PartCache, parts_of
from backstay.core.documents import parse
from backstay.core.held import changed_documents
from backstay.core.intents import MeshSpec
from backstay.core.ports import (
    Assignment,
    CertificateAuthority,
    Clock,
    Event,
    Fleet,
    Notifier,
    Platform,
    Revision,
    SourceRefused,
    SourceRepo,
    SourceUnavailable,
    StateStore,
    StateUnavailable,
)
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry
from backstay.core.rollout import decide, evidence, plan
from backstay.core.rollout.model import (
    Cause,
    Command,
    HeldSet,
    Hold,
    Observation,
    Order,
    Phase,
    Promote,
    Proven,
    ProxyView,
    Restore,
    RevisionRecord,
    Rollout,
    SetSeats,
    Settings,
    Tell,
    WorkloadState,
)
from backstay.core.snapshot import Document, DocumentKey, Snapshot
from backstay.core.validate import validate
from backstay.core.view import MeshView
from backstay.reconciler import holding
from backstay.reconciler.book import FleetBook, Heard
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.planning import (
    MeshPlan,
    Wanted,
    expected_refusals,
    final_configs,
    plan_mesh,
    settings_for,
)
from backstay.reconciler.source import Found, SourceWatch
from backstay.redact import clean
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.reconciler")
TICK: Final = 1.0
"""Seconds between looks; the proxies report as often."""
HISTORY: Final = 10
REVISIONS: Final = 50
PROVEN_FOR: Final = 24 * 3600.0
"""A config proven within this many seconds may come back without waves."""
MOST_SUPERSESSIONS: Final = 3
"""After this many in a row the newest commit waits for the running rollout, or a busy team would never promote."""
STEP_AT_MOST: Final = 5.0
"""Elapsed seconds one look may claim: a machine that slept has seen nothing."""
Outcome: TypeAlias = Literal[
    "pending", "live", "partly-live", "rolled-back", "held", "invalid", "superseded", "aborted"
]
_TERMINAL: Final = (Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.SUPERSEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    mesh: str
    url: str
    ref: str = "main"
    path: str = ""
    interval: float = 30.0
    """Seconds between looks at the git remote."""
    default_namespace: str = "default"
    trust_domain: str = "backstay.local"
    """The CA's; a Mesh document that says another cannot be served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    source: SourceRepo
    store: StateStore
    fleet: Fleet
    platform: Platform
    authority: CertificateAuthority
    clock: Clock
    notifiers: tuple[Notifier, ...] = ()


class OrderRefused(Exception):
    """A person's order that cannot be carried out now. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Reconciler:
    """One mesh. `start`, then `run` until cancelled; `order` and `view` at any time."""

    def __init__(self, settings: LoopSettings, ports: Ports, epoch: int) -> None:
        self._settings = settings
        self._ports = ports
        self._keeper = Keeper(ports.store, epoch, settings.mesh)
        self._book = FleetBook()
        self._folder = evidence.Folder()
        self._cache = PartCache()
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._registry = Registry()
        self._registry_changed = True
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._trust: Mapping[str, str] = {}
        self._plan: MeshPlan | None = None
        self._replan = True
        self._commits: list[Revision] = []
        self._problems: tuple[Problem, ...] = ()
        self._orders: list[Order] = []
        self._assigned: dict[str, plan.Target] = {}
        self._must_hold: str | None = None
        self._by_hand: str = ""
        """Set while the next rollout restores a revision by a person's order: it is Immediate."""
        self._fault = ""
        self._looked_at = ports.clock.monotonic()
        self._started = ports.clock.wall()
        self._handled_reconcile = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._watch = SourceWatch(ports.source, interval=settings.interval, clock=ports.clock, wake=self.wake, known="")
        self.on_view: Callable[[MeshView], None] = lambda view: None
        """Called after every look with what it led to."""
        self._view = self._make_view({})

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the state and begin to look. Raises StateUnavailable."""
        await self._keeper.load()
        self._folder = evidence.Folder(evidence.decode(bytes(self._keeper.state.counted)))
        self._watch.suspended = self._keeper.state.suspended
        self._event("operator", "Started", f"operator {__version__} started, epoch {self._keeper.epoch}")
        self._registry = await self._ports.platform.registry()
        self._tasks = [
            spawn(self._watch.run(), name="source-watch"),
            spawn(self._watch_platform(), name="platform-watch"),
        ]

    async def close(self) -> None:
        await stop(*self._tasks)

    def wake(self) -> None:
        """Look again soon."""
        self._wake.set()

    def hint(self) -> None:
        """The remote has probably changed."""
        self._watch.hint()

    async def run(self) -> None:
        """Reconcile until cancelled or fenced. Raises Fenced when another operator has taken over."""
        while True:
            await self.step()
            await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(TICK):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _watch_platform(self) -> None:
        async for _ in self._ports.platform.changes():
            self._registry_changed = True
            self.wake()

    # --- one look -----------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """One look: everything that happened is folded in, decided on, written down, then acted on."""
        elapsed = self._elapsed()
        await self._look_at_registry()
        heard = self._look_at_fleet()
        await self._look_at_git()
        views = self._book.views(self._registry, self._ports.clock.monotonic())
        self._fold(heard, views)
        self._roll(heard, views, elapsed)
        if self._must_hold is not None:
            await self._hold(self._must_hold)
        if self._replan:
            self._make_plan(views)
        await self._settle(views)

    def _elapsed(self) -> float:
        now = self._ports.clock.monotonic()
        elapsed, self._looked_at = now - self._looked_at, now
        return min(max(elapsed, 0.0), STEP_AT_MOST)

    async def _look_at_registry(self) -> None:
        if not self._registry_changed:
            return
        self._registry_changed = False
        registry = await self._ports.platform.registry()
        structural = (registry.services, registry.workloads) != (self._registry.services, self._registry.workloads)
        self._registry = registry
        self._replan = self._replan or structural or bool(self._plan and self._plan.waiting)
        self._book.forget_missing(registry)

    def _look_at_fleet(self) -> Heard:
        now = self._ports.clock
        heard = self._book.fold(list(self._ports.fleet.drain()), monotonic=now.monotonic(), wall=now.wall())
        for proxy in heard.joined:
            self._assigned.pop(proxy, None)
            self._event("proxy", "ProxyJoined", f"{proxy} connected", subject=proxy)
        for proxy in heard.left:
            self._event("proxy", "ProxyLeft", f"{proxy} disconnected", subject=proxy)
        for nack in heard.nacks:
            text = f"{nack.proxy} refused config {nack.digest[:12]}: {nack.reason}: {nack.message}"
            self._event("proxy", "ConfigRefused", text, subject=nack.proxy, warning=True)
        for item in heard.went_back:
            text = f"{item.proxy} went back to stable by itself: {item.reason}"
            self._event("proxy", "WentBack", text, subject=item.proxy, warning=True)
        return heard

    # --- git ----------------------------------------------------------------------------------------------------------

    async def _look_at_git(self) -> None:
        found = self._watch.take()
        if found is not None:
            self._take_up(found)

    def _take_up(self, found: Found) -> None:
        revision = str(found.tree.revision)
        state = self._keeper.state
        self._event("commit", "CommitSeen", f"{found.tree.revision.subject or 'commit'}", revision=revision)
        if found.forced:
            text = "history was rewritten: the commit before is no ancestor of this one"
            self._event("source", "ForcePushed", text, revision=revision, warning=True)
        result = validate(
            found.tree.files,
            revision=revision,
            registry=self._registry,
            default_namespace=self._settings.default_namespace,
            refused=found.tree.refused,
        )
        self._problems = (*result.problems, *self._foreign_trust_domain(result.snapshot))
        self._commits = [*self._commits, *found.commits][-REVISIONS:]
        fresh = state.attempted_revision != revision
        self._keeper.change(attempted_revision=revision, desired_revision=revision)
        if fresh:
            self._record(found.tree.revision, "invalid" if result.snapshot is None else "pending")
        if result.snapshot is None or any(problem.severity is Severity.ERROR for problem in self._problems):
            self._refuse(revision)
            return
        desired = self._keeper.keep_snapshot(result.snapshot)
        self._keeper.change(desired_documents=desired)
        self._replan = True

    def _foreign_trust_domain(self, snapshot: Snapshot | None) -> tuple[Problem, ...]:
        """The CA has one trust domain; another one would take away every proxy's identity."""
        if snapshot is None or snapshot.mesh.trust_domain == self._settings.trust_domain:
            return ()
        mesh = next(document for document in snapshot.documents.values() if document.kind == "Mesh")
        line, column = mesh.positions.get("spec.trustDomain", (mesh.line, 1))
        return (
            Problem(
                file=mesh.file,
                line=line,
                column=column,
                path="spec.trustDomain",
                message=f"{snapshot.mesh.trust_domain!r} is not the mesh's domain {self._settings.trust_domain!r}",
                reason="TrustDomainMismatch",
                document=mesh.key,
            ),
        )

    def _refuse(self, revision: str) -> None:
        errors = [problem for problem in self._problems if problem.severity is Severity.ERROR]
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        text = f"{errors[0]}{more}"
        self._outcome(revision, "invalid", text)
        self._event("validate", "CommitInvalid", text, revision=revision, warning=True)

    def _record(self, revision: Revision, outcome: Outcome) -> None:
        record = RevisionRecord(
            sha=revision.sha,
            revision=str(revision),
            author=revision.author,
            subject=revision.subject,
            committed_at=revision.committed_at,
            seen_at=self._ports.clock.wall(),
            outcome=outcome,
        )
        others = tuple(item for item in self._keeper.state.revisions if item.sha != revision.sha)
        self._keeper.change(revisions=(record, *others)[:REVISIONS])

    def _outcome(self, revision: str, outcome: Outcome, sentence: str = "", documents: str = "") -> None:
        """What became of a commit; commits before it that still waited went the same way or were passed over."""
        records = []
        for record in self._keeper.state.revisions:
            if record.revision == revision:
                record = msgspec.structs.replace(  # noqa: PLW2901
                    record, outcome=outcome, sentence=clean(sentence), documents=documents or record.documents
                )
            records.append(record)
        self._keeper.change(revisions=tuple(records))

    # --- planning -----------------------------------------------------------------------------------------------------

    def _make_plan(self, views: Mapping[str, ProxyView]) -> None:
        """Compile what is wanted now and start, change or end a rollout accordingly."""
        self._replan = False
        state = self._keeper.state
        desired = self._keeper.snapshot(state.desired_documents)
        stable = self._keeper.snapshot(state.stable_documents)
        if desired is None:
            return  # defaults before the first commit would make that commit a change of something that works
        made = plan_mesh(
            Wanted(
                desired=desired,
                stable=stable,
                held=state.held,
                kept=self._kept(stable),
                registry=self._registry,
                base=self._base(),
                frozen=state.frozen,
                parts=self._keeper.parts,
            ),
            self._cache,
        )
        self._plan = made
        if made.conflict or made.staged is None:
            self._event("validate", "HeldDependency", str(made.conflict[0]), desired.revision, warning=True)
            return
        self._release(made)
        self._adopt(made)
        if state.rollout is not None and state.rollout.phase is Phase.ROLLING_BACK:
            return  # what is wanted next waits until stable is restored; the end of the rollback plans again
        if made.staged.stages:
            self._begin(made, views)
        else:
            self._nothing_to_roll(made, views)

    def _base(self) -> dict[str, Manifest]:
        manifests = self._keeper.manifests
        return {key: manifests[item.stable] for key, item in self._keeper.state.workloads.items() if item.stable}

    def _kept(self, stable: Snapshot | None) -> dict[DocumentKey, Document]:
        """What held documents stay at: stable's content, overlaid by what a rollback by hand restored."""
        kept = dict(stable.documents) if stable else {}
        for held in self._keeper.state.held:
            for key in held.keep:
                document = self._keeper.restored.get((held.commit, key))
                if document is not None:
                    kept[key] = document
                else:
                    kept.pop(key, None)
        return kept

    def _release(self, made: MeshPlan) -> None:
        for held in made.effective.released:
            text = f"documents held since {held.commit[:12]} have changed and are tried again"
            self._event("rollout", "HeldReleased", text, revision=held.revision)
        if made.effective.released:
            self._keeper.change(held=made.effective.held)

    def _adopt(self, made: MeshPlan) -> None:
        """Take up new workloads, and parts that need no waves, into stable."""
        self._keeper.keep_configs(made.base.values(), made.parts)
        known = self._keeper.state.workloads
        workloads = {}
        for key, manifest in made.base.items():
            digest, old = config_digest(manifest), known.get(key, WorkloadState())
            workloads[key] = old if old.stable == digest else msgspec.structs.replace(old, stable=digest)
        gone = {key: item for key, item in known.items() if key not in workloads}
        self._keeper.change(workloads={**workloads, **gone})

    def _nothing_to_roll(self, made: MeshPlan, views: Mapping[str, ProxyView]) -> None:
        """What is wanted is what is stable: live at once; a running rollout towards something else ends."""
        state = self._keeper.state
        running = state.rollout
        if running is not None and running.phase is not Phase.BAKING:
            self._supersede(running, "what it was to bring is not wanted any more")
        self._live(made, self._keeper.state.desired_revision)

    def _live(self, made: MeshPlan, revision: str) -> None:
        """The effective snapshot serves everywhere."""
        documents = self._keeper.keep_snapshot(made.effective.snapshot)
        state = self._keeper.state
        before = self._keeper.snapshot(state.stable_documents)
        same = before is not None and not changed_documents(before.documents, made.effective.snapshot.documents)
        held = [item for item in state.held if item.revision == revision]
        if not revision or (held and same):
            self._keeper.change(stable_documents=documents)
            return
        if revision != state.active_revision:
            self._event("rollout", "Live", "live" if not state.held else "live, with documents held", revision)
        self._keeper.change(stable_documents=documents, active_revision=revision)
        self._outcome(revision, "partly-live" if state.held else "live", documents=documents)

    def _begin(self, made: MeshPlan, views: Mapping[str, ProxyView]) -> None:
        """Start the rollout of a staged change, or keep the one that already leads there."""
        state, staged = self._keeper.state, made.staged
        if staged is None:
            return
        running = state.rollout if state.rollout and state.rollout.phase not in _TERMINAL else None
        if running is not None and running.stages == staged.stages and running.phase is not Phase.BAKING:
            self._relabel(running, made)
            return
        documents = self._changed(made)
        settings = self._resolve(made, documents)
        carry = running if running is not None and running.phase is not Phase.BAKING else None
        if carry is not None and carry.supersessions >= MOST_SUPERSESSIONS and not self._may_preempt(settings, made):
            self._keeper.change(queued=state.desired_revision)
            return
        if running is not None:
            self._supersede(running, f"superseded by {state.desired_revision}")
        self._keeper.keep_configs(staged.manifests.values(), made.parts)
        rollout, commands = plan.begin(
            id=f"r{state.next_rollout}",
            cause=self._cause(made),
            settings=settings,
            stages=staged.stages,
            stable={key: item.stable for key, item in self._keeper.state.workloads.items()},
            documents=made.documents,
            proxies=views,
            now=self._ports.clock.wall(),
            carry=carry,
            before=self._folder.before(),
            gaining=made.gaining,
        )
        self._by_hand = ""
        self._keeper.change(
            rollout=rollout,
            next_rollout=state.next_rollout + 1,
            candidate_documents=self._keeper.keep_snapshot(made.effective.snapshot),
            queued="",
        )
        self._execute(commands)

    def _relabel(self, running: Rollout, made: MeshPlan) -> None:
        """The same configs by another commit: the rollout goes on and makes that commit live."""
        cause = msgspec.structs.replace(running.cause, revision=self._keeper.state.desired_revision)
        self._keeper.change(
            rollout=msgspec.structs.replace(running, cause=cause, documents=made.documents),
            candidate_documents=self._keeper.keep_snapshot(made.effective.snapshot),
        )

    def _changed(self, made: MeshPlan) -> list[Document]:
        new = made.effective.snapshot.documents
        stable = self._keeper.snapshot(self._keeper.state.stable_documents)
        old = stable.documents if stable else {}
        found = (new.get(key) or old.get(key) for key in made.documents)
        return [document for document in found if document is not None]

    def _resolve(self, made: MeshPlan, documents: Sequence[Document]) -> Settings:
        settings = settings_for(made.effective.snapshot.mesh.rollout, documents)
        if not made.gaining:
            settings = msgspec.structs.replace(settings, traffic=())
        if self._by_hand or self._is_proven(made):
            return msgspec.structs.replace(settings, immediate=True)
        return settings

    def _is_proven(self, made: MeshPlan) -> bool:
        """All configs were stable within a day: a revert needs no waves (it is watched all the same)."""
        if made.staged is None or not made.staged.stages:
            return False
        now, proven = self._ports.clock.wall(), self._keeper.state.proven
        final = final_configs(made.staged)
        return all(digest in proven and now - proven[digest].at < PROVEN_FOR for digest in final.values())

    def _may_preempt(self, settings: Settings, made: MeshPlan) -> bool:
        """Reverts, fixes of held documents and Immediate never wait."""
        return settings.immediate or bool(made.effective.released)

    def _cause(self, made: MeshPlan) -> Cause:
        state = self._keeper.state
        newest = state.revisions[0] if state.revisions else None
        kind: Literal["commit", "registry", "rollback"] = "commit" if made.documents else "registry"
        if self._by_hand:
            kind = "rollback"
        return Cause(
            kind=kind,
            revision=self._by_hand or state.desired_revision,
            commits=tuple(item.sha for item in self._commits),
            author=newest.author if newest else "",
            subject=clean(newest.subject) if newest else "",
        )

    def _supersede(self, running: Rollout, why: str) -> None:
        baking = running.phase is Phase.BAKING
        ended = msgspec.structs.replace(
            running, phase=Phase.SUCCEEDED if baking else Phase.SUPERSEDED, sentence=running.sentence or why
        )
        if not baking:
            self._outcome(running.cause.revision, "superseded", why)
            self._event("rollout", "Superseded", f"{running.id}: {why}", running.cause.revision)
        self._file(ended)

    def _file(self, ended: Rollout) -> None:
        """Move a finished rollout to the history."""
        state = self._keeper.state
        trimmed = msgspec.structs.replace(ended, memo=msgspec.Raw(b"null"))
        self._keeper.change(rollout=None, candidate_documents="", history=(trimmed, *state.history)[:HISTORY])

    # --- the running rollout ------------------------------------------------------------------------------------------

    def _fold(self, heard: Heard, views: Mapping[str, ProxyView]) -> None:
        second = int(self._ports.clock.monotonic())
        for proxy, workload, report in heard.reports:
            self._folder.fold(proxy, workload, report, second)

    def _stable(self) -> dict[str, str]:
        return {key: item.stable for key, item in self._keeper.state.workloads.items()}

    def _roll(self, heard: Heard, views: Mapping[str, ProxyView], elapsed: float) -> None:
        blocks = self._folder.blocks(self._ports.clock.monotonic(), views)
        if blocks:
            self._keeper.change(counted=msgspec.Raw(evidence.encode(self._folder.export())))
        rollout = self._keeper.state.rollout
        orders, self._orders = tuple(self._orders), []
        if rollout is None:
            return
        seen = Observation(
            elapsed=elapsed,
            now=self._ports.clock.wall(),
            proxies=dict(views),
            blocks=tuple(blocks),
            nacks=heard.nacks,
            went_back=heard.went_back,
            orders=orders,
        )
        after, commands = decide.decide(rollout, seen, stable=self._stable())
        self._keeper.change(rollout=self._with_places(after))
        self._execute(commands)
        after = self._keeper.state.rollout or after
        if after.phase in _TERMINAL:
            self._end(after)

    def _with_places(self, rollout: Rollout) -> Rollout:
        """Fill in which line of git is responsible for the causes of failures."""
        return rollout

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case SetSeats():
                    pass  # every step tells all proxies what they are to serve; see _assign
                case Promote():
                    self._promote()
                case Restore():
                    self._restore(command)
                case Hold():
                    self._must_hold = command.sentence
                case Tell():
                    revision = self._keeper.state.rollout.cause.revision if self._keeper.state.rollout else ""
                    self._event("rollout", command.reason, command.message, revision, warning=command.warning)
                case _:
                    assert_never(command)

    def _promote(self) -> None:
        """The last stage is stable from now on."""
        state = self._keeper.state
        rollout = state.rollout
        if rollout is None:
            return
        now, workloads, proven = self._ports.clock.wall(), dict(state.workloads), dict(state.proven)
        for stage in rollout.stages:
            for key, digest in stage.configs.items():
                old = workloads.get(key, WorkloadState())
                before = rollout.before.get(key, old.stable)
                workloads[key] = WorkloadState(stable=digest, previous=before)
                proven[before] = proven[digest] = Proven(at=now)
        fresh = {digest: item for digest, item in proven.items() if digest and now - item.at < PROVEN_FOR}
        self._keeper.change(
            workloads=workloads,
            proven=fresh,
            previous_documents=state.stable_documents,
            stable_documents=state.candidate_documents or state.stable_documents,
            active_revision=rollout.cause.revision,
        )
        held = self._keeper.state.held
        self._outcome(
            rollout.cause.revision, "partly-live" if held else "live", documents=self._keeper.state.stable_documents
        )
        self._commits = []
        self._replan = True

    def _restore(self, command: Restore) -> None:
        if not command.to_previous:
            return
        state = self._keeper.state
        workloads = dict(state.workloads)
        for key in command.workloads:
            old = workloads[key]
            workloads[key] = WorkloadState(stable=old.previous or old.stable, previous="")
        self._keeper.change(workloads=workloads, stable_documents=state.previous_documents or state.stable_documents)

    def _end(self, rollout: Rollout) -> None:
        if rollout.phase is Phase.FAILED:
            self._outcome(rollout.cause.revision, "rolled-back", rollout.sentence)
        elif rollout.phase is Phase.ABORTED:
            self._outcome(rollout.cause.revision, "aborted", rollout.sentence)
        if rollout.phase in (Phase.FAILED, Phase.ABORTED) and not rollout.documents:
            frozen = {key: d for stage in rollout.stages for key, d in stage.configs.items()}
            self._keeper.change(frozen={**self._keeper.state.frozen, **frozen})
        self._file(rollout)
        self._replan = True

    async def _hold(self, sentence: str) -> None:
        """Hold the documents of the commits that failed, each commit's as one set."""
        self._must_hold = None
        rollout = self._keeper.state.rollout or (self._keeper.state.history or (None,))[0]
        if rollout is None or not rollout.documents:
            return
        desired = self._keeper.snapshot(self._keeper.state.desired_documents)
        stable = self._keeper.snapshot(self._keeper.state.stable_documents)
        if desired is None:
            return
        guilty = holding.blamed(rollout, self._document_workloads())
        old = stable.documents if stable else {}
        commits = await self._contents(rollout.cause.commits)
        per_commit = holding.by_commit(guilty, commits, old)
        if not set().union(*per_commit.values()) >= guilty:
            per_commit = {_sha(rollout.cause.revision): set(rollout.documents) | guilty}

        def make(sha: str, documents: dict[str, str]) -> HeldSet:
            return HeldSet(
                commit=sha,
                revision=rollout.cause.revision,
                rollout=rollout.id,
                documents=documents,
                sentence=sentence,
                since=self._ports.clock.wall(),
            )

        made = holding.held_sets(per_commit, desired.documents, old, make)
        self._keeper.change(held=(*self._keeper.state.held, *made))
        names = ", ".join(sorted({key for item in made for key in item.documents}))
        self._event("rollout", "Held", f"held at their stable content: {names}", rollout.cause.revision, warning=True)
        self._replan = True

    async def _contents(self, commits: Sequence[str]) -> list[tuple[str, Mapping[DocumentKey, Document]]]:
        """Each commit's documents; commits that cannot be read any more are left out."""
        found: list[tuple[str, Mapping[DocumentKey, Document]]] = []
        for sha in commits:
            try:
                tree = await self._ports.source.read(sha)
            except (SourceRefused, SourceUnavailable) as error:
                _log.warning("hold.unreadable commit=%s error=%s", sha, clean(str(error)))
                continue
            parsed = parse(tree.files, default_namespace=self._settings.default_namespace)
            found.append((sha, {document.key: document for document in parsed.documents}))
        return found

    # --- writing down, then acting ------------------------------------------------------------------------------------

    async def _settle(self, views: Mapping[str, ProxyView]) -> None:
        """Make the new state durable, and only then tell anybody."""
        try:
            events = await self._keeper.flush()
        except StateUnavailable as error:
            self._fault = clean(str(error))
            _log.error("state.unwritable error=%s", self._fault)
            self._view = self._make_view(views)
            return
        self._fault = ""
        self._assign(views)
        self._publish()
        self._acknowledge()
        self._view = self._make_view(views)
        self.on_view(self._view)
        self._flushed.set()
        self._flushed = asyncio.Event()
        for notifier in self._ports.notifiers:
            await notifier.notify(events)
        if self._keeper.state.rollout is None and events:
            await self._keeper.prune()

    def _assign(self, views: Mapping[str, ProxyView]) -> None:
        """Tell every proxy what it is to serve, if that is news."""
        state = self._keeper.state
        stable, rollout = self._stable(), state.rollout
        seated = plan.targets(rollout, stable, views) if rollout else {}
        expected = self._expected_refusals(rollout)
        for proxy, view in views.items():
            wanted = seated.get(proxy) or plan.Target(stable.get(view.workload, ""), "", 0.0)
            if wanted.stable and self._assigned.get(proxy) != wanted:
                self._assigned[proxy] = wanted
                self._send(proxy, wanted, expected if wanted.candidate else (), rollout)

    def _send(
        self, proxy: str, wanted: plan.Target, expected: tuple[tuple[str, str, str], ...], rollout: Rollout | None
    ) -> None:
        keeper = self._keeper
        stable = keeper.manifests[wanted.stable]
        candidate = keeper.manifests[wanted.candidate] if wanted.candidate else None
        parts = parts_of(stable, keeper.parts)
        if candidate is not None:
            parts |= parts_of(candidate, keeper.parts)
        assignment = Assignment(
            stable=stable,
            candidate=candidate,
            share=wanted.share,
            lease_s=rollout.settings.confirm_within if rollout else 60.0,
            expect_refused=expected,
        )
        self._ports.fleet.assign(proxy, assignment, parts)

    def _expected_refusals(self, rollout: Rollout | None) -> tuple[tuple[str, str, str], ...]:
        snapshot = self._keeper.snapshot(self._keeper.state.candidate_documents)
        if rollout is None or snapshot is None:
            return ()
        found = (snapshot.documents.get(key) for key in rollout.documents)
        return expected_refusals(document for document in found if document is not None)

    def _publish(self) -> None:
        """Live data never waits for a rollout."""
        endpoints = live.endpoints(self._registry, self._mesh().trust_domain)
        delta = live.changed(self._endpoints, endpoints)
        trust = dict(self._ports.authority.trust_bundle())
        if not delta and trust == self._trust:
            return
        self._endpoints, self._trust = endpoints, trust
        self._ports.fleet.publish(Live(epoch=self._keeper.epoch, endpoints=delta, trust=trust))

    def _mesh(self) -> MeshSpec:
        stable = self._keeper.snapshot(self._keeper.state.stable_documents)
        return stable.mesh if stable else MeshSpec()

    def _acknowledge(self) -> None:
        for proxy, sequence in self._folder.ackable().items():
            self._ports.fleet.acknowledge(proxy, sequence)

    def _event(
        self, kind: str, reason: str, message: str, revision: str = "", *, subject: str = "", warning: bool = False
    ) -> None:
        text = clean(message)
        _log.log(logging.WARNING if warning else logging.INFO, "%s.%s %s", kind, reason, text)
        self._keeper.note(
            Event(
                at=self._ports.clock.wall(),
                kind=kind,
                reason=reason,
                message=text,
                revision=revision,
                subject=subject,
                warning=warning,
            )
        )

    # --- people -------------------------------------------------------------------------------------------------------

    def view(self) -> MeshView:
        """The mesh as of the last look."""
        return self._view

    async def order(self, verb: str, *, actor: str, reason: str = "", args: Mapping[str, str] = {}) -> str:
        """Carry out a person's order; returns what was done, durable. Raises OrderRefused when it cannot be."""
        done = await self._carry_out(verb, actor, reason, args)
        self._event("order", verb.capitalize(), f"{verb} by {actor}{': ' + reason if reason else ''}")
        flushed = self._flushed
        self.wake()
        await flushed.wait()
        return done

    async def _carry_out(self, verb: str, actor: str, reason: str, args: Mapping[str, str]) -> str:
        match verb:
            case "pause" | "resume" | "promote" | "promote-full" | "abort":
                return self._order_rollout(verb, actor, reason)
            case "retry":
                return self._retry(args)
            case "rollback":
                return await self._rollback(actor, reason, args)
            case "reconcile":
                self._handled_reconcile = f"{self._ports.clock.wall():.3f}"
                self._watch.again()
                return "looking at git now"
            case "suspend" | "unsuspend":
                return self._suspend(verb == "suspend", actor)
            case _:
                raise OrderRefused("UnknownVerb", f"there is no order {verb!r}")

    def _order_rollout(
        self, verb: Literal["pause", "resume", "promote", "promote-full", "abort"], actor: str, reason: str
    ) -> str:
        rollout = self._keeper.state.rollout
        if rollout is None or rollout.phase in _TERMINAL:
            raise OrderRefused("NoRollout", f"there is no running rollout to {verb}")
        if rollout.phase is Phase.ROLLING_BACK:
            raise OrderRefused("RollingBack", f"{rollout.id} is being rolled back, which always finishes")
        if verb == "resume" and rollout.phase is not Phase.PAUSED:
            raise OrderRefused("NotPaused", f"{rollout.id} is not paused, it is {rollout.phase.value}")
        self._orders.append(Order(verb=verb, actor=actor, reason=reason))
        return f"{verb}: {rollout.id}"

    def _retry(self, args: Mapping[str, str]) -> str:
        state = self._keeper.state
        wanted, document = args.get("commit", ""), args.get("document", "")
        chosen = [
            item
            for item in state.held
            if (not wanted or item.commit.startswith(wanted)) and (not document or document in item.documents)
        ]
        if not chosen and not state.frozen:
            raise OrderRefused("NothingHeld", "nothing is held that could be tried again")
        self._keeper.change(held=tuple(item for item in state.held if item not in chosen), frozen={})
        for held in chosen:
            self._outcome(held.revision, "pending")
        self._replan = True
        return f"trying again: {', '.join(sorted({key for item in chosen for key in item.documents})) or 'all'}"

    def _suspend(self, suspend: bool, actor: str) -> str:
        self._keeper.change(suspended=suspend, suspended_by=actor if suspend else "")
        self._watch.suspended = suspend
        if not suspend:
            self._watch.hint()
        return "git is not looked at until it is resumed" if suspend else "git is looked at again"

    async def _rollback(self, actor: str, reason: str, args: Mapping[str, str]) -> str:
        """Bring back what a revision said, and hold what git says instead."""
        state = self._keeper.state
        to, under = args.get("to", ""), args.get("path", "").strip("/")
        revision, wanted = await self._snapshot_of(to)
        desired = self._keeper.snapshot(state.desired_documents) or Snapshot(revision="", documents={})
        keys = {
            key
            for key in changed_documents(desired.documents, wanted.documents)
            if _is_under(desired.documents.get(key), under) or _is_under(wanted.documents.get(key), under)
        }
        if not keys:
            raise OrderRefused("NothingDiffers", f"git already says what {to} says{f' under {under}' if under else ''}")
        commit = _sha(state.desired_revision)
        keep = {key: self._keeper.keep_document(commit, key, wanted.documents.get(key)) for key in sorted(keys)}
        held = HeldSet(
            commit=commit,
            revision=state.desired_revision,
            rollout="",
            documents={key: desired.documents[key].digest if key in desired.documents else "" for key in sorted(keys)},
            sentence=f"rolled back to {revision} by {actor}{': ' + reason if reason else ''}",
            since=self._ports.clock.wall(),
            keep=keep,
        )
        others = tuple(item for item in state.held if not set(item.documents) <= keys)
        self._keeper.change(held=(*others, held))
        self._by_hand, self._replan = revision, True
        return f"rolling back {len(keys)} documents to {revision}"

    async def _snapshot_of(self, wanted: str) -> tuple[str, Snapshot]:
        """A revision's documents: as they served, or as git has them. Raises OrderRefused."""
        if not wanted:
            raise OrderRefused("RevisionMissing", "rollback needs a revision to go back to")
        sha = _sha(wanted)
        matches = [item for item in self._keeper.state.revisions if item.sha.startswith(sha)]
        if len(matches) != 1:
            why = "is not among the revisions seen" if not matches else "names several revisions"
            raise OrderRefused("UnknownRevision", f"{wanted} {why}; see backstay get revisions")
        record = matches[0]
        if record.documents:
            try:
                return record.revision, await self._keeper.recall(record.documents)
            except KeyError:
                _log.warning("rollback.forgotten revision=%s", record.revision)
        return record.revision, await self._snapshot_from_git(record)

    async def _snapshot_from_git(self, record: RevisionRecord) -> Snapshot:
        try:
            tree = await self._ports.source.read(record.sha)
        except (SourceRefused, SourceUnavailable) as error:
            raise OrderRefused("RevisionUnreadable", clean(str(error))) from error
        namespace = self._settings.default_namespace
        result = validate(tree.files, revision=record.revision, registry=self._registry, default_namespace=namespace)
        if result.snapshot is None:
            raise OrderRefused("RevisionInvalid", f"{record.revision} is not valid: {result.problems[0]}")
        return result.snapshot

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        return await self._ports.store.events(after=after, since=since, limit=limit)

    async def wait_for_event(self, after: int) -> None:
        """Return after the next durable look."""
        await self._flushed.wait()

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(digests)
        known = {digest: self._keeper.parts[digest] for digest in wanted if digest in self._keeper.parts}
        return {**await self._ports.store.blobs(set(wanted) - known.keys()), **known}

    # --- showing ------------------------------------------------------------------------------------------------------

    def _document_workloads(self) -> dict[DocumentKey, tuple[str, ...]]:
        if self._plan is None or self._plan.compiled is None:
            return {}
        found: dict[DocumentKey, set[str]] = {}
        origins = self._plan.compiled.origins
        for workload, manifest in self._plan.compiled.manifests.items():
            for digest in manifest.parts.values():
                for key in origins[digest].documents:
                    found.setdefault(key, set()).add(workload)
        return {key: tuple(sorted(workloads)) for key, workloads in found.items()}

    def _make_view(self, views: Mapping[str, ProxyView]) -> MeshView:
        state, keeper, made = self._keeper.state, self._keeper, self._plan
        rollout = state.rollout
        tried = plan.candidates(rollout) if rollout else {}
        return MeshView(
            mesh=self._settings.mesh,
            now=self._ports.clock.wall(),
            state=state,
            url=self._settings.url,
            ref=self._settings.ref,
            path=self._settings.path,
            interval=self._settings.interval,
            observed_generation=1 if state.attempted_revision else 0,
            handled_reconcile=self._handled_reconcile,
            source=self._watch.condition,
            problems=self._problems,
            fault=self._fault,
            desired=keeper.snapshot(state.desired_documents),
            effective=made.effective.snapshot if made else None,
            stable=keeper.snapshot(state.stable_documents),
            held_dependency=str(made.conflict[0]) if made and made.conflict else "",
            waiting=made.waiting if made else {},
            registry=self._registry,
            proxies=self._book.statuses(self._registry, views),
            stable_manifests=self._base(),
            candidate_manifests={k: keeper.manifests[d] for k, d in tried.items() if d in keeper.manifests},
            document_workloads=self._document_workloads(),
            origins=self._origins(),
            version=__version__,
            epoch=keeper.epoch,
            started_at=self._started,
        )

    def _origins(self) -> dict[str, tuple[str, ...]]:
        if self._plan is None or self._plan.compiled is None:
            return {}
        return {
            digest: tuple(dict.fromkeys(item.rules.values())) for digest, item in self._plan.compiled.origins.items()
        }


def _sha(revision: str) -> str:
    """The commit of `main@sha1:<sha>`, or the text itself."""
    return revision.rpartition(":")[2]


def _is_under(document: Document | None, folder: str) -> bool:
    return document is not None and (not folder or document.file == folder or document.file.startswith(folder + "/"))
