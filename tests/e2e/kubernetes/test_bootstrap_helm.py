"""The chart gives the objects of the kustomize base, and what its values ask for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.reach import NoCluster, Reach, kubectl_program
from support.bootstrap import Object, helm, kustomized, of_kinds, templated

HELMS_OWN = ("app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "helm.sh/chart")
Key = tuple[str, str, str]


@pytest.fixture(scope="module")
def chart() -> Path:
    program = helm()
    if program is None:
        pytest.skip("helm is not built; `python tests/cluster build` builds it")
    return program


@pytest.fixture(scope="module")
def kubectl() -> Reach:
    """Nobody's cluster: building a kustomization needs none."""
    try:
        kubectl_program()
    except NoCluster as reason:
        pytest.skip(str(reason))
    return Reach(kubeconfig=Path("/nonexistent"), ours=None)


def by_key(objects: list[Object]) -> dict[Key, Object]:
    """Without what Helm adds for itself."""
    found: dict[Key, Object] = {}
    for each in objects:
        metadata = each["metadata"]
        metadata["labels"] = {key: text for key, text in metadata.get("labels", {}).items() if key not in HELMS_OWN}
        if metadata.get("annotations", {}).pop("helm.sh/resource-policy", None) and not metadata["annotations"]:
            del metadata["annotations"]
        found[each["kind"], metadata.get("namespace", ""), metadata["name"]] = each
    return found


def one(objects: list[Object], kind: str) -> Any:
    (found,) = of_kinds(objects, kind)
    return found


def test_the_chart_gives_the_objects_of_the_base(chart: Path, kubectl: Reach) -> None:
    ours, theirs = by_key(templated(chart)), by_key(kustomized(kubectl))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_images_and_their_digests(chart: Path) -> None:
    digest = "sha256:" + "a" * 64
    arguments = ("--set", "images.operator.repository=r.example.com/op", "--set", f"images.operator.digest={digest}")
    made = templated(chart, *arguments, "--set", "images.sidecar.tag=v2", "--set", "images.pullSecrets={a,b}")
    spec = one(made, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == f"r.example.com/op@{digest}"
    assert {"name": "BACKSTAY_OPERATOR_SIDECAR_IMAGE", "value": "backstay-sidecar:v2"} in container["env"]
    assert spec["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]


def test_another_namespace_is_used_throughout(chart: Path) -> None:
    made = templated(chart, "--set", "namespace.name=mesh", "--set", "namespace.create=false")
    assert not of_kinds(made, "Namespace")
    assert "backstay-system" not in yaml.safe_dump(made)
    hooks = one(made, "MutatingWebhookConfiguration")["webhooks"]
    assert {hook["clientConfig"]["service"]["namespace"] for hook in hooks} == {"mesh"}
    bound = [subject for each in of_kinds(made, "RoleBinding", "ClusterRoleBinding") for subject in each["subjects"]]
    assert {subject["namespace"] for subject in bound} == {"mesh"}


def test_what_a_chart_leaves_out_when_asked(chart: Path) -> None:
    off = ("crds.install=false", "networkPolicy.enabled=false", "podDisruptionBudget.enabled=false")
    more = ("priorityClass.existing=system-cluster-critical", "webhook.excludedNamespaces={legacy}")
    made = templated(chart, *(word for each in (*off, *more) for word in ("--set", each)))
    left_out = ("CustomResourceDefinition", "NetworkPolicy", "PodDisruptionBudget", "PriorityClass")
    assert of_kinds(made, *left_out) == []
    assert one(made, "Deployment")["spec"]["template"]["spec"]["priorityClassName"] == "system-cluster-critical"
    hooks = one(made, "MutatingWebhookConfiguration")["webhooks"]
    assert all("legacy" in hook["namespaceSelector"]["matchExpressions"][1]["values"] for hook in hooks)


def test_definitions_outlive_the_release(chart: Path) -> None:
    kept = [each["metadata"]["annotations"] for each in of_kinds(templated(chart), "CustomResourceDefinition")]
    assert kept == [{"helm.sh/resource-policy": "keep"}] * 3


def test_wrong_values_are_refused_by_name(chart: Path) -> None:
    with pytest.raises(AssertionError, match=r"replicas"):
        templated(chart, "--set", "operator.replicas=many")
    with pytest.raises(AssertionError, match=r"opertor"):
        templated(chart, "--set", "opertor.replicas=2")
