"""What a pod pays for its sidecar, and how soon a push is live, for `make bench-kubernetes`.

Backstay is installed from bootstrap/ as users do it, on the test cluster; pods run an application that does nothing.
"""

import asyncio
import contextlib
import json
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.inject import HEALTH_PORT, INJECT
from bench.support.operators import until_live
from bench.support.results import QUICK, say
from cluster import builds, gitserver
from cluster.layout import PAUSE_IMAGE
from cluster.lifecycle import Cluster
from cluster.reach import Reach
from e2e.kubernetes.stage import GRANT, SECRET, install, is_ready, manifest
from support.bootstrap import BOOTSTRAP

STARTS: Final = 3 if QUICK else 10
"""Pods of each kind, one after the other."""
PODS: Final = 5 if QUICK else 20
PUSHES: Final = 3 if QUICK else 10
READY_S: Final = 180.0
REST_S: Final = 1.0  # between two pods: the one before is gone from the processor
APPLICATION: Final = {"name": "app", "image": PAUSE_IMAGE, "imagePullPolicy": "Never"}
_NOTHING: Final = {"image": "backstay-sidecar:dev", "imagePullPolicy": "Never"}
DO_NOTHING: Final = (
    {"name": "ends", **_NOTHING, "command": ["true"]},
    {
        "name": "stays",
        **_NOTHING,
        "restartPolicy": "Always",
        "command": ["python", "-S", "-m", "http.server", str(HEALTH_PORT)],
        "startupProbe": {"httpGet": {"path": "/", "port": HEALTH_PORT}, "periodSeconds": 1, "failureThreshold": 600},
    },
)
"""An init container and a native sidecar as injection adds them, with nothing to do: what they cost is the kubelet's."""
PROBE: Final = """
import http.client, os, pathlib, sys, time
address, port, pod = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def is_ready():
    try:
        connection = http.client.HTTPConnection(address, port, timeout=1)
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
def began():
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"HOSTNAME={pod}".encode() in (folder / "environ").read_bytes().split(b"\\0"):
                yield int((folder / "stat").read_text().rpartition(") ")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
ends = time.monotonic() + 60
while not is_ready():
    assert time.monotonic() < ends, "never ready"
    time.sleep(0.005)
print(time.clock_gettime(time.CLOCK_BOOTTIME) - min(began()))
"""
"""Runs on the node. The oldest process of the pod with its host name is the proxy: the application waits for it."""
MESH: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {rollout: {soak: 0s, deadline: 100ms, warmUp: 0s, bakeTime: 1s}}
"""
"""Nobody asks these pods for anything: with another deadline that is what would be waited for."""
ROUTE: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: crowd}}
spec:
  hosts: [crowd]
  rules:
  - backendRefs: [{{name: crowd, port: 80}}]
    timeouts: {{request: {timeout}s}}
  rollout: {{strategy: Immediate}}
"""


class Field:
    """Two namespaces, one with injection, and Backstay in charge of it."""

    def __init__(self, reach: Reach, ours: Cluster, client: ApiClient, folder: Path) -> None:
        self.reach, self.ours, self.client, self.folder = reach, ours, client, folder
        mark = secrets.token_hex(3)
        self.meshed, self.plain, self.git = f"bench-shop-{mark}", f"bench-bare-{mark}", f"bench-git-{mark}"

    @contextlib.asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        for name in builds.IMAGES:
            self.ours.load(builds.archive(name, say))
        try:
            await asyncio.to_thread(install, self.reach)
            for name, labels in ((self.meshed, {INJECT: "enabled"}), (self.plain, {}), (self.git, {})):
                await self.client.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
            yield
        finally:
            for name in (self.meshed, self.plain, self.git):
                with contextlib.suppress(ApiError):
                    await self.client.delete(f"/api/v1/namespaces/{name}")
            await asyncio.to_thread(
                self.reach.kubectl, "delete", "-k", str(BOOTSTRAP), "--ignore-not-found", timeout=300
            )

    async def pod(self, namespace: str, name: str, before: Sequence[object] = ()) -> tuple[float, float]:
        """Start one and remove it: (seconds until it was Ready, seconds its proxy took to say so; 0 without one)."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        spec = {"initContainers": before, "containers": [APPLICATION], "terminationGracePeriodSeconds": 1}
        began = time.monotonic()
        await self.client.create(path, {"metadata": {"name": name}, "spec": spec})
        probe = asyncio.create_task(self._proxy_start(path, name)) if namespace == self.meshed else None
        await self._until(path, name, is_ready)
        ready = time.monotonic() - began
        proxy = await probe if probe is not None else 0.0
        await self.client.delete(f"{path}/{name}")
        await self._until_gone(path, name)
        await asyncio.sleep(REST_S)
        return ready, proxy

    async def _proxy_start(self, path: str, name: str) -> float:
        pod = await self._until(path, name, lambda found: found["status"].get("podIP"))
        command = self.ours.inside(("python3", "-c", PROBE, pod["status"]["podIP"], str(HEALTH_PORT), name))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        told, _ = await process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"bench-kubernetes: the proxy of {name} was never ready")
        return float(told)

    async def _until(self, path: str, name: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with asyncio.timeout(READY_S):
            while True:
                listed = await self.client.list(path, fields=f"metadata.name={name}")
                for found in listed.items:
                    if true(found):
                        return found
                changes = self.client.watch(
                    path, resource_version=listed.resource_version, fields=f"metadata.name={name}"
                )
                async with contextlib.aclosing(changes):
                    async for change in changes:
                        if change.kind != "BOOKMARK" and true(change.object):
                            return dict(change.object)

    async def _until_gone(self, path: str, name: str) -> None:
        async with asyncio.timeout(READY_S):
            while (await self.client.list(path, fields=f"metadata.name={name}")).items:
                await asyncio.sleep(0.2)

    # --- pushes -------------------------------------------------------------------------------------------------------

    async def crowd(self) -> None:
        """PODS pods behind one Service."""
        template = {"metadata": {"labels": {"app": "crowd"}}, "spec": {"containers": [APPLICATION]}}
        spec = {"replicas": PODS, "selector": {"matchLabels": {"app": "crowd"}}, "template": template}
        port = {"name": "http", "port": 80, "targetPort": 8080}
        service = {"selector": {"app": "crowd"}, "ports": [port]}
        for path, spec_of in (("/apis/apps/v1", spec), ("/api/v1", service)):
            kind = "deployments" if path.endswith("apps/v1") else "services"
            await self.client.create(
                f"{path}/namespaces/{self.meshed}/{kind}", {"metadata": {"name": "crowd"}, "spec": spec_of}
            )
        ends = time.monotonic() + 5 * READY_S
        while True:
            pods = (await self.client.list(f"/api/v1/namespaces/{self.meshed}/pods")).items
            if len(pods) == PODS and all(is_ready(each) for each in pods):
                return
            if time.monotonic() > ends:
                raise SystemExit(f"bench-kubernetes: {sum(map(is_ready, pods))} of {PODS} pods are ready")
            await asyncio.sleep(0.5)

    async def repository(self) -> gitserver.Clone:
        server = await asyncio.to_thread(gitserver.deploy, self.reach, self.git)
        content = self.folder / "content"
        content.mkdir()
        clone = await asyncio.to_thread(gitserver.clone, server, "shop", self.folder / "pushed", content)
        clone.write("mesh.yaml", MESH)
        sha = await asyncio.to_thread(clone.commit, "a mesh")
        self.reach.kubectl(
            "-n", self.meshed, "create", "secret", "generic", SECRET, f"--from-literal=ca.crt={server.ca}"
        )
        self.reach.kubectl("-n", self.meshed, "apply", "-f", "-", stdin=GRANT)
        self.reach.kubectl("-n", self.meshed, "apply", "-f", "-", stdin=manifest(server.url("shop")))
        await until_live(self.client, self.meshed, sha, READY_S)
        return clone

    async def push(self, clone: gitserver.Clone, timeout: int) -> str:
        clone.write("crowd.yaml", ROUTE.format(timeout=timeout))
        return await asyncio.to_thread(clone.commit, f"{timeout} s")

    async def pushed(self, clone: gitserver.Clone, number: int) -> float:
        """Seconds from the end of `git push` until the API says that the commit is live."""
        sha = await self.push(clone, 10 + number)
        began = time.monotonic()
        passed = await until_live(self.client, self.meshed, sha, READY_S) - began
        await asyncio.sleep(3)  # it bakes for a second: pushes are not to measure each other
        return passed


async def starts(field: Field) -> dict[str, float]:
    plain, idle, meshed = [], [], []
    for number in range(STARTS):
        plain.append((await field.pod(field.plain, f"plain-{number}"))[0])
        idle.append((await field.pod(field.plain, f"idle-{number}", DO_NOTHING))[0])
        meshed.append(await field.pod(field.meshed, f"meshed-{number}"))
    bare, least, ready = (statistics.median(each) for each in (plain, idle, [pod for pod, _ in meshed]))
    proxy = statistics.median(proxy for _, proxy in meshed)
    say(
        f"{STARTS} pods: Ready after {bare:.2f} s, with containers that do nothing after {least:.2f} s, with a proxy after "
        f"{ready:.2f} s, which took {proxy:.2f} s of it"
    )
    return {
        "sidecar_start_s": round(proxy, 2),
        "pod_start_added_s": round(ready - bare, 2),
        "pod_start_least_s": round(least - bare, 2),
    }


async def pushes(field: Field) -> dict[str, float]:
    clone = await field.repository()
    await field.crowd()
    taken = [await field.pushed(clone, number) for number in range(PUSHES)]
    say(f"pushes to {PODS} pods: Ready after {json.dumps([round(each, 2) for each in taken])} s")
    return {"push_to_ready_s": round(statistics.median(taken), 2), "push_to_ready_most_s": round(max(taken), 2)}
