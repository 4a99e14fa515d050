"""Real pods: injected by the webhook, enrolled by their own token, configured, asked, ended. The operator is this process."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.injection import PATH
from backstay.adapters.kubernetes.serving import CONFIGURATION, CONFIGURATIONS
from backstay.app.kubernetes import KubernetesOperator
from backstay.core.inject import INJECT
from backstay.core.tenancy import CLASS
from backstay.settings import KubernetesSettings
from backstay.tasks import spawn, stop
from cluster.layout import HOST_ADDRESS
from cluster.reach import Reach
from e2e.kubernetes.operators import install
from support.control_world import free_port

WITHIN = 120.0


class Mesh:
    """An operator in this process, and a namespace whose pods it injects."""

    def __init__(self, reach: Reach, client: ApiClient, namespace: str, operator: KubernetesOperator) -> None:
        self.reach = reach
        self.client = client
        self.namespace = namespace
        self.operator = operator

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    async def run(self, name: str, **spec: Any) -> None:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}
        await self.client.create(self.pods, body)

    async def until(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The pod as soon as this is true of it; a pod that never gets there is shown."""
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(WITHIN):
                found = await self.client.get(f"{self.pods}/{name}")
                version = found["metadata"]["resourceVersion"]
                while not holds(found):
                    fields = f"metadata.name={name}"
                    async for change in self.client.watch(self.pods, resource_version=version, fields=fields):
                        version = change.resource_version
                        if change.kind != "BOOKMARK":
                            found = change.object
                        if holds(found):
                            break
        except TimeoutError:
            raise AssertionError(json.dumps(found.get("status"), indent=1)) from None
        return found

    def logs(self, pod: str, container: str) -> str:
        return self.reach.kubectl("logs", "-n", self.namespace, pod, "-c", container)


@pytest.fixture
async def mesh(images: Reach, namespace: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    if images.ours is None:
        pytest.skip(
            "pods of this cluster cannot reach an operator in this process: it is not this machine's test cluster"
        )
    install(images)
    client = ApiClient.connect(images.kubeconfig)
    labels = {CLASS: namespace}
    await client.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {**labels, INJECT: "enabled"}}})
    system = f"{namespace}-system"
    await client.create("/api/v1/namespaces", {"metadata": {"name": system, "labels": labels}})
    own = settings(images, namespace, system, tmp_path)
    for path, body in (*service(own), (CONFIGURATIONS, webhook(own))):
        await client.create(path, body)
    operator = KubernetesOperator(own)
    await operator.start()
    running = spawn(operator.run(), name="operator")
    try:
        await injecting(client, namespace)
        yield Mesh(images, client, namespace, operator)
    finally:
        await client.delete(f"{CONFIGURATIONS}/{CONFIGURATION}-{namespace}")
        await stop(running)
        await operator.close()
        await client.delete(f"/api/v1/namespaces/{system}")
        await client.close()


def settings(reach: Reach, namespace: str, system: str, scratch: Path) -> KubernetesSettings:
    return KubernetesSettings(
        pod="pod-a",
        namespace=system,
        operator_class=namespace,
        kubeconfig=reach.kubeconfig,
        cache_dir=scratch / "cache",
        run_dir=Path("/tmp") / namespace,
        host=HOST_ADDRESS,
        control_port=free_port(),
        injection_port=free_port(),
        metrics_port=0,
        hooks_port=0,
    )


def service(found: KubernetesSettings) -> list[tuple[str, dict[str, Any]]]:
    """The operator's Service, with this process behind it."""
    ports = {"control": (found.control_port, found.control_port), "inject": (443, found.injection_port)}
    spec = {"ports": [{"name": name, "port": port} for name, (port, _) in ports.items()]}
    slices = {
        "metadata": {"name": "here", "labels": {"kubernetes.io/service-name": found.name}},
        "addressType": "IPv4",
        "ports": [{"name": name, "port": target, "protocol": "TCP"} for name, (_, target) in ports.items()],
        "endpoints": [{"addresses": [HOST_ADDRESS]}],
    }
    return [
        (f"/api/v1/namespaces/{found.namespace}/services", {"metadata": {"name": found.name}, "spec": spec}),
        (f"/apis/discovery.k8s.io/v1/namespaces/{found.namespace}/endpointslices", slices),
    ]


def webhook(found: KubernetesSettings) -> dict[str, Any]:
    """As bootstrap/ has it, for namespaces of this operator's class."""
    where = {"name": found.name, "namespace": found.namespace, "path": PATH, "port": 443}
    return {
        "metadata": {"name": f"{CONFIGURATION}-{found.operator_class}"},
        "webhooks": [
            {
                "name": "namespace.inject.backstay.dev",
                "clientConfig": {"service": where},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {CLASS: found.operator_class, INJECT: "enabled"}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


async def injecting(client: ApiClient, mesh: str) -> None:
    """Until the API server has taken note of the caBundle, and the namespace has its account and the roots."""
    pod = {"metadata": {"name": "dry"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    last = "nothing was asked"
    try:
        async with asyncio.timeout(WITHIN):
            while last:
                last = await _lacking(client, mesh, pod)
                await asyncio.sleep(0.1 if last else 0)
    except TimeoutError:
        raise AssertionError(last) from None


async def _lacking(client: ApiClient, mesh: str, pod: dict[str, Any]) -> str:
    try:
        made = await client.create(f"/api/v1/namespaces/{mesh}/pods", pod, dryRun="All")
        await client.get(f"/api/v1/namespaces/{mesh}/configmaps/backstay-roots")
    except ApiError as error:
        return str(error)
    assert made["spec"]["initContainers"][1]["name"] == "backstay-proxy"
    return ""


def app(**container: Any) -> dict[str, Any]:
    return {
        "name": "app",
        "image": "backstay-sample:dev",
        "imagePullPolicy": "IfNotPresent",
        "args": ["sa_logic.py"],
        "env": [{"name": "PORT", "value": "5000"}],
        "ports": [{"containerPort": 5000, "name": "http"}],
        **container,
    }


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


async def test_an_injected_pod_enrols_and_serves_and_its_application_starts_after_its_proxy(mesh: Mesh) -> None:
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1}
    await mesh.run("web", containers=[app(readinessProbe=probe)], terminationGracePeriodSeconds=1)
    pod = await mesh.until("web", is_ready)

    status = {
        each["name"]: each for each in (*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"])
    }
    assert status["backstay-redirect"]["state"]["terminated"]["exitCode"] == 0
    assert status["backstay-proxy"]["started"] is True
    began = {name: started(each) for name, each in status.items()}
    assert began["backstay-redirect"] <= began["backstay-proxy"] <= began["app"]
    assert mesh.operator.control is not None
    assert mesh.operator.control.limiter.outcomes == {"granted": 1}
    assert mesh.operator.platform.refusals == {}


def started(status: dict[str, Any]) -> str:
    state = status["state"]
    return str((state.get("running") or state["terminated"])["startedAt"])


async def test_init_containers_of_the_pod_have_a_proxy_and_a_job_ends(mesh: Mesh) -> None:
    """The proxy is a native sidecar: it is there before them, and does not keep the pod alive after them."""
    look = "import urllib.request as u, os; print(u.urlopen('http://%s:15021/healthz/ready' % os.environ['IP']).status)"
    ip = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    ask = {"image": "backstay-sample:dev", "command": ["python3", "-c", look], "env": ip}
    await mesh.run(
        "once",
        restartPolicy="Never",
        initContainers=[{"name": "first", **ask}],
        containers=[{"name": "then", **ask}],
        terminationGracePeriodSeconds=5,
    )
    await mesh.until("once", lambda pod: bool(pod["status"]["phase"] == "Succeeded"))
    assert (mesh.logs("once", "first").strip(), mesh.logs("once", "then").strip()) == ("200", "200")
