"""`make bench-review`: what asking and reviewing cost in a mesh of a thousand routes and three hundred workloads.

Every service has a Route of three rules and a Backend, every third workload an Authorization; workloads reach everything.
A commit changes one file. The log to replay has half a million lines with 60,000 different requests, and the change it
is replayed against moves a default that every request meets, so every different request is decided twice in full.

evaluate_ms            one request through both proxies in a warm process, mean over all hosts
route_test_cli_s       `backstay route test` from the shell, median of five
review_s               `backstay review` of the one-file change from the shell, cold, median of five
replay_requests_per_s  requests a second of one core, reading included
memory_mb              greatest resident size of the review and of the replay

Times are wall times; *_cpu_s are what the process itself used, which is what counts beside other work. The last line is
one JSON object; full runs keep it in docs/benchmarks/. QUICK=1 is a tenth of the mesh.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backstay.core.evaluate import Request, world
from backstay.core.registry import Instance, Registry, Service, ServicePort, Workload
from backstay.core.validate import validate
from bench.support.results import QUICK, finish, say

ROUTES: Final = 100 if QUICK else 1000
WORKLOADS: Final = 30 if QUICK else 300
LINES: Final = 50_000 if QUICK else 500_000
DISTINCT: Final = 6_000 if QUICK else 60_000
ROUNDS: Final = 5
BACKSTAY: Final = Path(sys.executable).with_name("backstay")

SERVICE: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata: {{name: {name}, namespace: shop}}
spec:
  service: {name}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{name}]
  rules:
  - name: preview
    matches: [{{headers: [{{name: x-version, value: v2}}]}}]
    backendRefs: [{{name: {name}, port: 80, subset: v2}}]
  - name: api
    matches: [{{path: {{type: PathPrefix, value: /api}}}}]
    backendRefs:
    - {{name: {name}, port: 80, subset: v1, weight: {weight}}}
    - {{name: {name}, port: 80, subset: v2, weight: {rest}}}
  - name: rest
    backendRefs: [{{name: {name}, port: 80, subset: v1}}]
"""
POLICY: Final = """\
---
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{workloads: [{name}]}}
  rules:
  - from: [{{serviceAccounts: [{callers}]}}]
    to: [{{paths: [/api/*]}}]
"""
MESH: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {{name: mesh}}
spec:
  defaults: {{timeout: {timeout}}}
"""


def name_of(number: int) -> str:
    return f"svc-{number:04d}"


def write(folder: Path, number: int, weight: int = 90) -> None:
    name = name_of(number)
    text = SERVICE.format(name=name, weight=weight, rest=100 - weight)
    if number < WORKLOADS and number % 3 == 0:
        callers = ", ".join(name_of((number + step) % WORKLOADS) for step in range(1, 20))
        text += POLICY.format(name=name, callers=callers)
    (folder / f"{name}.yaml").write_text(text)


def registry() -> Registry:
    services = {
        f"{name_of(n)}.shop": Service(
            name=name_of(n), namespace="shop", ports=(ServicePort(port=80, target_port=8080),)
        )
        for n in range(ROUTES)
    }
    workloads = {}
    for number in range(WORKLOADS):
        behind = tuple(f"{name_of(n)}.shop" for n in range(number, ROUTES, WORKLOADS))
        name = name_of(number)
        workloads[f"shop/{name}"] = Workload(
            name=name, namespace="shop", service_account=name, services=behind, ports=((8080, "http"),)
        )
    instances = {
        f"{key}-{n}": Instance(id=f"{key}-{n}", workload=key, address="10.0.0.1", labels={"version": f"v{n}"})
        for key in workloads
        for n in (1, 2)
    }
    return Registry(services=services, workloads=workloads, instances=instances)


def make_repository(root: Path) -> Path:
    mesh = root / "mesh"
    mesh.mkdir()
    for number in range(ROUTES):
        write(mesh, number)
    (mesh / "mesh.yaml").write_text(MESH.format(timeout="15s"))
    git(root, "init", "-q", "-b", "main")
    commit(root)
    write(mesh, ROUTES // 2, weight=80)
    commit(root)
    (mesh / "mesh.yaml").write_text(MESH.format(timeout="9s"))
    commit(root)
    (root / "registry.json").write_bytes(msgspec.json.encode(registry()))
    return mesh


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.com"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "change")


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float
    memory_mb: float


def run(*arguments: str) -> Cost:
    """One command to its end, from the shell's point of view. Raises RuntimeError if it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(BACKSTAY), *arguments], stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{arguments[0]} ended with {process.returncode}: {said.read()[-2000:].decode()}")
    return Cost(wall=wall, cpu=used.ru_utime + used.ru_stime, memory_mb=used.ru_maxrss / 1024)


def median(costs: list[Cost]) -> Cost:
    return Cost(
        wall=statistics.median(cost.wall for cost in costs),
        cpu=statistics.median(cost.cpu for cost in costs),
        memory_mb=max(cost.memory_mb for cost in costs),
    )


def evaluate_ms(mesh: Path) -> float:
    """Mean over all hosts, after one request to each."""
    files = {path.name: path.read_bytes() for path in mesh.glob("*.yaml")}
    made = validate(files, revision="bench", registry=registry(), default_namespace="shop")
    if made.snapshot is None:
        raise RuntimeError(str(made.errors[0]))
    asked = world(made.snapshot, registry())
    requests = [Request(method="POST", authority=name_of(n), path="/api/x") for n in range(ROUTES)]
    asked.trace("shop/svc-0001", requests[0])
    started = time.perf_counter()
    for request in requests:
        asked.trace("shop/svc-0001", request)
    return (time.perf_counter() - started) * 1000 / len(requests)


def write_log(path: Path) -> None:
    """Lines as a sidecar writes them; DISTINCT of them differ in caller, host or path."""
    with path.open("w") as log:
        for number in range(LINES):
            kind = number % DISTINCT
            caller, host, item = kind % WORKLOADS, (kind * 7) % ROUTES, kind
            log.write(
                f'{{"time":1.5,"method":"GET","authority":"{name_of(host)}","path":"/api/items/{item}","status":200,'
                f'"duration_ms":1.2,"bytes_in":0,"bytes_out":20,"route":"inbound:8080",'
                f'"source":"spiffe://backstay.local/ns/shop/sa/{name_of(caller)}","config":"0123456789ab"}}\n'
            )


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mesh = make_repository(root)
        where = ("--dir", str(mesh), "--registry", str(root / "registry.json"), "--namespace", "shop")
        say(f"{ROUTES} routes, {WORKLOADS} workloads")
        warm = evaluate_ms(mesh)
        say(f"evaluation {warm:.3f} ms")
        test = ("route", "test", "POST", f"http://{name_of(4)}/api/x", "--from", "svc-0001")
        tested = median([run(*test, *where) for _ in range(ROUNDS)])
        say(f"route test {tested.wall:.2f} s, {tested.cpu:.2f} s of CPU")
        reviewed = median([run("review", "HEAD~2..HEAD~1", *where) for _ in range(ROUNDS)])
        say(f"review {reviewed.wall:.2f} s, {reviewed.cpu:.2f} s of CPU, {reviewed.memory_mb:.0f} MB")
        log = root / "access.log"
        write_log(log)
        replayed = run("replay", str(log), "--against", "HEAD~1..HEAD", *where)
        empty = root / "empty.log"
        empty.write_text("{}\n")
        start = run("replay", str(empty), "--against", "HEAD~1..HEAD", *where)
        per_second = LINES / max(replayed.cpu - start.cpu, 1e-9)
        say(f"replay {per_second:.0f} requests a second of CPU, {replayed.memory_mb:.0f} MB")
    finish(
        "bench-review",
        {
            "evaluate_ms": round(warm, 4),
            "route_test_cli_s": round(tested.wall, 3),
            "route_test_cpu_s": round(tested.cpu, 3),
            "review_s": round(reviewed.wall, 3),
            "review_cpu_s": round(reviewed.cpu, 3),
            "replay_requests_per_s": round(per_second),
            "memory_mb": round(max(reviewed.memory_mb, replayed.memory_mb)),
            "routes": ROUTES,
            "workloads": WORKLOADS,
            "lines": LINES,
            "distinct": DISTINCT,
        },
        began,
    )


if __name__ == "__main__":
    main()
