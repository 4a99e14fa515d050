import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from backstay.core import inject
from backstay.core.inject import (
    InjectionSettings,
    Outcome,
    Surroundings,
    Verdict,
    decide,
    is_wanted,
    patched,
)
from backstay.sidecar import settings
from backstay.sidecar.settings import parse

SETTINGS = InjectionSettings(
    image="backstay-sidecar:dev",
    operator="https://backstay-operator.backstay-system.svc:15012",
    trust_domain="cluster.local",
)
FALLBACK = InjectionSettings(image="s:1", operator="https://o.s.svc:15012", trust_domain="td", native_sidecar=False)
SHOP = Surroundings(name="shop", labels={"backstay.dev/inject": "enabled"})


def pod(**spec: Any) -> dict[str, Any]:
    """A pod of one container; `labels` and `annotations` go where they belong."""
    metadata = {key: spec.pop(key) for key in ("labels", "annotations") if key in spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-5f6b-", **metadata},
        "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"containerPort": 8080}]}], **spec},
    }


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "web", "image": "web:1", **fields}


def injected(document: dict[str, Any], around: Surroundings = SHOP, settings: InjectionSettings = SETTINGS) -> Any:
    outcome = decide(document, around, settings)
    assert (outcome.verdict, outcome.message) == (Verdict.INJECT, "")
    return patched(document, outcome.patch)


def proxy_of(document: Any) -> Any:
    containers = [*document["spec"].get("initContainers", ()), *document["spec"]["containers"]]
    [found] = [each for each in containers if each["name"] == "backstay-proxy"]
    return found


def environment(document: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in proxy_of(document)["env"]}


def refused(document: dict[str, Any], around: Surroundings = SHOP) -> str:
    outcome = decide(document, around, SETTINGS)
    assert outcome.verdict is Verdict.REFUSE
    assert outcome.message.endswith(f"[{outcome.reason}]")
    return outcome.message


# --- who is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_pod", "of_namespace", "wanted"),
    [
        (None, None, False),
        (None, "enabled", True),
        (None, "disabled", False),
        ("enabled", None, True),
        ("enabled", "disabled", True),
        ("disabled", "enabled", False),
        ("true", "enabled", False),
    ],
)
def test_the_pods_label_wins_over_its_namespaces(of_pod: str | None, of_namespace: str | None, wanted: bool) -> None:
    labels = [{} if value is None else {"backstay.dev/inject": value} for value in (of_pod, of_namespace)]
    assert is_wanted(*labels) is wanted


@pytest.mark.parametrize("name", ["kube-system", "kube-public", "kube-node-lease", "backstay-system"])
def test_what_a_cluster_needs_to_start_is_left_alone(name: str) -> None:
    around = Surroundings(name=name, labels={"backstay.dev/inject": "enabled"})
    document = pod(labels={"backstay.dev/inject": "enabled"})
    assert decide(document, around, SETTINGS) == Outcome(verdict=Verdict.SKIP, reason="SystemNamespace")


def test_a_pod_that_nobody_asked_for_is_left_alone() -> None:
    assert decide(pod(), Surroundings(name="shop"), SETTINGS) == Outcome(verdict=Verdict.SKIP, reason="NotAsked")


def test_a_pod_on_the_nodes_network_is_left_alone_and_its_maker_is_told() -> None:
    outcome = decide(pod(hostNetwork=True), SHOP, SETTINGS)
    assert outcome == Outcome(
        verdict=Verdict.SKIP,
        reason="HostNetwork",
        message="web-5f6b-*: not injected: it uses the node's network, whose traffic is not ours",
    )


def test_a_windows_pod_is_left_alone() -> None:
    outcome = decide(pod(os={"name": "windows"}), SHOP, SETTINGS)
    assert (outcome.verdict, outcome.reason) == (Verdict.SKIP, "OperatingSystem")


@pytest.mark.parametrize("settings", [SETTINGS, FALLBACK], ids=["native", "fallback"])
def test_injecting_twice_changes_nothing(settings: InjectionSettings) -> None:
    once = injected(pod(), settings=settings)
    assert decide(once, SHOP, settings) == Outcome(verdict=Verdict.SKIP, reason="AlreadyInjected")


# --- what it becomes ------------------------------------------------------------------------------------------------


def test_redirect_then_proxy_then_the_pods_own_init_containers() -> None:
    own = [{"name": "migrate", "image": "m"}, {"name": "warm", "image": "w"}]
    found = injected(pod(initContainers=own))
    assert [each["name"] for each in found["spec"]["initContainers"]] == [
        "backstay-redirect",
        "backstay-proxy",
        "migrate",
        "warm",
    ]
    assert proxy_of(found)["restartPolicy"] == "Always"
    assert [each["name"] for each in found["spec"]["containers"]] == ["web"]


def test_without_native_sidecars_the_proxy_is_the_first_container_and_own_init_containers_run_unredirected() -> None:
    found = injected(pod(initContainers=[{"name": "migrate", "image": "m"}]), settings=FALLBACK)
    assert [each["name"] for each in found["spec"]["initContainers"]] == ["migrate", "backstay-redirect"]
    assert [each["name"] for each in found["spec"]["containers"]] == ["backstay-proxy", "web"]
    assert "restartPolicy" not in proxy_of(found)
    assert proxy_of(found)["lifecycle"] == {
        "postStart": {"exec": {"command": ["python", "-m", "backstay.sidecar", "wait"]}}
    }
    assert found["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "web"


def test_only_the_redirect_may_change_the_network() -> None:
    redirect, proxy = injected(pod())["spec"]["initContainers"]
    assert redirect["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "runAsNonRoot": False,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert proxy["securityContext"] == {
        "runAsUser": 1337,
        "runAsGroup": 1337,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_the_proxy_knows_who_it_is_and_where_everything_lies() -> None:
    found = injected(pod())
    assert environment(found) == {
        "POD_NAME": None,
        "POD_NAMESPACE": None,
        "POD_IP": None,
        "BACKSTAY_SIDECAR_PROXY": "$(POD_NAME).$(POD_NAMESPACE)",
        "BACKSTAY_SIDECAR_STATE": "/var/lib/backstay",
        "BACKSTAY_SIDECAR_OPERATOR": "https://backstay-operator.backstay-system.svc:15012",
        "BACKSTAY_SIDECAR_TRUST_DOMAIN": "cluster.local",
        "BACKSTAY_SIDECAR_TOKEN_FILE": "/var/run/secrets/backstay/token",
        "BACKSTAY_SIDECAR_TRUST_FILE": "/var/run/backstay/roots/root-cert.pem",
        "BACKSTAY_SIDECAR_INTERCEPT": "true",
        "BACKSTAY_SIDECAR_HEALTH_HOST": "$(POD_IP)",
        "BACKSTAY_SIDECAR_DRAIN": "30",
        "BACKSTAY_SIDECAR_LOG_LEVEL": "info",
    }
    assert found["spec"]["volumes"] == [
        {
            "name": "backstay-token",
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"audience": "backstay-ca", "expirationSeconds": 3600, "path": "token"}}
                ]
            },
        },
        {"name": "backstay-roots", "configMap": {"name": "backstay-roots"}},
        {"name": "backstay-state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]


def test_the_proxys_environment_is_one_that_the_sidecar_reads() -> None:
    found = parse([], environment_values())
    assert (found.proxy, found.operator_host, found.operator_port, found.trust_domain) == (
        "web-1.shop",
        "backstay-operator.backstay-system.svc",
        15012,
        "cluster.local",
    )
    assert (found.health_host, found.drain_s, found.log_level) == ("10.0.0.7", 30.0, "info")
    assert found.address.redirected is not None
    assert (str(found.state), str(found.token_file), str(found.trust_file)) == (
        "/var/lib/backstay",
        "/var/run/secrets/backstay/token",
        "/var/run/backstay/roots/root-cert.pem",
    )


def environment_values() -> dict[str, str]:
    """As the kubelet would fill it in."""
    values = {"POD_NAME": "web-1", "POD_NAMESPACE": "shop", "POD_IP": "10.0.0.7"}
    for name, value in environment(injected(pod())).items():
        if value is not None:
            values[name] = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], value)
    return values


def test_marks_say_what_was_done_and_leave_what_was_there() -> None:
    found = injected(pod(labels={"app": "web"}, annotations={"a/b": "c"}))
    assert found["metadata"]["labels"] == {"app": "web", "backstay.dev/injected": "true"}
    assert found["metadata"]["annotations"].pop("a/b") == "c"
    assert json.loads(found["metadata"]["annotations"].pop("backstay.dev/status"))["native"] is True
    assert found["metadata"]["annotations"] == {}


def test_a_template_without_metadata_gets_some() -> None:
    found = injected({"spec": {"containers": [container()]}})
    assert found["metadata"]["labels"] == {"backstay.dev/injected": "true"}


def test_volumes_come_after_the_pods_own() -> None:
    found = injected(pod(volumes=[{"name": "data", "emptyDir": {}}]))
    assert [each["name"] for each in found["spec"]["volumes"]] == [
        "data",
        "backstay-token",
        "backstay-roots",
        "backstay-state",
    ]


def test_the_original_is_not_touched() -> None:
    document = pod(initContainers=[{"name": "migrate"}], volumes=[])
    before = copy.deepcopy(document)
    injected(document)
    assert document == before


# --- probes ---------------------------------------------------------------------------------------------------------


def test_probes_of_the_network_go_through_the_proxy() -> None:
    web = container(
        ports=[{"containerPort": 8080, "name": "http"}],
        livenessProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 3},
        readinessProbe={
            "httpGet": {
                "path": "/ready",
                "port": 8081,
                "scheme": "HTTPS",
                "httpHeaders": [{"name": "A", "value": "b"}],
            },
            "timeoutSeconds": 4,
        },
        startupProbe={"grpc": {"port": 9000, "service": "s"}, "failureThreshold": 30},
    )
    found = injected(pod(containers=[web]))
    [after] = found["spec"]["containers"]
    assert after["livenessProbe"] == {"httpGet": {"path": "/app-health/web/livez", "port": 15021}, "periodSeconds": 3}
    assert after["readinessProbe"] == {
        "httpGet": {"path": "/app-health/web/readyz", "port": 15021},
        "timeoutSeconds": 4,
    }
    assert after["startupProbe"] == {
        "httpGet": {"path": "/app-health/web/startupz", "port": 15021},
        "failureThreshold": 30,
    }
    assert json.loads(environment(found)["BACKSTAY_SIDECAR_APP_PROBES"]) == {
        "/app-health/web/livez": {"type": "tcp", "port": 8080, "timeoutSeconds": 1},
        "/app-health/web/readyz": {
            "type": "http",
            "port": 8081,
            "path": "/ready",
            "scheme": "HTTPS",
            "headers": [["A", "b"]],
            "timeoutSeconds": 4,
        },
        "/app-health/web/startupz": {"type": "grpc", "port": 9000, "service": "s", "timeoutSeconds": 1},
    }


@pytest.mark.parametrize(
    "probe",
    [
        {"exec": {"command": ["true"]}},
        {"httpGet": {"host": "10.1.2.3", "port": 80}},
        {"httpGet": {"path": "/", "port": "unheard-of"}},
    ],
    ids=["exec", "another-host", "unknown-port"],
)
def test_probes_that_are_none_of_the_proxys_business_stay(probe: dict[str, Any]) -> None:
    found = injected(pod(containers=[container(livenessProbe=probe)]))
    assert found["spec"]["containers"][0]["livenessProbe"] == probe
    assert "BACKSTAY_SIDECAR_APP_PROBES" not in environment(found)


def test_hooks_that_are_requests_go_through_the_proxy() -> None:
    lifecycle = {"preStop": {"httpGet": {"path": "/bye", "port": 8080}}, "postStart": {"exec": {"command": ["x"]}}}
    found = injected(pod(containers=[container(lifecycle=lifecycle)]))
    assert found["spec"]["containers"][0]["lifecycle"] == {
        "preStop": {"httpGet": {"path": "/app-lifecycle/web/prestop", "port": 15021}},
        "postStart": {"exec": {"command": ["x"]}},
    }
    probes = json.loads(environment(found)["BACKSTAY_SIDECAR_APP_PROBES"])
    assert probes["/app-lifecycle/web/prestop"]["path"] == "/bye"


def test_a_probe_of_the_pods_own_sidecar_is_found_although_indices_move() -> None:
    own = {"name": "log", "restartPolicy": "Always", "startupProbe": {"httpGet": {"port": 9}}}
    found = injected(pod(initContainers=[own]))
    assert found["spec"]["initContainers"][2]["startupProbe"] == {
        "httpGet": {"path": "/app-health/log/startupz", "port": 15021}
    }


# --- wishes ---------------------------------------------------------------------------------------------------------


def test_exclusions_go_to_the_redirect() -> None:
    found = injected(
        pod(
            annotations={
                "backstay.dev/exclude-inbound-ports": "9100, 9200",
                "backstay.dev/exclude-outbound-ports": "5432",
                "backstay.dev/exclude-outbound-cidrs": "10.0.0.0/8,fd00::/8",
            }
        )
    )
    redirect = found["spec"]["initContainers"][0]
    assert redirect["args"] == [
        "redirect",
        "--exclude-inbound",
        "9100,9200",
        "--exclude-outbound-ports",
        "5432",
        "--exclude-cidr",
        "10.0.0.0/8,fd00::/8",
    ]


@pytest.mark.parametrize(("value", "intercepts"), [("external", "true"), ("disabled", "false")])
def test_without_the_redirect_nothing_needs_a_right_that_restricted_pods_lack(value: str, intercepts: str) -> None:
    found = injected(pod(annotations={"backstay.dev/redirect": value}))
    assert [each["name"] for each in found["spec"]["initContainers"]] == ["backstay-proxy"]
    assert environment(found)["BACKSTAY_SIDECAR_INTERCEPT"] == intercepts


def test_resources_and_log_level_are_the_pods_to_say() -> None:
    annotations = {
        "backstay.dev/proxy-cpu": "200m",
        "backstay.dev/proxy-memory-limit": "1Gi",
        "backstay.dev/proxy-log-level": "debug",
    }
    found = injected(pod(annotations=annotations))
    assert proxy_of(found)["resources"] == {
        "requests": {"cpu": "200m", "memory": "64Mi"},
        "limits": {"cpu": "2", "memory": "1Gi"},
    }
    assert environment(found)["BACKSTAY_SIDECAR_LOG_LEVEL"] == "debug"


def test_large_pods_have_their_proxy_in_several_processes() -> None:
    found = environment(injected(pod(annotations={"backstay.dev/proxy-concurrency": "4"})))
    assert parse([], environment_values() | {key: found[key] for key in found if key.endswith("CONCURRENCY")}) == (
        replace(parse([], environment_values()), concurrency=4)
    )
    assert "BACKSTAY_SIDECAR_CONCURRENCY" not in environment(injected(pod()))


def test_as_many_processes_as_the_sidecar_takes() -> None:
    assert inject.MAX_PROCESSES == settings.MAX_PROCESSES


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("proxy-concurrency", "0", "a number of processes from 1 to 64"),
        ("proxy-concurrency", "many", "a number of processes from 1 to 64"),
        ("exclude-inbound-ports", "http", "port numbers separated by commas"),
        ("exclude-outbound-ports", "80,70000", "port numbers separated by commas"),
        ("exclude-outbound-cidrs", "10.0.0.1/8", "networks such as 10.0.0.0/8 separated by commas"),
        ("redirect", "no", "one of enabled, external, disabled"),
        ("proxy-log-level", "loud", "one of debug, info, warning, error"),
        ("proxy-cpu", "lots", "a quantity such as 100m or 128Mi"),
    ],
)
def test_an_annotation_that_cannot_be_read_refuses_the_pod(key: str, value: str, expected: str) -> None:
    found = value.rpartition(",")[2]
    assert refused(pod(annotations={f"backstay.dev/{key}": value})) == (
        f"pod shop/web-5f6b-*: metadata.annotations.backstay.dev/{key}: {found!r} was found, expected {expected} "
        "[AnnotationInvalid]"
    )


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "around", "sign"),
    [
        (pod(labels={"sidecar.istio.io/inject": "true"}), SHOP, "Istio injects it as well (the pod says"),
        (pod(labels={"istio.io/rev": "x"}), SHOP, "Istio injects it as well (the pod has the label istio.io/rev)"),
        (pod(initContainers=[{"name": "istio-init"}]), SHOP, "Istio injects it as well (spec.initContainers[0] is"),
        (pod(containers=[container(name="linkerd-proxy")]), SHOP, "Linkerd injects it as well (spec.containers[0] is"),
        (pod(annotations={"linkerd.io/inject": "enabled"}), SHOP, "Linkerd injects it as well (the pod says"),
        (
            pod(),
            Surroundings(name="shop", labels={**SHOP.labels, "istio-injection": "enabled"}),
            "Istio injects it as well (the namespace says istio-injection=enabled)",
        ),
        (
            pod(),
            Surroundings(name="shop", labels={**SHOP.labels, "istio.io/dataplane-mode": "ambient"}),
            "Istio injects it as well (the namespace says istio.io/dataplane-mode=ambient)",
        ),
        (
            pod(),
            Surroundings(name="shop", labels=SHOP.labels, annotations={"linkerd.io/inject": "enabled"}),
            "Linkerd injects it as well (the namespace says linkerd.io/inject)",
        ),
    ],
)
def test_a_pod_that_another_mesh_injects_is_refused(document: Any, around: Surroundings, sign: str) -> None:
    message = refused(document, around)
    assert message.startswith(f"pod shop/web-5f6b-*: {sign}")
    assert message.endswith("[ForeignMesh]")


def test_a_pod_that_istio_is_told_to_leave_alone_is_ours() -> None:
    around = Surroundings(name="shop", labels={**SHOP.labels, "istio-injection": "enabled"})
    assert proxy_of(injected(pod(labels={"sidecar.istio.io/inject": "false"}), around))
    around = Surroundings(name="shop", labels=SHOP.labels, annotations={"linkerd.io/inject": "enabled"})
    assert proxy_of(injected(pod(annotations={"linkerd.io/inject": "disabled"}), around))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"containers": [container(ports=[{"containerPort": 15006}])]},
            "spec.containers[0]: port 15006 is the proxy's inbound port [ReservedPort]",
        ),
        (
            {"containers": [container(), container(name="backstay-proxy")]},
            "spec.containers[1]: 'backstay-proxy' is the name of a container of the mesh [ReservedName]",
        ),
        (
            {"volumes": [{"name": "backstay-state", "hostPath": {"path": "/"}}]},
            "spec.volumes: 'backstay-state' is a name of the proxy's own volumes [ReservedName]",
        ),
        (
            {"containers": [container(volumeMounts=[{"name": "backstay-token", "mountPath": "/t"}])]},
            "spec.containers[0]: it mounts 'backstay-token', which is the proxy's own volume [ReservedName]",
        ),
        (
            {"containers": [container(securityContext={"runAsUser": 1337})]},
            (
                "spec.containers[0]: it runs as 1337, the proxy's own user, whose traffic is not redirected; expected "
                "another [ReservedUser]"
            ),
        ),
        (
            {"securityContext": {"runAsUser": 1337}},
            "spec: it runs as 1337, the proxy's own user, whose traffic is not redirected; expected another [ReservedUser]",
        ),
    ],
)
def test_what_would_undo_the_proxy_is_refused(spec: dict[str, Any], sentence: str) -> None:
    assert refused(pod(**spec)) == f"pod shop/web-5f6b-*: {sentence}"


def test_something_that_is_no_pod_is_refused() -> None:
    assert refused({"spec": {"containers": 5}}) == (
        "pod in shop: Expected `array`, got `int` - at `$.spec.containers` [PodUnreadable]"
    )
