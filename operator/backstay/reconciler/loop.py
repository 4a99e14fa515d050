"""One mesh's reconciliation: look, decide, write down, act; once a second, and at once when something happened.

Every step is in this order on purpose: nothing is told to a proxy and no report is acknowledged before the state that
says so is durable. So an operator that is killed between any two lines continues the same rollout from the last state,
and what it had already told is told again, which proxies take as nothing new.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backstay import __version__
from backstay.core.admitting import Rules, refusals
from backstay.core.judging import Judged, judge
from backstay.core.ports import (
    CertificateAuthority,
    Clock,
    Event,
    Fleet,
    KeySource,
    Notifier,
    Platform,
    SourceRepo,
    StateStore,
    StateUnavailable,
    TlsSecrets,
)
from backstay.core.problems import Problem, Severity
from backstay.core.registry import Registry, has_lost_half
from backstay.core.rollout.model import ProxyView
from backstay.core.snapshot import Document, Snapshot
from backstay.core.tenancy import Scope
from backstay.core.validate import Cache, validate
from backstay.core.view import MeshView, SourceCondition
from backstay.reconciler.book import FleetBook, Heard
from backstay.reconciler.conductor import Conductor
from backstay.reconciler.journal import Journal, sha_of
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.keys import KeysWatch
from backstay.reconciler.messenger import Messenger
from backstay.reconciler.orders import OrderRefused, Orders
from backstay.reconciler.pulls import Reviews, ReviewWatch, Standing
from backstay.reconciler.secrets import SecretsWatch
from backstay.reconciler.showing import Facts, show
from backstay.reconciler.source import Found, SourceWatch
from backstay.redact import clean
from backstay.tasks import spawn, stop

__all__ = ["LoopSettings", "OrderRefused", "Ports", "Reconciler"]

_log: Final = logging.getLogger("backstay.reconciler")
TICK: Final = 1.0
"""Seconds between looks; the proxies report as often."""
FAILPOINT: Final = os.environ.get("BACKSTAY_FAILPOINT", "")
"""For tests: `saved@shifting:2` dies once the state of wave 2 is durable and nobody has been told, `told@...` right after."""
STEP_AT_MOST: Final = 5.0
"""Elapsed seconds one look may claim: a machine that slept has seen nothing."""


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
    generation: int = 1
    """Of these settings; the Kubernetes API counts them."""
    observed_generation: int = 0
    """The generation that an operator before this one has worked with; 0: none."""
    handled_reconcile: str = ""
    """The last reconcile request that an operator before this one has honoured."""
    scope: Scope | None = None
    """What documents may be about; None: anything."""
    prune_percent: int = 100
    """Share of the documents that one commit may remove."""
    rollout_defaults: Mapping[str, object] = field(default_factory=dict)
    """`spec.rollout` of a Mesh document, where git does not say."""
    inherited: Callable[[], Mapping[str, bytes]] = dict
    """Documents of others that count here as well (a platform's Mesh and Guardrails): path -> text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    source: SourceRepo
    store: StateStore
    fleet: Fleet
    platform: Platform
    authority: CertificateAuthority
    clock: Clock
    notifiers: tuple[Notifier, ...] = ()
    tls_secrets: TlsSecrets | None = None
    """None: a platform that keeps no certificates for gateways."""
    key_sources: KeySource | None = None
    """None: key sets are not fetched; those in documents count."""
    reviews: Reviews | None = None
    """None: pull requests are not answered."""


class Reconciler:
    """One mesh. `start`, then `run` until cancelled; `order` and `view` at any time."""

    def __init__(self, settings: LoopSettings, ports: Ports, epoch: int) -> None:
        self._settings = settings
        self._ports = ports
        self._clock = ports.clock
        self._keeper = Keeper(ports.store, epoch, settings.mesh)
        self._journal = Journal(self._keeper, ports.clock)
        self._book = FleetBook()
        namespace = settings.default_namespace
        self._conductor = Conductor(
            self._keeper, self._journal, ports.source, ports.clock, namespace, settings.rollout_defaults
        )
        self._messenger = Messenger(self._keeper, ports.fleet, ports.authority, settings.trust_domain)
        self._watch = SourceWatch(
            ports.source,
            interval=settings.interval,
            clock=ports.clock,
            wake=self.wake,
            active=lambda: sha_of(self._keeper.state.active_revision),
        )
        self._orders = Orders(
            self._keeper, self._journal, self._conductor, self._watch, ports.source, ports.clock, namespace,
            settings.trust_domain,
        )  # fmt: skip
        self._orders.handled_reconcile = settings.handled_reconcile
        self._facts = Facts(
            mesh=settings.mesh,
            url=settings.url,
            ref=settings.ref,
            path=settings.path,
            interval=settings.interval,
            started_at=ports.clock.wall(),
            generation=settings.generation,
            rollout_defaults=settings.rollout_defaults,
        )
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._registry = Registry()
        self._registry_changed = True
        self._doubted: Registry | None = None
        """A registry that had lost half of its instances: believed only if the next list says the same."""
        self._documents = Cache()
        self._source_told = SourceCondition()
        """What of git's remote has been told last."""
        self._problems: tuple[Problem, ...] = ()
        self._fault = ""
        self._inherited: Mapping[str, bytes] = {}
        """Documents of others that the last commit was judged with."""
        self._pulls: ReviewWatch | None = None
        self._keys: KeysWatch | None = None
        if ports.key_sources is not None:
            self._keys = KeysWatch(
                ports.key_sources, ports.fleet, self._journal, ports.clock, self._current, epoch=epoch
            )
        self._looked_at = ports.clock.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self.on_view: Callable[[MeshView], None] = lambda view: None
        """Called after every look with what it led to."""
        self._view = self._make_view({})

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the state and begin to look. Raises StateUnavailable."""
        await self.load()
        self._tasks = [
            spawn(self._watch.run(), name="source-watch"),
            spawn(self._watch_platform(), name="platform-watch"),
        ]
        if self._ports.tls_secrets is not None:
            watch = SecretsWatch(self._ports.tls_secrets, self._ports.fleet, self._journal, self._current)
            self._tasks.append(spawn(watch.run(), name="secrets-watch"))
        if self._keys is not None:
            self._tasks.append(spawn(self._keys.run(), name="keys-watch"))
        if self._ports.reviews is not None:
            self._pulls = ReviewWatch(self._ports.reviews, self._journal, self._clock, self._standing)
            self._tasks.append(spawn(self._pulls.run(), name="review-watch"))

    def _standing(self) -> Standing:
        """What a pull request is compared with."""
        return Standing(
            mesh=self._settings.mesh,
            registry=self._registry,
            rules=self._rules(),
            default_namespace=self._settings.default_namespace,
            inherited=self._inherited,
            rollout_defaults=self._settings.rollout_defaults,
        )

    def _current(self) -> tuple[list[Document], Registry]:
        """Every document that some proxy may go by now, in any of its versions."""
        state = self._keeper.state
        names = dict.fromkeys((state.stable_documents, state.candidate_documents, state.desired_documents))
        snapshots = (self._keeper.snapshot(name) for name in names)
        return [
            d for snapshot in snapshots if snapshot is not None for d in snapshot.documents.values()
        ], self._registry

    async def load(self) -> None:
        """Take up the state where the operator before left it. Raises StateUnavailable."""
        await self._keeper.load()
        self._conductor.resume()
        self._watch.suspended = self._keeper.state.suspended
        self._journal.event("operator", "Started", f"operator {__version__} started, epoch {self._keeper.epoch}")
        self._registry = await self._ports.platform.registry()
        self._show({})

    async def look_at_remote(self) -> None:
        """One look at git, as the watching task does by itself."""
        await self._watch.look()

    async def close(self) -> None:
        await stop(*self._tasks)

    def wake(self) -> None:
        """Look again soon."""
        self._wake.set()

    def hint(self) -> None:
        """The remote has probably changed."""
        self._watch.hint()

    def hint_reviews(self) -> None:
        """A pull request has probably changed."""
        if self._pulls is not None:
            self._pulls.hint()

    def reread(self) -> None:
        """Read the commit again: something it is judged with has changed."""
        self._watch.again()

    async def run(self) -> None:
        """Reconcile until cancelled. Raises Fenced when another operator has taken over."""
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
        self._look_at_git()
        young_after = self._clock.wall() - self._conductor.warm_up()
        views = self._book.views(self._registry, self._clock.monotonic(), young_after=young_after)
        self._conductor.fold(heard)
        self._conductor.roll(heard, views, elapsed, self._registry)
        await self._conductor.hold()
        if self._conductor.replan:
            if self._keys is not None:
                await self._keys.prepare()
            self._conductor.make_plan(self._registry, views)
        await self._settle(views)

    def _elapsed(self) -> float:
        now = self._clock.monotonic()
        elapsed, self._looked_at = now - self._looked_at, now
        return min(max(elapsed, 0.0), STEP_AT_MOST)

    async def _look_at_registry(self) -> None:
        if not self._registry_changed and self._doubted is None:
            return
        self._registry_changed = False
        registry = await self._ports.platform.registry()
        if has_lost_half(self._registry, registry) and registry != self._doubted:
            self._doubted = registry
            text = "half of all instances or more are gone from the registry; waiting for a second look"
            self._journal.event("endpoints", "RegistryDoubted", text, warning=True)
            return
        self._doubted = None
        self._take_registry(registry)

    def _take_registry(self, registry: Registry) -> None:
        old, self._registry = self._registry, registry
        plan = self._conductor.plan
        structural = (registry.services, registry.workloads) != (old.services, old.workloads)
        self._conductor.replan = self._conductor.replan or structural or bool(plan and plan.waiting)
        self._book.forget_missing(registry)

    def _look_at_fleet(self) -> Heard:
        events = list(self._ports.fleet.drain())
        heard = self._book.fold(events, monotonic=self._clock.monotonic(), wall=self._clock.wall())
        note = self._journal.event
        for proxy in heard.joined:
            self._messenger.forget(proxy)
            note("proxy", "ProxyJoined", f"{proxy} connected", subject=proxy)
        for proxy in heard.left:
            note("proxy", "ProxyLeft", f"{proxy} disconnected", subject=proxy)
        for nack in heard.nacks:
            text = f"{nack.proxy} refused config {nack.digest[:12]}: {nack.reason}: {nack.message}"
            note("proxy", "ConfigRefused", text, subject=nack.proxy, warning=True)
        for issued in heard.certified:
            text = f"{issued.proxy} got a certificate as {issued.identity}"
            note("certificate", "CertificateIssued", text, subject=issued.proxy)
        self._note_turned_away(heard)
        if self._keys is not None:
            self._keys.missed(address for _, _, report in heard.reports for address in report.missing_keys)
        for item in heard.went_back:
            text = f"{item.proxy} went back to stable by itself: {item.reason}"
            note("proxy", "WentBack", text, subject=item.proxy, warning=True)
        return heard

    def _note_turned_away(self, heard: Heard) -> None:
        """Once for each reason: after an upgrade it is the same one for a thousand proxies."""
        by_reason: dict[tuple[str, str], list[str]] = {}
        for item in heard.turned_away:
            by_reason.setdefault((item.reason, item.message), []).append(item.proxy)
        for (reason, message), proxies in by_reason.items():
            more = f" and {len(proxies) - 1} more" if len(proxies) > 1 else ""
            text = f"{proxies[0]}{more} not let in, serving what they have: {message}"
            self._journal.event("proxy", reason, text, subject=proxies[0], warning=True)

    # --- git ----------------------------------------------------------------------------------------------------------

    def _look_at_git(self) -> None:
        self._note_source()
        found = self._watch.take()
        if found is not None:
            self._take_up(found)

    def _note_source(self) -> None:
        """A remote that fails, fails otherwise, or is back, is news."""
        now, before = self._watch.condition, self._source_told
        if (now.ok, now.reason, now.message) == (before.ok, before.reason, before.message):
            return
        self._source_told = now
        reason, text = ("FetchSucceeded", "git answers again") if now.ok else (now.reason, now.message)
        self._journal.event("source", reason, text, warning=not now.ok)

    def _take_up(self, found: Found) -> None:
        revision = str(found.tree.revision)
        is_new = self._keeper.state.attempted_revision != revision
        if found.forced:
            text = "history was rewritten: the commit before is no ancestor of this one"
            self._journal.event("source", "ForcePushed", text, revision, warning=True)
        snapshot = self._validate(found, revision)
        self._conductor.commits = tuple(commit.sha for commit in found.commits)
        self._keeper.change(attempted_revision=revision, desired_revision=revision)
        if is_new:
            self._journal.event("commit", "CommitSeen", found.tree.revision.subject or "commit", revision)
            self._journal.record(found.tree.revision, "pending")
        if snapshot is None:
            self._refuse(revision)
            return
        self._keeper.change(desired_documents=self._keeper.keep_snapshot(snapshot))
        self._conductor.replan = True

    def _validate(self, found: Found, revision: str) -> Snapshot | None:
        """The commit as a snapshot, or None when anything in it is wrong."""
        inherited = self._inherited = self._settings.inherited()
        result = validate(
            {**inherited, **found.tree.files},
            revision=revision,
            registry=self._registry,
            default_namespace=self._settings.default_namespace,
            refused=found.tree.refused,
            cache=self._documents,
        )
        before = self._keeper.snapshot(self._keeper.state.desired_documents)
        refused = refusals(result, before.documents if before is not None else None, self._rules(), inherited)
        judged = self._judge(result.snapshot) if not refused else Judged()
        refused += judged.errors
        self._problems = (*result.problems, *judged.remarks, *refused)
        return None if refused else result.snapshot

    def _judge(self, snapshot: Snapshot | None) -> Judged:
        """What live guardrails and the commit's own expectations say."""
        if snapshot is None:
            return Judged()
        live = self._keeper.snapshot(self._keeper.state.stable_documents)
        return judge(live, snapshot, self._registry)

    def _rules(self) -> Rules:
        settings = self._settings
        return Rules(trust_domain=settings.trust_domain, scope=settings.scope, prune_percent=settings.prune_percent)

    def _refuse(self, revision: str) -> None:
        errors = [problem for problem in self._problems if problem.severity is Severity.ERROR]
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        text = f"{errors[0]}{more}"
        self._journal.outcome(revision, "invalid", text)
        self._journal.event("validate", "CommitInvalid", text, revision, warning=True)

    # --- writing down, then acting ------------------------------------------------------------------------------------

    async def _settle(self, views: Mapping[str, ProxyView]) -> None:
        """Make the new state durable, and only then tell anybody."""
        try:
            events = await self._keeper.flush()
        except StateUnavailable as error:
            self._fault = clean(str(error))
            _log.error("state.unwritable error=%s", self._fault)
            self._show(views)
            return
        self._fault = ""
        self._may_die("saved")
        self._messenger.assign(views)
        self._note_endpoints(self._messenger.publish(self._registry))
        self._may_die("told")
        self._messenger.acknowledge(self._conductor.folder)
        await asyncio.sleep(0)  # what proxies are told leaves before it is shown: showing a large mesh takes time
        self._show(views)
        self._flushed.set()
        self._flushed = asyncio.Event()
        for notifier in self._ports.notifiers:
            await notifier.notify(events)
        if any(event.reason in ("Live", "Restored", "Superseded") for event in events):
            await self._keeper.prune()

    def _may_die(self, place: str) -> None:
        """End as by kill -9 where FAILPOINT says so: some of the moments between two lines last microseconds."""
        rollout = self._keeper.state.rollout
        if FAILPOINT and rollout is not None and f"{place}@{rollout.phase.value}:{rollout.wave + 1}" == FAILPOINT:
            os.kill(os.getpid(), signal.SIGKILL)

    def _note_endpoints(self, changed: Mapping[str, tuple[int, int]]) -> None:
        for service, (before, now) in sorted(changed.items()):
            if before == now == 0:
                continue  # a service new to the registry, nobody has missed it yet
            text = f"{service} has {now} endpoint{'s' * (now != 1)}, before {before}"
            self._journal.event("endpoints", "EndpointsChanged", text, subject=service, warning=now == 0 < before)

    def _show(self, views: Mapping[str, ProxyView]) -> None:
        self._view = self._make_view(views)
        self.on_view(self._view)

    def _make_view(self, views: Mapping[str, ProxyView]) -> MeshView:
        return show(
            self._facts,
            self._keeper,
            self._conductor,
            now=self._clock.wall(),
            source=self._watch.condition,
            problems=self._problems,
            fault=self._fault,
            observed_generation=self._observed_generation(),
            handled_reconcile=self._orders.handled_reconcile,
            registry=self._registry,
            book=self._book,
            views=views,
        )

    def _observed_generation(self) -> int:
        """A generation is observed once git was looked at with its settings and what was found is taken up."""
        if self._watch.is_taken_up or self._keeper.state.suspended:
            return self._settings.generation
        known = 1 if self._settings.generation == 1 and self._keeper.state.attempted_revision else 0
        return max(self._settings.observed_generation, known)

    # --- for the API --------------------------------------------------------------------------------------------------

    def view(self) -> MeshView:
        """The mesh as of the last look."""
        return self._view

    async def order(self, verb: str, *, actor: str, reason: str = "", args: Mapping[str, str] = {}) -> str:
        """Carry out a person's order; returns what was done, durable. Raises OrderRefused when it cannot be."""
        done = await self._orders.carry_out(verb, actor, reason, args, self._registry)
        self._journal.event("order", _camel(verb), f"{verb} by {actor}{': ' + reason if reason else ''}")
        flushed = self._flushed
        self.wake()
        await flushed.wait()
        return done

    async def events(self, *, after: int = 0, since: float = 0.0, limit: int = 1000) -> Sequence[Event]:
        return await self._ports.store.events(after=after, since=since, limit=limit)

    async def wait_for_event(self, after: int) -> None:
        """Return after the next durable look."""
        await self._flushed.wait()

    async def blobs(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        wanted = list(digests)
        known = {digest: self._keeper.parts[digest] for digest in wanted if digest in self._keeper.parts}
        return {**await self._ports.store.blobs(set(wanted) - known.keys()), **known}


def _camel(verb: str) -> str:
    return verb.title().replace("-", "")
