"""Envoy's text in, rows out."""

from backstay.config.wire import PeerRow, Row
from backstay.sidecar.engines.envoy.names import Slots, route_name
from backstay.sidecar.engines.envoy.stats import (
    BUCKETS,
    Excuses,
    Kind,
    Sums,
    active,
    parse,
    parse_clusters,
    parse_values,
    peer_rows,
    rows,
)

BOUNDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, "+Inf")
LABELS = 'd="out",r="0|routes/web.shop:80#all",b="web.shop:80/",c="200",f="-",w="via_upstream",a="2",g="-"'
SERVED = Kind("out", "0|routes/web.shop:80#all", "web.shop:80/", "200", "-", "via_upstream", "2", "-")


def text(labels: str, *cumulative: int) -> str:
    lines = [
        f'envoy_backstay_rq_bucket{{{labels},le="{bound:g}"}} {count}'
        if isinstance(bound, float | int)
        else f'envoy_backstay_rq_bucket{{{labels},le="{bound}"}} {count}'
        for bound, count in zip(BOUNDS, cumulative, strict=True)
    ]
    return "# TYPE envoy_backstay_rq histogram\n" + "\n".join(lines) + f"\nenvoy_backstay_rq_count{{{labels}}} 9\n"


def test_a_refusal_that_was_announced_is_excused() -> None:
    denied = Kind("in", "0|inbound:80", "", "403", "-", "rbac_access_denied_matched_policy[none]", "-", "-")
    excuses = Excuses(everything=False, denials=False)
    counted = {denied: latency(3), denied._replace(expected="expected#0"): latency(2)}
    (row,) = rows(counted, slots(), excuses)
    assert (row.total, row.bad, row.excused) == (5, {"denied": 3}, 2)


def slots(digest: str = "d1") -> Slots:
    found = Slots()
    found.take(digest)
    return found


def latency(*counts: int) -> list[int]:
    return [*counts, *[0] * (BUCKETS - len(counts))]


def test_buckets_come_apart() -> None:
    assert parse(text(LABELS, 1, 3, *[3] * 14)) == {SERVED: latency(1, 2)}


def test_quotes_in_labels_are_read() -> None:
    labels = LABELS.replace("via_upstream", r"a \"quoted\" \\ reason")
    (kind,) = parse(text(labels, *[1] * 16))
    assert kind.what == 'a "quoted" \\ reason'


def test_only_what_was_added_is_told() -> None:
    sums = Sums()
    assert sums.grown({SERVED: latency(1)}) == {SERVED: latency(1)}
    assert sums.grown({SERVED: latency(1)}) == {}
    assert sums.grown({SERVED: latency(1, 1)}) == {SERVED: latency(0, 1)}
    sums.forget()
    assert sums.grown({SERVED: latency(1)}) == {SERVED: latency(1)}


def test_a_row_says_everything_of_one_kind() -> None:
    assert rows({SERVED: latency(2, 1)}, slots(), Excuses()) == [
        Row("d1", "out", "routes/web.shop:80#all", "web.shop:80/", 3, {}, 0, 6, latency(2, 1), [1, *[0] * 14])
    ]


def reasons(kind: Kind, excuses: Excuses | None = None) -> tuple[dict[str, int], int]:
    (row,) = rows({kind: latency(1)}, slots(), excuses or Excuses(everything=False, denials=False, unknown_hosts=False))
    return row.bad, row.excused


def test_flags_and_codes_have_our_names() -> None:
    def bad(**changed: str) -> dict[str, int]:
        return reasons(SERVED._replace(**changed))[0]

    assert bad(code="503", flags="UF") == {"connect-failure": 1}
    assert bad(code="504", flags="UT") == {"timeout": 1}
    assert bad(code="503", flags="UH") == {"no-healthy-upstream": 1}
    assert bad(code="500") == {"5xx": 1}
    assert bad(code="404") == {}
    assert bad(code="0", flags="DC") == {}
    assert bad(code="200", grpc="14") == {"5xx": 1}
    assert bad(code="200", grpc="5") == {}


def test_refusals_are_evidence_only_where_stable_would_have_said_yes() -> None:
    denied = SERVED._replace(
        direction="in", route="0|inbound:80", code="403", what="rbac_access_denied_matched_policy[none]"
    )
    assert reasons(denied) == ({"denied": 1}, 0)
    assert reasons(denied, Excuses()) == ({}, 1)
    limited = SERVED._replace(code="429", flags="RL")
    assert reasons(limited) == ({"rate-limited": 1}, 0)
    assert reasons(limited, Excuses(everything=False, routes=frozenset({"routes/web.shop:80"}))) == ({}, 1)
    nowhere = SERVED._replace(route=route_name(0, "#", "unknown-host"), code="502", what="direct_response")
    assert reasons(nowhere) == ({"no-route": 1}, 0)


def test_slots_are_reused_and_connections_count_for_what_is_served() -> None:
    found = slots()
    assert (found.take("d2"), found.peek("d1"), found.digest_of("0"), found.digest_of("-")) == (1, 0, "d1", "d2")
    for number in range(3, 10):
        found.take(f"d{number}")
    assert (found.digest_of("0"), found.current) == ("d9", "d9")


def test_requests_without_a_route_are_none_of_ours() -> None:
    assert rows({SERVED._replace(route="-"): latency(1)}, slots(), Excuses()) == []


CLUSTERS = """{"cluster_statuses": [
 {"name": "web.shop:80/", "host_statuses": [{"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
  "stats": [{"type": "COUNTER", "name": "cx_connect_fail", "value": "1"}, {"name": "cx_total", "value": "3"},
            {"name": "rq_active", "type": "GAUGE"}]}]},
 {"name": "app:80", "host_statuses": [{"address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}, "stats": []}]}]}"""


def test_connections_are_charged_to_the_endpoint() -> None:
    sums = Sums()
    assert sums.connected(parse_clusters(CLUSTERS)) == {"10.0.0.1:80": (3, 1)}
    assert sums.connected(parse_clusters(CLUSTERS)) == {}
    assert peer_rows({"10.0.0.1:80": (3, 1), "10.0.0.9:1": (1, 1)}, {"10.0.0.1:80": "web-0"}, "d1") == [
        PeerRow("web-0", "d1", 3, 1)
    ]


def test_requests_under_way_are_those_of_our_ports() -> None:
    values = parse_values(
        "http.admin.downstream_rq_active: 1\nhttp.outbound.downstream_rq_active: 2\nhttp.inbound-80.downstream_rq_active: 4\n"
    )
    assert (active(values), active(values, "in")) == (6, 4)
