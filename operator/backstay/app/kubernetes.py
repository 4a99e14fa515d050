"""The operator in a cluster: one process, one control port, one CA, and a loop for every MeshRepository.

Every replica injects pods and enrols proxies. One leads, by the Lease: it runs the loops, holds the proxies' streams and
writes to the API. A leader that loses its Lease stops all of that at once and becomes a standby in the same process, so
that an API server that comes back finds somebody who waits for it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from backstay import __version__
from backstay.adapters.certificates import CertificatesUnusable, Material, SharedCA
from backstay.adapters.kubernetes.cacerts import SecretFiles
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.facts import NamespaceFacts, PodFacts
from backstay.adapters.kubernetes.handlers import Watcher
from backstay.adapters.kubernetes.injection import InjectionServer
from backstay.adapters.kubernetes.lease import Elector
from backstay.adapters.kubernetes.platform import KubernetesPlatform
from backstay.adapters.kubernetes.roots import RootsKeeper
from backstay.adapters.kubernetes.serving import CONFIGURATION, CaBundle, ServingCertificate, roots_of
from backstay.adapters.kubernetes.state import remembered
from backstay.app.doors import Doors
from backstay.app.feed import LiveFeed, Newcomers
from backstay.app.mesh import Surroundings
from backstay.app.meshes import Meshes, grants_of
from backstay.control.metrics import OperatorReading, Reading
from backstay.control.server import ControlServer
from backstay.control.sharing import SharedFleet
from backstay.control.webhook import Knock
from backstay.core.inject import InjectionSettings
from backstay.core.ports import Fenced
from backstay.core.tenancy import CLASS
from backstay.redact import clean
from backstay.settings import KubernetesSettings
from backstay.tasks import spawn, stop

_log: Final = logging.getLogger("backstay.app")
CA_CARE_EVERY: Final = 60.0
"""Seconds between looks at the CA's Secret: two requests, and a CA that people bring is in force within a minute."""
TURNS_WITHIN: Final = 60.0
"""Seconds without a turn of a loop after which the process is of no use: four times the longest wait for an answer."""
FIRST_TERM_AT: Final = 1_577_836_800
"""2020-01-01. Terms are 32 bits in the API: enough seconds from then on until 2088."""
RETRY_EVERY: Final = 2.0
NEWCOMERS_EVERY: Final = 0.5  # seconds a pod that has just been injected may wait for its first config


class KubernetesOperator:
    """Everything `backstay operator` runs. `start`, then `run` until cancelled, then `close`. Implements doors.House."""

    def __init__(self, settings: KubernetesSettings, *, took_signals: Any = None) -> None:
        """`took_signals` is called when kopf has put its own handlers for the process's signals in place of others."""
        self.settings = settings
        self.client = ApiClient.connect(settings.kubeconfig, settings.context)
        self.elector = Elector(
            self.client,
            namespace=settings.namespace,
            name=settings.name,
            identity=f"{settings.pod}_{secrets.token_hex(4)}",
        )
        self.platform = KubernetesPlatform(self.client, trust_domain=settings.trust_domain)
        self.watcher = Watcher(self.client.credentials, self._saw, took_signals or (lambda: None))
        self.doors = Doors(self, host=settings.host, metrics_port=settings.metrics_port, hooks_port=settings.hooks_port)
        self.authority: SharedCA | None = None
        self.control: ControlServer | None = None
        self.injection: InjectionServer | None = None
        self.fleet: SharedFleet | None = None
        self.meshes: Meshes | None = None
        self.webhook: CaBundle | None = None
        self.roots: RootsKeeper | None = None
        self.started_at = time.time()
        self._is_ready = False
        self._newcomer = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<KubernetesOperator {self.elector!r} {self.meshes!r}>"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open all doors; returns when injection and enrolment answer, however long the API server takes.

        Raises OSError, CertificatesUnusable, ApiError for credentials that cannot be found.
        """
        _writable(self.settings)
        await self.doors.open()
        await self.platform.start()
        self.authority = authority = await self._open_authority()
        self.control = control = self._control_server(authority)
        self.fleet = SharedFleet(control, unclaimed=self._newcomer.set)
        control.wake = self._woken
        control.elsewhere = self._leader_streams
        await control.start()
        self.injection = self._injection_server(authority)
        await self.injection.start()
        self._is_ready = True
        self._tasks = [
            spawn(self.watcher.run(), name="kopf"),
            spawn(self._take_turns(), name="leadership"),
            spawn(self._care_for_authority(authority), name="certificate-care"),
        ]
        _log.info("operator.started version=%s pod=%s", __version__, self.settings.pod)

    async def run(self) -> None:
        """Until cancelled, or until something ends that must not."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Give the Lease back last: whoever takes over finds nobody writing any more."""
        self._is_ready = False
        await stop(*self._tasks)
        if self.control is not None:
            await self.control.close()
        if self.injection is not None:
            await self.injection.close()
        await self.elector.release()
        await self.platform.close()
        await self.doors.close()
        await self.client.close()

    async def _open_authority(self) -> SharedCA:
        """The CA that lies in the cluster; made by whoever comes first."""
        files = SecretFiles(self.client, self.settings.namespace, Material)
        while True:
            try:
                return await SharedCA.open(files, self.settings.trust_domain)
            except ApiError as error:
                _log.warning("ca.unreadable error=%s", clean(str(error)))
                await asyncio.sleep(max(RETRY_EVERY, error.retry_after))

    def _control_server(self, authority: SharedCA) -> ControlServer:
        return ControlServer(
            ca=authority,
            enroller=self.platform,
            epoch=0,
            mesh=self.settings.trust_domain,
            host=self.settings.host,
            port=self.settings.control_port,
            trust_domain=self.settings.trust_domain,
            samples=self.settings.traffic_samples,
        )

    def _injection_server(self, authority: SharedCA) -> InjectionServer:
        settings = self.settings
        names = (settings.service_host, f"{settings.name}.{settings.namespace}", settings.name)
        serving = ServingCertificate(authority, (*names, f"{settings.service_host}.{settings.cluster_domain}"))
        return InjectionServer(
            InjectionSettings(
                image=settings.sidecar_image,
                operator=settings.control_url,
                trust_domain=settings.trust_domain,
                system_namespace=settings.namespace,
            ),
            serving,
            self.platform.namespace,
            host=settings.host,
            port=settings.injection_port,
        )

    async def _care_for_authority(self, authority: SharedCA) -> None:
        """Take over what people have changed of the CA; rotate what is due, if this replica leads."""
        while True:
            await asyncio.sleep(CA_CARE_EVERY)
            try:
                done = await authority.tend(may_change=self.elector.is_leading)
            except (ApiError, CertificatesUnusable) as error:
                _log.warning("ca.untended error=%s", clean(str(error)))
                continue
            for sentence in done:
                _log.info("ca.changed %s", sentence)
            if done:
                for keeper in (self.webhook, self.roots):
                    if keeper is not None:
                        keeper.wake()

    # --- leading ------------------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        """Lead, lose, wait, lead again; for ever."""
        while True:
            await self.elector.acquire()
            try:
                await self._lead()
            except Fenced as error:
                _log.warning("leadership.lost error=%s", error)
            except ApiError as error:
                _log.warning("leadership.not-begun error=%s", clean(str(error)))
                await self.elector.release()
                await asyncio.sleep(RETRY_EVERY)

    async def _lead(self) -> None:
        """One term. Raises Fenced at its end, ApiError if it cannot begin."""
        assert self.control is not None and self.fleet is not None and self.authority is not None  # noqa: S101, PT018 - started
        holding = spawn(self.elector.hold(), name="lease")
        meshes: Meshes | None = None
        try:
            epoch = await self._fence()
            self.control.lead(epoch)
            meshes = self.meshes = Meshes(self._surroundings(), self._grants)
            await meshes.start()
            await self._until_lost(holding, meshes, epoch)
        finally:
            self.meshes = None
            if meshes is not None:
                await meshes.close()
            self.control.stand_down()
            await stop(holding)

    async def _fence(self) -> int:
        """A term greater than whatever was written before: the Lease may have been deleted meanwhile.

        Where nothing is written everything may have been deleted, while proxies remember: the clock outnumbers that, since
        nobody leads for less than a second.
        """
        epochs = await remembered(self.client, self.settings.namespace)
        now = int(time.time()) - FIRST_TERM_AT
        return await self.elector.at_least(max(epochs.values(), default=now) + 1)

    async def _until_lost(self, holding: "asyncio.Task[None]", meshes: Meshes, epoch: int) -> None:
        assert self.control is not None and self.fleet is not None and self.authority is not None  # noqa: S101, PT018 - started
        authority = self.authority
        feed = LiveFeed(self.control, self.platform, authority, epoch=epoch)
        await feed.publish()
        newcomers = Newcomers(self.control, self.platform, self.fleet, meshes, trust_domain=self.settings.trust_domain)
        own_class = self.settings.operator_class
        configuration = f"{CONFIGURATION}-{own_class}" if own_class else CONFIGURATION
        self.webhook = CaBundle(self.client, lambda: roots_of(authority), name=configuration)
        self.roots = RootsKeeper(
            self.client,
            _Served(self.platform, own_class),
            lambda: roots_of(authority),
            own_namespace=self.settings.namespace,
        )
        tasks = [
            holding,
            spawn(meshes.run(), name="meshes"),
            spawn(feed.run(), name="live-feed"),
            spawn(self._serve_newcomers(newcomers, feed), name="newcomers"),
            spawn(self.webhook.run(), name="ca-bundle"),
            spawn(self.roots.run(), name="roots"),
            spawn(self._watch_grants(meshes), name="grants"),
        ]
        _log.info("leadership.begun epoch=%d", epoch)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.webhook = self.roots = None
            await stop(*tasks)

    async def _serve_newcomers(self, newcomers: Newcomers, feed: LiveFeed) -> None:
        while True:
            await newcomers.look()
            await feed.publish()  # the CA's roots may have changed without the registry
            if self.control is not None and self.control.fenced:
                raise Fenced("a proxy has heard of a newer operator; this one stops")
            try:
                async with asyncio.timeout(NEWCOMERS_EVERY):
                    await self._newcomer.wait()
            except TimeoutError:
                pass
            self._newcomer.clear()

    async def _watch_grants(self, meshes: Meshes) -> None:
        known = self._grants()
        async for _ in self.platform.looks():
            if self._grants() != known:
                known = self._grants()
                meshes.wake()

    def _surroundings(self) -> Surroundings:
        assert self.control is not None and self.fleet is not None and self.authority is not None  # noqa: S101, PT018 - started
        return Surroundings(
            settings=self.settings,
            client=self.client,
            platform=self.platform,
            authority=self.authority,
            control=self.control,
            fleet=self.fleet,
            elector=self.elector,
        )

    def _grants(self) -> Mapping[str, str]:
        return grants_of({name: facts.annotations for name, facts in self.platform.namespaces.items.items()})

    def _saw(self, kind: str, found: Mapping[str, Any], deleted: bool) -> None:
        if self.meshes is not None:
            self.meshes.saw(kind, found, deleted)

    def _woken(self) -> None:
        if self.fleet is not None:
            self.fleet.woken()

    # --- where the leader is ------------------------------------------------------------------------------------------

    def _leader_address(self) -> str | None:
        """None: here; "" where it is not known."""
        if self.elector.is_leading and self.meshes is not None:
            return None
        pod = self.elector.leader.partition("_")[0]
        facts = self.platform.pods.items.get(f"{self.settings.namespace}/{pod}")
        if not pod or pod == self.settings.pod or facts is None or not facts.ips:
            return ""
        address = str(facts.ips[0])
        return f"[{address}]" if ":" in address else address

    def _leader_streams(self) -> str | None:
        address = self._leader_address()
        return f"{address}:{self.settings.control_port}" if address else address

    def leader_hooks(self) -> str | None:
        address = self._leader_address()
        return f"{address}:{self.settings.hooks_port}" if address else address

    # --- for the doors ------------------------------------------------------------------------------------------------

    def ailments(self) -> Sequence[str]:
        """Why this process should be restarted: a task that must not end has ended, or a loop no longer turns."""
        ended = [f"{task.get_name()} has ended" for task in self._tasks if task.done()]
        now = time.monotonic()
        running = self.meshes.running.values() if self.meshes is not None else ()
        stuck = [
            f"the loop of {mesh.repository.key} has not turned for {now - mesh.turned_at:.0f} s"
            for mesh in running
            if now - mesh.turned_at > TURNS_WITHIN
        ]
        return [*ended, *stuck]

    def unready(self) -> Sequence[str]:
        return [] if self._is_ready else ["injection and enrolment do not answer yet"]

    def readings(self) -> Sequence[Reading | OperatorReading]:
        running = self.meshes.running.values() if self.meshes is not None else ()
        found = [
            Reading(mesh=mesh.repository.key, view=mesh.reconciler.view(), streams=mesh.streams())
            for mesh in running
            if mesh.reconciler is not None
        ]
        return [OperatorReading(facts=self._facts()), *found]

    def _facts(self) -> Mapping[str, Mapping[tuple[str, ...], float]]:
        """Metric of the whole process -> its values by labels."""
        injection = self.injection.outcomes if self.injection is not None else {}
        return {
            "backstay_leader": {(): float(self.elector.is_leading)},
            "backstay_term": {(): float(self.elector.term)},
            "backstay_process_start_time_seconds": {(): self.started_at},
            "backstay_api_requests_total": {
                (verb, str(status)): float(count) for (verb, status), count in self.client.requests.items()
            },
            "backstay_injections_total": {(verdict, reason): float(n) for (verdict, reason), n in injection.items()},
            "backstay_enrolments_refused_total": {
                (reason,): float(count) for reason, count in self.platform.refusals.items()
            },
        }

    def webhook_secrets(self, mesh: str) -> Sequence[bytes]:
        running = self.meshes.running.get(mesh) if self.meshes is not None else None
        return running.secrets if running is not None else ()

    def knocked(self, knock: Knock) -> None:
        running = self.meshes.running.get(knock.mesh) if self.meshes is not None else None
        if running is None or running.reconciler is None:
            return
        if knock.is_about_requests:
            running.reconciler.hint_reviews()
        else:
            running.reconciler.hint()


class _Served:
    """The namespaces of this operator's class: another one in the cluster has roots of its own."""

    def __init__(self, platform: KubernetesPlatform, operator_class: str) -> None:
        self._platform = platform
        self._class = operator_class

    def namespaces_and_pods(self) -> tuple[Mapping[str, NamespaceFacts], Mapping[str, PodFacts]]:
        namespaces, pods = self._platform.namespaces.items, self._platform.pods.items
        return {name: facts for name, facts in namespaces.items() if facts.labels.get(CLASS, "") == self._class}, pods

    def looks(self) -> AsyncGenerator[None, None]:
        return self._platform.looks()


def _writable(settings: KubernetesSettings) -> None:
    for folder in (settings.cache_dir, settings.run_dir):
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
