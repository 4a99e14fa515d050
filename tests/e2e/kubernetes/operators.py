"""Operators in the test's own process, on a real API server, and a git server they can reach."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.crds import generated
from backstay.app.kubernetes import KubernetesOperator
from backstay.core.resources import MESH_INTENT, MESH_REPOSITORY, Kind
from backstay.settings import KubernetesSettings
from backstay.tasks import spawn, stop
from cluster.reach import Reach
from ports.forge import Forge
from ports.repositories import Repository

PATIENCE = 60.0
"""Seconds to wait for what happens within one or two on an idle machine."""
MESH = """\
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {defaults: {timeout: 10s}}
"""
ROUTE = """\
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  rules:
  - name: main
    backendRefs: [{{name: {name}, port: 80}}]
    timeouts: {{request: {timeout}}}
"""


def route(name: str, timeout: str = "5s") -> str:
    return ROUTE.format(name=name, timeout=timeout)


def install(api: Reach) -> None:
    """The three kinds, as bootstrap/crds has them."""
    crds = [text for name, text in generated().items() if name != "kustomization.yaml"]
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin="\n---\n".join(crds))
    names = [yaml.safe_load(text)["metadata"]["name"] for text in crds]
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))


class World:
    """One cluster with a system namespace, a shop namespace and a git server of this test's own."""

    def __init__(self, api: Reach, client: ApiClient, forge: Forge, scratch: Path) -> None:
        self.api = api
        self.client = client
        self.forge = forge
        self.scratch = scratch
        mark = secrets.token_hex(3)
        self.operator_class = f"test-{mark}"
        self.system, self.shop, self.other = f"test-system-{mark}", f"test-shop-{mark}", f"test-other-{mark}"
        self.operators: list[tuple[KubernetesOperator, asyncio.Task[None]]] = []

    async def create(self) -> None:
        for name in (self.system, self.shop, self.other):
            labels = {"backstay.dev/operator-class": self.operator_class}
            await self.client.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})

    async def remove(self) -> None:
        for operator, _ in list(self.operators):
            await self.end(operator)
        for name in (self.system, self.shop, self.other):
            await self.client.delete(f"/api/v1/namespaces/{name}")

    def repository(self, name: str = "mesh") -> Repository:
        return Repository(self.forge.root / name)

    async def start(self, pod: str = "pod-a") -> KubernetesOperator:
        """A replica that has opened its doors."""
        settings = KubernetesSettings(
            pod=pod,
            namespace=self.system,
            operator_class=self.operator_class,
            kubeconfig=self.api.kubeconfig,
            cache_dir=self.scratch / pod / "cache",
            run_dir=Path("/tmp") / f"{self.operator_class}-{pod}",  # a socket's path must be short
            host="127.0.0.1",
            control_port=0,
            injection_port=0,
            metrics_port=0,
            hooks_port=0,
        )
        operator = KubernetesOperator(settings)
        await operator.start()
        self.operators.append((operator, spawn(operator.run(), name=f"operator {pod}")))
        return operator

    async def end(self, operator: KubernetesOperator) -> None:
        """As by SIGTERM."""
        for known, task in list(self.operators):
            if known is operator:
                self.operators.remove((known, task))
                await stop(task)
                await operator.close()

    async def kill(self, operator: KubernetesOperator) -> None:
        """As by kill -9, as far as the API server can tell: nothing is given back."""
        operator.elector._held = None
        await self.end(operator)

    async def make_repository(self, name: str = "shop", namespace: str = "", **spec: Any) -> None:
        """A MeshRepository, and the Secret with the git server's certificate."""
        namespace = namespace or self.shop
        secret = {"metadata": {"name": f"{name}-git"}, "stringData": {"ca.crt": self.forge.ca_file.read_text()}}
        with contextlib.suppress(ApiError):
            await self.client.create(f"/api/v1/namespaces/{namespace}/secrets", secret)
        body = {
            "apiVersion": "backstay.dev/v1alpha1",
            "kind": "MeshRepository",
            "metadata": {"name": name, "labels": {"backstay.dev/operator-class": self.operator_class}},
            "spec": {"url": f"{self.forge.url}/mesh", "interval": "1s", "secretRef": {"name": f"{name}-git"}} | spec,
        }
        await self.client.create(MESH_REPOSITORY.path(namespace), body)

    async def found(self, kind: Kind, name: str, namespace: str = "") -> dict[str, Any]:
        return await self.client.get(kind.path(namespace or self.shop, name))

    async def items(self, kind: Kind, namespace: str = "") -> list[dict[str, Any]]:
        return list((await self.client.list(kind.path(namespace or self.shop))).items)

    async def until_repository(
        self, true: Callable[[Mapping[str, str]], bool], *, name: str = "shop", namespace: str = ""
    ) -> dict[str, Any]:
        """The MeshRepository once its conditions (type -> `status/reason`) are so."""
        last: dict[str, Any] = {}

        async def reached() -> bool:
            nonlocal last
            last = await self.found(MESH_REPOSITORY, name, namespace)
            return true(conditions(last))

        await until(reached, lambda: f"conditions are {conditions(last)}")
        return last

    async def until_intents(self, *names: str) -> dict[str, dict[str, Any]]:
        """The MeshIntents by name, once they are exactly these: what waits for Ready need not wait for all of them."""
        last: dict[str, dict[str, Any]] = {}

        async def are_shown() -> bool:
            nonlocal last
            last = {item["metadata"]["name"]: item for item in await self.items(MESH_INTENT)}
            return sorted(last) == sorted(names)

        await until(are_shown, lambda: f"the intents are {sorted(last)}")
        return last

    async def events(self, namespace: str = "") -> list[tuple[str, str, str]]:
        """(type, reason, message) of the Events about repositories."""
        found = await self.client.list(f"/api/v1/namespaces/{namespace or self.shop}/events")
        return [(item["type"], item["reason"], item["message"]) for item in found.items]


def conditions(found: Mapping[str, Any]) -> dict[str, str]:
    """Type -> `status/reason`; stale ones are marked."""
    status = found.get("status") or {}
    stale = "" if status.get("observedGeneration") == found["metadata"]["generation"] else " (stale)"
    return {item["type"]: f"{item['status']}/{item['reason']}{stale}" for item in status.get("conditions") or ()}


async def until(true: Callable[[], Any], what: Callable[[], str], patience: float = PATIENCE) -> None:
    ends = time.monotonic() + patience
    while not await true():
        assert time.monotonic() < ends, f"after {patience:.0f} s {what()}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def world(api: Reach, forge: Forge, scratch: Path) -> AsyncIterator[World]:
    client = ApiClient.connect(api.kubeconfig)
    made = World(api, client, forge, scratch)
    try:
        await made.create()
        yield made
    finally:
        await made.remove()
        await client.close()
