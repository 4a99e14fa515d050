"""The figures of `make bench-kubernetes` that need pods which run: injection, start, and a push to twenty proxies.

The operator is a process on this machine, as in bench/on_kubernetes.py; pods reach it by a Service with it behind.
"""

import asyncio
import contextlib
import http.client
import json
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import psutil

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.serving import CONFIGURATION, CONFIGURATIONS
from backstay.core.inject import INJECT
from backstay.core.resources import MESH_REPOSITORY
from backstay.core.tenancy import CLASS
from backstay.settings import KubernetesSettings
from bench.support.operators import OperatorProcess, until_live
from bench.support.results import QUICK, say
from cluster.layout import HOST_ADDRESS
from cluster.reach import Reach
from e2e.kubernetes.test_pods import injecting, is_ready, service, webhook
from ports.forge import Forge
from ports.repositories import Repository

CREATIONS: Final = 50 if QUICK else 500
STARTS: Final = 2 if QUICK else 5
"""Pods of each kind, one after the other; medians."""
PROXIES: Final = 6 if QUICK else 20
PUSHES: Final = 3 if QUICK else 5
RATE: Final = 300.0
"""Requests a second of all callers together: a verdict takes about 300, so evidence is there within a second."""
MESH: Final = "spec: {rollout: {soak: 0s, deadline: 30s, warmUp: 0s, bakeTime: 1s}}"


class Pods:
    """Two namespaces, one with injection, and an operator that injects there."""

    def __init__(self, api: Reach, client: ApiClient, folder: Path, git: Forge) -> None:
        self.api, self.client, self.folder, self.git = api, client, folder, git
        mark = secrets.token_hex(3)
        self.meshed, self.plain, self.system = f"bench-pods-{mark}", f"bench-plain-{mark}", f"bench-pods-{mark}-system"
        port = 20000 + int(mark, 16) % 20000
        self.settings = KubernetesSettings(
            pod="bench", namespace=self.system, operator_class=self.meshed, kubeconfig=api.kubeconfig,
            cache_dir=folder / "cache", run_dir=Path("/tmp") / self.meshed, host=HOST_ADDRESS, control_port=port,
            injection_port=port + 1, metrics_port=port + 2, hooks_port=port + 3,
        )  # fmt: skip
        self.operator = OperatorProcess(self.settings, folder / "pods-operator.log")

    @contextlib.asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        try:
            await self._set_up()
            yield
        finally:
            await self._clear()

    async def _set_up(self) -> None:
        own = {CLASS: self.meshed}
        for name, labels in ((self.system, own), (self.meshed, {**own, INJECT: "enabled"}), (self.plain, {})):
            await self.client.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        for path, body in (*service(self.settings), (CONFIGURATIONS, webhook(self.settings))):
            await self.client.create(path, body)
        await self.operator.start()
        await injecting(self.client, self.meshed)

    async def _clear(self) -> None:
        with contextlib.suppress(ApiError):
            await self.client.delete(f"{CONFIGURATIONS}/{CONFIGURATION}-{self.meshed}")
        self.operator.stop()
        for name in (self.meshed, self.plain, self.system):
            with contextlib.suppress(ApiError):
                await self.client.delete(f"/api/v1/namespaces/{name}")

    async def create(self, namespace: str, name: str, **spec: Any) -> None:
        await self.client.create(
            f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}
        )

    async def until_ready(self, namespace: str, name: str) -> float:
        """When the API first said so."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        async with asyncio.timeout(120):
            while True:
                listed = await self.client.list(path, fields=f"metadata.name={name}")
                if any(map(is_ready, listed.items)):
                    return time.monotonic()
                version = listed.resource_version
                changes = self.client.watch(path, resource_version=version, fields=f"metadata.name={name}", seconds=20)
                async with contextlib.aclosing(changes):
                    async for change in changes:
                        if change.kind != "BOOKMARK" and is_ready(change.object):
                            return time.monotonic()


# --- injection --------------------------------------------------------------------------------------------------------


async def injection(pods: Pods) -> dict[str, float]:
    """What the webhook adds to the creation of a pod: the slowest percent with it, over the median without."""
    times: dict[str, list[float]] = {pods.plain: [], pods.meshed: []}
    spec = {"schedulerName": "nobody", "containers": [{"name": "app", "image": "app"}]}
    for number in range(CREATIONS):
        for namespace, taken in times.items():
            began = time.perf_counter()
            await pods.create(namespace, f"injected-{number}", **spec)
            taken.append(time.perf_counter() - began)
    for namespace in times:
        await pods.client.delete(f"/api/v1/namespaces/{namespace}/pods")
    usual = statistics.median(times[pods.plain])
    slow, typical = statistics.quantiles(times[pods.meshed], n=100)[98], statistics.median(times[pods.meshed])
    say(
        f"{CREATIONS} creations: p99 {1000 * slow:.1f} ms, median {1000 * typical:.1f} ms; {1000 * usual:.1f} ms without"
    )
    return {"inject_p99_ms": round(1000 * (slow - usual), 1), "inject_p50_ms": round(1000 * (typical - usual), 1)}


# --- starting ---------------------------------------------------------------------------------------------------------


async def starting(pods: Pods) -> dict[str, float]:
    """Pods with and without a proxy by turns; the processes of the proxies are found on this machine."""
    taken: dict[str, list[float]] = {pods.plain: [], pods.meshed: []}
    sidecars: list[float] = []
    for number in range(STARTS + 1):  # the first of each reads images from the disk
        for namespace, times in taken.items():
            name, began = f"start-{number}", time.monotonic()
            looking = [asyncio.to_thread(_first_answer, f"{name}.{namespace}")] if namespace == pods.meshed else []
            answers = asyncio.gather(*looking)
            await pods.create(namespace, name, containers=[_app()], terminationGracePeriodSeconds=1)
            times.append(await pods.until_ready(namespace, name) - began)
            sidecars += await answers
            await pods.client.delete(f"/api/v1/namespaces/{namespace}/pods/{name}")
    plain, meshed = (statistics.median(taken[namespace][1:]) for namespace in (pods.plain, pods.meshed))
    say(f"pods are Ready after {meshed:.2f} s, {plain:.2f} s without a proxy; proxies: {sidecars}")
    return {
        "sidecar_start_s": round(statistics.median(sidecars[1:]), 2),
        "pod_start_added_s": round(meshed - plain, 2),
    }


def _app(**container: Any) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/healthz", "port": 5000}, "periodSeconds": 1}
    own: dict[str, Any] = {
        "name": "app",
        "image": "backstay-sample:dev",
        "imagePullPolicy": "IfNotPresent",
        "args": ["sa_logic.py"],
        "env": [{"name": "PORT", "value": "5000"}],
        "ports": [{"containerPort": 5000, "name": "http"}],
        "readinessProbe": probe,
    }
    return own | container


def _first_answer(proxy: str, patience: float = 60.0) -> float:
    """Seconds from the start of this proxy's process, as the kernel tells it, to its first 200. 0: there is none."""
    ends = time.monotonic() + patience
    known: set[int] = set(psutil.pids())
    while time.monotonic() < ends:
        for number in psutil.pids():
            found = None if number in known else _environment(number)
            if found is None:
                continue
            known.add(number)
            if found.get("BACKSTAY_SIDECAR_PROXY") == proxy and "BACKSTAY_SIDECAR_HEALTH_HOST" in found:
                return _until_200(found["BACKSTAY_SIDECAR_HEALTH_HOST"], ends) - _began(number)
        time.sleep(0.01)
    return 0.0


def _environment(process: int) -> dict[str, str] | None:
    """None while it has not become the program that it is to be."""
    with contextlib.suppress(psutil.Error, OSError):
        found = psutil.Process(process)
        if "sidecar" in " ".join(found.cmdline()):
            return found.environ()
        return {} if found.name() not in ("runc:[2:INIT]", "runc", "exe") else None
    return None


def _began(process: int) -> float:
    ticks = int(Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()[19])
    return ticks / 100


def _until_200(address: str, ends: float) -> float:
    while time.monotonic() < ends:
        connection = http.client.HTTPConnection(address, 15021, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/healthz/ready")
            if connection.getresponse().status == 200:
                return time.clock_gettime(time.CLOCK_BOOTTIME)
        connection.close()
        time.sleep(0.005)
    raise SystemExit(f"bench-kubernetes: no proxy answers at {address}")


# --- a push -----------------------------------------------------------------------------------------------------------


async def pushing(pods: Pods) -> dict[str, float]:
    """Half of the pods call the other half; one timeout of their route changes, Immediate, without soak."""
    git = Repository(pods.git.root / "pods")
    git.write("mesh.yaml", f"apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\n{MESH}\n")
    git.write("route.yaml", _route(5))
    sha = git.commit("all of it")
    await _deploy(pods)
    await _follow(pods)
    await until_live(pods.client, pods.meshed, sha, 120)
    await asyncio.sleep(15)  # what stable does is learnt
    taken = []
    for number in range(PUSHES):
        git.write("route.yaml", _route(6 + number))
        sha, began = git.commit(f"push {number}"), time.monotonic()
        taken.append(await until_live(pods.client, pods.meshed, sha, 120) - began)
        say(f"push {number + 1} to {PROXIES} pods: Ready after {taken[-1]:.2f} s")
        await asyncio.sleep(5)
    return {"push_to_ready_s": round(statistics.median(taken), 2)}


async def _deploy(pods: Pods) -> None:
    callers = PROXIES // 2
    visitor = ["traffic.py", "--url", "http://web/healthz", "--rate", str(RATE / callers)]
    caller = {key: value for key, value in _app(args=visitor).items() if key not in ("readinessProbe", "ports")}
    for name, replicas, container in (("web", PROXIES - callers, _app()), ("caller", callers, caller)):
        template = {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        path = f"/apis/apps/v1/namespaces/{pods.meshed}/deployments"
        await pods.client.create(path, {"metadata": {"name": name}, "spec": spec})
    port = {"name": "http", "port": 80, "targetPort": 5000}
    found = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [port]}}
    await pods.client.create(f"/api/v1/namespaces/{pods.meshed}/services", found)
    await asyncio.to_thread(
        pods.api.kubectl, "-n", pods.meshed, "wait", "--for=condition=Available", "deployment", "--all",
        "--timeout=300s", timeout=310,
    )  # fmt: skip


async def _follow(pods: Pods) -> None:
    secret = {"metadata": {"name": "git"}, "stringData": {"ca.crt": pods.git.ca_file.read_text()}}
    await pods.client.create(f"/api/v1/namespaces/{pods.meshed}/secrets", secret)
    spec = {"url": f"{pods.git.url}/pods", "interval": "1s", "secretRef": {"name": "git"}}
    metadata = {"name": "shop", "labels": {CLASS: pods.meshed}}
    body = {"apiVersion": "backstay.dev/v1alpha1", "kind": "MeshRepository", "metadata": metadata, "spec": spec}
    await pods.client.create(MESH_REPOSITORY.path(pods.meshed), body)


def _route(timeout: int) -> str:
    rule = {"name": "main", "backendRefs": [{"name": "web", "port": 80}], "timeouts": {"request": f"{timeout}s"}}
    spec = {"hosts": ["web"], "rules": [rule], "rollout": {"strategy": "Immediate"}}
    body = {"apiVersion": "backstay.dev/v1alpha1", "kind": "Route", "metadata": {"name": "web"}, "spec": spec}
    return json.dumps(body)
