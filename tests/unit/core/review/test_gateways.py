"""Callers from outside: no change of what a gateway does with them is left out, none is made up."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstay.config.addresses import common_blocks
from backstay.core.evaluate import ANONYMOUS, Asked, Entrance, Received, Request, Sent, World, asked
from backstay.core.review.access import AccessClass, access_classes
from backstay.core.review.gateways import Exposure, exposures, gateway_classes
from backstay.core.review.report import changes
from backstay.core.review.routes import RouteClass, effect, route_classes
from backstay.core.review.words import facets
from backstay.reconciler.reviewing import touched_workloads
from support.policy import (
    BACKENDS,
    GATEWAY,
    PLAIN,
    SECURE,
    Json,
    compiled,
    document,
    gateway_changed,
    gateway_listener,
    gateway_repositories,
    outside_requests,
    with_gateway,
)

EDGE = f"shop/{GATEWAY}"
REGISTRY = with_gateway()
BOUNDED = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def pairs() -> st.SearchStrategy[tuple[World, World]]:
    @st.composite
    def pair(draw: st.DrawFn) -> tuple[World, World]:
        first = draw(gateway_repositories())
        return compiled(first, REGISTRY), compiled(draw(gateway_changed(first)), REGISTRY)

    return pair()


def taken(world: World, port: int, question: Asked) -> Received:
    return world.takes(EDGE, port, ANONYMOUS, question)


def outcome(world: World, port: int, question: Asked) -> tuple[object, ...]:
    """Everything that a caller from outside meets: the connection, the gateway's policies, where a request goes."""
    entrance = world.entrance(EDGE, port, host(question))
    if entrance.protocol == "closed":
        return (effect(entrance),)
    received = taken(world, port, question)
    met = effect(world.enters(EDGE, port, question)) if received.allowed else received.reason
    return (effect(entrance), met)


def host(question: Asked) -> bytes:
    return question.authority.lower().partition(b":")[0].removesuffix(b".")


def question_at(world: World, port: int, request: Request) -> Asked:
    found = asked(request)
    assert found is not None
    return world.at_gateway(EDGE, port, found)


def holding(
    routes: list[RouteClass], access: list[AccessClass], port: int, question: Asked
) -> list[RouteClass | AccessClass]:
    found: list[RouteClass | AccessClass] = [item for item in routes if item.holds(EDGE, question, port)]
    return found + [item for item in access if item.holds(EDGE, port, ANONYMOUS, question)]


@BOUNDED
@given(st.data())
def test_nothing_changes_unsaid_for_callers_from_outside(data: st.DataObject) -> None:
    before, after = data.draw(pairs())
    routes, access = gateway_classes(before, after), access_classes(before, after)
    for _ in range(15):
        port, request = data.draw(st.sampled_from((PLAIN, SECURE))), data.draw(outside_requests())
        question = question_at(after, port, request)
        if before.entries(EDGE, port) and after.entries(EDGE, port) is None:
            question = question_at(before, port, request)
        differs = outcome(before, port, question) != outcome(after, port, question)
        found = holding(routes, access, port, question)
        assert bool(found) == differs, (port, str(request), request.headers, request.address)
        for item in found:
            if isinstance(item, RouteClass) and isinstance(item.before, Sent):
                assert effect(item.before) == effect(before.enters(EDGE, port, question))
                assert effect(item.after) == effect(after.enters(EDGE, port, question))


@BOUNDED
@given(st.data())
def test_every_class_from_outside_holds_a_request_that_really_changes(data: st.DataObject) -> None:
    before, after = data.draw(pairs())
    for found in gateway_classes(before, after):
        assert found.doubt == ""
        samples = list(found.samples())
        assert len(samples) == len(found.boxes)
        assert facets(found.before) != facets(found.after), "a change that cannot be seen is not said"
        for question in samples:
            assert found.holds(EDGE, question, found.port)
            old, new = (outcome(world, found.port, question) for world in (before, after))
            assert old != new
    for item in access_classes(before, after):
        for port in item.ports if EDGE in item.servers else ():
            for source, question in item.samples() if port else ():
                assert source == ANONYMOUS
                assert (taken(before, port, question).allowed, taken(after, port, question).allowed) in (
                    (True, False), (False, True),
                )  # fmt: skip


def reached(world: World, port: int, question: Asked) -> set[str]:
    """Services that a request from outside gets to, whatever their own policies say of it."""
    if world.entries(EDGE, port) is None or not taken(world, port, question).allowed:
        return set()
    sent = world.enters(EDGE, port, question)
    return {item.service for item in sent.destinations}


@BOUNDED
@given(st.data())
def test_whoever_newly_gets_requests_from_outside_is_said(data: st.DataObject) -> None:
    documents = [item for item in data.draw(gateway_repositories()) if item["metadata"]["name"] != "policy-0"]
    other = [item for item in data.draw(gateway_changed(documents)) if item["metadata"]["name"] != "policy-0"]
    before, after = compiled(documents, REGISTRY), compiled(other, REGISTRY)
    told = list(exposures(before, after, gateway_classes(before, after)))
    access = access_classes(before, after)
    for _ in range(15):
        port, request = data.draw(st.sampled_from((PLAIN, SECURE))), data.draw(outside_requests())
        question = question_at(after, port, request)
        opened = any(item.direction == "gains" and item.holds(EDGE, port, ANONYMOUS, question) for item in access)
        for service in reached(after, port, question) - reached(before, port, question):
            assert opened or service in gained(told, port, question), (port, str(request))
    for exposure in told:
        for question in exposure.route.samples():
            sides = (before, after) if exposure.direction == "gains" else (after, before)
            less, more = (reached(world, exposure.route.port, question) for world in sides)
            assert more - less


def gained(told: list[Exposure], port: int, question: Asked) -> set[str]:
    holding = (item for item in told if item.direction == "gains" and item.route.holds(EDGE, question, port))
    return {f"{server.partition('/')[2].partition('-')[0]}.shop:80" for item in holding for server in item.servers}


# --- in words ---------------------------------------------------------------------------------------------------------


def route(name: str, host: str, *rules: Json) -> Json:
    return document("Route", name, {"hosts": [host], "parentRefs": [{"name": "public"}], "rules": list(rules)})


def gateway(*listeners: Json) -> Json:
    return document("Gateway", "public", {"listeners": list(listeners)})


def to(service: str, path: str = "") -> Json:
    found: Json = {"backendRefs": [{"name": service, "port": 80}]}
    return found | ({"matches": [{"path": {"type": "PathPrefix", "value": path}}]} if path else {})


def world(*documents: Json) -> World:
    return compiled([*BACKENDS, *documents], REGISTRY)


OPEN = gateway_listener("open", PLAIN, "HTTP", ["a.example"])


def said(before: World, after: World) -> list[tuple[str, list[str], str, str]]:
    found = gateway_classes(before, after)
    return [(item.host, item.words(), met(item.before), met(item.after)) for item in found]


def met(side: Sent | Entrance) -> str:
    return "; ".join(text for name, text in facets(side).items() if name in ("to", "connection"))


def test_a_new_listener_says_what_it_opens_to_whom() -> None:
    before, after = world(), world(gateway(OPEN), route("a", "a.example", to("web", "/a")))
    assert said(before, after) == [
        ("a.example and any other host at gateway port 8081", [""], "nothing listens there", "plaintext"),
        (
            "a.example at gateway port 8081", ["under /a"], "nothing listens there", "100 % web.shop:80",
        ),
    ]  # fmt: skip
    _, access = changes(before, after)
    assert [(item.direction, item.requests, item.servers, item.before_place, item.after_place) for item in access] == [
        (
            "gains",
            ("callers from outside for a.example at gateway port 8081 of shop/edge: under /a",),
            ("shop/web-v1", "shop/web-v2"),
            "",
            after.enters(EDGE, PLAIN, Asked(b"GET", b"a.example", b"/a", b"", ())).place,
        )
    ]


def test_a_redirect_to_https_is_said_at_the_line_of_its_listener() -> None:
    secure = gateway_listener("secure", SECURE, "HTTPS", ["a.example"])
    routed = route("a", "a.example", to("web"))
    before = world(gateway(OPEN, secure), routed)
    after = world(gateway(OPEN | {"redirectToHttps": True}, secure), routed)
    (found,) = gateway_classes(before, after)
    assert (found.host, found.words()) == ("a.example at gateway port 8081", [""])
    assert [met(found.before), met(found.after)] == [
        "100 % web.shop:80",
        "redirect status 301, scheme https, port 8443",
    ]
    assert found.after.place == after.listener_place(after.listeners(EDGE).gateway[0]) != ""
    _, access = changes(before, after)
    assert [(item.direction, item.servers) for item in access] == [("loses", ("shop/web-v1", "shop/web-v2"))]


def test_certificates_and_versions_are_said_of_connections() -> None:
    one = gateway_listener("secure", SECURE, "HTTPS", ["a.example"])
    other = one | {"tls": {"secretRef": {"name": "else"}, "minVersion": "1.3"}}
    routed = route("a", "a.example", to("web"))
    assert said(world(gateway(one), routed), world(gateway(other), routed)) == [
        (
            "a.example at gateway port 8443",
            [""],
            "TLS with certificate shop/secure-cert, 1.2 or newer",
            "TLS with certificate shop/else, 1.3 or newer",
        )
    ]


def test_hosts_written_otherwise_change_nothing() -> None:
    split = (
        gateway_listener("one", PLAIN, "HTTP", ["a.example"]),
        gateway_listener("two", PLAIN, "HTTP", ["*.b.example"]),
    )
    whole = gateway_listener("all", PLAIN, "HTTP", ["*.b.example", "a.example"])
    routed = route("a", "a.example", to("web")), route("b", "*.b.example", to("api"))
    before, after = world(gateway(*split), *routed), world(gateway(whole), *reversed(routed))
    assert gateway_classes(before, after) == []
    assert changes(before, after) == ((), ())


def test_a_narrower_host_is_said_without_the_rest() -> None:
    wide = gateway_listener("all", PLAIN, "HTTP", ["*"])
    every = route("all", "*", to("web"))
    before = world(gateway(wide), every)
    after = world(gateway(wide), every, route("a", "a.example", to("api")))
    assert said(before, after) == [
        ("a.example at gateway port 8081", [""], "100 % web.shop:80", "100 % api.shop:80"),
    ]


def test_policies_of_a_gateway_are_about_callers_from_outside() -> None:
    closed = document(
        "Authorization",
        "gate",
        {"selector": {"workloads": [GATEWAY]}, "action": "Deny", "rules": [{"to": [{"paths": ["/admin*"]}]}]},
    )
    routed = gateway(OPEN), route("a", "a.example", to("web"))
    found = access_classes(world(*routed), world(*routed, closed))
    assert [(item.direction, item.words()) for item in found if PLAIN in item.ports] == [
        ("loses", ["callers from outside: starting with /admin"])
    ]


def test_lists_of_addresses_meet_where_a_gateway_notes_the_address_itself() -> None:
    assert common_blocks(("10.0.0.0/8", "::/0"), ("10.1.0.0/16", "192.0.2.7")) == ("10.1.0.0/16",)
    blocks = {"ipBlocks": ["10.0.0.0/8"], "remoteIpBlocks": ["10.1.0.0/16"]}
    allowed = document("Authorization", "gate", {"selector": {"workloads": [GATEWAY]}, "rules": [{"from": [blocks]}]})
    routed = gateway(OPEN), route("a", "a.example", to("web"))
    found = access_classes(world(*routed), world(*routed, allowed))
    assert [(item.direction, item.words(), item.doubt) for item in found if PLAIN in item.ports] == [
        ("loses", ["callers from outside: not from 10.1.0.0/16"], "")
    ]


def test_a_route_that_policies_let_nobody_reach_changes_nothing() -> None:
    nobody = document("Authorization", "gate", {"selector": {"workloads": [GATEWAY]}, "action": "Allow", "rules": []})
    before = world(gateway(OPEN), route("a", "a.example", to("web")), nobody)
    after = world(gateway(OPEN), route("a", "a.example", to("api")), nobody)
    assert gateway_classes(before, after) == []


def test_a_server_that_takes_nothing_of_the_gateway_is_not_exposed() -> None:
    private = document(
        "Authorization",
        "private",
        {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": [{"from": [{"serviceAccounts": ["client"]}]}]},
    )
    before, after = world(gateway(OPEN), private), world(gateway(OPEN), private, route("a", "a.example", to("web")))
    requests, access = changes(before, after)
    assert [item.from_outside for item in requests] == [True]
    assert access == ()


def test_a_gateway_beside_other_callers_hides_none_of_their_changes() -> None:
    """The gateway is the first of all workloads by name, and calls nothing itself."""
    inner = document("Route", "web", {"hosts": ["web"], "rules": [to("api")]})
    known = with_gateway()
    found = route_classes(compiled([*BACKENDS], known), compiled([*BACKENDS, inner], known))
    assert [item.callers for item in found] == [tuple(key for key in sorted(known.workloads) if key != EDGE)]


def test_a_gateway_beside_others_takes_no_part_of_theirs_as_touched() -> None:
    known = with_gateway()
    before, after = world(), world(document("Route", "web", {"hosts": ["web"], "rules": [to("api")]}))
    found = {item.workload: item.parts for item in touched_workloads(before, after, known)}
    assert found == {key: ("routes/web.shop:80",) for key in known.workloads if key != EDGE}


def test_entrances_are_no_routes() -> None:
    found: list[Any] = [item.before for item in gateway_classes(world(), world(gateway(OPEN)))]
    assert found == [Entrance(protocol="closed")]
