"""The cluster that all other tests here stand on is a real one."""

import json

from cluster.reach import Reach


def test_a_new_namespace_gets_its_service_account(api: Reach, namespace: str) -> None:
    api.kubectl("wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=60s")

    found = json.loads(api.kubectl("get", "serviceaccounts", "-n", namespace, "-o", "json"))

    assert [each["metadata"]["name"] for each in found["items"]] == ["default"]


def test_a_stranger_may_do_nothing(api: Reach, namespace: str) -> None:
    refused = api.kubectl("auth", "can-i", "--list", "-n", namespace, f"--as=system:serviceaccount:{namespace}:default")

    assert "secrets" not in refused
    assert "pods" not in refused


def test_every_node_is_ready(cluster: Reach, namespace: str) -> None:
    found = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))
    ready = [
        condition["status"]
        for node in found["items"]
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    ]

    assert ready == ["True"] * len(found["items"])
    assert ready
