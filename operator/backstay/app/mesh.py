"""One MeshRepository at work: its loop, its state, its socket, and what it shows. Composed, not decided, here."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from backstay.adapters.forge import StatusNotifier
from backstay.adapters.keysets import HttpKeySets
from backstay.adapters.kubernetes import handlers
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.lease import Elector
from backstay.adapters.kubernetes.objects import EventSink, Owner, Projection, desired, memory_of, owned, refused
from backstay.adapters.kubernetes.platform import KubernetesPlatform
from backstay.adapters.kubernetes.secrets import TlsSecretsOfCluster, read_secret
from backstay.adapters.kubernetes.state import KubernetesStore
from backstay.adapters.secrets import belong_together
from backstay.app.common import Facade, SystemClock
from backstay.app.forges import forge_of, reviews_of
from backstay.app.tenants import OwnNamespaces, SecretSource, Term
from backstay.control import api
from backstay.control.metrics import StreamCount
from backstay.control.server import ControlServer
from backstay.control.sharing import SharedFleet
from backstay.core.durations import seconds
from backstay.core.ports import CertificateAuthority, Event, Fenced, StateUnavailable
from backstay.core.resources import MESH_REPOSITORY, MESH_ROLLOUT, RESOURCES
from backstay.core.rollout.model import MeshState
from backstay.core.status import Condition, repository_conditions
from backstay.core.status.common import timestamp
from backstay.core.tenancy import Refusal, Repository, Scope
from backstay.core.view import MeshView
from backstay.reconciler.loop import LoopSettings, Ports, Reconciler
from backstay.redact import clean
from backstay.settings import KubernetesSettings
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.app")
BY_SPEC: Final = "spec.suspend"
"""The actor of a suspension that the MeshRepository itself asks for."""
RETRY_FIRST: Final = 1.0  # seconds; doubles
RETRY_MOST: Final = 30.0
SHOW_EACH: Final = 0.005
"""Seconds for each proxy between two pictures of a mesh: one of a thousand proxies takes 90 ms to make, 2 % of a core."""
VERBS: Final = frozenset({"pause", "resume", "promote", "promote-full", "abort", "retry"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all meshes of the operator share."""

    settings: KubernetesSettings
    client: ApiClient
    platform: KubernetesPlatform
    authority: CertificateAuthority
    control: ControlServer
    fleet: SharedFleet
    elector: Elector


def ref_of(repository: Repository) -> str:
    ref = repository.spec.ref
    return ref.branch or ref.tag or ref.semver or ref.commit or "HEAD"


def owner_of(repository: Repository, namespaces: frozenset[str] = frozenset()) -> Owner:
    return Owner(
        namespace=repository.namespace,
        name=repository.name,
        uid=repository.uid,
        ref=ref_of(repository),
        namespaces=tuple(sorted(namespaces)),
    )


class Mesh:
    """`start`, then `stop`; in between it goes on by itself, whatever fails but the operator's own term."""

    def __init__(
        self,
        around: Surroundings,
        repository: Repository,
        namespaces: frozenset[str],
        found: Mapping[str, Any],
        inherited: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        """`found` is the MeshRepository as the API has it: its status says what an operator before this one did.
        `inherited` are documents of the platform's repository that count here as well."""
        self.inherits: Mapping[str, bytes] = {}
        """Those that the loop has read."""
        self._inherited = inherited
        self.repository = repository
        self.namespaces = namespaces
        self.reconciler: Reconciler | None = None
        self.turned_at = time.monotonic()
        """When the loop last went round."""
        self.fault = ""
        self.secrets: tuple[bytes, ...] = ()
        """Of the webhook."""
        self._around = around
        self._found = found
        owner = owner_of(repository, namespaces)
        self.projection = Projection(around.client, owner)
        self._events = EventSink(around.client, owner, reporter=around.settings.pod)
        self._orders: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(maxsize=64)
        self._handled: dict[str, dict[str, Any]] = {}
        self._taken_off: dict[str, int] = {}
        """Rollout -> version in which its last order was gone. Older pictures still show it: each status of ours makes one."""
        self._conditions: tuple[Condition, ...] = ()
        self._shown_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Mesh {self.repository.key} generation={self.repository.generation} {self.projection!r}>"

    def start(self) -> None:
        self._tasks = [
            spawn(self._live(), name=f"mesh {self.repository.key}"),
            spawn(self.projection.run(), name=f"objects {self.repository.key}"),
            spawn(self._events.run(), name=f"events {self.repository.key}"),
            spawn(self._take_orders(), name=f"orders {self.repository.key}"),
        ]

    async def stop(self) -> None:
        await stop(*self._tasks)

    def failed(self) -> BaseException | None:
        """Why it ended by itself: the operator's term is over. None: it goes on."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    # --- what is seen in the API --------------------------------------------------------------------------------------

    def saw(self, kind: str, found: Mapping[str, Any], deleted: bool) -> None:
        """An event of one of this repository's objects."""
        if kind == MESH_REPOSITORY.name:
            self._found = found
            self._ask_for_look(found)
            return
        if kind == MESH_ROLLOUT.name and not deleted and handlers.order_in(found) is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._orders.put_nowait(found)
        if self.projection.saw(kind, found, deleted=deleted):
            what = f"{kind} {found['metadata']['namespace']}/{found['metadata']['name']}"
            done = "deleted" if deleted else "changed"
            text = f"{what} was {done} by hand; it shows what is in git and was put back"
            self._tell("HandEdited", text)

    def _tell(self, reason: str, message: str) -> None:
        event = Event(at=time.time(), kind="operator", reason=reason, message=message, warning=True)
        spawn(self._events.notify([event]), name="event")

    def _ask_for_look(self, found: Mapping[str, Any]) -> None:
        asked = handlers.requested_at(found)
        if self.reconciler is not None and asked and asked != self.reconciler.view().handled_reconcile:
            spawn(self._order_look(self.reconciler, asked), name=f"reconcile {self.repository.key}")

    async def _order_look(self, reconciler: Reconciler, asked: str) -> None:
        await reconciler.order("reconcile", actor="annotation", args={"requestedAt": asked})

    # --- life ---------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Run; what fails is shown and tried again. Ends only by Fenced: the whole operator has to stop then."""
        pause = RETRY_FIRST
        while True:
            began = time.monotonic()
            try:
                await self._run()
            except Fenced:
                raise
            except (StateUnavailable, ApiError, OSError) as error:
                self._show_fault(clean(str(error)))
            except Exception as error:
                _log.exception("mesh.failed repository=%s", self.repository.key)
                self._show_fault(clean(f"the operator failed at this repository: {error!r}"))
            pause = RETRY_FIRST if time.monotonic() - began > RETRY_MOST else min(2 * pause, RETRY_MOST)
            self.turned_at = time.monotonic() + pause
            await asyncio.sleep(pause)

    def _show_fault(self, message: str) -> None:
        self.fault = message
        _log.warning("mesh.unable repository=%s error=%s", self.repository.key, message)
        fault = [("Ready", "False", "OperatorFault"), ("Reconciling", "True", "ProgressingWithRetry")]
        wish = bare_status(self.repository, self._found, [(*each, message) for each in fault])
        self.projection.show({wish.key: wish})

    async def _run(self) -> None:
        """One life of the loop."""
        around, settings = self._around, self._around.settings
        store = KubernetesStore(
            around.client,
            namespace=settings.namespace,
            repository=self.repository.key,
            tenure=Term(around.elector),
        )
        source = SecretSource(around.client, self.repository, settings)
        epoch = await store.claim()
        share = around.fleet.share(self.namespaces, self._wake)
        statuses = self._commit_statuses()
        reconciler = Reconciler(
            self._loop_settings(),
            Ports(
                source=source,
                store=store,
                fleet=share,
                platform=OwnNamespaces(around.platform, self.namespaces),
                authority=around.authority,
                clock=SystemClock(),
                notifiers=(self._events, *statuses),
                tls_secrets=TlsSecretsOfCluster(around.client, belong_together),
                key_sources=HttpKeySets(),
                reviews=reviews_of(around.client, self.repository, settings, around.control.traffic_of),
            ),
            epoch,
        )
        board = api.StatusBoard(await self._remembered())
        folder = settings.run_dir / self.repository.key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        server = api.ApiServer(Facade(reconciler), folder, self.streams, board, around.control.traffic_of)
        reconciler.on_view = lambda view: self._show(board, view)
        helpers: list[asyncio.Task[None]] = []
        try:
            await reconciler.start()
            await server.start()
            self.reconciler, self.fault = reconciler, ""
            helpers = [
                spawn(self._obey_spec(reconciler), name=f"suspend {self.repository.key}"),
                spawn(self._read_webhook_secret(), name=f"webhook {self.repository.key}"),
            ]
            await reconciler.run()
        finally:
            self.reconciler = None
            await stop(*helpers)
            await reconciler.close()
            around.fleet.end(share)
            await server.close()
            for notifier in statuses:
                await notifier.close()
            await source.close()
            await store.close()

    def _commit_statuses(self) -> tuple[StatusNotifier, ...]:
        around, repository = self._around, self.repository
        if repository.spec.forge is None or not repository.spec.forge.commit_status:
            return ()
        return (
            StatusNotifier(lambda: forge_of(around.client, repository, around.settings), f"backstay/{repository.key}"),
        )

    def _wake(self) -> None:
        if self.reconciler is not None:
            self.reconciler.wake()

    def _loop_settings(self) -> LoopSettings:
        repository, spec = self.repository, self.repository.spec
        status = self._found.get("status") or {}
        return LoopSettings(
            mesh=repository.name,
            url=clean(spec.url),
            ref=ref_of(repository),
            path=spec.path,
            interval=seconds(spec.interval),
            default_namespace=repository.namespace,
            trust_domain=self._around.settings.trust_domain,
            generation=repository.generation,
            observed_generation=max(int(status.get("observedGeneration") or 0), 0),
            handled_reconcile=str(status.get("lastHandledReconcileAt") or ""),
            scope=Scope(namespaces=self.namespaces, kinds=frozenset(spec.allow.kinds)),
            prune_percent=spec.prune_guard.max_percent,
            rollout_defaults=msgspec.to_builtins(spec.rollout) if spec.rollout is not None else {},
            inherited=self._inherit,
        )

    def _inherit(self) -> Mapping[str, bytes]:
        self.inherits = self._inherited()
        return self.inherits

    async def _remembered(self) -> dict[str, tuple[str, float]]:
        """Since when conditions are what they are, and which objects there are, from the API."""
        memory = dict(memory_of(f"{MESH_REPOSITORY.name}/{self.repository.name}", self._found))
        for kind, items in (await owned(self._around.client, self.projection.owner)).items():
            self.projection.adopt(RESOURCES[kind], items)
            for item in items:
                spec = item.get("spec") or {}
                name = item["metadata"]["name"]
                if kind != MESH_ROLLOUT.name:
                    name = f"{spec.get('kind')}/{spec.get('namespace')}/{spec.get('name')}"
                memory |= dict(memory_of(f"{kind}/{name}", item))
        return memory

    def streams(self) -> list[StreamCount]:
        """What the control port counts of its proxies."""
        own = self.reconciler.view().proxies if self.reconciler is not None else {}
        return [count for count in self._around.control.counts() if count.proxy in own]

    def _show(self, board: api.StatusBoard, view: MeshView) -> None:
        """At once where the repository's conditions are others; numbers that only grow may wait their turn."""
        self.turned_at = time.monotonic()
        conditions = repository_conditions(view)
        pause = SHOW_EACH * len(view.proxies)
        if conditions == self._conditions and self.turned_at - self._shown_at < pause:
            return
        self._conditions, self._shown_at = conditions, self.turned_at
        shown, projection = board.observe(view), self.projection
        projection.show(desired(shown, projection.owner, orders=self._handled, last=projection.wanted))

    # --- what people ask ----------------------------------------------------------------------------------------------

    async def _obey_spec(self, reconciler: Reconciler) -> None:
        """`spec.suspend`, and a request to look that was made while no operator ran."""
        state, wanted = reconciler.view().state, self.repository.spec.suspend
        if wanted and not state.suspended:
            await reconciler.order("suspend", actor=BY_SPEC)
        elif not wanted and state.suspended and state.suspended_by == BY_SPEC:
            await reconciler.order("unsuspend", actor=BY_SPEC)
        self._ask_for_look(self._found)

    async def _read_webhook_secret(self) -> None:
        webhook = self.repository.spec.webhook
        while webhook is not None:
            try:
                found = await read_secret(self._around.client, self.repository.namespace, webhook.secret_ref.name)
                token = found.get("token", b"").strip()
                self.secrets = (token,) if token else ()
            except ApiError as error:
                _log.warning("webhook.shut repository=%s error=%s", self.repository.key, clean(str(error)))
            await asyncio.sleep(WEBHOOK_SECRET_EVERY)

    async def _take_orders(self) -> None:
        """Orders by annotation, one after the other; each is taken off, carried out or not."""
        while True:
            found = await self._orders.get()
            asked = handlers.order_in(found)
            name = found["metadata"]["name"]
            if asked is None or self.reconciler is None or is_handled(found, self._taken_off):
                continue
            done, message = await self._carry_out(self.reconciler, name, *asked)
            order, actor, reason = asked
            self._handled[name] = {
                "order": order,
                "actor": actor,
                "reason": reason,
                "at": timestamp(time.time()),
                "done": done,
                "message": message,
            }
            if not done:
                self._tell("OrderRefused", f"{order} of {name} by {actor} was not carried out: {message}")
            await self._take_off(name)
            if self.reconciler is not None:
                self.reconciler.wake()

    async def _carry_out(
        self, reconciler: Reconciler, name: str, order: str, actor: str, reason: str
    ) -> tuple[bool, str]:
        rollout = name.removeprefix(f"{self.repository.name}-")
        refusal = order_refusal(order, rollout, reconciler.view().state)
        if refusal:
            return False, refusal
        args = retry_args(rollout, reconciler.view().state) if order == "retry" else {}
        action = api.Action(verb=order, actor=actor, reason=reason, args=args)  # type: ignore[arg-type] # checked above
        result = await Facade(reconciler).act(action)
        return result.done, clean(result.message)

    async def _take_off(self, name: str) -> None:
        path = MESH_ROLLOUT.path(self.repository.namespace, name)
        try:
            found = await self._around.client.patch(path, handlers.without_order())
            self._taken_off[name] = int(found["metadata"]["resourceVersion"])
        except ApiError as error:
            _log.warning("order.not-taken-off rollout=%s error=%s", name, clean(str(error)))


WEBHOOK_SECRET_EVERY: Final = 300.0
"""Seconds between looks at the webhook's Secret: who renews it keeps the old one at the forge for as long."""


def is_handled(found: Mapping[str, Any], taken_off: Mapping[str, int]) -> bool:
    """Whether this picture of a MeshRollout is from before its order was taken off: obeyed twice, a promotion would
    skip a wave. Versions of one object only grow."""
    metadata = found["metadata"]
    return int(metadata["resourceVersion"]) <= taken_off.get(metadata["name"], 0)


def order_refusal(order: str, rollout: str, state: MeshState) -> str:
    """Why an order on a MeshRollout cannot be one; empty where it can."""
    if order not in VERBS:
        return f"{order!r} is no order, expected one of {', '.join(sorted(VERBS))}"
    current = state.rollout.id if state.rollout else ""
    if order != "retry" and rollout != current:
        return f"{rollout} has ended; orders are for the present rollout{f', {current}' if current else ''}"
    return ""


def retry_args(rollout: str, state: MeshState) -> dict[str, str]:
    """What of the held sets a retry of this rollout means: its own."""
    own = [held.commit for held in state.held if held.rollout == rollout]
    return {"commit": own[0]} if own else {}


def refusal_status(repository: Repository, found: Mapping[str, Any], refusal: Refusal) -> Any:
    """The status of a repository that owns nothing."""
    conditions = [
        ("Ready", "False", refusal.reason, refusal.message),
        ("Stalled", "True", refusal.reason, refusal.message),
    ]
    return bare_status(repository, found, conditions)


def bare_status(repository: Repository, found: Mapping[str, Any], conditions: list[tuple[str, str, str, str]]) -> Any:
    """A status that says only this, with the times of conditions that were so before."""
    before = dict(memory_of("", found))
    now = time.time()
    shown = []
    for kind, value, reason, message in conditions:
        known = before.get(f"#{kind}")
        since = known[1] if known and known[0] == value else now
        shown.append(
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": clean(message, limit=1024),
                "observedGeneration": repository.generation,
                "lastTransitionTime": timestamp(since),
            }
        )
    return refused(owner_of(repository), shown, repository.generation, found.get("status") or {})
