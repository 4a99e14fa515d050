"""Equal meaning gives equal digests; a change costs what it touches; every part knows its lines."""

from backstay.config.model import Authorization, Backend, HostRoutes, Listeners, Tracing, decode_part
from backstay.core.compile import Compiled, PartCache, compile_mesh
from backstay.core.compile.inbound import telemetry_of
from backstay.core.intents import AccessLog, MeshSpec
from backstay.core.snapshot import Snapshot
from support.meshes import registry, snapshot, workload

EMPTY = Snapshot(revision="none", documents={})
SPLIT = """
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata: {name: b}
spec:
  service: b
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: b}
spec:
  hosts: [b]
  rules:
  - name: beta
    matches: [{headers: [{name: X-Beta, value: "1"}]}]
    backendRefs: [{name: b, subset: v2}]
  - backendRefs:
    - {name: b, subset: v1, weight: 90}
    - {name: b, subset: v2, weight: 10}
    timeouts: {request: 3s}
"""


def part(compiled: Compiled, owner: str, key: str) -> HostRoutes | Backend | Authorization | Listeners:
    return decode_part(compiled.parts[compiled.manifests[owner].parts[key]])


def test_without_documents_every_service_gets_safe_defaults() -> None:
    compiled = compile_mesh(EMPTY, registry(("a", "b")))
    routes = part(compiled, "shop/a", "routes/b.shop:80")
    assert isinstance(routes, HostRoutes)
    assert [(rule.name, rule.timeout_ms, rule.backends[0].backend) for rule in routes.rules] == [
        ("default", 15_000, "b.shop:80")
    ]
    retry = routes.rules[0].retry
    assert retry is not None
    assert (retry.attempts, retry.retry_on, retry.any_method) == (2, ("connect-failure", "reset-before-request"), False)


def test_compiling_twice_gives_the_same_digests() -> None:
    one = compile_mesh(snapshot(SPLIT), registry())
    assert one.digests == compile_mesh(snapshot(SPLIT), registry()).digests


def test_comments_places_and_file_names_change_no_digest() -> None:
    moved = snapshot("# a comment\n\n" + SPLIT, file="other/place.yaml")
    assert compile_mesh(moved, registry()).digests == compile_mesh(snapshot(SPLIT), registry()).digests


def test_a_route_becomes_ordered_rules_with_qualified_backends() -> None:
    routes = part(compile_mesh(snapshot(SPLIT), registry()), "shop/a", "routes/b.shop:80")
    assert isinstance(routes, HostRoutes)
    beta, rest = routes.rules
    assert (beta.name, beta.matches[0].headers[0].name, beta.backends[0].subset) == ("beta", "x-beta", "v2")
    assert [(item.backend, item.subset, item.weight) for item in rest.backends] == [
        ("b.shop:80", "v1", 90),
        ("b.shop:80", "v2", 10),
    ]
    assert (rest.name, rest.timeout_ms) == ("rule-1", 3_000)


def test_a_weight_change_makes_one_part_anew() -> None:
    cache = PartCache()
    one = compile_mesh(snapshot(SPLIT), registry(), cache)
    made = cache.made
    other = compile_mesh(snapshot(SPLIT.replace("90", "80")), registry(), cache)
    assert cache.made == made + 1
    assert set(other.parts) - set(one.parts) == {other.manifests["shop/a"].parts["routes/b.shop:80"]}


def test_endpoints_change_no_digest() -> None:
    few, many = registry(replicas=1), registry(replicas=7)
    assert compile_mesh(snapshot(SPLIT), few).digests == compile_mesh(snapshot(SPLIT), many).digests


def test_rollout_settings_of_the_mesh_change_no_digest() -> None:
    text = "apiVersion: backstay.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec: {rollout: {soak: %s}}\n"
    quick, slow = snapshot(text % "1s"), snapshot(text % "9s")
    assert compile_mesh(quick, registry()).digests == compile_mesh(slow, registry()).digests


def test_a_workload_that_declares_what_it_calls_gets_only_that() -> None:
    found = registry(("a", "b", "c"), [workload("a", "a", reaches=["b"]), workload("b", "b"), workload("c", "c")])
    keys = set(compile_mesh(EMPTY, found).manifests["shop/a"].parts)
    assert keys == {"routes/b.shop:80", "backend/b.shop:80", "listeners", "authorization"}


def test_a_route_to_another_service_brings_that_backend_along() -> None:
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: b}
spec: {hosts: [b], rules: [{backendRefs: [{name: c}]}]}
"""
    found = registry(("a", "b", "c"), [workload("a", "a", reaches=["b"]), workload("b", "b"), workload("c", "c")])
    assert "backend/c.shop:80" in compile_mesh(snapshot(text), found).manifests["shop/a"].parts


def test_authorization_reaches_only_the_selected_workload_with_full_principals() -> None:
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {name: only-a}
spec:
  selector: {workloads: [b]}
  rules: [{from: [{serviceAccounts: [a]}], to: [{methods: [GET]}]}]
"""
    compiled = compile_mesh(snapshot(text), registry())
    chosen, other = part(compiled, "shop/b", "authorization"), part(compiled, "shop/a", "authorization")
    assert isinstance(chosen, Authorization)
    assert isinstance(other, Authorization)
    assert chosen.policies[0].rules[0].sources[0].principals == ("spiffe://backstay.local/ns/shop/sa/a",)
    assert other.policies == ()


def test_the_policy_that_names_a_workload_beats_the_one_for_its_namespace() -> None:
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: all}
spec: {mtls: {mode: STRICT}}
---
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: b}
spec: {selector: {workloads: [b]}, mtls: {mode: PERMISSIVE}}
"""
    compiled = compile_mesh(snapshot(text), registry())
    modes = {}
    for name in ("shop/a", "shop/b"):
        listeners = part(compiled, name, "listeners")
        assert isinstance(listeners, Listeners)
        modes[name] = listeners.inbound[0].mtls
        assert listeners.other_ports == modes[name], (
            "where connections are redirected, unnamed ports can be reached too"
        )
    assert modes == {"shop/a": "strict", "shop/b": "permissive"}


def test_every_rule_knows_its_line() -> None:
    compiled = compile_mesh(snapshot(SPLIT), registry())
    origins = compiled.origins[compiled.manifests["shop/a"].parts["routes/b.shop:80"]]
    assert origins.documents == ("Route/shop/b",)
    assert origins.rules == {"": "mesh.yaml:15", "beta": "mesh.yaml:17", "rule-1": "mesh.yaml:20"}


def test_what_proxies_tell_of_requests_is_the_meshs_to_say() -> None:
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  accessLog: {mode: %s, sampling: 5}
  tracing: {endpoint: "http://collector:4318", sampling: 10, propagation: [w3c, b3]}
"""
    found = {}
    for mode in ("all", "failures"):
        listeners = part(compile_mesh(snapshot(text % mode), registry(("a",))), "shop/a", "listeners")
        assert isinstance(listeners, Listeners)
        found[mode] = (listeners.access_log, listeners.log_percent, listeners.tracing)
    tracing = Tracing(endpoint="http://collector:4318", percent=10.0, b3=True)
    assert found == {"all": ("all", 5.0, tracing), "failures": ("failures", 100.0, tracing)}


def test_workloads_and_namespaces_may_have_telemetry_of_their_own() -> None:
    """The nearest entry that says something holds, for the log and for traces each."""
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  accessLog: {mode: failures}
  tracing: {endpoint: "http://everybody:4318", sampling: 1}
  telemetry:
  - {workloads: [shop/*], accessLog: {mode: all, sampling: 5}}
  - {workloads: [bank/x, shop/a], tracing: {endpoint: "http://mine:4318", sampling: 50}}
  - {workloads: [shop/a], accessLog: {mode: none}}
"""
    compiled = compile_mesh(snapshot(text), registry(("a", "b")))
    found = {}
    for name in ("a", "b"):
        listeners = part(compiled, f"shop/{name}", "listeners")
        assert isinstance(listeners, Listeners)
        found[name] = (listeners.access_log, listeners.log_percent, listeners.tracing)
    everybody, mine = (
        Tracing(endpoint="http://everybody:4318", percent=1.0),
        Tracing(endpoint="http://mine:4318", percent=50.0),
    )
    assert found == {"a": ("off", 100.0, mine), "b": ("all", 5.0, everybody)}
    assert telemetry_of("other/x", MeshSpec()) == (AccessLog(), None)


def test_callers_certificates_are_forwarded_as_the_workloads_document_says() -> None:
    text = """
apiVersion: backstay.dev/v1alpha1
kind: Authentication
metadata: {name: quiet, namespace: shop}
spec: {selector: {workloads: [a]}, forwardClientCert: SANITIZE}
"""
    compiled = compile_mesh(snapshot(text), registry(("a", "b")))
    found = {name: part(compiled, f"shop/{name}", "listeners") for name in ("a", "b")}
    assert {name: each.client_cert for name, each in found.items() if isinstance(each, Listeners)} == {
        "a": "sanitize", "b": "append_forward",
    }  # fmt: skip
