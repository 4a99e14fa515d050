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

from bench.support.results import QUICK, finish, say
from support.live import LiveMesh, NotSo, document, mesh_document, subsets, workloads_file

PROXIES: Final = 5 if QUICK else 50
ROUTES: Final = 100 if QUICK else 1000
PUSHES: Final = 3 if QUICK else 10
START_WITHIN: Final = 300.0
"""Seconds for all sidecars to start and hold their first config; fifty interpreters on two cores need one minute."""


def name_of(number: int) -> str:
    return f"svc-{number:04d}"


def files(number: int, weight: int) -> dict[str, str]:
    """Everything about one service, `weight` percent of its API going to v2."""
    name = name_of(number)
    refs = [{"name": name, "subset": "v1", "weight": 100 - weight}, {"name": name, "subset": "v2", "weight": weight}]
    rules = [
        {
            "matches": [{"path": {"type": "PathPrefix", "value": "/api"}}],
            "backendRefs": refs,
            "timeouts": {"request": "5s"},
        },
        {"backendRefs": [{"name": name}]},
    ]
    wanted = document("Route", name, {"hosts": [name], "rules": rules, "rollout": {"strategy": "Immediate"}})
    return {f"shop/{name}.yaml": wanted + subsets(name, "v1", "v2")}


def documents() -> dict[str, str]:
    found = {"mesh.yaml": mesh_document({"bakeTime": "1s"})}
    for number in range(ROUTES):
        found |= files(number, 0)
    return found


def workloads() -> str:
    """All services are there; nothing serves them: this is about configuration."""
    caller = {"name": "caller", "replicas": PROXIES, "command": ["sleep", "infinity"], "ports": []}
    return workloads_file([name_of(number) for number in range(ROUTES)], [caller])


def metric(mesh: LiveMesh, name: str) -> dict[str, float]:
    """Values of one family of the operator's metrics by proxy."""
    found: dict[str, float] = {}
    for line in mesh.api.text("/metrics").decode().splitlines():
        if line.startswith(f"{name}{{"):
            head, _, value = line.rpartition(" ")
            found[head.split('"')[1]] = float(value)
    return found


def acked_since(mesh: LiveMesh, moment: float) -> bool:
    acked = metric(mesh, "backstay_control_acked_time_seconds")
    return len(acked) == PROXIES and min(acked.values()) > moment


class Hook:
    """A post-receive hook that writes down when a push has arrived."""

    def __init__(self, mesh: LiveMesh) -> None:
        self._stamp = mesh.folder / "received"
        hook = mesh.repo.remote / "hooks" / "post-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ndate +%s.%N > '{self._stamp}'\n", encoding="utf-8")
        hook.chmod(0o755)

    @property
    def received_at(self) -> float:
        return float(self._stamp.read_text(encoding="ascii"))


def one_push(mesh: LiveMesh, hook: Hook, number: int) -> tuple[float, float]:
    """(Seconds to the last ack, mean bytes sent per proxy)."""
    sent = metric(mesh, "backstay_control_sent_bytes_total")
    mesh.push(files(number, 10 + number), f"{name_of(number)}: {10 + number} % to v2")
    received = hook.received_at
    mesh.until(lambda: acked_since(mesh, received), f"{PROXIES} acks", 60)
    acked = metric(mesh, "backstay_control_acked_time_seconds")
    after = metric(mesh, "backstay_control_sent_bytes_total")
    return max(acked.values()) - received, statistics.mean(after[proxy] - sent[proxy] for proxy in acked)


def main() -> int:
    began = time.monotonic()
    with LiveMesh(workloads(), documents(), start_within=START_WITHIN) as mesh:
        hook = Hook(mesh)
        mesh.until(lambda: acked_since(mesh, 0.0), f"{PROXIES} proxies to have their first config", START_WITHIN)
        say(f"{PROXIES} proxies hold {ROUTES} routes after {time.monotonic() - began:.0f} s")
        time.sleep(5 if QUICK else 15)  # first acks, compactions and baking are over
        found = []
        for number in range(PUSHES):
            seconds, sent = one_push(mesh, hook, number)
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
    except NotSo as failed:
        sys.exit(f"bench-push: {failed}")
