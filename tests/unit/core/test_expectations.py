"""Expectations: what holds is silent, what does not is said with the line that decides."""

from typing import Any

import msgspec
import pytest

from backstay.core import expectations
from backstay.core.evaluate import Request, World
from backstay.core.judging import judge
from backstay.core.problems import Severity
from support.policy import BACKENDS, Json, compiled, document, registry, snapshot

SPLIT = {
    "name": "api",
    "matches": [{"path": {"value": "/api"}}],
    "backendRefs": [
        {"name": "web", "port": 80, "subset": "v1", "weight": 90},
        {"name": "web", "port": 80, "subset": "v2", "weight": 10},
    ],
    "timeouts": {"request": "3s"},
    "retry": {"attempts": 1},
}
ROUTE = document("Route", "web", {"hosts": ["web"], "rules": [SPLIT]})
CLOSED = document("Authorization", "nobody", {"selector": {"workloads": ["web-v1", "web-v2"]}})


def expectation(expect: Json, *, url: str = "http://web/api/x", caller: str = "client", **request: Any) -> Json:
    return document("Expectation", "it", {"from": caller, "request": {"url": url, **request}, "expect": expect})


def said(*documents: Json) -> list[str]:
    return [
        f"{item.path}: {item.message} [{item.reason}]" for item in expectations.check(compiled([*BACKENDS, *documents]))
    ]


HOLDING = {
    "outcome": "Routed",
    "rule": "api",
    "destinations": [
        {"name": "web", "subset": "v1", "percent": 90},
        {"name": "web", "subset": "v2", "percent": 10},
    ],
    "timeout": "3000ms",
    "retries": 1,
}


def test_what_holds_is_silent() -> None:
    assert said(ROUTE, expectation(HOLDING)) == []


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"outcome": "Denied"}, "spec.expect.outcome: the request is Routed, expected Denied"),
        ({"rule": "rest"}, "spec.expect.rule: rule 'api' takes the request, expected 'rest'"),
        ({"timeout": "5s"}, "spec.expect.timeout: the timeout is 3000 ms, expected 5s"),
        ({"retries": 0}, "spec.expect.retries: it is retried 1 times, expected 0"),
    ],
)
def test_what_does_not_hold_is_said_with_its_line(expect: Json, message: str) -> None:
    assert said(ROUTE, expectation(expect)) == [f"{message} (by 02.yaml:13) [ExpectationFailed]"]


def test_every_destination_counts() -> None:
    only = [{"name": "web", "subset": "v1"}]
    assert said(ROUTE, expectation({"destinations": only})) == [
        "spec.expect.destinations: web.shop:80/v1 gets 90 %, expected 100 % (by 02.yaml:13) [ExpectationFailed]",
        "spec.expect.destinations: web.shop:80/v2 gets 10 %, expected 0 % (by 02.yaml:13) [ExpectationFailed]",
    ]


def test_a_denial_names_the_policy() -> None:
    assert said(ROUTE, CLOSED, expectation({"outcome": "Routed"})) == [
        "spec.expect.outcome: the request is Denied, expected Routed (by 02.yaml:13, 03.yaml:8) [ExpectationFailed]"
    ]


@pytest.mark.parametrize(
    ("url", "outcome"),
    [("http://web/other", "NoRoute"), ("http://far.example/", "PassedThrough"), ("web/api", "Routed")],
)
def test_outcomes(url: str, outcome: str) -> None:
    assert said(ROUTE, expectation({"outcome": outcome}, url=url)) == []


def test_a_workload_that_is_not_there_yet_makes_it_wait() -> None:
    (problem,) = expectations.check(compiled([expectation({"rule": "x"}, caller="nobody")]))
    assert (problem.reason, problem.severity) == ("ExpectationWaiting", Severity.WARNING)


def test_a_commit_that_breaks_its_own_expectations_is_invalid() -> None:
    judged = judge(None, snapshot([*BACKENDS, ROUTE, expectation({"rule": "rest"})]), registry())
    assert [problem.reason for problem in judged.errors] == ["ExpectationFailed"]


def test_what_is_recorded_holds() -> None:
    world: World = compiled([*BACKENDS, ROUTE])
    trace = world.trace("shop/client", Request(authority="web", path="/api/y", query="a=1", headers=(("x-a", "1"),)))
    made = expectations.recorded(trace, "it", "shop")
    assert said(ROUTE, msgspec.json.decode(msgspec.json.encode(made))) == []
