"""Changed requests: none is left out, none is made up, and what only looks different is not reported."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstay.core.evaluate import Asked, Sent, World, asked
from backstay.core.review import routes as routes_module
from backstay.core.review import space, words
from backstay.core.review.access import access_classes
from backstay.core.review.routes import RouteClass, effect, route_classes
from support.policy import BACKENDS, CLIENTS, changed, compiled, document, repositories, requests

CALLERS = tuple(f"shop/{name}" for name in CLIENTS)
BOUNDED = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(st.data())
def test_no_request_changes_unsaid(data: st.DataObject) -> None:
    first = data.draw(repositories())
    before, after = compiled(first), compiled(data.draw(changed(first)))
    classes = route_classes(before, after)
    for _ in range(12):
        request = data.draw(requests())
        question = asked(request)
        assert question is not None
        differs = effect(before.chooses(CALLERS[0], question)) != effect(after.chooses(CALLERS[0], question))
        holding = [found for found in classes if found.holds(CALLERS[0], question)]
        assert bool(holding) == differs, (str(request), request.headers)
        for found in holding:
            assert effect(found.before) == effect(before.chooses(CALLERS[0], question))
            assert effect(found.after) == effect(after.chooses(CALLERS[0], question))


@BOUNDED
@given(st.data())
def test_every_class_holds_a_request_that_really_changes(data: st.DataObject) -> None:
    first = data.draw(repositories())
    before, after = compiled(first), compiled(data.draw(changed(first)))
    for found in route_classes(before, after):
        assert found.doubt == ""
        samples = list(found.samples())
        assert len(samples) == len(found.boxes)
        assert words.facets(found.before) != words.facets(found.after), "a change that cannot be seen is not said"
        for caller in found.callers:
            for question in samples:
                assert found.holds(caller, question)
                assert effect(before.chooses(caller, question)) == effect(found.before)
                assert effect(after.chooses(caller, question)) == effect(found.after)
                assert effect(found.before) != effect(found.after)


# --- refactoring ------------------------------------------------------------------------------------------------------


def web(*rules: dict[str, Any]) -> World:
    return compiled([*BACKENDS, document("Route", "web", {"hosts": ["web"], "rules": list(rules)})])


def rule(*matches: dict[str, Any], to: str = "web", **more: Any) -> dict[str, Any]:
    return {"matches": list(matches), "backendRefs": [{"name": to, "port": 80}], **more}


def path(value: str, kind: str = "PathPrefix", **more: Any) -> dict[str, Any]:
    return {"path": {"type": kind, "value": value}, **more}


def kinds(found: RouteClass) -> tuple[str, str]:
    assert isinstance(found.before, Sent)
    assert isinstance(found.after, Sent)
    return found.before.kind, found.after.kind


def told(before: World, after: World) -> list[tuple[list[str], str, str]]:
    return [(found.words(), *kinds(found)) for found in route_classes(before, after)]


def test_a_rule_split_in_two_changes_nothing() -> None:
    whole = web(rule(path("/a"), path("/b"), to="api"))
    split = web(rule(path("/a"), to="api", name="one"), rule(path("/b"), to="api", name="two"))
    assert told(whole, split) == []


def test_the_order_of_rules_that_do_not_meet_changes_nothing() -> None:
    one, two = rule(path("/a"), to="api"), rule(path("/b"))
    assert told(web(one, two), web(two, one)) == []


def test_the_order_of_rules_that_meet_changes_what_is_in_both() -> None:
    one, two = rule(path("/a"), to="api"), rule({"method": "POST"})
    assert told(web(one, two), web(two, one)) == [(["POST under /a"], "route", "route")]


def test_a_rule_that_is_shadowed_changes_nothing() -> None:
    assert told(web(rule(path("/a"))), web(rule(path("/a")), rule(path("/a/b"), to="api"))) == []


def test_a_new_name_of_a_subset_changes_nothing() -> None:
    def world(name: str) -> World:
        subset = {"name": name, "labels": {"version": "v1"}}
        to = {"name": "web", "port": 80, "subset": name}
        return compiled(
            [
                document("Backend", "web", {"service": "web", "subsets": [subset]}),
                document("Route", "web", {"hosts": ["web"], "rules": [{"backendRefs": [to]}]}),
            ]
        )

    assert told(world("v1"), world("stable")) == []


def test_an_exception_is_said_as_one() -> None:
    before = web(rule(path("/a")))
    after = web(rule(path("/a/b", "Exact"), to="api"), rule(path("/a")))
    assert told(before, after) == [(["at /a/b"], "route", "route")]


def test_a_smaller_prefix_is_said_with_what_is_kept() -> None:
    assert told(web(rule(path("/a"))), web(rule(path("/a/b")))) == [
        (["under /a and not under /a/b"], "route", "no-route")
    ]


def test_a_change_of_a_backend_concerns_all_requests_to_it() -> None:
    slow = compiled([document("Backend", "web", {"service": "web", "connections": {"connectTimeout": "1s"}})])
    assert told(compiled([]), slow) == [([""], "route", "route")]


def test_a_host_of_ones_own_is_passed_through_before() -> None:
    after = compiled([document("Route", "old", {"hosts": ["old.example"], "rules": [rule()]})])
    found = route_classes(compiled([]), after)
    assert [(item.host, *kinds(item)) for item in found] == [("old.example:80", "pass-through", "route")]


def test_egress_concerns_all_hosts_outside() -> None:
    closed = compiled([document("Mesh", "mesh", {"egress": "REGISTRY_ONLY"})])
    found = route_classes(compiled([]), closed)
    assert [(item.host, *kinds(item)) for item in found] == [("", "pass-through", "unknown-host")]


def test_a_host_that_is_let_out_is_said_at_its_line() -> None:
    closed = document("Mesh", "mesh", {"egress": "REGISTRY_ONLY"})
    outside = document(
        "ExternalService", "out", {"hosts": ["pay.example"], "ports": [{"port": 443, "protocol": "TLS"}]}
    )
    after = compiled([closed, outside])
    (found,) = route_classes(compiled([closed]), after)
    assert (found.host, found.before.place, found.after.place) == ("pay.example:443", "00.yaml:9", "01.yaml:9")
    assert [side.kind for side in (found.before, found.after) if isinstance(side, Sent)] == [
        "unknown-host",
        "pass-through",
    ]
    assert access_classes(compiled([closed]), after) == []
    opened = route_classes(after, compiled([outside]))
    assert [item.holds("shop/client", Asked(b"GET", b"pay.example:443", b"/", b"", ())) for item in opened] == [False]


def test_names_below_a_pattern_are_told_from_those_that_have_rules_of_their_own() -> None:
    every = document("Route", "all", {"hosts": ["*.old.example"], "rules": [rule()]})
    own = document("Route", "own", {"hosts": ["other.old.example"], "rules": [rule()]})
    named = document(
        "Route", "all", {"hosts": ["*.old.example"], "rules": [
            rule({"authority": {"type": "Exact", "value": "a.old.example"}}, to="api"), rule(),
        ]},
    )  # fmt: skip
    (found,) = route_classes(compiled([every, own]), compiled([named, own]))
    assert found.words() == ["for host a.old.example"]
    (found,) = route_classes(
        compiled([every, own]), compiled([document("Route", "all", every["spec"] | {"rules": [rule(to="api")]}), own])
    )
    asked_for = (b"a.old.example", b"other.old.example")
    assert [found.holds("shop/client", Asked(b"GET", name, b"/", b"", ())) for name in asked_for] == [True, False]


def test_callers_of_one_kind_are_named_together() -> None:
    (found,) = route_classes(web(rule()), web(rule(to="api")))
    assert isinstance(found, RouteClass)
    assert set(CALLERS) <= set(found.callers)


# --- doubt ------------------------------------------------------------------------------------------------------------


def test_a_match_that_reviews_do_not_know_is_said_of_the_whole_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "_KNOWN", frozenset(("path", "method")))
    header = rule({"headers": [{"name": "x-a", "value": "1"}]}, to="api")
    (found,) = route_classes(web(rule()), web(header, rule()))
    assert (found.boxes, found.doubt) == ((), "matches by headers cannot be compared yet")
    assert found.holds(CALLERS[0], Asked(b"GET", b"web", b"/any", b"", ()))


def test_rules_that_cross_too_often_are_said_of_the_whole_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "MOST_BOXES", 3)
    many = [rule({"headers": [{"name": f"x-{n}", "value": "1"}]}, to="api") for n in range(9)]
    (found,) = route_classes(web(rule()), web(*many, rule()))
    assert found.doubt == "its rules cross each other in too many ways to be compared one by one"


def test_patterns_are_compared_by_examples_and_it_is_said() -> None:
    before = web(rule(path("/a[0-9]+", "RegularExpression"), to="api"), rule())
    after = web(rule(path("/[ab][0-9]+", "RegularExpression"), to="api"), rule())
    (found,) = route_classes(before, after)
    assert found.doubt == "patterns in path were compared by examples"
    assert all(question.path.startswith(b"/b") for question in found.samples())
