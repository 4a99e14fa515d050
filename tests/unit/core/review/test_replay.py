"""Recorded requests through two revisions: counts, lines, and what a log cannot tell."""

from backstay.core.review.replay import Logged, PlaintextCallers, Replay, Result, summary
from support.policy import (
    BACKENDS,
    GATEWAY,
    PLAIN,
    SECURE,
    Json,
    compiled,
    document,
    gateway_listener,
    with_gateway,
)

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


# --- samples of a gateway ---------------------------------------------------------------------------------------------

OPEN = gateway_listener("open", PLAIN, "HTTP", ["a.example"])
TLS = gateway_listener("secure", SECURE, "HTTPS", ["a.example"])


def gateway(*listeners: Json) -> list[Json]:
    rule = {"backendRefs": [{"name": "web", "port": 80}]}
    routed = document("Route", "a", {"hosts": ["a.example"], "parentRefs": [{"name": "public"}], "rules": [rule]})
    return [document("Gateway", "public", {"listeners": list(listeners)}), routed]


def gate(**spec: object) -> Json:
    return document("Authorization", "gate", {"selector": {"workloads": [GATEWAY]}, **spec})


def entered(before: list[Json], after: list[Json], host: str = "a.example:8081") -> list[tuple[str, str, str]]:
    """What becomes of one request from outside at the plain port."""
    known = with_gateway()
    replay = Replay(compiled([*BACKENDS, *before], known), compiled([*BACKENDS, *after], known))
    replay.feed([Logged("GET", host, "/a", "203.0.113.9", f"shop/{GATEWAY}:{PLAIN}")])
    result = replay.finish()
    assert (result.total, result.unknown) == (1, 0)
    return [(group.fate, group.before.partition(",")[0], group.after) for group in result.ordered()]


SENT = "100 % web.shop:80"


def test_a_redirect_of_a_listener_takes_samples_elsewhere() -> None:
    after = gateway(OPEN | {"redirectToHttps": True}, TLS)
    assert entered(gateway(OPEN, TLS), after) == [("changed", SENT, "redirect status 301, scheme https, port 8443")]


def test_a_port_that_closes_denies_its_samples() -> None:
    assert entered(gateway(OPEN, TLS), gateway(TLS)) == [("denied", SENT, "nothing listens there")]


def test_a_host_that_a_listener_no_longer_serves_denies_its_samples() -> None:
    other = OPEN | {"hosts": ["b.example"]}
    assert entered(gateway(OPEN), gateway(other)) == [("denied", SENT, "no rule takes it: 404")]


def test_policies_of_the_gateway_deny_samples() -> None:
    closed = gate(action="Deny", rules=[{"from": [{"remoteIpBlocks": ["203.0.113.0/24"]}]}])
    assert entered(gateway(OPEN), [*gateway(OPEN), closed]) == [
        ("denied", SENT, f"refused at shop/{GATEWAY}: shop/gate rule 0")
    ]


def test_who_came_in_by_plaintext_is_denied_where_the_port_speaks_tls() -> None:
    secure = gateway_listener("open", PLAIN, "HTTPS", ["a.example"])
    assert entered(gateway(OPEN), gateway(secure)) == [
        ("denied", SENT, "the port speaks TLS with certificate shop/open-cert, 1.2 or newer")
    ]


def test_servers_behind_a_gateway_see_its_identity() -> None:
    mine = document("Authorization", "web", {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": [
        {"from": [{"serviceAccounts": [GATEWAY]}]}
    ]})  # fmt: skip
    nobody = document("Authorization", "web", {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": []})
    assert entered(gateway(OPEN), [*gateway(OPEN), mine]) == []
    assert entered(gateway(OPEN), [*gateway(OPEN), nobody]) == [
        ("denied", SENT, "refused at shop/web-v1: no allow rule matches")
    ]
