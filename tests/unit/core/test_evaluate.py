"""The whole way of one request, with the lines that decide it. (tests/e2e/engine/test_evaluator.py compares with sidecars.)"""

from fractions import Fraction

import pytest

from backstay.core.evaluate import Request, Trace, UnknownWorkload, forwarded_as, request_to
from backstay.core.evaluate import asked as asked_for
from support.policy import BACKENDS, Json, compiled, document

SPLIT = {
    "name": "api",
    "matches": [{"path": {"value": "/api"}}],
    "backendRefs": [
        {"name": "web", "port": 80, "subset": "v1", "weight": 3},
        {"name": "web", "port": 80, "subset": "v2", "weight": 1},
        {"name": "api", "port": 80, "weight": 0},
    ],
    "timeouts": {"request": "3s"},
}


def route(*rules: Json) -> Json:
    return document("Route", "web", {"hosts": ["web"], "rules": list(rules)})


def trace(*documents: Json, url: str = "http://web/api/x", method: str = "GET") -> Trace:
    return compiled([*BACKENDS, *documents]).trace("shop/client", request_to(method, url))


def test_shares_are_exact_and_name_who_answers() -> None:
    found = trace(route(SPLIT))
    assert (found.sent.kind, found.sent.place) == ("route", "02.yaml:13")
    assert [(item.name, item.share) for item in found.sent.destinations] == [
        ("web.shop:80/v1", Fraction(3, 4)),
        ("web.shop:80/v2", Fraction(1, 4)),
    ]
    assert [(item.reach.workload, item.reach.instances, item.secure) for item in found.answerers] == [
        ("shop/web-v1", ("web-v1-0",), True),
        ("shop/web-v2", ("web-v2-0",), True),
    ]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://web/other", "no-route"),
        ("http://WEB.shop.svc.cluster.local:80/api", "route"),
        ("http://far.example/", "pass-through"),
        ("http://web/api/%zz", "bad-request"),
        ("http://web/other/../api", "route"),
    ],
)
def test_hosts_and_targets_are_read_as_proxies_read_them(url: str, kind: str) -> None:
    assert trace(route(SPLIT), url=url).sent.kind == kind


def test_a_denial_names_the_policies_that_let_others_in() -> None:
    only = document("Authorization", "web", {"rules": [{"from": [{"serviceAccounts": ["batch"]}]}]})
    found = trace(only)
    assert found.is_denied
    assert {item.received.place for item in found.answerers if item.received} == {"02.yaml:8"}


def test_a_deny_rule_is_named() -> None:
    deny = document("Authorization", "web", {"action": "Deny", "rules": [{"to": [{"paths": ["/api/*"]}]}]})
    found = [item.received for item in trace(deny).answerers if item.received]
    assert {(item.policy, item.rule, item.place) for item in found} == {("shop/web", 0, "02.yaml:11")}


def test_plaintext_to_a_strict_server_is_refused_there() -> None:
    strict = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
    plain = document("Backend", "web", {"service": "web", "tls": {"mode": "DISABLE"}})
    found = compiled([strict, plain]).trace("shop/client", request_to("GET", "http://web/"))
    assert {(item.secure, item.received.reason) for item in found.answerers if item.received} == {
        (False, "plaintext-refused")
    }


def test_servers_judge_what_is_forwarded() -> None:
    rewrite = {
        "type": "URLRewrite",
        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2"}},
    }
    deny = document("Authorization", "web", {"action": "Deny", "rules": [{"to": [{"paths": ["/v2/x"]}]}]})
    found = trace(route({**SPLIT, "filters": [rewrite]}), deny)
    question = asked_for(found.request)
    assert question is not None
    forwarded = forwarded_as(found.sent, question)
    assert forwarded is not None
    assert forwarded.path == b"/v2/x"
    assert found.is_denied


def test_a_workload_nobody_knows() -> None:
    with pytest.raises(UnknownWorkload):
        compiled([]).trace("shop/nobody", Request(authority="web"))


@pytest.mark.parametrize("url", ["https://web/", "http:///x", "ftp://web", "http://u:p@web/"])
def test_urls_that_no_proxy_sees_into_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        request_to("GET", url)
