"""Recorded requests through two revisions: counts, lines, and what a log cannot tell."""

from backstay.core.review.replay import Logged, PlaintextCallers, Replay, Result, summary
from support.policy import BACKENDS, Json, compiled, document

CLIENT = "spiffe://backstay.local/ns/shop/sa/client"
BATCH = "spiffe://backstay.local/ns/shop/sa/batch"


def route(to: str, **match: object) -> Json:
    rule = {"backendRefs": [{"name": to, "port": 80}], **({"matches": [match]} if match else {})}
    return document("Route", "web", {"hosts": ["web"], "rules": [rule]})


def allow(*accounts: str) -> Json:
    rules = [{"from": [{"serviceAccounts": [name]}]} for name in accounts]
    return document("Authorization", "web", {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": rules})


def replayed(before: list[Json], after: list[Json], *requests: Logged) -> Result:
    replay = Replay(compiled([*BACKENDS, *before]), compiled([*BACKENDS, *after]))
    replay.feed(requests)
    return replay.finish()


def test_denials_are_counted_with_the_line_that_causes_them() -> None:
    result = replayed(
        [], [allow("client")], *[Logged("GET", "web", "/a", BATCH)] * 3, Logged("GET", "web", "/a", CLIENT)
    )
    (group,) = result.ordered()
    assert summary(result)["denied"] == group.count == 3
    assert group.after == "refused at shop/web-v1: no allow rule matches"
    assert group.after_place == "02.yaml:8"
    assert group.examples == [f"GET web/a from {BATCH}"]
    assert (result.total, result.distinct) == (4, 2)


def test_admissions_are_the_reverse() -> None:
    assert summary(replayed([allow("client")], [], Logged("GET", "web", "/a", BATCH)))["admitted"] == 1


def test_other_changes_are_told_as_reviews_tell_them() -> None:
    (group,) = replayed([route("web")], [route("api")], Logged("GET", "web", "/a?x=1", CLIENT)).ordered()
    assert (group.fate, group.before_place, group.after_place) == ("changed", "02.yaml:13", "02.yaml:13")
    assert group.before.startswith("100 % web.shop:80, timeout 15 s")
    assert group.after.startswith("100 % api.shop:80, timeout 15 s")


def test_plaintext_callers_are_asked_at_the_server() -> None:
    strict = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
    (group,) = replayed([], [strict], Logged("GET", "web.shop:80", "/", "10.0.0.9")).ordered()
    assert group.fate == "denied"
    assert group.after == "refused at shop/web-v1: refused: plaintext at a STRICT port"


def test_what_does_not_change_makes_no_group() -> None:
    result = replayed([route("web")], [route("web")], Logged("GET", "web", "/", CLIENT))
    assert (result.groups, result.total) == ({}, 1)


def test_unknown_callers_are_counted() -> None:
    assert replayed([], [allow()], Logged("GET", "web", "/", "spiffe://backstay.local/ns/x/sa/y")).unknown == 1


def test_rules_that_ask_for_headers_are_said() -> None:
    asks = route("api", headers=[{"name": "x-a", "value": "1"}])
    assert replayed([], [asks], Logged("GET", "web", "/", CLIENT)).asks_headers == 1


def test_plaintext_callers_that_strict_would_refuse_are_named() -> None:
    strict = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
    callers = PlaintextCallers(compiled([]), compiled([strict]))
    callers.feed([Logged("GET", "web", "/", "10.0.0.7")] * 2 + [Logged("GET", "api", "/x", "10.0.0.8")])
    callers.feed([Logged("GET", "web", "/", CLIENT), Logged("GET", "far.example", "/", "10.0.0.9")])
    assert callers.told() == ("10.0.0.7: 2 requests to web", "10.0.0.8: 1 request to api")


def test_policies_that_ask_for_headers_or_tokens_are_said() -> None:
    rules = [{"to": [{"headers": [{"name": "x-a", "value": "1"}]}]}]
    by_header = document("Authorization", "web", {"selector": {"workloads": ["web-v1"]}, "rules": rules})
    assert replayed([], [by_header], Logged("GET", "web", "/", CLIENT)).asks_headers == 1
    providers = [{"issuer": "https://issuer.example", "jwksUri": "https://issuer.example/keys"}]
    tokens = document("Authentication", "web", {"selector": {"workloads": ["web-v1"]}, "jwt": {"providers": providers}})
    found = replayed(
        [], [tokens], Logged("GET", "web", "/", "10.0.0.7", "shop/web-v1:8080"), Logged("GET", "api", "/", CLIENT)
    )
    assert (found.total, found.asks_headers) == (2, 1)


def test_callers_without_a_certificate_come_from_where_the_log_says() -> None:
    rules = [{"from": [{"ipBlocks": ["10.0.0.0/24"]}]}]
    block = document("Authorization", "web", {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": rules})
    asked = [
        Logged("GET", "web", "/", source) for source in ("10.0.0.7", "10.0.0.7:4711", "10.0.1.7", "[2001:db8::1]:80")
    ]
    (group,) = replayed([], [block], *asked).ordered()
    assert (group.fate, group.examples) == ("denied", ["GET web/ from 10.0.1.7", "GET web/ from [2001:db8::1]:80"])
