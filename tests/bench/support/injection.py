"""What injection adds to the creation of a pod, for `make bench-kubernetes`.

The operator is a process on this machine, as in bench/on_kubernetes.py; the API server reaches it by a Service.
"""

import contextlib
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.serving import CONFIGURATION, CONFIGURATIONS
from backstay.core.inject import INJECT
from backstay.core.tenancy import CLASS
from backstay.settings import KubernetesSettings
from bench.support.operators import OperatorProcess
from bench.support.results import QUICK, say
from cluster.layout import HOST_ADDRESS
from cluster.reach import Reach
from e2e.kubernetes.test_pods import injecting, service, webhook

CREATIONS: Final = 50 if QUICK else 500


class Pods:
    """Two namespaces, one with injection, and an operator that injects there."""

    def __init__(self, api: Reach, client: ApiClient, folder: Path) -> None:
        self.client = client
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
