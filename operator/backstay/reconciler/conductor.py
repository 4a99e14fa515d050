"""Where the mesh stands and what is done about it: plans become rollouts, commands become state.

The conductor changes the keeper's state and nothing else: it tells no proxy and writes nothing to disk. The loop calls
it, makes the result durable, and lets the messenger speak.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Literal, assert_never

import msgspec

from backstay import __version__
from backstay.config.model import Listeners, Manifest, config_digest, decode_part
from backstay.core.compile import Origins, PartCache
from backstay.core.diff import PartChange, new_engines, sides
from backstay.core.documents import parse
from backstay.core.held import changed_documents
from backstay.core.ports import Clock, SourceRefused, SourceRepo, SourceUnavailable
from backstay.core.registry import Registry, running, under_way
from backstay.core.rollout import decide, evidence, phases, plan
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
    Rollout,
    SetSeats,
    Settings,
    Tell,
    WorkloadState,
)
from backstay.core.snapshot import Document, DocumentKey, Snapshot
from backstay.reconciler import holding
from backstay.reconciler.book import Heard
from backstay.reconciler.journal import Journal, sha_of
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.planning import (
    MeshPlan,
    Provenance,
    Wanted,
    final_configs,
    mesh_rollout,
    plan_mesh,
    provenance,
    settings_for,
)
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.reconciler")
HISTORY: Final = 10
"""Finished rollouts kept in status."""
PROVEN_FOR: Final = 24 * 3600.0
"""A config proven within this many seconds may come back without waves."""
MOST_SUPERSESSIONS: Final = 3
"""After this many in a row the newest commit waits for the running rollout, or a busy team would never promote."""


class Conductor:
    """Owns the plan and the running rollout of one mesh."""

    def __init__(
        self,
        keeper: Keeper,
        journal: Journal,
        source: SourceRepo,
        clock: Clock,
        namespace: str,
        rollout_defaults: Mapping[str, object] = {},
    ) -> None:
        self._keeper = keeper
        self._rollout_defaults = rollout_defaults
        self._journal = journal
        self._source = source
        self._clock = clock
        self._namespace = namespace
        self._cache = PartCache()
        self._sentence: str | None = None
        """Set when the rollout's documents are to be held: why."""
        self.folder = evidence.Folder()
        self.plan: MeshPlan | None = None
        self.provenance = Provenance()
        """Of the plan; worked out once, shown at every look."""
        self.replan = True
        self.commits: Sequence[str] = ()
        """Commits that are wanted and not live, oldest first."""
        self.by_hand = ""
        """The revision that the next rollout restores by a person's order: that rollout is Immediate. Forgotten where
        nothing has to move for it, or the next commit would reach everybody at once."""
        self.orders: list[Order] = []
        self._resumed = False
        """No look has been taken since the state was loaded."""

    def resume(self) -> None:
        """Go on from the state that was loaded."""
        self.folder = evidence.Folder(evidence.decode(bytes(self._keeper.state.counted)))
        self._resumed = True

    @property
    def running(self) -> Rollout | None:
        """The rollout that has not ended; baking counts."""
        rollout = self._keeper.state.rollout
        return rollout if rollout is not None and rollout.phase not in phases.ENDED else None

    # --- from what is wanted to a rollout -----------------------------------------------------------------------------

    def make_plan(self, registry: Registry, views: Mapping[str, ProxyView]) -> None:
        """Compile what is wanted now and start, change or end a rollout accordingly."""
        self.replan = False
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
                registry=registry,
                base=self.base(),
                frozen=state.frozen,
                parts=self._keeper.parts,
            ),
            self._cache,
        )
        self.plan, self.provenance = made, provenance(made)
        if made.conflict or made.staged is None:
            self._journal.event("validate", "HeldDependency", str(made.conflict[0]), desired.revision, warning=True)
            self.by_hand = ""
            return
        self._release(made)
        self._adopt(made)
        if state.rollout is not None and state.rollout.phase is Phase.ROLLING_BACK:
            return  # what is wanted next waits until stable is restored; the end of the rollback plans again
        if made.staged.stages:
            self._begin(made, views)
        else:
            self._nothing_to_roll(made, views)

    def base(self) -> dict[str, Manifest]:
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
            self._journal.event("rollout", "HeldReleased", text, revision=held.revision)
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
        self.by_hand = ""
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
            self._journal.event("rollout", "Live", "live" if not state.held else "live, with documents held", revision)
        self._keeper.change(stable_documents=documents, active_revision=revision, compiled_by=__version__)
        self._journal.outcome(revision, "partly-live" if state.held else "live", documents=documents)

    def _begin(self, made: MeshPlan, views: Mapping[str, ProxyView]) -> None:
        """Start the rollout of a staged change, or keep the one that already leads there."""
        state, staged = self._keeper.state, made.staged
        if staged is None:
            return
        running = state.rollout if state.rollout and state.rollout.phase not in phases.ENDED else None
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
            self._supersede(running, _why_anew(running, state.desired_revision))
        self._keeper.keep_configs(staged.manifests.values(), made.parts)
        rollout, commands = plan.begin(
            id=f"r{state.next_rollout}",
            cause=self._cause(made),
            settings=settings,
            stages=staged.stages,
            stable={key: item.stable for key, item in self._keeper.state.workloads.items()},
            documents=made.documents,
            proxies=views,
            now=self._clock.wall(),
            carry=carry,
            before=self.folder.before(),
            gaining=made.gaining,
            sides=sides(made.base, staged, made.parts),
            whole=new_engines(made.base, staged, made.parts),
        )
        self.by_hand = ""
        self._keeper.change(
            rollout=rollout,
            next_rollout=state.next_rollout + 1,
            candidate_documents=self._keeper.keep_snapshot(made.effective.snapshot),
            queued="",
        )
        self._execute(commands)

    def _relabel(self, running: Rollout, made: MeshPlan) -> None:
        """The same configs by another commit: the rollout goes on and makes that commit live."""
        self.by_hand = ""
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
        settings = settings_for(mesh_rollout(made.effective.snapshot, self._rollout_defaults), documents)
        if not made.gaining:
            settings = msgspec.structs.replace(settings, traffic=())
        if self.by_hand or self._is_proven(made):
            # Back to what has served: want of traffic is no reason to keep what is being undone.
            return msgspec.structs.replace(settings, immediate=True, on_no_traffic="proceed")
        return settings

    def _is_proven(self, made: MeshPlan) -> bool:
        """All configs were stable within a day: a revert needs no waves (it is watched all the same)."""
        if made.staged is None or not made.staged.stages:
            return False
        now, proven = self._clock.wall(), self._keeper.state.proven
        final = final_configs(made.staged)
        return all(digest in proven and now - proven[digest].at < PROVEN_FOR for digest in final.values())

    def _may_preempt(self, settings: Settings, made: MeshPlan) -> bool:
        """Reverts, fixes of held documents and Immediate never wait."""
        return settings.immediate or bool(made.effective.released)

    def _cause(self, made: MeshPlan) -> Cause:
        state = self._keeper.state
        newest = state.revisions[0] if state.revisions else None
        return Cause(
            kind=self._kind(made),
            revision=self.by_hand or state.desired_revision,
            commits=tuple(self.commits),
            author=newest.author if newest else "",
            subject=clean(newest.subject) if newest else "",
        )

    def _kind(self, made: MeshPlan) -> Literal["commit", "registry", "upgrade", "rollback"]:
        if self.by_hand:
            return "rollback"
        if made.documents:
            return "commit"
        return "registry" if self._keeper.state.compiled_by in ("", __version__) else "upgrade"

    def _supersede(self, running: Rollout, why: str) -> None:
        """End a running rollout because something else is wanted. One that bakes is live and stays it."""
        if running.phase is Phase.BAKING:
            self._file(msgspec.structs.replace(running, phase=Phase.SUCCEEDED))
            return
        self._journal.outcome(running.cause.revision, "superseded", why)
        self._journal.event("rollout", "Superseded", f"{running.id}: {why}", running.cause.revision)
        self._file(msgspec.structs.replace(running, phase=Phase.SUPERSEDED, sentence=why))

    def _file(self, ended: Rollout) -> None:
        """Move a finished rollout to the history."""
        state = self._keeper.state
        trimmed = msgspec.structs.replace(ended, memo=msgspec.Raw(b"null"))
        self._keeper.change(rollout=None, candidate_documents="", history=(trimmed, *state.history)[:HISTORY])

    # --- the running rollout ------------------------------------------------------------------------------------------

    def fold(self, heard: Heard) -> None:
        """Take reports into the evidence."""
        second = int(self._clock.monotonic())
        for proxy, workload, report in heard.reports:
            self.folder.fold(proxy, workload, report, second)

    def stable(self) -> dict[str, str]:
        return {key: item.stable for key, item in self._keeper.state.workloads.items()}

    def warm_up(self) -> float:
        """Seconds that an instance must have run before it gives evidence."""
        rollout = self._keeper.state.rollout
        if rollout is not None:
            return rollout.settings.warm_up
        stable = self._keeper.snapshot(self._keeper.state.stable_documents)
        if stable is None:
            return Settings().warm_up
        return settings_for(mesh_rollout(stable, self._rollout_defaults), ()).warm_up

    def roll(self, heard: Heard, views: Mapping[str, ProxyView], elapsed: float, registry: Registry) -> None:
        """One look at the rollout, if there is one."""
        blocks = self.folder.blocks(self._clock.monotonic(), views)
        if blocks:
            self._keeper.change(counted=msgspec.Raw(evidence.encode(self.folder.export())))
        rollout = self._keeper.state.rollout
        orders, self.orders = tuple(self.orders), []
        resumed, self._resumed = self._resumed, False
        if rollout is None:
            return
        now = self._clock.wall()
        seen = Observation(
            elapsed=elapsed,
            now=now,
            proxies=dict(views),
            blocks=tuple(blocks),
            nacks=heard.nacks,
            went_back=heard.went_back,
            orders=orders,
            second=int(self._clock.monotonic()),
            resumed=resumed,
            updating=under_way(registry, now),
            running=running(registry),
            origins=self._places(),
        )
        after, commands = decide.decide(rollout, seen, stable=self.stable())
        self._keeper.change(rollout=after)
        self._execute(commands)
        after = self._keeper.state.rollout or after
        if after.phase in phases.ENDED:
            self._end(after)

    def _places(self) -> dict[str, dict[str, str]]:
        """Workload -> route as proxies report it -> the line of git behind what changed there."""
        made = self.plan
        if made is None or made.compiled is None:
            return {}
        found: dict[str, dict[str, str]] = {}
        for change in made.changes:
            origins = made.compiled.origins.get(change.new)
            if origins is not None:
                routes = found.setdefault(change.workload, {})
                routes.update(_routes_of(change, origins, _inbound_ports(made, change.workload)))
        return found

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
                    self._sentence = command.sentence
                case Tell():
                    revision = self._keeper.state.rollout.cause.revision if self._keeper.state.rollout else ""
                    self._journal.event("rollout", command.reason, command.message, revision, warning=command.warning)
                case _:
                    assert_never(command)

    def _promote(self) -> None:
        """The last stage is stable from now on."""
        state = self._keeper.state
        rollout = state.rollout
        if rollout is None:
            return
        now, workloads, proven = self._clock.wall(), dict(state.workloads), dict(state.proven)
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
            compiled_by=__version__,
        )
        held = self._keeper.state.held
        self._journal.outcome(
            rollout.cause.revision, "partly-live" if held else "live", documents=self._keeper.state.stable_documents
        )
        self.commits = ()
        self.replan = True

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
            self._journal.outcome(rollout.cause.revision, "rolled-back", rollout.sentence)
        elif rollout.phase is Phase.ABORTED:
            self._journal.outcome(rollout.cause.revision, "aborted", rollout.sentence)
        if rollout.phase in (Phase.FAILED, Phase.ABORTED) and not rollout.documents:
            frozen = {key: d for stage in rollout.stages for key, d in stage.configs.items()}
            self._keeper.change(frozen={**self._keeper.state.frozen, **frozen})
        self._file(rollout)
        self.replan = True

    # --- holding ------------------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Hold the documents of the commits that failed, each commit's as one set, if something failed."""
        sentence, self._sentence = self._sentence, None
        if sentence is None:
            return
        rollout = self._keeper.state.rollout or (self._keeper.state.history or (None,))[0]
        if rollout is None or not rollout.documents:
            return
        desired = self._keeper.snapshot(self._keeper.state.desired_documents)
        stable = self._keeper.snapshot(self._keeper.state.stable_documents)
        if desired is None:
            return
        guilty = holding.blamed(rollout, self.provenance.workloads)
        old = stable.documents if stable else {}
        commits = await self._contents(rollout.cause.commits)
        per_commit = holding.by_commit(guilty, commits, old)
        if not set().union(*per_commit.values()) >= guilty:
            per_commit = {sha_of(rollout.cause.revision): set(rollout.documents) | guilty}

        def make(sha: str, documents: dict[str, str]) -> HeldSet:
            return HeldSet(
                commit=sha,
                revision=rollout.cause.revision,
                rollout=rollout.id,
                documents=documents,
                sentence=sentence,
                since=self._clock.wall(),
            )

        made = holding.held_sets(per_commit, desired.documents, old, make)
        self._keeper.change(held=(*self._keeper.state.held, *made))
        names = ", ".join(sorted({key for item in made for key in item.documents}))
        self._journal.event(
            "rollout", "Held", f"held at their stable content: {names}", rollout.cause.revision, warning=True
        )
        self.replan = True

    async def _contents(self, commits: Sequence[str]) -> list[tuple[str, Mapping[DocumentKey, Document]]]:
        """Each commit's documents; commits that cannot be read any more are left out."""
        found: list[tuple[str, Mapping[DocumentKey, Document]]] = []
        for sha in commits:
            try:
                tree = await self._source.read(sha)
            except (SourceRefused, SourceUnavailable) as error:
                _log.warning("hold.unreadable commit=%s error=%s", sha, clean(str(error)))
                continue
            parsed = parse(tree.files, default_namespace=self._namespace)
            found.append((sha, {document.key: document for document in parsed.documents}))
        return found


def _routes_of(change: PartChange, origins: Origins, ports: Sequence[int]) -> dict[str, str]:
    """The names under which proxies report what one part decides, each with its line."""
    if change.key.startswith(("routes/", "gateway/")):
        return {f"{change.key}#{rule}": place for rule, place in origins.rules.items()}
    place = next(iter(origins.rules.values()), "")
    if change.key.startswith("backend/") and place:
        target = change.key.removeprefix("backend/")
        return {f"routes/{target}#{name}": place for name in ("", "default")}
    return {f"inbound:{port}": place for port in ports} if place else {}


def _inbound_ports(made: MeshPlan, workload: str) -> list[int]:
    listeners = decode_part(made.parts[made.target[workload].parts["listeners"]])
    return [item.port for item in listeners.inbound] if isinstance(listeners, Listeners) else []


def _why_anew(running: Rollout, revision: str) -> str:
    """What a person has to know who sees the same commit twice: nobody has pushed."""
    if running.cause.revision == revision:
        return "begun anew: Services, or what else configurations are made of, have changed meanwhile"
    return f"superseded by {revision}"
