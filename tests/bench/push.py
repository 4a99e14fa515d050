"""`make bench-push`: how long a push takes to reach the last proxy, and what it costs on the wire.

PROXIES real sidecars, every one of which may reach all of ROUTES routed services. A commit changes one weight of one
Route with strategy Immediate; the clock starts when git runs the repository's post-receive hook and stops when the
operator has the ack of the last proxy. PUSHES commits, one after the other.

last_ack_s         median over the pushes of (last ack - post-receive), seconds
last_ack_max_s     the slowest push
bytes_per_proxy    WebSocket bytes the operator sent to a proxy between push and last ack, report acks included: the
                   greatest mean over proxies of any push

The last line is one JSON object; full runs keep it in docs/benchmarks/. QUICK=1 is a tenth of the mesh.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.mesh import BenchFailed, BenchMesh, Repository, running
from bench.support.results import QUICK, finish, say

PROXIES: Final = 5 if QUICK else 50
ROUTES: Final = 100 if QUICK else 1000
PUSHES: Final = 3 if QUICK else 10
START_WITHIN: Final = 300.0
"""Seconds for all sidecars to start and hold their first config; fifty interpreters on two cores need one minute."""

MESH: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh, namespace: shop}
spec:
  rollout: {bakeTime: 1s}
"""
BACKENDS: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata: {{name: {name}, namespace: shop}}
spec:
  service: {name}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"""
ROUTE: Final = """\
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{name}]
  rules:
  - matches:
    - path: {{type: PathPrefix, value: /api}}
    backendRefs:
    - {{name: {name}, subset: v1, weight: {v1}}}
    - {{name: {name}, subset: v2, weight: {v2}}}
    timeouts: {{request: 5s}}
  - backendRefs:
    - {{name: {name}}}
  rollout: {{strategy: Immediate}}
"""


def name_of(number: int) -> str:
    return f"svc-{number:04d}"


def route(number: int, weight: int) -> str:
    return ROUTE.format(name=name_of(number), v1=100 - weight, v2=weight)


def workloads() -> str:
    """All services are there; nothing serves them: this is about configuration."""
    services = [f"- {{name: {name_of(number)}, ports: [{{port: 80}}]}}" for number in range(ROUTES)]
    caller = [
        "- name: caller",
        f"  replicas: {PROXIES}",
        '  command: ["sleep", "infinity"]',
        "  ports: []",
    ]
    return "\n".join(["namespace: shop", "services:", *services, "workloads:", *caller, ""])


def documents() -> dict[str, str]:
    files = {"mesh.yaml": MESH}
    for number in range(ROUTES):
        files[f"shop/{name_of(number)}.yaml"] = f"{route(number, 0)}---\n{BACKENDS.format(name=name_of(number))}"
    return files


def change(number: int, weight: int) -> dict[str, str]:
    return {f"shop/{name_of(number)}.yaml": f"{route(number, weight)}---\n{BACKENDS.format(name=name_of(number))}"}


def wait_for_everybody(mesh: BenchMesh) -> None:
    def all_acked() -> bool:
        return len(mesh.metric("backstay_control_acked_time_seconds")) == PROXIES

    mesh.until(all_acked, f"{PROXIES} proxies to have their first config", START_WITHIN, pause=1.0)


def one_push(repository: Repository, mesh: BenchMesh, number: int) -> tuple[float, float]:
    """(Seconds to the last ack, mean bytes sent per proxy)."""
    sent = mesh.metric("backstay_control_sent_bytes_total")
    repository.write(change(number, 10 + number))
    repository.push(f"{name_of(number)}: {10 + number} % to v2")
    received = repository.received_at

    def all_acked() -> bool:
        acked = mesh.metric("backstay_control_acked_time_seconds")
        return len(acked) == PROXIES and min(acked.values()) > received

    mesh.until(all_acked, f"{PROXIES} acks", 60.0, pause=0.1)
    acked = mesh.metric("backstay_control_acked_time_seconds")
    after = mesh.metric("backstay_control_sent_bytes_total")
    return max(acked.values()) - received, statistics.mean(after[proxy] - sent[proxy] for proxy in acked)


def main() -> int:
    began = time.monotonic()
    with running(workloads(), documents(), within=START_WITHIN) as (repository, mesh):
        wait_for_everybody(mesh)
        say(f"{PROXIES} proxies hold {ROUTES} routes after {time.monotonic() - began:.0f} s")
        time.sleep(5 if QUICK else 15)  # first acks, compactions and baking are over
        found = []
        for number in range(PUSHES):
            seconds, sent = one_push(repository, mesh, number)
            say(f"push {number + 1:2}: last ack after {seconds:.3f} s, {sent:.0f} bytes per proxy")
            found.append((seconds, sent))
            time.sleep(3)  # the rollout's baking second, so that pushes do not measure each other
    figures = {
        "last_ack_s": round(statistics.median(seconds for seconds, _ in found), 3),
        "last_ack_max_s": round(max(seconds for seconds, _ in found), 3),
        "bytes_per_proxy": round(max(sent for _, sent in found)),
    }
    finish("bench-push", figures, began, packages=("aiohttp", "msgspec"), proxies=PROXIES, routes=ROUTES)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchFailed as failed:
        sys.exit(f"bench-push: {failed}")
