from typing import Any

import pytest

from backstay.adapters.kubernetes.facts import (
    EndpointFacts,
    PodFacts,
    PortFacts,
    ServiceFacts,
    SliceFacts,
    declared_protocol,
    namespace_facts,
    node_zone,
    pod_facts,
    service_facts,
    slice_facts,
)


def pod(owner: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    owners = [{"controller": True, **owner}] if owner else []
    meta = {"name": "web-5f6b-x7k", "namespace": "shop", "uid": "u1", "ownerReferences": owners, **metadata}
    return {"metadata": meta, "spec": {"containers": [{"name": "web"}]}}


def workload_of(document: dict[str, Any]) -> str:
    found = pod_facts(document)
    assert found is not None
    return found.workload


def test_a_whole_pod() -> None:
    found = pod_facts(
        {
            "metadata": {
                "name": "web-5f6b-x7k",
                "namespace": "shop",
                "uid": "u1",
                "labels": {"app": "web", "pod-template-hash": "5f6b"},
                "annotations": {"backstay.dev/reaches": "cart, pay.bank"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5f6b", "controller": True}],
            },
            "spec": {
                "nodeName": "node-1",
                "serviceAccountName": "web",
                "containers": [
                    {
                        "name": "web",
                        "ports": [
                            {"containerPort": 8080, "name": "http"},
                            {"containerPort": 53, "protocol": "UDP"},
                        ],
                    }
                ],
                "initContainers": [{"name": "backstay-proxy", "ports": [{"containerPort": 15021}]}],
            },
            "status": {
                "phase": "Running",
                "startTime": "2026-01-01T00:00:00Z",
                "podIP": "10.0.0.7",
                "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )
    assert found == PodFacts(
        name="web-5f6b-x7k",
        namespace="shop",
        uid="u1",
        account="web",
        workload="web",
        node="node-1",
        ips=("10.0.0.7", "fd00::7"),
        labels={"app": "web", "pod-template-hash": "5f6b"},
        ports=((8080, "http"),),
        is_ready=True,
        is_leaving=False,
        is_over=False,
        has_proxy=True,
        is_meshed=True,
        started_at=1767225600.0,
        reaches=("cart", "pay.bank"),
    )


@pytest.mark.parametrize(
    ("owner", "labels", "workload"),
    [
        (None, {}, "web-5f6b-x7k"),
        ({"kind": "ReplicaSet", "name": "web-5f6b"}, {"pod-template-hash": "5f6b"}, "web"),
        ({"kind": "ReplicaSet", "name": "web-5f6b"}, {"rollouts-pod-template-hash": "5f6b"}, "web"),
        ({"kind": "ReplicaSet", "name": "by-hand"}, {}, "by-hand"),
        ({"kind": "StatefulSet", "name": "db"}, {"controller-revision-hash": "db-1"}, "db"),
        ({"kind": "DaemonSet", "name": "agent"}, {}, "agent"),
        ({"kind": "Job", "name": "backup-28934512"}, {}, "backup"),
        ({"kind": "Job", "name": "migrate-1"}, {}, "migrate-1"),
        ({"kind": "Node", "name": "node-1"}, {}, "web-5f6b-x7k"),
    ],
)
def test_a_workload_is_what_a_person_wrote(owner: dict[str, Any] | None, labels: dict[str, str], workload: str) -> None:
    assert workload_of(pod(owner, labels=labels)) == workload


def test_an_owner_that_does_not_control_is_none() -> None:
    document = pod(ownerReferences=[{"kind": "ReplicaSet", "name": "web", "controller": False}])
    assert workload_of(document) == "web-5f6b-x7k"


def test_a_revision_stands_in_for_a_template_hash() -> None:
    found = pod_facts(pod(labels={"controller-revision-hash": "db-1"}))
    assert found is not None
    assert found.labels == {"controller-revision-hash": "db-1", "pod-template-hash": "db-1"}


def test_a_young_pod_has_no_address_and_a_leaving_one_says_so() -> None:
    young = pod_facts(pod())
    leaving = pod_facts(pod(deletionTimestamp="2026-01-01T00:00:00Z"))
    assert young is not None
    assert leaving is not None
    assert (young.ips, young.is_ready, young.is_leaving, young.started_at) == ((), False, False, 0.0)
    assert leaving.is_leaving


@pytest.mark.parametrize(("phase", "is_over"), [("Running", False), ("Succeeded", True), ("Failed", True)])
def test_a_pod_that_ended_is_over(phase: str, is_over: bool) -> None:
    found = pod_facts({**pod(), "status": {"phase": phase}})
    assert found is not None
    assert found.is_over is is_over


def test_a_pod_whose_connections_nobody_redirects_is_reached_past_its_proxy() -> None:
    document = pod(annotations={"backstay.dev/redirect": "disabled"})
    document["spec"]["initContainers"] = [{"name": "backstay-proxy"}]
    found = pod_facts(document)
    assert found is not None
    assert (found.has_proxy, found.is_meshed) == (True, False)


def test_a_service() -> None:
    found = service_facts(
        {
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "clusterIPs": ["10.1.0.1", "fd01::1"],
                "ports": [
                    {"port": 443, "name": "tls", "targetPort": 8443, "appProtocol": "https"},
                    {"port": 80, "name": "http-web", "targetPort": "http"},
                    {"port": 81},
                    {"port": 53, "protocol": "UDP"},
                ],
            },
        }
    )
    assert found == ServiceFacts(
        name="web",
        namespace="shop",
        ports=(
            PortFacts(port=80, name="http-web", target="http", protocol="http"),
            PortFacts(port=81, name="", target=81, protocol=None),
            PortFacts(port=443, name="tls", target=8443, protocol="tcp"),
        ),
        addresses=("10.1.0.1", "fd01::1"),
    )


def test_a_headless_service_has_no_address_and_an_external_name_is_none_of_ours() -> None:
    meta = {"name": "db", "namespace": "shop"}
    headless = service_facts({"metadata": meta, "spec": {"clusterIPs": ["None"], "ports": [{"port": 5432}]}})
    assert headless is not None
    assert headless.addresses == ()
    assert service_facts({"metadata": meta, "spec": {"type": "ExternalName", "externalName": "db.example"}}) is None


def test_a_slice_with_pods_and_with_an_address_written_by_hand() -> None:
    found = slice_facts(
        {
            "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": [
                {"addresses": ["10.0.0.7"], "targetRef": {"kind": "Pod", "name": "b"}, "conditions": {"ready": True}},
                {"addresses": ["10.0.0.8"], "targetRef": {"kind": "Pod", "name": "a"}, "conditions": {"ready": False}},
                {"addresses": ["192.0.2.1"], "zone": "z"},
                {
                    "addresses": ["10.0.0.9"],
                    "targetRef": {"kind": "Pod", "name": "c"},
                    "conditions": {"ready": True, "terminating": True},
                },
            ],
        }
    )
    assert found == SliceFacts(
        namespace="shop",
        service="web.shop",
        ports=(("http", 8080),),
        endpoints=(
            EndpointFacts(pod="", address="192.0.2.1", is_ready=True, zone="z"),
            EndpointFacts(pod="a", address="10.0.0.8", is_ready=False),
            EndpointFacts(pod="b", address="10.0.0.7", is_ready=True),
            EndpointFacts(pod="c", address="10.0.0.9", is_ready=False),
        ),
    )


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"name": "x", "namespace": "shop"}}, {"addressType": "FQDN"}],
    ids=["of no service", "names"],
)
def test_slices_that_are_none_of_ours(change: dict[str, Any]) -> None:
    meta = {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    assert slice_facts({"metadata": meta, "addressType": "IPv4", "endpoints": None, "ports": None, **change}) is None


def test_an_empty_slice_is_one() -> None:
    """The API server sends null where there is no endpoint."""
    meta = {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    found = slice_facts({"metadata": meta, "addressType": "IPv4", "endpoints": None, "ports": None})
    assert found == SliceFacts(namespace="shop", service="web.shop", ports=(), endpoints=())


def test_zones_and_namespaces() -> None:
    assert node_zone({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "eu-1a"}}}) == "eu-1a"
    assert node_zone({"metadata": {"name": "n"}}) == ""
    found = namespace_facts(
        {
            "metadata": {
                "name": "shop",
                "labels": {"a": "b"},
                "annotations": {"linkerd.io/inject": "enabled", "backstay.dev/grants": "g", "long": "x" * 9999},
            }
        }
    )
    assert found.labels == {"a": "b"}
    assert found.annotations == {"linkerd.io/inject": "enabled", "backstay.dev/grants": "g"}


@pytest.mark.parametrize(
    ("app_protocol", "name", "protocol"),
    [
        ("", "http", "http"),
        ("", "http-admin", "http"),
        ("", "grpc-web", "http"),
        ("", "grpc-web-x", "http"),
        ("", "http2", "tcp"),
        ("", "grpc", "tcp"),
        ("", "https-web", "tcp"),
        ("", "tcp-db", "tcp"),
        ("", "web", None),
        ("", "", None),
        ("http", "tcp", "http"),
        ("HTTP", "", "http"),
        ("kubernetes.io/ws", "", "http"),
        ("kubernetes.io/h2c", "http", "tcp"),
        ("example.com/own", "http", "tcp"),
    ],
)
def test_a_port_says_what_it_speaks(app_protocol: str, name: str, protocol: str | None) -> None:
    assert declared_protocol(app_protocol, name) == protocol
