"""The cluster that all other tests here stand on is a real one."""

import json
from pathlib import Path

import pytest

from cluster.reach import Reach, last_out


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


def test_whoever_leaves_last_stops_what_was_started_for_all(tmp_path: Path) -> None:
    left: list[str] = []
    with last_out(tmp_path / "users", lambda: left.append("first in")):
        with last_out(tmp_path / "users", lambda: left.append("second in")):
            pass
        assert left == []
        with pytest.raises(OSError, match="broken"), last_out(tmp_path / "users", lambda: left.append("third in")):
            raise OSError("broken")
        assert left == []

    assert left == ["first in"]
