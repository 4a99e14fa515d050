from backstay.adapters.kubernetes.facts import NamespaceFacts, PodFacts, pod_facts
from backstay.adapters.kubernetes.roots import wanted_in


def namespace(name: str, label: str = "", *, is_leaving: bool = False) -> NamespaceFacts:
    labels = {"backstay.dev/inject": label} if label else {}
    return NamespaceFacts(name=name, labels=labels, annotations={}, is_leaving=is_leaving)


def pod(of: str, *, container: str) -> PodFacts:
    found = pod_facts({"metadata": {"name": "a", "namespace": of}, "spec": {"initContainers": [{"name": container}]}})
    assert found is not None
    return found


def test_namespaces_that_say_so_and_those_where_a_pod_does() -> None:
    namespaces = {
        each.name: each
        for each in (
            namespace("shop", "enabled"),
            namespace("off", "disabled"),
            namespace("single"),
            namespace("plain"),
            namespace("going", "enabled", is_leaving=True),
            namespace("kube-system", "enabled"),
            namespace("backstay-system", "enabled"),
        )
    }
    pods = {
        "single/a": pod("single", container="backstay-proxy"),
        "plain/a": pod("plain", container="web"),
        "gone/a": pod("gone", container="backstay-proxy"),
    }
    assert wanted_in(namespaces, pods, "backstay-system") == {"shop", "single"}
