"""`make bench-kubernetes`: what the operator costs in a cluster: memory, processor and requests, at rest and with a fleet.

PODS pods of SERVICES Deployments exist as API objects (nothing runs them), a repository with INTENTS documents is live.
The operator is a process of its own, with the rights of KUBECONFIG, on the test cluster if there is none. Then one
simulated proxy a pod connects and reports every second.

operator_rss_mib          resident memory with all of it known, no proxy connected; the greatest of REST seconds
operator_cpu_rest         share of one core in those seconds
api_requests_per_s_rest   requests to the API server in those seconds (watches are held, not asked)
operator_cpu_1000_proxies share of one core with the fleet connected and reporting
operator_rss_fleet_mib    resident memory with the fleet
push_to_ready_1000_s      from the commit to Ready=True as a watcher of the API sees it: one timeout changes, Immediate,
                          and every proxy has to acknowledge it; median of PUSHES

Then, on the test cluster, whose API server reaches an operator on this machine:

inject_p99_ms             what injection adds to the creation of a pod: the slowest percent of CREATIONS, over the median
                          of as many without
inject_p50_ms             likewise, the median

sidecar_start_s           from the start of a proxy's process to its first 200 on its health port; one pod, median of ten
pod_start_added_s         how much later a pod is Ready for it: median of ten, over the median of ten without
pod_start_least_s         likewise for an init container and a native sidecar that do nothing: what is the kubelet's of it
push_to_ready_s           from the end of `git push` to Ready=True with 20 injected pods, no soak; median of ten
push_to_ready_most_s      the slowest of them; git is looked at once a second

The last line is one JSON object; full runs keep it in docs/benchmarks/. QUICK=1 is a tenth of it, ONLY=objects,
ONLY=injection or ONLY=pods one of the three.
"""

import asyncio
import contextlib
import json
import os
import secrets
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backstay.adapters.certificates import Material, SharedCA
from backstay.adapters.kubernetes.cacerts import SecretFiles
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.config.model import LATENCY_BOUNDS_MS
from backstay.config.wire import (
    STREAM_PATH,
    Ack,
    Assign,
    Hello,
    Need,
    Report,
    Row,
    decode_to_proxy,
    encode,
)
from backstay.core.resources import MESH_REPOSITORY
from backstay.settings import KubernetesSettings
from backstay.sidecar.identity import make_key
from bench.support.injection import Pods, injection
from bench.support.operators import OperatorProcess, until_live
from bench.support.results import QUICK, finish, say
from bench.support.starts import Field, pushes, starts
from cluster.lifecycle import Level
from cluster.reach import NoCluster, Reach, at_least
from e2e.kubernetes.operators import install
from ports.forge import Forge, forge
from ports.repositories import Repository

SERVICES: Final = 20 if QUICK else 200
PODS: Final = 5 * SERVICES
INTENTS: Final = 50 if QUICK else 500
REST: Final = 10 if QUICK else 60
"""Seconds that are measured at rest, and with the fleet."""
PUSHES: Final = 3 if QUICK else 5
AT_ONCE: Final = 16
ONLY: Final = os.environ.get("ONLY", "")
"""`objects`, `injection` or `pods`: a part of it, for looking; not kept."""
CLASS: Final = "backstay.dev/operator-class"


class Bench:
    """One namespace with everything in it, an operator process, and a fleet."""

    def __init__(self, api: Reach, client: ApiClient, folder: Path, git: Forge) -> None:
        self.api, self.client, self.folder, self.git = api, client, folder, git
        mark = secrets.token_hex(3)
        self.shop, self.system = f"bench-shop-{mark}", f"bench-system-{mark}"
        self.operator_class = f"bench-{mark}"
        self.port = 20000 + int(mark, 16) % 20000
        settings = KubernetesSettings(
            pod="bench", namespace=self.system, operator_class=self.operator_class, kubeconfig=api.kubeconfig,
            cache_dir=folder / "cache", run_dir=Path("/tmp") / self.operator_class, host="127.0.0.1",
            control_port=self.port, injection_port=self.port + 1, metrics_port=self.port + 2, hooks_port=self.port + 3,
        )  # fmt: skip
        self.operator = OperatorProcess(settings, folder / "operator.log")

    # --- objects ------------------------------------------------------------------------------------------------------

    async def populate(self) -> None:
        labels = {CLASS: self.operator_class}
        for name in (self.system, self.shop):
            await self.client.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        await _each(range(SERVICES), self._service)
        await self._until(self._has_all_pods, "all pods are made")
        pods = (await self.client.list(f"/api/v1/namespaces/{self.shop}/pods")).items
        await _each(list(enumerate(pods)), self._readied)

    async def _service(self, number: int) -> None:
        name = f"svc-{number:03d}"
        template = {
            "metadata": {"labels": {"app": name}},
            "spec": {
                "schedulerName": "nobody",  # objects only: no kubelet is to run them
                "containers": [
                    {"name": "app", "image": "app", "ports": [{"containerPort": 8080}]},
                    {"name": "backstay-proxy", "image": "proxy"},
                ],
            },
        }
        deployment = {"replicas": 5, "selector": {"matchLabels": {"app": name}}, "template": template}
        port = {"name": "http", "port": 80, "targetPort": 8080}
        service = {"selector": {"app": name}, "ports": [port]}
        await self.client.create(
            f"/apis/apps/v1/namespaces/{self.shop}/deployments", {"metadata": {"name": name}, "spec": deployment}
        )
        await self.client.create(
            f"/api/v1/namespaces/{self.shop}/services", {"metadata": {"name": name}, "spec": service}
        )

    async def _has_all_pods(self) -> bool:
        return len((await self.client.list(f"/api/v1/namespaces/{self.shop}/pods")).items) >= PODS

    async def _readied(self, numbered: tuple[int, dict[str, Any]]) -> None:
        number, pod = numbered
        address = f"10.{100 + number // 65536}.{number // 256 % 256}.{number % 256}"
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "Initialized")],
        }
        path = f"/api/v1/namespaces/{self.shop}/pods/{pod['metadata']['name']}/status"
        await self.client.patch(path, {"status": status})

    def repository(self) -> Repository:
        git = Repository(self.git.root / "mesh")
        git.write("mesh.yaml", _document("Mesh", "mesh", "{rollout: {soak: 0s, bakeTime: 1s}}"))
        for number in range(INTENTS - 1):
            git.write(f"{number:03d}.yaml", _intent(number, "5s"))
        git.commit("all of it")
        return git

    async def follow(self) -> None:
        secret = {"metadata": {"name": "git"}, "stringData": {"ca.crt": self.git.ca_file.read_text()}}
        await self.client.create(f"/api/v1/namespaces/{self.shop}/secrets", secret)
        spec = {"url": f"{self.git.url}/mesh", "interval": "1s", "secretRef": {"name": "git"}}
        metadata = {"name": "shop", "labels": {CLASS: self.operator_class}}
        body = {"apiVersion": "backstay.dev/v1alpha1", "kind": "MeshRepository", "metadata": metadata, "spec": spec}
        await self.client.create(MESH_REPOSITORY.path(self.shop), body)

    # --- the operator -------------------------------------------------------------------------------------------------

    async def requests(self) -> float:
        url = f"http://127.0.0.1:{self.port + 2}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            lines = (await answer.text()).splitlines()
        asked = [line for line in lines if line.startswith("backstay_api_requests_total{") and "WATCH" not in line]
        return sum(float(line.rpartition(" ")[2]) for line in asked)

    async def measure(self) -> tuple[float, float, float]:
        """(Greatest resident MiB, share of a core, API requests a second)."""
        process = self.operator.process
        assert process is not None
        before, asked, began = process.cpu_times(), await self.requests(), time.monotonic()
        resident = 0
        for _ in range(REST):
            await asyncio.sleep(1)
            resident = max(resident, process.memory_info().rss)
        after, passed = process.cpu_times(), time.monotonic() - began
        used = after.user + after.system - before.user - before.system
        return resident / 2**20, used / passed, (await self.requests() - asked) / passed

    # --- the fleet ----------------------------------------------------------------------------------------------------

    async def context(self) -> ssl.SSLContext:
        """One certificate for all: every pod has the same ServiceAccount."""
        authority = await SharedCA.open(SecretFiles(self.client, self.system, Material), "backstay.local")
        key, request = await make_key()
        chain = authority.sign(request, identity=f"spiffe://backstay.local/ns/{self.shop}/sa/default")
        file = self.folder / "proxy.pem"
        file.write_bytes(key + chain)
        context = ssl.create_default_context(cadata="".join(authority.trust_bundle().values()))
        context.check_hostname = False  # the operator proves itself by its SPIFFE ID
        context.load_cert_chain(file)
        return context

    async def proxies(self) -> list["SimulatedProxy"]:
        pods = (await self.client.list(f"/api/v1/namespaces/{self.shop}/pods")).items
        context = await self.context()
        return [SimulatedProxy(f"{pod['metadata']['name']}.{self.shop}", self.port, context) for pod in pods]

    async def _until(self, true: Any, what: str, patience: float = 600) -> None:
        ends = time.monotonic() + patience
        while not await true():
            if time.monotonic() > ends:
                raise SystemExit(f"bench-kubernetes: after {patience:.0f} s it is not so that {what}")
            await asyncio.sleep(0.5)


class SimulatedProxy:
    """Holds a stream, believes what it is told, and reports two kinds of requests every second."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext) -> None:
        self.name = name
        self.stable = self.serving = ""
        self.acks = 0
        self._url = f"https://127.0.0.1:{port}{STREAM_PATH}"
        self._context = context

    async def run(self, session: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.ws_connect(self._url, ssl=self._context, max_msg_size=0) as socket:
                    await self._serve(socket)
            await asyncio.sleep(1)

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        boot = secrets.token_hex(8)
        hello = Hello(
            proxy=self.name, boot=boot, protocol_min=1, protocol_max=1, version="bench", engine="python",
            capabilities=["split"], stable=self.stable,
        )  # fmt: skip
        await socket.send_str(encode(hello).decode())
        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(self._report(socket, boot), name=f"report {self.name}")
            async for frame in socket:
                await self._hear(socket, decode_to_proxy(frame.data))
            reporting.cancel()

    async def _hear(self, socket: aiohttp.ClientWebSocketResponse, message: object) -> None:
        if isinstance(message, Assign):
            if message.stable.base and message.stable.base != self.stable:
                await socket.send_str(encode(Need(manifests=[message.stable.digest])).decode())
            self.stable, self.acks = message.stable.digest, self.acks + 1
            candidate = message.candidate.digest if message.candidate else ""
            self.serving = candidate if message.share >= 1 else self.stable
            ack = Ack(serial=message.serial, stable=self.stable, candidate=candidate, share=message.share)
            await socket.send_str(encode(ack).decode())

    async def _report(self, socket: aiohttp.ClientWebSocketResponse, boot: str) -> None:
        sequence = 0
        latency = [20, *([0] * len(LATENCY_BOUNDS_MS))]
        while True:
            await asyncio.sleep(1)
            if not self.stable:
                continue
            sequence += 1
            rows = [
                Row(self.serving, "in", "inbound:8080", "", 20, {}, 0, 20, latency, latency[1:]),
                Row(self.serving, "out", "routes/svc-001:80#main", "svc-001:80/", 20, {}, 0, 20, latency, latency[1:]),
            ]
            report = Report(boot=boot, sequence=sequence, at=time.time(), rows=rows, serving={self.serving: 1.0})
            await socket.send_str(encode(report).decode())


def _document(kind: str, name: str, spec: str) -> str:
    return f"apiVersion: backstay.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"


def _intent(number: int, timeout: str) -> str:
    """A Route for each service, then Backends."""
    name = f"svc-{number % SERVICES:03d}"
    kinds = ("Route", "Backend", "Authorization")
    match kinds[number // SERVICES]:
        case "Route":
            rule = f"{{name: main, backendRefs: [{{name: {name}, port: 80}}], timeouts: {{request: {timeout}}}}}"
            return _document("Route", name, f"{{hosts: [{name}], rules: [{rule}], rollout: {{strategy: Immediate}}}}")
        case "Backend":
            return _document("Backend", name, f"{{service: {name}}}")
        case _:
            return _document(
                "Authorization", name, f"{{selector: {{workloads: [{name}]}}, action: Allow, rules: [{{}}]}}"
            )


async def _each(items: Any, work: Any) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with limit:
            await work(item)

    await asyncio.gather(*(one(item) for item in items))


@contextlib.asynccontextmanager
async def _fleet(proxies: list[SimulatedProxy]) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = [asyncio.create_task(proxy.run(session), name=proxy.name) for proxy in proxies]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def measured(bench: Bench) -> dict[str, float]:
    began = time.monotonic()
    await bench.populate()
    say(f"{PODS} pods of {SERVICES} services exist after {time.monotonic() - began:.0f} s")
    git = bench.repository()
    await bench.operator.start()
    await bench.follow()
    await until_live(bench.client, bench.shop, git.git("rev-parse", "HEAD"), 300)
    say(f"{INTENTS} documents are live after {time.monotonic() - began:.0f} s")
    await asyncio.sleep(10)  # every object is shown, the first garbage is collected
    resident, rest, asked = await bench.measure()
    say(f"at rest: {resident:.0f} MiB, {100 * rest:.1f} % of a core, {asked:.2f} requests/s")
    proxies = await bench.proxies()
    async with _fleet(proxies):
        ends = time.monotonic() + 300
        while not all(proxy.acks for proxy in proxies):
            if time.monotonic() > ends:
                raise SystemExit(f"bench-kubernetes: {sum(not proxy.acks for proxy in proxies)} proxies have no config")
            await asyncio.sleep(0.5)
        say(f"{len(proxies)} proxies are served after {time.monotonic() - began:.0f} s")
        await asyncio.sleep(10)
        fleet_resident, fleet, _ = await bench.measure()
        say(f"with the fleet: {fleet_resident:.0f} MiB, {100 * fleet:.1f} % of a core")
        pushes = [await _push(bench, git, number) for number in range(PUSHES)]
    return {
        "operator_rss_mib": round(resident, 1),
        "operator_cpu_rest": round(rest, 4),
        "api_requests_per_s_rest": round(asked, 2),
        "operator_cpu_1000_proxies": round(fleet, 3),
        "operator_rss_fleet_mib": round(fleet_resident, 1),
        "push_to_ready_1000_s": round(statistics.median(pushes), 2),
    }


async def _push(bench: Bench, git: Repository, number: int) -> float:
    git.write("001.yaml", _intent(1, f"{6 + number}s"))
    pushed = time.monotonic()
    sha = git.commit(f"push {number}")
    passed = await until_live(bench.client, bench.shop, sha, 120) - pushed
    say(f"push {number + 1}: Ready after {passed:.2f} s")
    await asyncio.sleep(5)  # it bakes for a second: pushes are not to measure each other
    return passed


async def bench_on(api: Reach, folder: Path, git: Forge) -> dict[str, float]:
    client = ApiClient.connect(api.kubeconfig)
    try:
        figures: dict[str, float] = {}
        if ONLY != "objects" and _runs_pods(api):
            figures |= await _with_injection(Pods(api, client, folder)) if ONLY in ("", "injection") else {}
            figures |= await _with_pods(api, client, folder) if ONLY in ("", "pods") else {}
        # Last: a cluster is busy for minutes with the removal of a thousand pods.
        return figures | (await _with_objects(api, Bench(api, client, folder, git)) if ONLY in ("", "objects") else {})
    finally:
        await client.close()


async def _with_objects(api: Reach, bench: Bench) -> dict[str, float]:
    install(api)  # anew: what was measured before has removed all of Backstay, definitions included
    try:
        return await measured(bench)
    finally:
        bench.operator.stop()
        for name in (bench.shop, bench.system):
            with contextlib.suppress(ApiError):
                await bench.client.delete(f"/api/v1/namespaces/{name}")


def _runs_pods(api: Reach) -> bool:
    """The API server has to reach an operator on this machine, and images the node: in its own cluster."""
    runs = api.ours is not None and api.ours.level() is Level.WHOLE
    if not runs:
        say("no figures of injection and of pods: that needs the test cluster (make cluster)")
    return runs


async def _with_injection(pods: Pods) -> dict[str, float]:
    async with pods.ready():
        return await injection(pods)


async def _with_pods(api: Reach, client: ApiClient, folder: Path) -> dict[str, float]:
    assert api.ours is not None
    field = Field(api, api.ours, client, folder)
    async with field.ready():
        return {**await starts(field), **await pushes(field)}


@contextlib.contextmanager
def _place() -> Iterator[tuple[Path, Forge]]:
    with tempfile.TemporaryDirectory(prefix="bs-bench-") as name:
        folder = Path(name)
        (folder / "git").mkdir()
        with forge(folder / "git", folder / "forge") as git:
            yield folder, git


def main() -> int:
    began = time.monotonic()
    try:
        with at_least(Level.API) as api, _place() as (folder, git):
            install(api)
            figures = asyncio.run(bench_on(api, folder, git))
    except NoCluster as reason:
        print(f"bench-kubernetes: {reason}", file=sys.stderr)
        return 2
    if ONLY:
        print(json.dumps(figures))
        return 0
    finish(
        "bench-kubernetes", figures, began, packages=("aiohttp", "kopf"), pods=PODS, services=SERVICES, intents=INTENTS
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
