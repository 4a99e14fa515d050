"""What changes, and in which order it may go out."""

from backstay.config.model import Authorization, Listeners, Manifest, decode_part
from backstay.core.compile import compile_mesh
from backstay.core.diff import PartChange, Staged, fresh_hosts, new_engines, part_changes, sides, stage, with_fresh
from backstay.core.rollout.model import Side
from backstay.core.snapshot import Snapshot
from support.meshes import registry, snapshot

HEAD = "apiVersion: backstay.dev/v1alpha1\n"
ROUTE = (
    HEAD
    + "kind: Route\nmetadata: {name: b}\nspec: {hosts: [b], rules: [{backendRefs: [{name: b}], timeouts: {request: %s}}]}\n"
)
ALLOW = (
    HEAD
    + "kind: Authorization\nmetadata: {name: %s}\nspec: {selector: {workloads: [b]}, rules: [{from: [{serviceAccounts: [%s]}]}]}\n"
)
MTLS = HEAD + "kind: Authentication\nmetadata: {name: b}\nspec: {selector: {workloads: [b]}, mtls: {mode: %s}}\n"
DENY_ALL = HEAD + "kind: Authorization\nmetadata: {name: nobody}\nspec: {selector: {workloads: [b]}}\n"


def docs(*texts: str) -> Snapshot:
    return snapshot("---\n".join(texts)) if texts else Snapshot(revision="", documents={})


def staged(old: Snapshot, new: Snapshot) -> Staged:
    one, other = compile_mesh(old, registry()), compile_mesh(new, registry())
    return stage(one.manifests, other.manifests, {**one.parts, **other.parts})


def shape(result: Staged) -> list[tuple[str, list[str]]]:
    return [(item.name, sorted(item.configs)) for item in result.stages]


def authorization(result: Staged, number: int, new: Snapshot) -> Authorization:
    parts = {**compile_mesh(new, registry()).parts, **result.parts}
    manifest = result.manifests[result.stages[number].configs["shop/b"]]
    found = decode_part(parts[manifest.parts["authorization"]])
    assert isinstance(found, Authorization)
    return found


def turned(old: Snapshot, new: Snapshot) -> list[dict[str, Side]]:
    one, other = compile_mesh(old, registry()), compile_mesh(new, registry())
    parts = {**one.parts, **other.parts}
    result = stage(one.manifests, other.manifests, parts)
    return list(sides(one.manifests, result, {**parts, **result.parts}))


def test_routes_decide_what_is_asked_and_policies_what_is_answered() -> None:
    """Stage by stage: b asks no differently while its policy changes, and answers no differently while routes move."""
    old, new = docs(ROUTE % "3s", ALLOW % ("x", "a")), docs(ROUTE % "4s", ALLOW % ("x", "c"))
    assert turned(old, new) == [{"shop/b": "in"}, {"shop/a": "out", "shop/b": "out"}, {"shop/b": "in"}]


def test_what_a_port_accepts_decides_what_is_answered_and_egress_what_is_asked() -> None:
    assert {"shop/b": "in"} in turned(docs(MTLS % "PERMISSIVE"), docs(MTLS % "STRICT"))
    (step,) = turned(docs(), docs(HEAD + "kind: Mesh\nmetadata: {name: mesh}\nspec: {egress: REGISTRY_ONLY}\n"))
    assert set(step.values()) == {"out"}


def test_what_is_told_of_requests_decides_nothing_that_comes_in() -> None:
    spec = '{accessLog: {mode: all, sampling: 1}, tracing: {endpoint: "http://c:4318"}}'
    (step,) = turned(docs(), docs(HEAD + f"kind: Mesh\nmetadata: {{name: mesh}}\nspec: {spec}\n"))
    assert set(step.values()) == {"out"}


def test_workloads_whose_proxies_change_their_engine_are_told() -> None:
    def changing(old: Snapshot, new: Snapshot) -> tuple[str, ...]:
        one, other = compile_mesh(old, registry()), compile_mesh(new, registry())
        result = stage(one.manifests, other.manifests, parts := {**one.parts, **other.parts})
        return new_engines(one.manifests, result, {**parts, **result.parts})

    mesh = (
        HEAD
        + "kind: Mesh\nmetadata: {name: mesh}\nspec: {engine: envoy, engines: [{workloads: [shop/b], engine: python}]}\n"
    )
    everybody = HEAD + "kind: Mesh\nmetadata: {name: mesh}\nspec: {engine: envoy, egress: REGISTRY_ONLY}\n"
    assert changing(docs(), docs(mesh)) == ("shop/a", "shop/b")
    assert changing(docs(mesh), docs(everybody)) == ("shop/b",)


def test_nothing_changed_is_no_stage() -> None:
    assert staged(docs(ROUTE % "3s"), docs(ROUTE % "3s")).stages == ()


def test_a_route_change_is_one_stage_for_all_who_may_call() -> None:
    assert shape(staged(docs(ROUTE % "3s"), docs(ROUTE % "4s"))) == [("move", ["shop/a", "shop/b"])]


def test_part_changes_name_workload_key_and_both_digests() -> None:
    one, other = compile_mesh(docs(ROUTE % "3s"), registry()), compile_mesh(docs(ROUTE % "4s"), registry())
    changes = part_changes(one.manifests, other.manifests)
    key = "routes/b.shop:80"
    assert changes == [
        PartChange(workload=name, key=key, old=one.manifests[name].parts[key], new=other.manifests[name].parts[key])
        for name in ("shop/a", "shop/b")
    ]


def test_a_new_allow_rule_beside_others_only_widens() -> None:
    result = staged(docs(ALLOW % ("a", "a")), docs(ALLOW % ("a", "a"), ALLOW % ("c", "c")))
    assert shape(result) == [("expand", ["shop/b"])]


def test_the_first_allow_rule_tightens() -> None:
    assert shape(staged(docs(), docs(ALLOW % ("a", "a")))) == [("contract", ["shop/b"])]


def test_a_policy_that_lets_nobody_in_tightens() -> None:
    assert shape(staged(docs(), docs(DENY_ALL))) == [("contract", ["shop/b"])]


def test_replacing_who_is_allowed_first_allows_both() -> None:
    new = docs(ALLOW % ("p", "c"))
    result = staged(docs(ALLOW % ("p", "a")), new)
    assert shape(result) == [("expand", ["shop/b"]), ("contract", ["shop/b"])]
    both = {policy.rules[0].sources[0].principals[0][-1] for policy in authorization(result, 0, new).policies}
    assert both == {"a", "c"}
    assert [p.rules[0].sources[0].principals[0][-1] for p in authorization(result, 1, new).policies] == ["c"]


def test_servers_accept_more_before_callers_move_and_less_after() -> None:
    old = docs(MTLS % "STRICT", ALLOW % ("p", "a"), ROUTE % "3s")
    new = docs(MTLS % "PERMISSIVE", ALLOW % ("p", "c"), ROUTE % "4s")
    assert shape(staged(old, new)) == [
        ("expand", ["shop/b"]),
        ("move", ["shop/a", "shop/b"]),
        ("contract", ["shop/b"]),
    ]


def test_strict_to_disable_passes_through_permissive() -> None:
    result = staged(docs(MTLS % "STRICT"), docs(MTLS % "DISABLE"))
    assert shape(result) == [("expand", ["shop/b"]), ("contract", ["shop/b"])]
    first = result.manifests[result.stages[0].configs["shop/b"]]
    listeners = decode_part(result.parts[first.parts["listeners"]])
    assert isinstance(listeners, Listeners)
    assert [item.mtls for item in listeners.inbound] == ["permissive"]


def test_the_last_stage_is_what_was_wanted() -> None:
    new = docs(MTLS % "PERMISSIVE", ALLOW % ("p", "c"), ROUTE % "4s")
    result = staged(docs(MTLS % "STRICT", ALLOW % ("p", "a"), ROUTE % "3s"), new)
    last: dict[str, str] = {}
    for item in result.stages:
        last.update(item.configs)
    assert last == compile_mesh(new, registry()).digests


def test_a_service_new_to_the_registry_needs_no_waves() -> None:
    old, new = compile_mesh(docs(), registry(("a", "b"))), compile_mesh(docs(), registry(("a", "b", "c")))
    fresh = fresh_hosts(old.manifests, new.manifests, registry(("a", "b", "c")).services)
    assert fresh == {"c.shop:80"}
    taken = with_fresh(old.manifests["shop/a"], new.manifests["shop/a"], fresh)
    assert taken == new.manifests["shop/a"]


def test_a_new_host_of_the_users_own_may_have_been_passed_through_before() -> None:
    text = ROUTE.replace("hosts: [b]", "hosts: [api.example]") % "3s"
    old, new = compile_mesh(docs(), registry()), compile_mesh(docs(text), registry())
    assert fresh_hosts(old.manifests, new.manifests, registry().services) == set()


def test_parts_known_elsewhere_are_not_fresh() -> None:
    old = Manifest(workload="shop/a", parts={"backend/b.shop:80": "x"})
    new = Manifest(workload="shop/a", parts={"backend/b.shop:80": "y", "routes/b.shop:80": "z"})
    assert fresh_hosts({"shop/a": old}, {"shop/a": new}, ["b.shop"]) == set()
