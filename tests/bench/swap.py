"""`make bench-swap`: what a request notices of a change: nothing.

A real commit that changes every workload's digest, strategy Immediate, once a second for SECONDS seconds, while RATE
requests a second pass client -> web -> api: two hops with mTLS, four sidecars' decisions each.

failed_requests    requests of the whole time, and of the five seconds after it, that did not end in 2xx
swaps_acked_min    assignments that the proxy with the fewest has acknowledged in that time
commits            commits pushed: one a second from second 0 to second SECONDS

The last line is one JSON object; full runs keep it in docs/benchmarks/. QUICK=1 takes ten seconds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.results import QUICK, finish, say
from support.live import LiveMesh, NotSo, backend, caller, client, failures, mesh_document, route, workloads_file

SECONDS: Final = 10 if QUICK else 60
RATE: Final = 200
SPARE: Final = 1
"""Commits after the last second: one that arrives while the operator reads its predecessor is never served by itself."""


def workloads() -> str:
    """Everybody may reach both services, so that every commit is news to every proxy."""
    both = ["web", "api"]
    made = [
        backend("api", "api", replicas=2, reaches=both),
        caller("web", "api", replicas=4, reaches=both),
        client("client", "web", rate=RATE, reaches=both),
    ]
    return workloads_file(both, made)


def documents(number: int) -> dict[str, str]:
    """Both routes with a timeout that no commit before has had."""
    rule = {"timeouts": {"request": f"{5000 + number}ms"}}
    immediate = {"strategy": "Immediate"}
    return {
        "shop/web.yaml": route("web", rollout=immediate, rule=rule),
        "shop/api.yaml": route("api", rollout=immediate, rule=rule),
    }


def acks(mesh: LiveMesh) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in mesh.api.text("/metrics").decode().splitlines():
        if line.startswith("backstay_control_acks_total{"):
            head, _, value = line.rpartition(" ")
            found[head.split('"')[1]] = float(value)
    return found


def push_once_a_second(mesh: LiveMesh) -> int:
    start = time.monotonic()
    commits = SECONDS + 1 + SPARE
    for number in range(commits):
        time.sleep(max(0.0, start + number - time.monotonic()))
        mesh.push(documents(number + 1), f"swap {number + 1}")
    return commits


def main() -> int:
    began = time.monotonic()
    with LiveMesh(workloads(), {"mesh.yaml": mesh_document(), **documents(0)}, steady_for=5) as mesh:
        before, mark = acks(mesh), mesh.mark()
        say(f"{len(before)} proxies, {RATE} requests/s; one commit a second")
        commits = push_once_a_second(mesh)
        mesh.wait_seconds(5)
        lines = mesh.client_lines()[mark:]
        after = acks(mesh)
        swapped = {proxy: int(after[proxy] - before.get(proxy, 0)) for proxy in after}
    requests = sum(sum(line["outcomes"].values()) for line in lines)
    say(f"acks by proxy: {json.dumps(swapped)}; {requests} requests, slowest second's p99 "
        f"{max(line['p99_ms'] or 0 for line in lines):.0f} ms")  # fmt: skip
    figures = {
        "failed_requests": sum(failures(line) for line in lines),
        "swaps_acked_min": min(swapped.values()),
        "commits": commits,
        "requests": requests,
    }
    finish("bench-swap", figures, began, packages=("httptools", "uvloop"), proxies=len(swapped))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NotSo as failed:
        sys.exit(f"bench-swap: {failed}")
