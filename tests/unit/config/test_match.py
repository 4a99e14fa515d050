"""Which rule takes which request."""

import pytest

from backstay.config.match import HostTable, RouteTable
from backstay.config.model import HostRoutes, Match, PathMatch, Rule, ValueMatch


def table(*matches: tuple[Match, ...]) -> RouteTable:
    rules = tuple(Rule(name=f"r{index}", matches=alternatives) for index, alternatives in enumerate(matches))
    return RouteTable(HostRoutes(host="web.shop", port=80, rules=rules))


def header(kind: str, value: str = "", name: str = "x-user") -> Match:
    return Match(headers=(ValueMatch(name=name, kind=kind, value=value),))  # type: ignore[arg-type]


def path(kind: str, value: str) -> Match:
    return Match(path=PathMatch(kind=kind, value=value))  # type: ignore[arg-type]


def pick(routes: RouteTable, target: bytes = b"/", *fields: tuple[bytes, bytes], method: bytes = b"GET") -> int | None:
    location, _, query = target.partition(b"?")
    return routes.pick(method, location, query, fields)


def test_a_rule_without_matches_takes_everything_and_rules_after_it_get_nothing() -> None:
    assert pick(table((), (path("exact", "/a"),)), b"/a") == 0


def test_rules_are_tried_in_list_order_and_alternatives_of_one_rule_are_equal() -> None:
    routes = table((path("exact", "/a"), path("exact", "/b")), (path("prefix", "/"),))
    assert [pick(routes, target) for target in (b"/a", b"/b", b"/c")] == [0, 0, 1]


@pytest.mark.parametrize(
    ("prefix", "target", "taken"),
    [
        ("/v1", b"/v1", True),
        ("/v1", b"/v1/", True),
        ("/v1", b"/v1/x", True),
        ("/v1", b"/v1beta", False),
        ("/v1/", b"/v1", True),
        ("/v1/", b"/v1/x", True),
        ("/", b"/anything", True),
        ("/v1", b"/", False),
        ("/v1", b"/V1", False),
    ],
)
def test_a_prefix_is_compared_per_path_element(prefix: str, target: bytes, taken: bool) -> None:
    assert pick(table((path("prefix", prefix),)), target) == (0 if taken else None)


def test_all_fields_of_a_match_must_hold() -> None:
    both = Match(method="POST", path=PathMatch(kind="exact", value="/a"))
    assert pick(table((both,)), b"/a", method=b"POST") == 0
    assert pick(table((both,)), b"/a", method=b"GET") is None
    assert pick(table((both,)), b"/b", method=b"POST") is None


@pytest.mark.parametrize(
    ("match", "fields", "taken"),
    [
        (header("exact", "ann"), [(b"X-User", b"ann")], True),
        (header("exact", "ann"), [(b"x-user", b" ann \t")], True),
        (header("exact", "ann"), [(b"x-user", b"ann"), (b"x-user", b"bob")], False),
        (header("exact", "ann,bob"), [(b"x-user", b"ann"), (b"X-USER", b"bob")], True),
        (header("prefix", "an"), [(b"x-user", b"ann")], True),
        (header("present"), [(b"x-user", b"")], True),
        (header("present"), [], False),
        (header("absent"), [], True),
        (header("absent"), [(b"x-user", b"")], False),
    ],
)
def test_headers_are_matched_by_all_their_values(match: Match, fields: list[tuple[bytes, bytes]], taken: bool) -> None:
    assert pick(table((match,)), b"/", *fields) == (0 if taken else None)


def test_query_parameters_are_matched_as_sent_and_the_first_of_a_name_counts() -> None:
    routes = table((Match(query=(ValueMatch(name="v", kind="exact", value="2"),)),))
    targets = (b"/?v=2", b"/?a=1&v=2", b"/?v=1&v=2", b"/?V=2", b"/", b"/?v=%32")
    assert [pick(routes, target) for target in targets] == [0, 0, None, None, None, None]


HOSTS = HostTable(
    "shop",
    [
        HostRoutes(host="web.shop", port=80, rules=()),
        HostRoutes(host="web.shop", port=5000, rules=()),
        HostRoutes(host="pay.bank", port=80, rules=()),
        HostRoutes(host="api.example.com", port=443, rules=()),
    ],
)


@pytest.mark.parametrize(
    ("authority", "found"),
    [
        (b"web", "routes/web.shop:80"),
        (b"web:80", "routes/web.shop:80"),
        (b"web:5000", "routes/web.shop:5000"),
        (b"web.shop:5000", "routes/web.shop:5000"),
        (b"WEB.shop.svc", "routes/web.shop:80"),
        (b"web.shop.svc.cluster.local.:5000", "routes/web.shop:5000"),
        (b"pay", None),
        (b"pay.bank", "routes/pay.bank:80"),
        (b"pay.bank.svc:81", None),
        (b"api.example.com", None),
        (b"api.example.com:443", "routes/api.example.com:443"),
        (b"api.example.com.svc:443", None),
        (b"", None),
    ],
)
def test_an_authority_finds_its_routes_by_every_spelling_of_the_name(authority: bytes, found: str | None) -> None:
    routes = HOSTS.find(authority)
    assert (routes.routes.key if routes is not None else None) == found


def test_a_name_of_the_users_own_wins_over_a_short_spelling_of_another() -> None:
    hosts = HostTable(
        "shop", [HostRoutes(host="web.shop", port=80, rules=()), HostRoutes(host="web", port=80, rules=())]
    )
    found = hosts.find(b"web")
    assert found is not None
    assert found.routes.host == "web"


def test_routes_that_did_not_change_keep_their_table() -> None:
    kept, changed = HostRoutes(host="web.shop", port=80, rules=()), HostRoutes(host="api.shop", port=80, rules=())
    before = HostTable("shop", [kept, changed])
    other = HostRoutes(host="api.shop", port=80, rules=(Rule(name="r"),))
    after = HostTable("shop", [other, HostRoutes(host="web.shop", port=80, rules=())], [before])
    assert [table.routes for table in after.tables] == [other, kept]
    assert after.of_key(kept.key) is before.of_key(kept.key)
    assert after.find(b"web") is before.find(b"web")
    assert after.find(b"api") is not before.find(b"api")


def test_short_spellings_are_those_of_the_namespace_that_asks() -> None:
    routes = HostRoutes(host="web.shop", port=80, rules=())
    elsewhere = HostTable("bank", [routes], [HostTable("shop", [routes])])
    assert (elsewhere.find(b"web"), elsewhere.find(b"web.shop") is not None) == (None, True)
