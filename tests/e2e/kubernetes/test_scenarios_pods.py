"""Pods come and go while a change goes out: a node is drained, the application rolls, is scaled to zero, many pods churn."""

import asyncio
import os
from typing import Any, Final

import pytest

from e2e.kubernetes.stage import LIVE, MOVING, STARTS, WEBAPPS, Shop, until, wait_operator
from support.bootstrap import SYSTEM

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
BUSY: Final = "requests were slow"
LONGER: Final = 240.0
"""Seconds for a rollout that waits for pods as well."""
CROWD: Final = int(os.environ.get("BACKSTAY_TEST_CHURN_PODS", "40"))
"""Pods that come and go altogether."""
BATCH: Final = 10
IMAGE: Final = "docker.io/library/backstay-pause:test"
"""Does nothing, and is on the node already."""
BUDGET: Final = """\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: sa-webapp}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: sa-webapp}}
"""
CROWDED: Final = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd}}
spec:
  replicas: {BATCH}
  selector: {{matchLabels: {{app: crowd}}}}
  template:
    metadata:
      labels: {{app: crowd}}
      annotations: {{backstay.dev/proxy-cpu: 5m, backstay.dev/proxy-memory: 32Mi}}
    spec:
      terminationGracePeriodSeconds: 5
      automountServiceAccountToken: false
      containers:
      - {{name: app, image: "{IMAGE}", imagePullPolicy: Never}}
"""


async def live(mesh: Shop, sha: str) -> dict[str, Any]:
    """The rollout of this commit, which made it live.

    Proxies are judged here from their second second on, not from their second minute, by the side of pods that start on the
    same two cores. So one that was slow then is tried again when no pods start any more.
    """
    found = await mesh.until_rollout(sha, lambda status: status.get("phase", "preparing") not in MOVING, LONGER)
    if BUSY in found["status"].get("sentence", ""):
        assert (await mesh.order(found["metadata"]["name"], "retry", "the node was busy"))["done"]
    else:
        assert found["status"]["phase"] in LIVE, found["status"]
    await mesh.until_live(sha, LONGER)
    return found


async def test_a_node_is_drained_in_the_middle_of_a_rollout_and_nobody_notices(mesh: Shop) -> None:
    """Evictions as `kubectl drain` makes them, within the budgets, of the application and of both operators. The node is
    the only one, so it is opened again at once: what was evicted comes back there."""
    mesh.kubectl("apply -f -", stdin=BUDGET)
    try:
        before = {each["metadata"]["name"] for each in await mesh.pods("sa-webapp")}
        operators = await mesh.operators()
        mark = mesh.mark()
        sha = mesh.push_other_version()
        await mesh.in_first_wave(sha)
        for selector in ("app=sa-webapp", "app.kubernetes.io/name=backstay-operator"):
            await drain(mesh, selector)
        wait_operator(mesh.stage.reach)
        after = {each["metadata"]["name"] for each in await mesh.until_pods("sa-webapp", WEBAPPS)}
        assert not after & before
        assert not (await mesh.operators()).keys() & operators.keys()
        await live(mesh, sha)
        await mesh.until_programmed()
        mesh.nobody_harmed_since(mark)
    finally:
        mesh.kubectl("delete poddisruptionbudget sa-webapp")
        mesh.system("uncordon -l kubernetes.io/os=linux")


async def drain(mesh: Shop, selector: str) -> None:
    node = (await mesh.pods("visitors"))[0]["spec"]["nodeName"]
    drained = mesh.started(
        f"drain {node} --ignore-daemonsets --delete-emptydir-data --timeout={STARTS}s --pod-selector={selector}"
    )

    async def is_closed() -> bool:
        return bool((await mesh.client.get(f"/api/v1/nodes/{node}"))["spec"].get("unschedulable"))

    await until(is_closed, lambda: f"{node} is not cordoned")
    mesh.system(f"uncordon {node}")
    said, _ = await asyncio.to_thread(drained.communicate, timeout=STARTS + 10)
    assert drained.returncode == 0, said


async def test_an_application_rolls_while_a_change_goes_out(mesh: Shop) -> None:
    before = {each["metadata"]["name"] for each in await mesh.pods("sa-webapp")}
    mark = mesh.mark()
    sha = mesh.push_other_version()
    await mesh.in_first_wave(sha)
    mesh.kubectl("rollout restart deployment/sa-webapp")
    await live(mesh, sha)
    mesh.kubectl(f"rollout status deployment/sa-webapp --timeout={STARTS}s", timeout=STARTS + 10)
    assert not {each["metadata"]["name"] for each in await mesh.until_pods("sa-webapp", WEBAPPS)} & before
    await mesh.until_programmed()
    mesh.nobody_harmed_since(mark)


async def test_scaled_to_zero_in_a_wave_and_back_again(mesh: Shop) -> None:
    """Nobody is there to be harmed by the change, and nobody blames it for that."""
    sha = mesh.push_other_version()
    await mesh.in_first_wave(sha)
    mesh.kubectl("scale deployment/sa-webapp --replicas=0")

    async def are_gone() -> bool:
        return not await mesh.pods("sa-webapp")

    await until(are_gone, lambda: "there are pods of sa-webapp", STARTS)
    mesh.kubectl(f"scale deployment/sa-webapp --replicas={WEBAPPS}")
    await mesh.until_pods("sa-webapp", WEBAPPS)
    await mesh.until_steady()
    mark = mesh.mark()
    await live(mesh, sha)
    await mesh.until_programmed()
    assert await mesh.versions_from_now() == {mesh.stage.routed}
    mesh.nobody_harmed_since(mark)


async def test_many_pods_come_and_go_in_batches_during_a_rollout(mesh: Shop) -> None:
    mark = mesh.mark()
    mesh.kubectl("apply -f -", stdin=CROWDED)
    try:
        await mesh.until_pods("crowd", BATCH)
        sha = mesh.push_other_version()
        await mesh.in_first_wave(sha)
        for _ in range(BATCH, CROWD, BATCH):
            mesh.kubectl("delete pods -l app=crowd --wait=false")
            await mesh.until_pods("crowd", BATCH)
        await live(mesh, sha)
        await mesh.until_programmed()
    finally:
        mesh.kubectl("delete deployment crowd --wait=false")
    mesh.nobody_harmed_since(mark)
    assert {pod: count for pod, count in (await mesh.operators()).items() if count} == {}, f"restarts in {SYSTEM}"
