"""The webhook against a real API server: it serves from this process, under a configuration for one namespace of its own."""

import asyncio
import base64
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backstay.adapters.certificates import LocalCA
from backstay.adapters.kubernetes.client import ApiClient, ApiError
from backstay.adapters.kubernetes.facts import NamespaceFacts, namespace_facts
from backstay.adapters.kubernetes.injection import PATH, InjectionServer
from backstay.adapters.kubernetes.serving import CONFIGURATIONS, CaBundle, ServingCertificate, roots_of
from backstay.core.inject import INJECT, InjectionSettings
from cluster.layout import HOST_ADDRESS
from cluster.reach import Reach

SETTINGS = InjectionSettings(
    image="backstay-sidecar:dev",
    operator="https://backstay-operator.backstay-system.svc:15012",
    trust_domain="backstay.local",
)
WITHIN = 30.0


class Clock:
    """Begins half a day ago, so that it can be put forward to a time at which certificates are due and still good."""

    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=13)

    def __call__(self) -> dt.datetime:
        return self.now

    def wall(self) -> float:
        return self.now.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    client: ApiClient
    namespace: str
    server: InjectionServer
    serving: ServingCertificate
    bundle: CaBundle
    ca: LocalCA
    clock: Clock
    configuration: str

    async def create(self, document: dict[str, Any], **query: str) -> dict[str, Any]:
        return await self.client.create(f"/api/v1/namespaces/{self.namespace}/pods", document, **query)

    async def refusal(self, document: dict[str, Any]) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.create(document)
        return caught.value


@pytest.fixture
async def house(api: Reach, namespace: str, tmp_path: Path) -> AsyncIterator[House]:
    if api.ours is None:
        pytest.skip("this API server cannot call a webhook of this process: it is not the test cluster of this machine")
    client, clock = ApiClient.connect(api.kubeconfig), Clock()
    ca = LocalCA.open(tmp_path / "ca", "backstay.local", now=clock)
    serving = ServingCertificate(ca, [HOST_ADDRESS], wall=clock.wall)

    async def namespaces(name: str) -> NamespaceFacts:
        """Asks for injection without saying so to an operator that may be installed in this cluster as well."""
        facts = namespace_facts(await client.get(f"/api/v1/namespaces/{name}"))
        return replace(facts, labels={**facts.labels, INJECT: "enabled"})

    server = InjectionServer(SETTINGS, serving, namespaces, host=HOST_ADDRESS, port=0)
    await server.start()
    await client.create(CONFIGURATIONS, configuration(namespace, server.port))
    bundle = CaBundle(client, lambda: roots_of(ca), name=namespace)
    async with asyncio.timeout(WITHIN):
        while not (await client.list(f"/api/v1/namespaces/{namespace}/serviceaccounts")).items:
            await asyncio.sleep(0.05)
    yield House(
        client=client,
        namespace=namespace,
        server=server,
        serving=serving,
        bundle=bundle,
        ca=ca,
        clock=clock,
        configuration=f"{CONFIGURATIONS}/{namespace}",
    )
    await client.delete(f"{CONFIGURATIONS}/{namespace}")
    await server.close()
    await client.close()


def configuration(namespace: str, port: int) -> dict[str, Any]:
    """As bootstrap/ has it, for this namespace only and by URL instead of a Service."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": namespace},
        "webhooks": [
            {
                "name": "namespace.inject.backstay.dev",
                "clientConfig": {"url": f"https://{HOST_ADDRESS}:{port}{PATH}"},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 10,
            }
        ],
    }


def pod(**metadata: Any) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 2}
    web = {"name": "web", "image": "none", "ports": [{"containerPort": 8080, "name": "web"}], "readinessProbe": probe}
    own = {"name": "migrate", "image": "none"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", **metadata},
        "spec": {"schedulerName": "nobody", "containers": [web], "initContainers": [own]},
    }


async def test_nothing_is_created_until_the_ca_bundle_is_written_and_then_everything_is_injected(house: House) -> None:
    """failurePolicy Fail: a pod never comes up outside the mesh by accident."""
    refused = await house.refusal(pod())
    assert 'failed calling webhook "namespace.inject.backstay.dev"' in refused.message

    assert await house.bundle.look() is True
    assert await house.bundle.look() is False
    # The API server learns of a changed configuration by a watch of its own.
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                made = await house.create(pod())
                break
            except ApiError as error:
                assert "failed calling webhook" in error.message  # noqa: PT017 - anything else ends the test

    assert [each["name"] for each in made["spec"]["initContainers"]] == [
        "backstay-redirect",
        "backstay-proxy",
        "migrate",
    ]
    proxy = made["spec"]["initContainers"][1]
    assert (proxy["restartPolicy"], proxy["securityContext"]["runAsUser"]) == ("Always", 1337)
    assert made["spec"]["containers"][0]["readinessProbe"]["httpGet"] == {
        "path": "/app-health/web/readyz",
        "port": 15021,
        "scheme": "HTTP",
    }
    assert made["metadata"]["labels"] == {"backstay.dev/injected": "true"}
    assert [each["name"] for each in made["spec"]["volumes"]][-3:] == [
        "backstay-token",
        "backstay-roots",
        "backstay-state",
    ]
    assert house.server.outcomes["inject", "Injected"] >= 1


async def ready(house: House) -> None:
    """Until the API server has taken note of the caBundle."""
    await house.bundle.look()
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await house.create(pod(), dryRun="All")
                return
            except ApiError as error:
                assert "failed calling webhook" in error.message  # noqa: PT017


async def test_the_pods_label_wins_and_another_mesh_is_refused_by_name(house: House) -> None:
    await ready(house)
    plain = await house.create(pod(labels={"backstay.dev/inject": "disabled"}))
    assert [each["name"] for each in plain["spec"]["initContainers"]] == ["migrate"]

    refused = await house.refusal(pod(labels={"sidecar.istio.io/inject": "true"}))
    assert refused.message.endswith(
        f"backstay: pod {house.namespace}/web-*: Istio injects it as well (the pod says sidecar.istio.io/inject=true), "
        "and two proxies cannot share a pod's traffic; expected one of them to be switched off for this pod or "
        "namespace [ForeignMesh]"
    )
    assert house.server.outcomes["refuse", "ForeignMesh"] == 1


async def test_a_pod_that_was_injected_offline_is_taken_as_it_is(house: House) -> None:
    await ready(house)
    once = await house.create(pod(), dryRun="All")
    again = {"apiVersion": "v1", "kind": "Pod", "metadata": {**once["metadata"]}, "spec": once["spec"]}
    for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        again["metadata"].pop(key, None)
    made = await house.create(again)
    assert made["spec"]["initContainers"] == once["spec"]["initContainers"]
    assert house.server.outcomes["skip", "AlreadyInjected"] >= 1


async def test_certificate_and_roots_change_without_a_pod_that_fails(house: House) -> None:
    await ready(house)
    house.ca.add_root()
    assert await house.bundle.look() is True
    written = await house.client.get(house.configuration)
    bundle = base64.b64decode(written["webhooks"][0]["clientConfig"]["caBundle"])
    assert bundle.count(b"BEGIN CERTIFICATE") == 2
    house.clock.now += dt.timedelta(hours=13)
    assert house.serving.refresh() is True
    for _ in range(5):
        await house.create(pod(), dryRun="All")


async def test_a_ca_bundle_that_somebody_removed_comes_back(house: House) -> None:
    await ready(house)
    away = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
    await house.client.patch(house.configuration, away, kind="json")
    assert await house.bundle.look() is True


async def test_a_configuration_that_is_missing_is_a_fault_and_no_crash(house: House) -> None:
    keeper = CaBundle(house.client, lambda: "roots", name="not-there")
    assert await keeper.look() is False
    assert keeper.fault.startswith("the webhook's caBundle cannot be kept right: ")
    assert '"not-there" not found' in keeper.fault
