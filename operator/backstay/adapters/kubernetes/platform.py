"""The cluster as the loop sees it: what runs (Platform) and who a proxy is (Enroller).

Five watches feed one registry, made anew only when a fact changed. Nothing is decided about rollouts here, and nothing is
written to the cluster.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Final

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.facts import (
    NamespaceFacts,
    PodFacts,
    SliceFacts,
    namespace_facts,
    node_zone,
    pod_facts,
    service_facts,
    slice_facts,
)
from backstay.adapters.kubernetes.registry import Departed, Facts, build
from backstay.adapters.kubernetes.tokens import Claims, EnrolmentRefused, check_pod, check_proxy, is_address_of, review
from backstay.adapters.kubernetes.watch import CONFIRM_AFTER, Watched
from backstay.core.ports import Identity
from backstay.core.registry import Registry
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.kubernetes")

GATHER: Final = 0.1
"""Seconds of events that make one change: a Deployment that scales tells ten things in a breath, and a registry of a
thousand pods takes about 20 ms to make."""
ADDRESS_WITHIN: Final = 5.0
"""Seconds the kubelet gets to say a pod's address: its proxy is often faster than the pod's status."""
REMEMBER: Final = 3600.0
"""Seconds a workload without pods is remembered: scaled to zero it keeps its config, deleted it is forgotten."""


class KubernetesPlatform:
    """`await start()` first. One per operator process; a repository's own view of it is cut by namespace elsewhere."""

    def __init__(
        self,
        client: ApiClient,
        *,
        trust_domain: str,
        confirm_after: float = CONFIRM_AFTER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refusals: Counter[str] = Counter()
        """Enrolments and streams that were not let in, by reason, for metrics."""
        self._client = client
        self._trust_domain = trust_domain
        self._monotonic = monotonic
        self._listeners: set[asyncio.Event] = set()
        self._registry = Registry()
        self._is_stale = True
        self._departed = Departed(REMEMBER)
        self._tasks: list[asyncio.Task[None]] = []

        self.pods = Watched(
            client, "/api/v1/pods", pod_facts, changed=self._changed, weigh=_ready_pods, confirm_after=confirm_after
        )
        self.slices = Watched(
            client,
            "/apis/discovery.k8s.io/v1/endpointslices",
            slice_facts,
            changed=self._changed,
            weigh=_ready_endpoints,
            confirm_after=confirm_after,
        )
        self.services = Watched(
            client, "/api/v1/services", service_facts, changed=self._changed, confirm_after=confirm_after
        )
        self.nodes = Watched(client, "/api/v1/nodes", node_zone, changed=self._changed, confirm_after=confirm_after)
        self.namespaces = Watched(
            client, "/api/v1/namespaces", namespace_facts, changed=self._changed, confirm_after=confirm_after
        )
        self._watches = (self.pods, self.services, self.slices, self.nodes, self.namespaces)

    def __repr__(self) -> str:
        counts = " ".join(f"{each.path.rsplit('/', 1)[1]}={len(each.items)}" for each in self._watches)
        return f"<KubernetesPlatform {counts}>"

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to watch; returns when the first lists are there, however long the API server takes."""
        self._tasks = [spawn(each.run(), name=f"watch {each.path}") for each in self._watches]
        await asyncio.gather(*(each.synced.wait() for each in self._watches))

    async def close(self) -> None:
        await stop(*self._tasks)

    def faults(self) -> list[str]:
        """Why the registry may be behind, one sentence a kind; empty while all watches hold."""
        return [each.fault for each in self._watches if each.fault]

    # --- ports.Platform -------------------------------------------------------------------------------------------

    async def registry(self) -> Registry:
        return self.current()

    def current(self) -> Registry:
        """The registry now."""
        if self._is_stale:
            self._is_stale = False
            former = self._registry
            alive = {pod.workload_key for pod in self.pods.items.values() if not pod.is_over}
            departed = self._departed.after(former, alive, self._monotonic())
            facts = Facts(
                pods=self.pods.items,
                services=self.services.items,
                slices=self.slices.items,
                zones=self.nodes.items,
            )
            fresh = build(facts, departed)
            self._registry = former if fresh == former else fresh
        return self._registry

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yields after every change of the registry; changes within a tenth of a second are one."""
        known = self.current()
        async for _ in self.looks():
            await asyncio.sleep(GATHER)
            if self.current() is not known:
                known = self.current()
                yield None

    async def looks(self) -> AsyncGenerator[None, None]:
        """Yields after every event of any kind, namespaces included; those while nobody waits are one."""
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            while True:
                await event.wait()
                event.clear()
                yield None
        finally:
            self._listeners.discard(event)

    def _changed(self) -> None:
        self._is_stale = True
        for event in self._listeners:
            event.set()

    # --- namespaces -----------------------------------------------------------------------------------------------

    def namespaces_and_pods(self) -> tuple[Mapping[str, NamespaceFacts], Mapping[str, PodFacts]]:
        """By name, and by `namespace/name`."""
        return self.namespaces.items, self.pods.items

    async def namespace(self, name: str) -> NamespaceFacts | None:
        """As watched, else as the API server says: a namespace may be younger than the last event. Raises ApiError."""
        known = self.namespaces.items.get(name)
        if known is not None:
            return known
        try:
            return namespace_facts(await self._client.get(f"/api/v1/namespaces/{name}"))
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    # --- ports.Enroller -------------------------------------------------------------------------------------------

    async def by_token(self, proxy: str, token: str, peer_ip: str) -> Identity:
        with self._counted():
            claims = await review(self._client, token)
            check_proxy(proxy, claims)
            pod = await self._pod_of(claims, peer_ip)
            return self._identity(check_pod(pod, claims, peer_ip))

    async def by_certificate(self, proxy: str, spiffe_id: str) -> Identity:
        with self._counted():
            name, _, namespace = proxy.rpartition(".")
            pod = await self._pod(namespace, name)
            if pod is None or pod.is_over:
                raise EnrolmentRefused("PodGone", f"no pod {namespace}/{name} runs here")
            identity = self._identity(pod)
            if identity.spiffe_id != spiffe_id:
                raise EnrolmentRefused(
                    "IdentityMismatch", f"{proxy!r} is {identity.spiffe_id}, its certificate says {spiffe_id!r}"
                )
            return identity

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except EnrolmentRefused as refused:
            self.refusals[refused.reason] += 1
            raise

    def _identity(self, pod: PodFacts) -> Identity:
        return Identity(
            proxy=pod.id,
            workload=pod.workload_key,
            spiffe_id=f"spiffe://{self._trust_domain}/ns/{pod.namespace}/sa/{pod.account}",
            attributes={"pod-uid": pod.uid, "node": pod.node, "zone": self.nodes.items.get(pod.node, "")},
        )

    async def _pod_of(self, claims: Claims, peer_ip: str) -> PodFacts | None:
        """The token's pod, once its address is known. What the watch does not know well enough is asked for."""
        known = self.pods.items.get(f"{claims.namespace}/{claims.pod}")
        if known is not None and known.uid == claims.pod_uid and is_address_of(known, peer_ip):
            return known
        found = await self._ask_for_pod(claims.namespace, claims.pod)
        if found is None or found.uid != claims.pod_uid or found.ips:
            return found
        return await self._with_address(claims) or found

    async def _with_address(self, claims: Claims) -> PodFacts | None:
        """None if the kubelet does not say it in time."""
        key = f"{claims.namespace}/{claims.pod}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADDRESS_WITHIN), contextlib.aclosing(self._seen(key)) as seen:
                async for pod in seen:
                    if pod is not None and pod.uid == claims.pod_uid and pod.ips:
                        return pod
        return None

    async def _seen(self, key: str) -> AsyncGenerator[PodFacts | None, None]:
        yield self.pods.items.get(key)
        async for _ in self.looks():
            yield self.pods.items.get(key)

    async def _pod(self, namespace: str, name: str) -> PodFacts | None:
        return self.pods.items.get(f"{namespace}/{name}") or await self._ask_for_pod(namespace, name)

    async def _ask_for_pod(self, namespace: str, name: str) -> PodFacts | None:
        if not namespace or not name or "/" in name:
            return None
        try:
            return pod_facts(await self._client.get(f"/api/v1/namespaces/{namespace}/pods/{name}"))
        except ApiError as error:
            if error.is_missing:
                return None
            raise EnrolmentRefused("ReviewUnavailable", f"{namespace}/{name} cannot be looked up: {error}") from error


def _ready_pods(pod: PodFacts) -> int:
    return int(pod.is_ready)


def _ready_endpoints(found: SliceFacts) -> int:
    return sum(endpoint.is_ready for endpoint in found.endpoints)
