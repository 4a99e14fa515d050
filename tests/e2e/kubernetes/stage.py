"""What the long scenarios play on: Backstay installed from bootstrap/, the sample application injected, a git server, a
gateway, and people who use the application all the time.

Rule: a scenario may leave anything behind. `Shop.recover` puts the stage right before each, so none depends on another.
"""

import asyncio
import contextlib
import json
import secrets
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.core.resources import MESH_INTENT, MESH_REPOSITORY, MESH_ROLLOUT
from cluster import builds, gitserver
from cluster.reach import Reach, kubectl_program
from e2e.kubernetes.operators import conditions
from support.bootstrap import BOOTSTRAP, SYSTEM

RATE: Final = 60
"""Requests per second of the visitors, as in the demo: evidence within seconds, on two busy cores."""
WEBAPPS: Final = 3
PATIENCE: Final = 120.0
"""Seconds for what takes ten or twenty on an idle machine."""
STARTS: Final = 300
"""Seconds for a dozen pods to start."""
OPERATOR: Final = "deployment/backstay-operator"
SECRET: Final = "mesh-git"
MOVING: Final = frozenset({"preparing", "shifting", "holding", "suspecting", "paused", "rolling-back"})
LIVE: Final = ("baking", "succeeded")
SLOW: Final = 0.005
"""Share of the requests that may run into their timeout of ten seconds because the machine has none left for them."""
PAST: Final = 60
"""Seconds of traffic before anything is pushed: in the first ones a proxy that was ready before the others had all of it."""
QUICK: Final = """
  # Times of a test. The statistics are the same as ever.
  rollout:
    shares: [10, 50, 100]
    soak: 3s
    deadline: 40s
    warmUp: 1s
    confirmWithin: 30s
    bakeTime: 3s
"""
DOOR: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Gateway
metadata: {name: ingress}
spec:
  selector: {workloads: [ingress]}
  listeners:
  - {name: http, port: 8080, protocol: HTTP}
---
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: door}
spec:
  parentRefs: [{name: ingress}]
  hosts: [shop.example.com]
  rules:
  - matches:
    - path: {type: RegularExpression, value: "/senti[a-z]+"}
    backendRefs: [{name: sa-webapp, port: 80}]
"""
IMMEDIATE: Final = "  rollout: {strategy: Immediate}\n"
GRANT: Final = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: backstay-repository-secrets}
rules:
- {apiGroups: [""], resources: [secrets], resourceNames: [mesh-git], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: backstay-repository-secrets}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: backstay-repository-secrets}
subjects:
- {kind: ServiceAccount, name: backstay-operator, namespace: backstay-system}
"""
ASK: Final = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers=json.loads(sys.argv[2]), data=sys.argv[3].encode() or None)
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
"""
SHARES: Final = """
import json, sys, urllib.request
found = {}
for address in sys.argv[1:]:
    page = urllib.request.urlopen(f"http://{address}:15090/stats/prometheus", timeout=5).read().decode()
    found[address] = next(float(line.split()[-1]) for line in page.splitlines() if line.startswith("backstay_candidate_share"))
print(json.dumps(found))
"""


# --- what is there for all scenarios ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Stage:
    """The namespaces, the git server and the clone; set up once."""

    reach: Reach
    name: str
    server: gitserver.GitServer
    clone: gitserver.Clone
    bootstrap: tuple[dict[str, Any], ...]
    """What an installation consists of."""
    changes: int = 0
    """How often the route was written."""

    @property
    def git_namespace(self) -> str:
        return self.server.namespace

    def route(self, version: str, *, at_once: bool = False) -> None:
        """Have the main rule of sa-logic's route send everything to this version."""
        text = (builds.ROOT / "example-repo" / "mesh" / "shop" / "sa-logic.yaml").read_text(encoding="utf-8")
        text = text.replace("namespace: shop", f"namespace: {self.name}")
        old = "subset: v1, weight: 100"
        assert old in text
        text = text.replace(old, f"subset: {version}, weight: 100")
        text = text.replace("\n    - {name: sa-logic, port: 80, subset: v2, weight: 0}", "")
        # A configuration that was proven today would need no waves: no two are the same.
        self.changes += 1
        text = text.replace("request: 8s", f"request: {8000 + self.changes}ms")
        self.clone.write("shop/sa-logic.yaml", text + (IMMEDIATE if at_once else ""))

    @contextlib.contextmanager
    def edited(self, file: str, old: str, new: str) -> Iterator[None]:
        """This text of a document replaced until the block ends, whatever happens there; nothing is committed here."""
        before = (self.clone.folder / file).read_text(encoding="utf-8")
        self.clone.edit(file, old, new)
        try:
            yield
        finally:
            self.clone.write(file, before)

    @property
    def routed(self) -> str:
        """The version that git sends everybody to."""
        documents = yaml.safe_load_all((self.clone.folder / "shop" / "sa-logic.yaml").read_text(encoding="utf-8"))
        [route] = [each for each in documents if each["kind"] == "Route"]
        [backend] = route["spec"]["rules"][-1]["backendRefs"]
        return str(backend["subset"])


@contextlib.contextmanager
def staged(reach: Reach, scratch: Path) -> Iterator[Stage]:
    """Everything installed and running, the first commit not yet pushed."""
    name = f"scenario-{secrets.token_hex(3)}"
    try:
        yield _set_up(reach, name, scratch)
    finally:
        for namespace in (name, f"{name}-git"):
            reach.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


def _set_up(reach: Reach, name: str, scratch: Path) -> Stage:
    if not install(reach):
        reach.kubectl("-n", SYSTEM, "rollout", "restart", OPERATOR)  # its image may be another one of the same name
        wait_operator(reach)
    for namespace in (name, f"{name}-git"):
        reach.kubectl("create", "namespace", namespace)
    reach.kubectl("label", "namespace", name, "backstay.dev/inject=enabled")
    server = gitserver.deploy(reach, f"{name}-git")
    clone = gitserver.clone(server, "shop", scratch / "mesh", builds.ROOT / "example-repo" / "mesh")
    stage = Stage(reach, name, server, clone, tuple(_kustomized(reach, BOOTSTRAP)))
    _write_mesh(stage)
    _run_application(stage)
    reach.kubectl("-n", name, "create", "secret", "generic", SECRET, f"--from-literal=ca.crt={server.ca}")
    reach.kubectl("-n", name, "apply", "-f", "-", stdin=GRANT)
    return stage


def install(reach: Reach) -> bool:
    """As a user does; applied over what is there it changes nothing. Returns whether it was not there."""
    said = reach.kubectl("apply", "-k", str(BOOTSTRAP))
    wait_operator(reach)
    return f"namespace/{SYSTEM} created" in said


def wait_operator(reach: Reach) -> None:
    limit = f"--timeout={STARTS}s"
    reach.kubectl("-n", SYSTEM, "rollout", "status", OPERATOR, limit, timeout=STARTS + 10)


def _write_mesh(stage: Stage) -> None:
    folder = stage.clone.folder
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("namespace: shop", f"namespace: {stage.name}")
        path.write_text(text, encoding="utf-8")
    head, _, _ = (folder / "mesh.yaml").read_text(encoding="utf-8").partition("  # How a change goes out")
    stage.clone.write("mesh.yaml", head + QUICK.lstrip("\n"))
    stage.clone.write("shop/door.yaml", DOOR)
    stage.route("v1")


def _run_application(stage: Stage) -> None:
    """The sample's plain manifests, smaller where more pods of a kind prove nothing more, and the gateway."""
    reach, name = stage.reach, stage.name
    arguments = {"args": ["traffic.py", "--url", "http://sa-webapp/sentiment", "--rate", str(RATE)]}
    objects = [
        *_kustomized(reach, builds.ROOT / "example-repo" / "kubernetes"),
        *_kustomized(reach, BOOTSTRAP / "gateway"),
    ]
    for each in objects:
        if each["kind"] != "Deployment":
            continue
        deployment, spec = each["metadata"]["name"], each["spec"]
        spec["replicas"] = {"sa-webapp": WEBAPPS}.get(deployment, 1)
        if deployment == "visitors":
            spec["template"]["spec"]["containers"][0] |= arguments
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    reach.kubectl("-n", name, "apply", "-f", "-", stdin=text)


def _kustomized(reach: Reach, folder: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(reach.kubectl("kustomize", str(folder))) if each]


# --- one scenario's view of it ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """The MeshRepository as it was at one moment."""

    object: dict[str, Any]
    seen: dict[str, str]
    """Its conditions: type -> `status/reason`."""


@dataclass(slots=True)
class Shop:
    """The stage, with a connection of this scenario's own."""

    stage: Stage
    client: ApiClient
    lines: list[dict[str, Any]] = field(default_factory=list)
    visitors: str = ""
    """Their pod."""

    @property
    def name(self) -> str:
        return self.stage.name

    def kubectl(self, command: str, *, stdin: str | None = None, timeout: float = PATIENCE) -> str:
        return self.stage.reach.kubectl("-n", self.name, *shlex.split(command), stdin=stdin, timeout=timeout)

    def system(self, command: str, *, timeout: float = PATIENCE) -> str:
        return self.stage.reach.kubectl("-n", SYSTEM, *shlex.split(command), timeout=timeout)

    def started(self, command: str) -> "subprocess.Popen[str]":
        """kubectl in the background."""
        whole = (*kubectl_program(), "--kubeconfig", str(self.stage.reach.kubeconfig), "-n", self.name)
        return subprocess.Popen(
            (*whole, *shlex.split(command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    # --- git and what becomes of it -----------------------------------------------------------------------------------

    def push(self, message: str) -> str:
        return self.stage.clone.commit(message)

    def push_other_version(self) -> str:
        """A good change that can be seen: everybody to the version that nobody has now."""
        other = "v2" if self.stage.routed == "v1" else "v1"
        self.stage.route(other)
        return self.push(f"sa-logic: everybody to {other}")

    async def repository(self) -> dict[str, Any]:
        return await self.client.get(MESH_REPOSITORY.path(self.name, "shop"))

    async def until_repository(
        self, true: Callable[[Mapping[str, str], Mapping[str, Any]], object], patience: float = PATIENCE
    ) -> dict[str, Any]:
        """The MeshRepository, once this is true of its conditions (type -> `status/reason`) and its status."""
        last: dict[str, Any] = {"metadata": {"generation": 0}}

        async def reached() -> object:
            nonlocal last
            last = await self.repository()
            return true(conditions(last), last.get("status") or {})

        await until(reached, lambda: f"the repository is {_told(last)}", patience)
        return last

    async def until_live(self, sha: str, patience: float = PATIENCE) -> dict[str, Any]:
        def is_live(seen: Mapping[str, str], status: Mapping[str, Any]) -> bool:
            return seen.get("Ready") == "True/Succeeded" and str(status.get("lastAppliedRevision", "")).endswith(sha)

        return await self.until_repository(is_live, patience)

    async def steps_until(self, true: Callable[[Step], object], patience: float = PATIENCE) -> list[Step]:
        """Every different state of the MeshRepository on the way there, as often as we could look."""
        found: list[Step] = []

        async def reached() -> object:
            now = await self.repository()
            if not found or now["metadata"]["resourceVersion"] != found[-1].object["metadata"]["resourceVersion"]:
                found.append(Step(now, conditions(now)))
            return true(found[-1])

        await until(reached, lambda: f"the repository is {_told(found[-1].object)}", patience)
        return found

    async def rollout(self, sha: str) -> dict[str, Any] | None:
        """The MeshRollout of this commit, if it has one."""
        items = (await self.client.list(MESH_ROLLOUT.path(self.name))).items
        own = [item for item in items if _is_of(item, sha)]
        return max(own, key=lambda item: str(item["status"].get("startedAt", "")), default=None)

    async def until_rollout(
        self, sha: str, true: Callable[[Mapping[str, Any]], object], patience: float = PATIENCE
    ) -> dict[str, Any]:
        """The MeshRollout of this commit, once this is true of its status."""
        last: dict[str, Any] | None = None

        async def reached() -> object:
            nonlocal last
            last = await self.rollout(sha)
            return last is not None and true(last.get("status") or {})

        def told() -> str:
            return f"the rollout is {_told(last)}" if last else "there is no rollout"

        await until(reached, told, patience)
        assert last is not None
        return last

    async def in_first_wave(self, sha: str) -> dict[str, Any]:
        """The rollout, as soon as a proxy serves the candidate."""

        def is_served(status: Mapping[str, Any]) -> bool:
            served = any(each.get("proxies", {}).get("onCandidate") for each in status.get("workloads", ()))
            assert status.get("phase", "preparing") in MOVING, f"too late: {status.get('phase')}"
            return served

        return await self.until_rollout(sha, is_served)

    async def at_moment(
        self, sha: str, true: Callable[[Mapping[str, Any]], object], patience: float = PATIENCE
    ) -> dict[str, Any]:
        """The MeshRollout of this commit at the first moment at which this is true of its status, however short it lasts:
        every state that is written is seen."""
        path = MESH_ROLLOUT.path(self.name)
        async with asyncio.timeout(patience):
            while True:
                listed = await self.client.list(path)
                for found in listed.items:
                    if _is_of(found, sha) and true(found.get("status") or {}):
                        return found
                changes = self.client.watch(path, resource_version=listed.resource_version)
                async with contextlib.aclosing(changes):
                    async for change in changes:
                        if change.kind == "BOOKMARK" or not _is_of(change.object, sha):
                            continue
                        if true(change.object.get("status") or {}):
                            return dict(change.object)

    async def order(self, rollout: str, order: str, reason: str = "because") -> dict[str, Any]:
        """Give an order by annotation; returns what became of it."""
        words = {"backstay.dev/order": order, "backstay.dev/actor": "ann", "backstay.dev/reason": reason}
        path = MESH_ROLLOUT.path(self.name, rollout)
        await self.client.patch(path, {"metadata": {"annotations": words}}, field_manager="kubectl-annotate")
        last: dict[str, Any] = {}

        async def is_handled() -> bool:
            nonlocal last
            last = await self.client.get(path)
            handled = last["status"].get("lastOrder", {}).get("order") == order
            return handled and "backstay.dev/order" not in last["metadata"].get("annotations", {})

        await until(is_handled, lambda: f"order {order} is not handled: {_told(last)}", PATIENCE)
        return dict(last["status"]["lastOrder"])

    async def events(self) -> list[tuple[str, str, str]]:
        """(type, reason, message) of the Events about the repository and its rollouts."""
        found = await self.client.list(f"/api/v1/namespaces/{self.name}/events")
        own = [item for item in found.items if item["involvedObject"]["apiVersion"].startswith("backstay.dev/")]
        return [(item["type"], item["reason"], item["message"]) for item in own]

    async def until_programmed(self) -> None:
        """Every document is served by every proxy that it is for."""
        behind: list[str] = []

        async def reached() -> bool:
            items = (await self.client.list(MESH_INTENT.path(self.name))).items
            behind[:] = [
                item["metadata"]["name"]
                for item in items
                if not conditions(item).get("Programmed", "").startswith("True/")
            ]
            return bool(items) and not behind

        await until(reached, lambda: f"not programmed: {behind}", PATIENCE)

    # --- the visitors -------------------------------------------------------------------------------------------------

    def mark(self) -> int:
        """Now, in the visitors' count of seconds."""
        told = self.kubectl(f"logs {self.visitors} -c app --tail=-1")
        self.lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        return len(self.lines)

    def since(self, mark: int) -> Counter[str]:
        """What the visitors got since then: outcome -> requests."""
        assert self.mark() >= mark, "the visitors' pod was restarted: their count is lost"
        found: Counter[str] = Counter()
        for line in self.lines[mark:]:
            found.update(line["outcomes"])
        return found

    def harmed_since(self, mark: int) -> dict[str, int]:
        return {outcome: count for outcome, count in self.since(mark).items() if outcome != "200"}

    def nobody_harmed_since(self, mark: int) -> None:
        """Every request was answered with 200; else what the visitors and the proxies say of the others.

        A few may have run into their timeout: that is what a machine does that starts pods on the same two cores.
        """
        harmed = self.harmed_since(mark)
        slow = harmed.get("504", 0)
        if set(harmed) - {"504"} or slow > SLOW * self.since(mark).total():
            seconds = [line for line in self.lines[mark:] if set(line["outcomes"]) - {"200"}]
            raise AssertionError(f"{harmed} in {seconds}\n{self.failures_told()}")

    def failures_told(self) -> str:
        """The newest lines of the access logs; only failures are in there."""
        told = []
        for app in ("visitors", "sa-webapp", "sa-logic"):
            said = self.kubectl(f"logs -l app={app} -c backstay-proxy --prefix --tail=200")
            told += [line for line in said.splitlines() if '"status"' in line or '"outcome"' in line][-20:]
        return "\n".join(told)

    async def versions_from_now(self, seconds: int = 5) -> set[str]:
        """What answers the visitors in whole seconds from now on."""
        begins = self.mark() + 1  # the second that runs now has begun before

        async def are_over() -> bool:
            return self.mark() >= begins + seconds

        await until(are_over, lambda: "the visitors say nothing")
        return {version for line in self.lines[begins:] for version in line["versions"]}

    async def until_steady(self, patience: float = PATIENCE) -> None:
        """Three seconds in which everybody was served."""

        async def reached() -> bool:
            self.mark()
            last = self.lines[-3:]
            good = [line["outcomes"].get("200", 0) for line in last if set(line["outcomes"]) == {"200"}]
            await asyncio.sleep(0 if len(good) == 3 else 0.5)
            return len(good) == 3 and min(good) > RATE / 2

        await until(reached, lambda: f"the visitors got {[line['outcomes'] for line in self.lines[-5:]]}", patience)

    async def has_a_past(self) -> bool:
        """Whether every proxy has had its usual share of requests for a while: what vanishes is measured against that."""
        await asyncio.sleep(0.5)
        return self.mark() >= PAST

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def pods(self, app: str, namespace: str = "") -> list[dict[str, Any]]:
        """Pods with this label `app` that are not on their way out."""
        listed = await self.client.list(f"/api/v1/namespaces/{namespace or self.name}/pods", labels=f"app={app}")
        return [each for each in listed.items if "deletionTimestamp" not in each["metadata"]]

    async def until_pods(self, app: str, count: int) -> list[dict[str, Any]]:
        """That many of them, all ready."""
        last: list[dict[str, Any]] = []

        async def reached() -> bool:
            nonlocal last
            last = await self.pods(app)
            return len(last) == count and all(is_ready(each) for each in last)

        await until(reached, lambda: f"pods of {app}: {[(_name(each), is_ready(each)) for each in last]}", STARTS)
        return last

    async def candidate_shares(self) -> dict[str, float]:
        """Address of a proxy of sa-webapp -> the share of its requests that go by a candidate, by its own word.

        Read past the operator, which may be gone.
        """
        addresses = [each["status"]["podIP"] for each in await self.pods("sa-webapp")]
        told = self.outside("python", "-c", SHARES, *addresses)
        return {address: float(share) for address, share in json.loads(told).items()}

    def outside(self, *command: str) -> str:
        """Run this in a pod without a proxy."""
        reach, namespace = self.stage.reach, self.stage.git_namespace
        return reach.kubectl("exec", "-n", namespace, "deployment/git", "--", *command)

    def ask_gateway(self, path: str, body: str = "", host: str = "shop.example.com") -> tuple[int, str]:
        """What somebody gets who comes from outside the mesh."""
        headers = json.dumps({"Host": host, "Content-Type": "application/json"})
        status, text = json.loads(
            self.outside("python", "-c", ASK, f"http://ingress.{self.name}.svc.cluster.local{path}", headers, body)
        )
        return int(status), str(text)

    # --- the operator -------------------------------------------------------------------------------------------------

    async def operators(self) -> dict[str, int]:
        """Pod -> how often its container was restarted."""
        path, labels = f"/api/v1/namespaces/{SYSTEM}/pods", "app.kubernetes.io/name=backstay-operator"
        found = (await self.client.list(path, labels=labels)).items
        return {_name(each): each["status"]["containerStatuses"][0]["restartCount"] for each in found}

    def processor_seconds(self, pod: str) -> float:
        """What an operator has used of a processor since it began."""
        fields = self.system(f"exec {pod} -- cat /proc/1/stat").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # the kernel tells in hundredths whatever its own tick is

    def said_of(self, pod: str, text: str) -> int:
        """How often an operator's log has this text."""
        return self.system(f"logs {pod} --tail=-1").count(text)

    async def leader(self) -> str:
        """The pod that leads; empty: nobody does."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/backstay-operator"
        found = await self.client.get(path)
        return str(found["spec"].get("holderIdentity") or "").partition("_")[0]

    async def until_led_by_another(self, pod: str, patience: float = PATIENCE) -> str:
        last = ""

        async def reached() -> bool:
            nonlocal last
            last = await self.leader()
            return last not in ("", pod)

        await until(reached, lambda: f"the leader is {last!r}", patience)
        return last

    def kill(self, pod: str) -> None:
        """As kill -9: nothing is given back, nobody is told."""
        self.system(f"delete pod {pod} --grace-period=0 --force --wait=false")

    async def replaced(self, pod: str) -> str:
        """Kill this leader; who leads once another one does and both replicas are there again."""
        self.kill(pod)
        other = await self.until_led_by_another(pod)
        wait_operator(self.stage.reach)
        return other

    def scale_operator(self, replicas: int) -> None:
        self.system(f"scale {OPERATOR} --replicas={replicas}")

    # --- putting it right ---------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Everything installed, served and steady, whatever the scenario before has left."""
        stage = self.stage
        if stage.reach.ours is not None and not stage.reach.ours.is_part_running("kube-apiserver"):
            stage.reach.ours.start_part("kube-apiserver")
            stage.reach.ours.wait_api()
        if not await self.is_installed() and install(stage.reach):
            self.kubectl("rollout restart deployment")  # the operator has made a CA that no proxy knows
        stage.server.start()
        await self._recover_repository()
        self.kubectl(f"rollout status deployment/sa-webapp --timeout={STARTS}s", timeout=STARTS + 10)
        self.kubectl(f"wait --for=condition=Available deployment --all --timeout={STARTS}s", timeout=STARTS + 10)
        [self.visitors] = [_name(each) for each in await self.until_pods("visitors", 1)]
        await self.until_steady(STARTS)
        await until(self.has_a_past, lambda: "the visitors say nothing", STARTS)
        await self.until_repository(lambda seen, _: seen == {"Ready": "True/Succeeded", "Validated": "True/Valid"})

    async def is_installed(self) -> bool:
        """Whether everything of bootstrap/ is there, with both operators as its Deployment says: to apply it takes seconds."""
        for wanted in self.stage.bootstrap:
            try:
                found = await self.client.get(_path(wanted))
            except ApiError as error:
                if error.is_missing:
                    return False
                raise
            if "deletionTimestamp" in found["metadata"]:
                return False
            if wanted["kind"] == "Deployment" and not _runs(found, wanted):
                return False
        return True

    async def _recover_repository(self) -> None:
        try:
            found = await self.repository()
        except ApiError as error:
            if not error.is_missing:
                raise
            self.push("The mesh as it is")
            self.kubectl("apply -f -", stdin=manifest(self.stage.server.url("shop")))
            return
        if not self._is_well(found):
            self.stage.route("v1", at_once=True)
            await self.until_live(self.push("Everybody to v1, at once"))

    def _is_well(self, found: Mapping[str, Any]) -> bool:
        """Whether git's head is what is live, and nothing moves."""
        head = self.stage.clone.git("rev-parse", "HEAD")
        applied = str((found.get("status") or {}).get("lastAppliedRevision", ""))
        return conditions(found).get("Ready") == "True/Succeeded" and applied.endswith(head)


async def until(true: Callable[[], Awaitable[object]], what: Callable[[], str], patience: float = PATIENCE) -> None:
    """Look five times a second: the node's two cores have more to do than to answer us."""
    ends = time.monotonic() + patience
    while not await true():
        assert time.monotonic() < ends, f"after {patience:.0f} s {what()}"
        await asyncio.sleep(0.2)


def manifest(url: str, name: str = "shop", **spec: Any) -> str:
    spec = {"url": url, "ref": {"branch": "main"}, "interval": "1s", "secretRef": {"name": SECRET}} | spec
    metadata = {"name": name}
    found = {"apiVersion": "backstay.dev/v1alpha1", "kind": "MeshRepository", "metadata": metadata, "spec": spec}
    return json.dumps(found)


def _is_of(rollout: Mapping[str, Any], sha: str) -> bool:
    return sha in json.dumps(rollout["spec"].get("cause", {}))


def _path(object: Mapping[str, Any]) -> str:
    """Where the API server has this object of bootstrap/."""
    version, metadata, kind = object["apiVersion"], object["metadata"], object["kind"].lower()
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}{'es' if kind.endswith('s') else 's'}"
    return f"{root}{within}/{plural}/{metadata['name']}"


def _runs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether this Deployment has these replicas of these images, all ready, and no others."""

    def images(deployment: Mapping[str, Any]) -> list[str]:
        return [each["image"] for each in deployment["spec"]["template"]["spec"]["containers"]]

    replicas, status = wanted["spec"]["replicas"], found.get("status", {})
    counts = {status.get(key) for key in ("replicas", "updatedReplicas", "readyReplicas")}
    return (
        images(found) == images(wanted)
        and found["spec"]["replicas"] == replicas
        and status.get("observedGeneration") == found["metadata"]["generation"]
        and counts == {replicas}
    )


def is_ready(pod: Mapping[str, Any]) -> bool:
    found = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return found.get("Ready") == "True"


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def _told(found: Mapping[str, Any]) -> str:
    """What a failed wait says of an object."""
    status = found.get("status") or {}
    words = {
        key: status.get(key) for key in ("phase", "progress", "sentence", "lastAppliedRevision") if status.get(key)
    }
    messages = [f"{each['type']}={each['status']}: {each['message']}" for each in status.get("conditions", ())]
    return f"{words} {messages}"


@contextlib.asynccontextmanager
async def shop(stage: Stage) -> AsyncIterator[Shop]:
    client = ApiClient.connect(stage.reach.kubeconfig)
    try:
        found = Shop(stage, client)
        await found.recover()
        yield found
    finally:
        await client.close()
