"""bootstrap/ as text: permissions are those that are used, pods are restricted, a pod's label wins."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import backstay
from backstay.adapters.kubernetes.facts import GATEWAY, pod_facts
from backstay.core.inject import (
    INJECT,
    INJECTED,
    NEVER_IN,
    PROXY_CONTAINER,
    InjectionSettings,
    Surroundings,
    decide,
    is_wanted,
    patched,
)
from backstay.settings import KubernetesSettings
from support.permissions import NEEDED, Permission

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "bootstrap"
Object = Mapping[str, Any]


def read(path: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((BOOTSTRAP / path).read_text(encoding="utf-8")) if found]


def named(path: str, kind: str, name: str = "backstay-operator") -> dict[str, Any]:
    (found,) = [each for each in read(path) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pod() -> dict[str, Any]:
    found: dict[str, Any] = named("operator/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    return found


# --- permissions ------------------------------------------------------------------------------------------------------


def granted(role: Object, scope: Any) -> Iterator[Permission]:
    for rule in role["rules"]:
        names = rule.get("resourceNames") or [""]
        for group, resource, verb, name in itertools.product(
            rule["apiGroups"], rule["resources"], rule["verbs"], names
        ):
            yield Permission(verb=verb, resource=resource, group=group, name=name, scope=scope)


def test_the_operator_may_do_what_it_does_and_nothing_else() -> None:
    cluster = granted(named("operator/rbac.yaml", "ClusterRole"), "cluster")
    own = granted(named("operator/rbac.yaml", "Role"), "own")
    assert {*cluster, *own} == NEEDED


def test_every_kind_of_object_that_the_adapter_names_is_in_the_roles_and_none_else() -> None:
    """Paths in the source, as text: a new one without a permission would fail only in a cluster."""
    adapter = ROOT / "operator" / "backstay" / "adapters" / "kubernetes"
    text = "\n".join(path.read_text(encoding="utf-8") for path in adapter.glob("*.py"))
    paths = r"/(?:api/v1|apis/[a-z0-9.]+/v1)(?:/namespaces/\{[^}]+\})?/([a-z]+)\b"
    used = set(re.findall(paths, text))
    own_kinds = {
        "meshrepositories",
        "meshrollouts",
        "meshintents",
        "customresourcedefinitions",
    }  # by kopf and Kind.path
    assert used | own_kinds == {each.resource.partition("/")[0] for each in NEEDED}


def test_nobody_is_granted_everything() -> None:
    rules = [rule for each in read("operator/rbac.yaml") for rule in each.get("rules", ())]
    assert rules
    assert [rule for rule in rules if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])] == []


def test_people_who_may_view_see_and_people_who_may_edit_steer() -> None:
    view, edit = (named("operator/rbac.yaml", "ClusterRole", name) for name in ("backstay-view", "backstay-edit"))
    assert {each.verb for each in granted(view, "cluster")} == {"get", "list", "watch"}
    orders = {each.verb for each in granted(edit, "cluster") if each.resource == "meshrollouts"}
    assert orders == {"update", "patch"}
    assert not [each for each in granted(edit, "cluster") if each.resource == "meshintents"]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key.removeprefix(prefix) for key in edit["metadata"]["labels"]} == {"edit", "admin"}
    assert {key.removeprefix(prefix) for key in view["metadata"]["labels"]} == {"view", "edit", "admin"}


# --- the operator's pods ----------------------------------------------------------------------------------------------


def test_the_operators_pods_are_restricted() -> None:
    """The restricted Pod Security Standard, and what it leaves open: the root file system."""
    spec = pod()
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert [each["securityContext"] for each in spec["containers"]] == [
        {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    ]
    assert {key for volume in spec["volumes"] for key in volume if key != "name"} == {"emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    labels = named("operator/namespace.yaml", "Namespace", "backstay-system")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_ports_and_places_are_the_programs() -> None:
    settings = KubernetesSettings(pod="x")
    ports = {each["name"]: each["containerPort"] for each in pod()["containers"][0]["ports"]}
    assert ports == {
        "control": settings.control_port,
        "inject": settings.injection_port,
        "metrics": settings.metrics_port,
        "hooks": settings.hooks_port,
    }
    service = named("operator/service.yaml", "Service", settings.name)["spec"]["ports"]
    assert {each["targetPort"]: each["port"] for each in service} == ports | {"inject": 443}
    mounts = {each["mountPath"] for each in pod()["containers"][0]["volumeMounts"]}
    assert mounts == {str(settings.cache_dir), str(settings.run_dir), "/tmp"}


def test_two_replicas_of_which_one_may_be_away() -> None:
    assert named("operator/deployment.yaml", "Deployment")["spec"]["replicas"] == 2
    assert named("operator/poddisruptionbudget.yaml", "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    labels = named("operator/deployment.yaml", "Deployment")["spec"]["template"]["metadata"]["labels"]
    for path, kind in (("service", "Service"), ("poddisruptionbudget", "PodDisruptionBudget")):
        selector = named(f"operator/{path}.yaml", kind)["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels.items()


def test_every_manifest_is_listed() -> None:
    listed = yaml.safe_load((BOOTSTRAP / "operator" / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    there = {path.name for path in (BOOTSTRAP / "operator").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there


# --- who gets a sidecar -----------------------------------------------------------------------------------------------


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """A LabelSelector as the API server reads it."""
    return all(holds(term, labels.get(term["key"])) for term in selector["matchExpressions"])


def holds(term: Object, value: str | None) -> bool:
    if term["operator"] == "DoesNotExist":
        return value is None
    return bool((value in term["values"]) == (term["operator"] == "In"))


@pytest.mark.parametrize("of_pod", [None, "enabled", "disabled"])
@pytest.mark.parametrize("of_namespace", [None, "enabled", "disabled"])
def test_the_pods_label_wins_over_its_namespaces(of_namespace: str | None, of_pod: str | None) -> None:
    hooks = named("operator/webhook.yaml", "MutatingWebhookConfiguration", "backstay-injector")["webhooks"]
    around = {"kubernetes.io/metadata.name": "shop"} | ({INJECT: of_namespace} if of_namespace else {})
    own = {INJECT: of_pod} if of_pod else {}
    asked = [
        hook for hook in hooks if matches(hook["namespaceSelector"], around) and matches(hook["objectSelector"], own)
    ]
    expected = of_pod == "enabled" or (of_namespace == "enabled" and of_pod is None)
    assert len(asked) == int(expected)
    assert is_wanted(own, around) == expected


@pytest.mark.parametrize("name", sorted(NEVER_IN | {"backstay-system"}))
def test_namespaces_that_a_cluster_cannot_do_without_are_left_alone(name: str) -> None:
    hooks = named("operator/webhook.yaml", "MutatingWebhookConfiguration", "backstay-injector")["webhooks"]
    labels = {"kubernetes.io/metadata.name": name, INJECT: "enabled"}
    assert not [hook for hook in hooks if matches(hook["namespaceSelector"], labels)]


def test_namespaces_of_another_installation_are_its_own() -> None:
    hooks = named("operator/webhook.yaml", "MutatingWebhookConfiguration", "backstay-injector")["webhooks"]
    labels = {"kubernetes.io/metadata.name": "shop", INJECT: "enabled", "backstay.dev/operator-class": "canary"}
    assert not [hook for hook in hooks if matches(hook["namespaceSelector"], labels)]


def test_a_pod_does_not_come_up_outside_the_mesh_by_accident() -> None:
    hooks = named("operator/webhook.yaml", "MutatingWebhookConfiguration", "backstay-injector")["webhooks"]
    assert {hook["failurePolicy"] for hook in hooks} == {"Fail"}
    assert {hook["clientConfig"]["service"]["path"] for hook in hooks} == {"/inject"}


# --- the chart's values -----------------------------------------------------------------------------------------------


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((BOOTSTRAP / "helm" / "values.yaml").read_text(encoding="utf-8"))
    return found


def schema() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((BOOTSTRAP / "helm" / "values.schema.json").read_text(encoding="utf-8"))
    return found


def test_the_charts_own_values_are_valid_and_every_one_is_described() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(values(), schema())
    assert set(schema()["properties"]) - {"global"} == set(values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"opertor": {"replicas": 2}},
        {"operator": {"replicas": 0}},
        {"operator": {"logLevel": "loud"}},
        {"mesh": {"trustDomain": "spiffe://example.com"}},
        {"images": {"operator": {"repository": "x", "digest": "sha256:1"}}},
        {"webhook": {"failurePolicy": "Sometimes"}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())


def test_the_charts_version_is_the_programs() -> None:
    chart = yaml.safe_load((BOOTSTRAP / "helm" / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (backstay.__version__, backstay.__version__)


# --- examples ---------------------------------------------------------------------------------------------------------


def test_the_example_repository_is_one() -> None:
    definition = yaml.safe_load((BOOTSTRAP / "crds" / "meshrepositories.backstay.dev.yaml").read_text(encoding="utf-8"))
    structural = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    (example,) = read("examples/mesh-repository.yaml")
    assert set(example["spec"]) <= set(structural["properties"]["spec"]["properties"])


def test_the_example_grants_one_secret_to_the_operator() -> None:
    secret, role, binding = read("examples/repository-secret.yaml")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret["metadata"]["name"]], "verbs": ["get"]}
    ]
    assert binding["subjects"] == named("operator/rbac.yaml", "RoleBinding")["subjects"]


# --- the gateway ------------------------------------------------------------------------------------------------------


def gateway() -> dict[str, Any]:
    found: dict[str, Any] = named("gateway/gateway.yaml", "Deployment", "ingress")["spec"]["template"]
    return found


def test_a_gateway_is_told_what_injected_proxies_are_told() -> None:
    settings = InjectionSettings(
        image="backstay-sidecar:dev",
        operator=KubernetesSettings(pod="x").control_url,
        trust_domain=KubernetesSettings(pod="x").trust_domain,
    )
    pod = {"metadata": {}, "spec": {"containers": [{"name": "app"}]}}
    outcome = decide(pod, Surroundings(name="shop", labels={INJECT: "enabled"}), settings)
    given = patched(pod, outcome.patch)["spec"]
    (proxy,) = [each for each in given["initContainers"] if each["name"] == PROXY_CONTAINER]
    (own,) = gateway()["spec"]["containers"]
    variables = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in own["env"]}
    injected = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in proxy["env"]}
    # It has no application behind it, so nothing is redirected; how long to drain and what to log are defaults.
    beside = {"BACKSTAY_SIDECAR_INTERCEPT", "BACKSTAY_SIDECAR_DRAIN", "BACKSTAY_SIDECAR_LOG_LEVEL"}
    assert variables.items() >= {key: value for key, value in injected.items() if key not in beside}.items()
    assert variables.keys() - injected.keys() == {"BACKSTAY_SIDECAR_GATEWAY_HOST"}
    assert own["volumeMounts"] == proxy["volumeMounts"]
    assert own["name"] == PROXY_CONTAINER


def test_a_gateway_is_recognized_and_not_injected() -> None:
    labels = gateway()["metadata"]["labels"]
    assert {labels[GATEWAY], labels[INJECT], labels[INJECTED]} == {"true", "disabled"}
    pod = {
        "metadata": {"name": "x", "namespace": "shop", **gateway()["metadata"]},
        "spec": gateway()["spec"],
        "status": {},
    }
    facts = pod_facts(pod)
    assert facts is not None
    assert (facts.is_gateway, facts.is_meshed) == (True, True)


def test_a_gateway_needs_no_privileges() -> None:
    spec = gateway()["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert [each["securityContext"]["capabilities"] for each in spec["containers"]] == [{"drop": ["ALL"]}]
    assert all(port["containerPort"] >= 1024 for port in spec["containers"][0]["ports"])


# --- other people's tools ---------------------------------------------------------------------------------------------


def test_argo_cd_leaves_alone_what_the_operator_writes() -> None:
    (application,) = read("argocd/application.yaml")
    (ignored,) = application["spec"]["ignoreDifferences"]
    assert ignored["name"] == read("operator/webhook.yaml")[0]["metadata"]["name"]
    jsonschema.validate(application["spec"]["source"]["helm"]["valuesObject"], schema())


def test_flux_replaces_the_variable_it_means_to() -> None:
    """The patch names it by its place; its own `test` operation would stop Flux where that moved."""
    kustomizations = [each for each in read("flux/backstay.yaml") if each["kind"] == "Kustomization"]
    overlay = yaml.safe_load((BOOTSTRAP / "examples" / "overlay" / "kustomization.yaml").read_text(encoding="utf-8"))
    for patches in (kustomizations[0]["spec"]["patches"], overlay["patches"]):
        for operation in yaml.safe_load(patches[0]["patch"]):
            if operation["op"] == "test":
                place = int(operation["path"].split("/")[-2])
                assert pod()["containers"][0]["env"][place]["name"] == operation["value"]
