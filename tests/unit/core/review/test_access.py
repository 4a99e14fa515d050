"""Access gained and lost: complete and true for any caller, and silent where nothing changes."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstay.core.evaluate import ANONYMOUS, World, asked
from backstay.core.review.access import access_classes
from support.policy import ISSUER, PORT, changed, compiled, document, jwt, repositories, requests

DOMAIN = "spiffe://backstay.local"
SOURCES = (
    ANONYMOUS,
    f"{DOMAIN}/ns/shop/sa/client",
    f"{DOMAIN}/ns/shop/sa/batch",
    f"{DOMAIN}/ns/shop/sa/cleaner",
    f"{DOMAIN}/ns/other/sa/client",
    f"{DOMAIN}/ns/elsewhere/sa/x",
    "spiffe://foreign/ns/shop/sa/client",
)
SERVERS = ("shop/web-v1", "shop/web-v2", "shop/api-v1")
BOUNDED = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(world: World, server: str, source: str, request: Any) -> str:
    question = asked(request)
    assert question is not None
    received = world.takes(server, PORT, source, question)
    return "allowed" if received.allowed else received.reason


def reads_tokens(world: World, server: str) -> bool:
    return world.listeners(server).jwt is not None


@BOUNDED
@given(st.data())
def test_no_access_changes_unsaid(data: st.DataObject) -> None:
    first = data.draw(repositories())
    before, after = compiled(first), compiled(data.draw(changed(first)))
    classes = access_classes(before, after)
    for _ in range(12):
        request, server, source = data.draw(
            st.tuples(requests(tokens=True), st.sampled_from(SERVERS), st.sampled_from(SOURCES))
        )
        old, new = (outcome(world, server, source, request) for world in (before, after))
        question = asked(request)
        assert question is not None
        if question.claims is not None and reads_tokens(before, server) != reads_tokens(after, server):
            continue  # said, but not proven
        proven = [found for found in classes if found.boxes]
        holding = [found.direction for found in proven if found.holds(server, PORT, source, question)]
        wanted = (
            []
            if old == new
            else ["gains" if new == "allowed" else "loses" if old == "allowed" else "refused otherwise"]
        )
        assert holding == wanted, (str(request), request.headers, server, source)


@BOUNDED
@given(st.data())
def test_every_class_is_about_requests_that_really_change(data: st.DataObject) -> None:
    first = data.draw(repositories())
    before, after = compiled(first), compiled(data.draw(changed(first)))
    for found in access_classes(before, after):
        samples = list(found.samples())
        assert len(samples) == len(found.boxes)
        for server in found.servers:
            for port in found.ports:
                for source, question in samples:
                    assert found.holds(server, port, source, question)
                    old, new = (world.takes(server, port, source, question) for world in (before, after))
                    assert (old.allowed, old.reason) != (new.allowed, new.reason)


# --- in words ---------------------------------------------------------------------------------------------------------


def allow(*rules: dict[str, Any], action: str = "Allow") -> dict[str, Any]:
    return document(
        "Authorization", "web", {"selector": {"workloads": ["web-v1"]}, "action": action, "rules": list(rules)}
    )


def told(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(item.direction, item.words()) for item in access_classes(compiled(before), compiled(after))]


CLIENT = {"from": [{"serviceAccounts": ["client"]}]}


def test_a_new_rule_says_who_gains_what() -> None:
    rule = {"from": [{"serviceAccounts": ["batch"]}], "to": [{"methods": ["POST"], "paths": ["/a/*"]}]}
    assert told([allow(CLIENT)], [allow(CLIENT, rule)]) == [("gains", ["shop/batch: POST starting with /a/"])]


def test_the_first_allow_policy_says_who_loses() -> None:
    (found,) = access_classes(compiled([]), compiled([allow(CLIENT)]))
    assert found.direction == "loses"
    assert found.words() == ["plaintext callers, shop/api, shop/batch, shop/web, others of backstay.local: any request"]


def test_strict_refuses_plaintext() -> None:
    strict = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
    assert {item for _, words in told([], [strict]) for item in words} == {"plaintext callers: any request"}


def test_a_denial_that_becomes_a_closed_connection_is_neither_gain_nor_loss() -> None:
    strict = document("Authentication", "all", {"selector": {"workloads": ["web-v1"]}, "mtls": {"mode": "STRICT"}})
    assert told([allow()], [allow(), strict]) == [("refused otherwise", ["plaintext callers: any request"])]


@pytest.mark.parametrize(
    "after",
    [
        [allow({"from": [{"serviceAccounts": ["client"]}], "to": [{"methods": ["GET"]}, {"methods": ["POST"]}]})],
        [
            allow(
                {"from": [{"serviceAccounts": ["client"]}], "to": [{"methods": ["POST"]}]},
                {"from": [{"principals": [f"{DOMAIN}/ns/shop/sa/client"]}], "to": [{"methods": ["GET"]}]},
            )
        ],
    ],
    ids=["operations", "rules"],
)
def test_a_rule_written_otherwise_changes_nothing(after: list[dict[str, Any]]) -> None:
    rule = {"from": [{"serviceAccounts": ["client"]}], "to": [{"methods": ["GET", "POST"]}]}
    assert told([allow(rule)], after) == []


def test_audit_changes_no_access() -> None:
    assert told([], [allow(CLIENT, action="Audit")]) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {"from": [{"ipBlocks": ["10.0.0.0/8"]}]},
            {"from": [{"ipBlocks": ["10.0.0.0/8", "192.0.2.7"]}]},
            ("gains", ["everybody: from 192.0.2.7"]),
        ),
        (
            {"from": [{"remoteIpBlocks": ["10.0.0.0/8"]}]},
            {"from": [{"remoteIpBlocks": ["10.0.0.0/8"], "notRemoteIpBlocks": ["10.1.0.0/16"]}]},
            ("loses", ["everybody: begun at 10.1.0.0/16"]),
        ),
        (
            {"to": [{"hosts": ["a.example"]}]},
            {"to": [{"hosts": ["a.example", "*.b.example"]}]},
            ("gains", ["everybody: for host *.b.example"]),
        ),
        (
            {"to": [{"notMethods": ["POST", "PUT"]}]},
            {"to": [{"notMethods": ["POST"]}]},
            ("gains", ["everybody: PUT"]),
        ),
        (
            {"from": [{"requestPrincipals": [f"{ISSUER}/ann"]}]},
            {"from": [{"requestPrincipals": [f"{ISSUER}/*"]}]},
            ("gains", [f"everybody: with a token of {ISSUER}/* and without a token of {ISSUER}/ann"]),
        ),
        (
            {"from": [{"claims": [{"name": "group", "values": ["admin"]}]}]},
            {"from": [{"claims": [{"name": "group", "values": ["admin"]}]}, {"claims": [{"name": "scope"}]}]},
            ("gains", ["everybody: without claim group: admin with claim scope"]),
        ),
    ],
)
def test_what_is_around_a_request_is_said(before: Any, after: Any, said: tuple[str, list[str]]) -> None:
    tokens = document("Authentication", "tokens", jwt())
    assert told([allow(before), tokens], [allow(after), tokens]) == [said]


def test_every_sample_with_a_token_is_judged_as_its_class_says() -> None:
    claims = [{"name": "group", "values": ["admin", "ops"], "notValues": ["banned"]}, {"name": "realm.level"}]
    rules = {"from": [{"claims": claims[:1]}, {"claims": claims, "requestPrincipals": ["*/ann"]}]}
    tokens = document("Authentication", "tokens", jwt())
    before, after = compiled([allow(rules), tokens]), compiled([allow({"from": [{"claims": claims[1:]}]}), tokens])
    found = access_classes(before, after)
    assert {item.direction for item in found} == {"gains", "loses"}
    for item in found:
        for source, question in item.samples():
            old, new = (world.takes("shop/web-v1", PORT, source, question).allowed for world in (before, after))
            assert (old, new) == ((False, True) if item.direction == "gains" else (True, False))


def test_a_path_that_must_bring_a_token_is_said() -> None:
    before, after = (document("Authentication", "a", jwt(required=paths)) for paths in ([], ["/a/*"]))
    assert told([before], [after]) == [("loses", ["everybody: starting with /a/ without a token"])]


def test_tokens_that_nobody_has_read_before_are_not_proven() -> None:
    found = access_classes(compiled([]), compiled([document("Authentication", "a", jwt())]))
    assert {item.doubt for item in found} == {"jwt of its listeners changed; who gets in by that is not computed"}
