"""`backstay inject` does offline what the webhook does."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.commands import Ran, backstay

POD = {"containers": [{"name": "web", "image": "web:1"}]}


def manifest(kind: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


DEPLOYMENT = manifest("Deployment", replicas=2, template={"metadata": {"labels": {"app": "web"}}, "spec": POD})
CRON_JOB = manifest("CronJob", jobTemplate={"spec": {"template": {"spec": POD}}})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "manifests.yaml"


def ran(file: Path, *documents: Any, arguments: tuple[str, ...] = ()) -> Ran:
    file.write_text(yaml.safe_dump_all(documents))
    return backstay("inject", "-f", file, *arguments)


def shown(file: Path, *documents: Any, arguments: tuple[str, ...] = ()) -> list[Any]:
    result = ran(file, *documents, arguments=arguments)
    assert (result.code, result.err) == (0, "")
    return list(yaml.safe_load_all(result.out))


def init_names(pod_spec: Any) -> list[str]:
    return [each["name"] for each in pod_spec.get("initContainers", ())]


BOTH = ["backstay-redirect", "backstay-proxy"]


def test_a_deployments_pods_get_a_sidecar_and_the_rest_stays(file: Path) -> None:
    [found] = shown(file, DEPLOYMENT)
    template = found["spec"].pop("template")
    assert init_names(template["spec"]) == BOTH
    assert template["metadata"]["labels"] == {"app": "web", "backstay.dev/injected": "true"}
    assert found == {**DEPLOYMENT, "spec": {"replicas": 2}}


def test_pods_jobs_and_lists_are_found(file: Path) -> None:
    listed = {"kind": "List", "items": [manifest("Pod", **POD)]}
    pod, cron, inner = shown(file, manifest("Pod", **POD), CRON_JOB, listed)
    assert init_names(pod["spec"]) == BOTH
    assert init_names(cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]) == BOTH
    assert init_names(inner["items"][0]["spec"]) == BOTH


def test_what_is_no_pod_passes_unchanged(file: Path) -> None:
    service = manifest("Service", ports=[{"port": 80}])
    assert shown(file, service) == [service]


def test_twice_is_once(file: Path) -> None:
    [once] = shown(file, DEPLOYMENT)
    result = ran(file, once)
    assert result.err == "Deployment shop/web: left alone: it has a sidecar already\n"
    assert list(yaml.safe_load_all(result.out)) == [once]


def test_the_pods_own_label_still_wins(file: Path) -> None:
    document = manifest("Pod", **POD)
    document["metadata"]["labels"] = {"backstay.dev/inject": "disabled"}
    result = ran(file, document)
    assert list(yaml.safe_load_all(result.out)) == [document]
    assert result.err == "Pod shop/web: left alone: its label backstay.dev/inject says so\n"


def test_flags_reach_the_pod(file: Path) -> None:
    [found] = shown(file, DEPLOYMENT, arguments=("--image", "mine:1", "--trust-domain", "td", "--no-native"))
    proxy = found["spec"]["template"]["spec"]["containers"][0]
    assert (proxy["name"], proxy["image"]) == ("backstay-proxy", "mine:1")
    assert {"name": "BACKSTAY_SIDECAR_TRUST_DOMAIN", "value": "td"} in proxy["env"]


@pytest.mark.parametrize(
    ("document", "code", "sentence"),
    [
        (
            manifest("Pod", containers=[{"name": "istio-proxy"}]),
            1,
            "error: Pod shop/web: pod shop/web: Istio injects it as well (spec.containers[0] is istio-proxy)",
        ),
        (manifest("Deployment"), 2, "error: Deployment shop/web: spec.template is missing, expected a pod's template"),
    ],
)
def test_what_cannot_be_injected_is_named(file: Path, document: Any, code: int, sentence: str) -> None:
    result = ran(file, document)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(sentence)


def test_a_file_that_is_not_yaml_is_named(file: Path) -> None:
    file.write_text("a: [")
    result = backstay("inject", "-f", file)
    assert (result.code, result.err.startswith(f"error: {file}: ")) == (2, True)
