"""What goes to all proxies of a cluster whatever repository they follow: endpoints, and a first config for newcomers.

Live data has one publisher here, because a proxy calls services of namespaces that other repositories own. A proxy that
has never had a config gets the defaults until a repository says more: pods may be injected before there is one, and must
be able to start.
"""

import logging
from collections.abc import Mapping
from typing import Final

from backstay.adapters.kubernetes.platform import KubernetesPlatform
from backstay.app.meshes import Meshes
from backstay.config.wire import Endpoint, Live
from backstay.control.server import ControlServer
from backstay.control.sharing import SharedFleet, namespace_of
from backstay.core import live
from backstay.core.compile import Compiled, compile_mesh, parts_of
from backstay.core.documents import parse
from backstay.core.ports import Assignment, CertificateAuthority
from backstay.core.registry import Registry
from backstay.core.review.traffic import names_by_address
from backstay.core.snapshot import Snapshot

_log: Final = logging.getLogger("backstay.app")


class LiveFeed:
    """Publishes what has changed. One per term: what a leader before has published is not known to proxies of this one."""

    def __init__(
        self, control: ControlServer, platform: KubernetesPlatform, authority: CertificateAuthority, *, epoch: int
    ) -> None:
        self._control = control
        self._platform = platform
        self._authority = authority
        self._epoch = epoch
        self._registry: Registry | None = None
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._addresses: dict[str, list[str]] = {}
        self._trust: Mapping[str, str] = {}

    async def run(self) -> None:
        """Until cancelled. The first thing published is everything: a part would take the rest away."""
        await self.publish()
        async for _ in self._platform.changes():
            await self.publish()

    async def publish(self) -> None:
        registry, trust = await self._platform.registry(), dict(self._authority.trust_bundle())
        if registry is self._registry and trust == self._trust:
            return
        endpoints = live.endpoints(registry, next(iter(trust)))
        addresses = live.addresses(registry)
        news = live.changed(self._endpoints, endpoints), live.changed(self._addresses, addresses)
        if self._registry is None or any(news) or trust != self._trust:
            self._control.publish(Live(epoch=self._epoch, endpoints=news[0], addresses=news[1], trust=trust))
        if registry is not self._registry:
            names = names_by_address(registry)
            self._control.runs_at = lambda address: names.get(address, "")
        self._registry, self._endpoints, self._addresses, self._trust = registry, endpoints, addresses, trust


class Newcomers:
    """Gives proxies that have no config the defaults, where no repository has anything to say about them yet."""

    def __init__(
        self,
        control: ControlServer,
        platform: KubernetesPlatform,
        fleet: SharedFleet,
        meshes: Meshes,
        *,
        trust_domain: str,
    ) -> None:
        self._control = control
        self._platform = platform
        self._fleet = fleet
        self._meshes = meshes
        self._snapshot = defaults(trust_domain)
        self._compiled: tuple[Registry, Compiled] | None = None

    async def look(self) -> list[str]:
        """Assign once; returns to whom."""
        self._fleet.drain_unclaimed()  # reports of nobody's proxies are nobody's evidence
        waiting = [(proxy, key) for proxy, key in self._control.newcomers() if not self._is_spoken_for(key)]
        if not waiting:
            return []
        compiled = self._defaults_of(await self._platform.registry())
        served = [(proxy, compiled.manifests[key]) for proxy, key in waiting if key in compiled.manifests]
        for proxy, manifest in served:
            self._control.assign(proxy, Assignment(stable=manifest), parts_of(manifest, compiled.parts))
            _log.info("newcomer.defaults proxy=%s", proxy)
        return [proxy for proxy, _ in served]

    def _is_spoken_for(self, workload: str) -> bool:
        """Its repository has a config for it, or does not know yet whether it has."""
        owner = self._meshes.claims.owners.get(namespace_of(workload))
        mesh = self._meshes.running.get(owner) if owner else None
        if mesh is None:
            return False
        return mesh.reconciler is None or mesh.reconciler.view().desired is not None

    def _defaults_of(self, registry: Registry) -> Compiled:
        if self._compiled is None or self._compiled[0] is not registry:
            self._compiled = registry, compile_mesh(self._snapshot, registry)
        return self._compiled[1]


def defaults(trust_domain: str) -> Snapshot:
    """A mesh about which nobody has said anything."""
    text = f"""\
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {{name: defaults}}
spec: {{trustDomain: {trust_domain!r}}}
"""
    parsed = parse({"defaults.yaml": text.encode()}, default_namespace="default")
    return Snapshot(revision="", documents={document.key: document for document in parsed.documents})
