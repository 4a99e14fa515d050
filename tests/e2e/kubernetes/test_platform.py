"""What exists and who asks, against a real API server. Pods here run nowhere: the test writes their status as a kubelet."""

import asyncio
import base64
import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from cryptography import x509

from backstay.adapters.certificates import Material, SharedCA
from backstay.adapters.certificates.making import new_material
from backstay.adapters.kubernetes.cacerts import SecretFiles
from backstay.adapters.kubernetes.client import ApiClient
from backstay.adapters.kubernetes.facts import NamespaceFacts, PodFacts
from backstay.adapters.kubernetes.platform import KubernetesPlatform
from backstay.adapters.kubernetes.roots import RootsKeeper
from backstay.core.registry import Registry, ServicePort
from backstay.tasks import spawn, stop
from cluster.reach import Reach

WITHIN = 60.0
"""Seconds for controllers on a busy machine; nothing here waits for a fixed time."""


@pytest.fixture
async def client(api: Reach) -> AsyncIterator[ApiClient]:
    found = ApiClient.connect(api.kubeconfig)
    yield found
    await found.close()


@pytest.fixture
async def platform(client: ApiClient) -> AsyncIterator[KubernetesPlatform]:
    found = KubernetesPlatform(client, trust_domain="backstay.local")
    await found.start()
    yield found
    await found.close()


def pod_object(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web", **labels}},
        "spec": {
            "schedulerName": "nobody",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "web", "image": "none", "ports": [{"containerPort": 8080, "name": "web"}]}],
            "initContainers": [{"name": "backstay-proxy", "image": "none", "restartPolicy": "Always"}],
        },
    }


def service_object(name: str) -> dict[str, Any]:
    spec = {"ports": [{"port": 80, "name": "http", "targetPort": 8080}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def slice_object(service: str, pod: str, address: str, *, ready: bool) -> dict[str, Any]:
    """As the controller would write it; it leaves out pods that are on no node."""
    target = {"kind": "Pod", "name": pod}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}, "targetRef": target}],
    }


async def make_pod(client: ApiClient, namespace: str, name: str) -> dict[str, Any]:
    """Created as soon as the namespace has its ServiceAccount."""
    async with asyncio.timeout(WITHIN):
        while not (await client.list(f"/api/v1/namespaces/{namespace}/serviceaccounts")).items:
            await asyncio.sleep(0.05)
    return await client.create(f"/api/v1/namespaces/{namespace}/pods", pod_object(name))


async def run_pod(client: ApiClient, namespace: str, name: str, address: str, *, ready: bool = True) -> None:
    """Say of a pod what its kubelet would."""
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    await client.patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})


async def until(platform: KubernetesPlatform, holds: Callable[[Registry], bool]) -> Registry:
    """The first registry of which this holds, told by changes alone."""
    async with asyncio.timeout(WITHIN):
        if not holds(platform.current()):
            async with aclosing(platform.changes()) as changes:
                async for _ in changes:
                    if holds(platform.current()):
                        break
    return platform.current()


# --- what exists ----------------------------------------------------------------------------------------------------


async def test_a_pod_behind_a_service_comes_gets_ready_and_goes(
    client: ApiClient, platform: KubernetesPlatform, namespace: str
) -> None:
    await client.create(f"/api/v1/namespaces/{namespace}/services", service_object("web"))
    await make_pod(client, namespace, "web-1")
    await run_pod(client, namespace, "web-1", "198.51.100.7", ready=False)
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    await client.create(slices, slice_object("web", "web-1", "198.51.100.7", ready=False))
    service, instance, workload = f"web.{namespace}", f"web-1.{namespace}", f"{namespace}/web-1"

    found = await until(
        platform, lambda now: workload in now.workloads and now.workloads[workload].services == (service,)
    )
    assert found.services[service].ports == (ServicePort(port=80, name="http", target_port=8080, protocol="http"),)
    assert found.workloads[workload].ports == ((8080, "http"),)
    assert (found.instances[instance].address, found.instances[instance].ready) == ("198.51.100.7", False)

    await client.patch(f"{slices}/web-1", slice_object("web", "web-1", "198.51.100.7", ready=True))
    found = await until(platform, lambda now: now.instances[instance].ready)
    assert found.instances[instance].meshed

    await client.delete(f"/api/v1/namespaces/{namespace}/pods/web-1")
    found = await until(platform, lambda now: instance not in now.instances)
    assert service in found.services


# --- who asks -------------------------------------------------------------------------------------------------------


async def token(client: ApiClient, namespace: str, pod: dict[str, Any] | None, audience: str = "backstay-ca") -> str:
    bound = {"kind": "Pod", "apiVersion": "v1", **_name_and_uid(pod)} if pod else None
    spec = {"audiences": [audience], "expirationSeconds": 600} | ({"boundObjectRef": bound} if bound else {})
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    made = await client.create(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
    return str(made["status"]["token"])


def _name_and_uid(pod: dict[str, Any]) -> dict[str, str]:
    return {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


async def test_only_the_pod_itself_gets_its_identity_and_each_refusal_is_counted(
    client: ApiClient, platform: KubernetesPlatform, namespace: str
) -> None:
    pod = await make_pod(client, namespace, "web-1")
    other = await make_pod(client, namespace, "web-2")
    await run_pod(client, namespace, "web-1", "198.51.100.7")
    await run_pod(client, namespace, "web-2", "198.51.100.8")
    me, here = f"web-1.{namespace}", "198.51.100.7"
    good = await token(client, namespace, pod)

    identity = await platform.by_token(me, good, here)
    assert identity.spiffe_id == f"spiffe://backstay.local/ns/{namespace}/sa/default"
    assert (identity.proxy, identity.workload) == (me, f"{namespace}/web-1")
    assert identity.attributes["pod-uid"] == pod["metadata"]["uid"]

    attempts = (
        (me, good, "198.51.100.8"),
        (f"web-2.{namespace}", good, "198.51.100.8"),
        (me, await token(client, namespace, other), here),
        (me, await token(client, namespace, pod, "https://kubernetes.default.svc"), here),
        (me, await token(client, namespace, None), here),
        (me, "not.a.token", here),
        (me, "", here),
    )
    for proxy, shown, address in attempts:
        with pytest.raises(PermissionError):
            await platform.by_token(proxy, shown, address)
    await client.delete(f"/api/v1/namespaces/{namespace}/pods/web-1")
    await until(platform, lambda now: me not in now.instances)
    with pytest.raises(PermissionError):
        await platform.by_token(me, good, here)

    assert platform.refusals == {
        "AddressMismatch": 1,
        "ProxyMismatch": 2,
        "TokenAudience": 1,
        "TokenUnbound": 1,
        "TokenInvalid": 1,
        "TokenMissing": 1,
        "PodGone": 1,
    }


async def test_a_proxy_that_is_faster_than_its_pods_address_is_waited_for(
    client: ApiClient, platform: KubernetesPlatform, namespace: str
) -> None:
    pod = await make_pod(client, namespace, "web-1")
    shown = await token(client, namespace, pod)
    enrolling = asyncio.ensure_future(platform.by_token(f"web-1.{namespace}", shown, "198.51.100.7"))
    await run_pod(client, namespace, "web-1", "198.51.100.7", ready=False)
    assert (await enrolling).workload == f"{namespace}/web-1"


async def test_a_certificate_is_good_while_its_pod_is_there(
    client: ApiClient, platform: KubernetesPlatform, namespace: str
) -> None:
    await make_pod(client, namespace, "web-1")
    spiffe_id = f"spiffe://backstay.local/ns/{namespace}/sa/default"
    identity = await platform.by_certificate(f"web-1.{namespace}", spiffe_id)
    assert identity.workload == f"{namespace}/web-1"
    for proxy, shown in (
        (f"web-1.{namespace}", "spiffe://backstay.local/ns/bank/sa/vault"),
        (f"web-9.{namespace}", spiffe_id),
        ("web-1", spiffe_id),
        ("../../secrets/x.shop", spiffe_id),
    ):
        with pytest.raises(PermissionError):
            await platform.by_certificate(proxy, shown)
    assert platform.refusals == {"IdentityMismatch": 1, "PodGone": 3}


# --- certificates in the cluster ------------------------------------------------------------------------------------


async def test_operators_share_one_ca_and_one_brought_by_people_comes_first(client: ApiClient, namespace: str) -> None:
    files = SecretFiles(client, namespace, Material)
    one, other = await SharedCA.open(files, "backstay.local"), await SharedCA.open(files, "backstay.local")
    assert one.trust_bundle() == other.trust_bundle()
    assert await one.tend(may_change=True) == []

    made = await client.get(f"/api/v1/namespaces/{namespace}/secrets/backstay-ca")
    brought = new_material("backstay.local", dt.datetime.now(dt.UTC))
    del brought["root-key.pem"]
    data = {name: base64.b64encode(content).decode() for name, content in brought.items()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts"}, "data": data}
    await client.create(f"/api/v1/namespaces/{namespace}/secrets", body)

    assert await one.tend(may_change=True) == ["the certificates of the CA were replaced"]
    roots = x509.load_pem_x509_certificates(one.trust_bundle()["backstay.local"].encode())
    assert len(roots) == 2
    assert roots[0] == x509.load_pem_x509_certificate(brought["root-cert.pem"])
    unchanged = await client.get(f"/api/v1/namespaces/{namespace}/secrets/backstay-ca")
    assert unchanged["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


class _OnlyIn:
    """The platform as seen by a keeper of one namespace: others on this cluster are not this test's to write to."""

    def __init__(self, platform: KubernetesPlatform, namespace: str) -> None:
        self._platform = platform
        self._namespace = namespace

    def namespaces_and_pods(self) -> tuple[dict[str, NamespaceFacts], dict[str, PodFacts]]:
        namespaces, pods = self._platform.namespaces_and_pods()
        return {name: each for name, each in namespaces.items() if name == self._namespace}, {
            key: each for key, each in pods.items() if each.namespace == self._namespace
        }

    def looks(self) -> AsyncGenerator[None, None]:
        return self._platform.looks()


async def test_roots_are_written_where_injection_is(
    client: ApiClient, platform: KubernetesPlatform, namespace: str
) -> None:
    labelled = {"metadata": {"labels": {"backstay.dev/inject": "enabled"}}}
    await client.patch(f"/api/v1/namespaces/{namespace}", labelled)
    keeper = RootsKeeper(client, _OnlyIn(platform, namespace), lambda: "the roots", own_namespace="backstay-system")
    task = spawn(keeper.run(), name="roots")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    try:
        async with asyncio.timeout(WITHIN):
            while "backstay-roots" not in {each["metadata"]["name"] for each in (await client.list(path)).items}:
                await asyncio.sleep(0.05)
        assert (await client.get(f"{path}/backstay-roots"))["data"] == {"root-cert.pem": "the roots"}
    finally:
        await stop(task)
