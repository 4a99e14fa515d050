"""bootstrap/ on a real API server: every object is taken, and none of its pods is less than restricted."""

import os
import subprocess
from pathlib import Path

import yaml

from cluster.reach import Reach, kubectl_program
from support.bootstrap import BOOTSTRAP, as_json, kustomized, moved


def dry_run(reach: Reach, manifests: str) -> tuple[list[str], str]:
    """Names of the objects that the API server would make, and what it warned of."""
    command = (*kubectl_program(), "--kubeconfig", str(reach.kubeconfig), "apply", "--dry-run=server", "-o", "name")
    done = subprocess.run(
        (*command, "-f", "-"), input=manifests, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split()), done.stderr


def test_every_object_is_taken_by_a_real_api_server(api: Reach, namespace: str) -> None:
    """Made for the test's namespace, because a dry run makes no namespace for the others to be in."""
    for mode in ("warn", "enforce"):
        api.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{mode}=restricted")
    objects = [each for each in moved(kustomized(api), namespace) if each["kind"] != "Namespace"]
    taken, warned = dry_run(api, as_json(objects))
    assert {name.rpartition("/")[0] for name in taken} == {
        "clusterrole.rbac.authorization.k8s.io",
        "clusterrolebinding.rbac.authorization.k8s.io",
        "customresourcedefinition.apiextensions.k8s.io",
        "deployment.apps",
        "mutatingwebhookconfiguration.admissionregistration.k8s.io",
        "networkpolicy.networking.k8s.io",
        "poddisruptionbudget.policy",
        "priorityclass.scheduling.k8s.io",
        "role.rbac.authorization.k8s.io",
        "rolebinding.rbac.authorization.k8s.io",
        "service",
        "serviceaccount",
    }
    assert len(taken) == len(objects)
    assert "PodSecurity" not in warned


def test_the_example_overlay_builds_with_its_own_images(api: Reach) -> None:
    objects = kustomized(api, BOOTSTRAP / "examples" / "overlay")
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert container["image"] == "registry.example.com/mesh/backstay-operator:v0.1.0"
    assert values["BACKSTAY_OPERATOR_SIDECAR_IMAGE"] == "registry.example.com/mesh/backstay-sidecar:v0.1.0"
    assert values["BACKSTAY_OPERATOR_TRUST_DOMAIN"] == "example.com"


def test_an_overlay_in_a_folder_of_ones_own_can_have_the_base(api: Reach, tmp_path: Path) -> None:
    base = os.path.relpath(BOOTSTRAP, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [base]}), encoding="utf-8")
    assert kustomized(api, tmp_path) == kustomized(api)


def test_the_gateway_is_taken_and_restricted(api: Reach, namespace: str) -> None:
    for mode in ("warn", "enforce"):
        api.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{mode}=restricted")
    objects = kustomized(api, BOOTSTRAP / "gateway")
    for each in objects:
        each["metadata"]["namespace"] = namespace
    taken, warned = dry_run(api, as_json(objects))
    assert taken == [
        "deployment.apps/ingress",
        "poddisruptionbudget.policy/ingress",
        "service/ingress",
        "serviceaccount/ingress",
    ]
    assert "PodSecurity" not in warned
