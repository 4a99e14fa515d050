"""Samples of live traffic: kept within a bound, put through two worlds, and who would be refused by STRICT."""

from backstay.config.wire import PlaintextRow, Sample
from backstay.core.review.report import Replayed, ReplayedKind
from backstay.core.review.traffic import (
    HOURS_KEPT,
    MINUTES_KEPT,
    MOST_A_MINUTE,
    MOST_CALLERS,
    PlaintextCaller,
    Seen,
    Traffic,
    TrafficBook,
    refused_plaintext,
    replayed,
)
from support.policy import BACKENDS, Json, compiled, document

BEGAN = 1_000_000_000.0
STRICT = document("Authentication", "all", {"mtls": {"mode": "STRICT"}})
ALLOW = document(
    "Authorization",
    "web",
    {"selector": {"workloads": ["web-v1", "web-v2"]}, "rules": [{"from": [{"serviceAccounts": ["client"]}]}]},
)


def sample(target: str = "/a", *, caller: str = "", port: int = 0, status: int = 200, weight: int = 1) -> Sample:
    return Sample("GET", "web", target, caller, port, status, weight)


def book() -> TrafficBook:
    return TrafficBook(BEGAN)


def live(*requests: Seen, plaintext: tuple[PlaintextCaller, ...] = ()) -> Traffic:
    return Traffic(
        since=BEGAN,
        until=BEGAN + 1800,
        requests=requests,
        plaintext_since=BEGAN,
        plaintext=plaintext,
    )


def caller(workload: str = "shop/web-v1", *, accepted: int = 2, name: str = "", port: int = 8080) -> PlaintextCaller:
    return PlaintextCaller(
        workload=workload, port=port, address="10.0.0.7", name=name, accepted=accepted, refused=0, last_seen=BEGAN
    )


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_equal_samples_are_added_up_over_the_hour() -> None:
    kept = book()
    kept.sampled("shop/client", [sample(weight=3), sample(status=503)], BEGAN)
    kept.sampled("shop/client", [sample(weight=4)], BEGAN + 120)
    told = kept.told(["shop/client"], BEGAN + 130)
    assert told.requests == (
        Seen("GET", "web", "/a", "shop/client", "", 200, 7),
        Seen("GET", "web", "/a", "shop/client", "", 503, 1),
    )
    assert (told.since, told.until) == (BEGAN, BEGAN + 130)


def test_who_asked_is_told_by_whose_proxy_it_is() -> None:
    kept = book()
    kept.sampled("shop/web-v1", [sample(), sample(caller="10.0.0.7", port=8080)], BEGAN)
    assert [(item.source, item.entry) for item in kept.told(["shop/web-v1"], BEGAN).requests] == [
        ("shop/web-v1", ""),
        ("10.0.0.7", "shop/web-v1:8080"),
    ]


def test_only_the_asked_workloads_are_told() -> None:
    kept = book()
    kept.sampled("shop/client", [sample()], BEGAN)
    kept.sampled("other/client", [sample()], BEGAN)
    kept.plaintext("other/client", [(PlaintextRow(80, "10.0.0.7", 1, 0), "")], BEGAN)
    told = kept.told(["shop/client"], BEGAN)
    assert [item.source for item in told.requests] == ["shop/client"]
    assert told.plaintext == ()


def test_samples_are_forgotten_after_an_hour() -> None:
    kept = book()
    kept.sampled("shop/client", [sample("/old")], BEGAN)
    later = BEGAN + 60 * MINUTES_KEPT
    kept.sampled("shop/client", [sample("/new")], later)
    told = kept.told(["shop/client"], later)
    assert [item.target for item in told.requests] == ["/new"]
    assert told.since == BEGAN


def test_a_full_minute_keeps_an_even_choice_of_all_it_saw() -> None:
    kept = book()
    for number in range(20 * MOST_A_MINUTE):
        kept.sampled("shop/client", [sample(f"/{number}")], BEGAN)
    numbers = [int(item.target[1:]) for item in kept.told(["shop/client"], BEGAN).requests]
    assert MOST_A_MINUTE / 4 < len(numbers) <= MOST_A_MINUTE
    # Early and late ones alike: with an even choice each half has about half.
    early = sum(number < 10 * MOST_A_MINUTE for number in numbers)
    assert 0.4 < early / len(numbers) < 0.6


def test_plaintext_callers_are_counted_for_a_day() -> None:
    kept = book()
    kept.plaintext("shop/web-v1", [(PlaintextRow(8080, "10.0.0.7", 2, 0), "shop/old")], BEGAN)
    kept.plaintext("shop/web-v1", [(PlaintextRow(8080, "10.0.0.7", 1, 3), "")], BEGAN + 3600)
    told = kept.told(["shop/web-v1"], BEGAN + 3600)
    assert told.plaintext == (
        PlaintextCaller(
            workload="shop/web-v1",
            port=8080,
            address="10.0.0.7",
            name="shop/old",
            accepted=3,
            refused=3,
            last_seen=BEGAN + 3600,
        ),
    )
    assert kept.told(["shop/web-v1"], BEGAN + 3600 * (HOURS_KEPT + 1)).plaintext == ()


def test_callers_beyond_the_bound_are_counted_not_named() -> None:
    kept = book()
    rows = [(PlaintextRow(8080, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1, 0), "") for n in range(MOST_CALLERS + 5)]
    kept.plaintext("shop/web-v1", rows, BEGAN)
    told = kept.told(["shop/web-v1"], BEGAN)
    assert (len(told.plaintext), told.plaintext_unnamed) == (MOST_CALLERS, 5)


# --- asking -----------------------------------------------------------------------------------------------------------


def through(before: list[Json], after: list[Json], traffic: Traffic) -> Replayed:
    return replayed(traffic, compiled([*BACKENDS, *before]), compiled([*BACKENDS, *after]))


def test_samples_count_as_what_they_stand_for() -> None:
    found = through(
        [],
        [ALLOW],
        live(
            Seen("GET", "web", "/a", "shop/batch", "", 200, 40),
            Seen("GET", "web", "/a", "shop/client", "", 200, 2),
            Seen("GET", "web", "/a", "shop/gone", "", 200, 1),
        ),
    )
    assert found == Replayed(
        span="30m00s",
        requests=43,
        distinct=3,
        denied=40,
        admitted=0,
        changed=0,
        unknown=1,
        rules_ask_for_headers=0,
        kinds=(
            ReplayedKind(
                fate="denied",
                count=40,
                before=found.kinds[0].before,
                after="refused at shop/web-v1: no allow rule matches",
                before_place="",
                after_place="02.yaml:8",
                examples=("GET web/a from shop/batch",),
            ),
        ),
    )


def test_callers_without_a_certificate_are_asked_where_they_came_in() -> None:
    only_first = document(
        "Authentication", "first", {"selector": {"workloads": ["web-v1"]}, "mtls": {"mode": "STRICT"}}
    )
    asked = [Seen("GET", "10.9.9.9", "/a", "10.0.0.7", f"shop/web-v{n}:8080", 200, n) for n in (1, 2)]
    found = through([], [only_first], live(*asked))
    assert (found.requests, found.denied, found.changed, found.unknown) == (3, 1, 0, 0)


def test_strict_names_the_callers_it_would_refuse() -> None:
    traffic = live(
        plaintext=(
            caller(),
            caller("shop/web-v2", accepted=9, name="shop/old"),
            caller("shop/api-v1", accepted=0),
        )
    )
    assert refused_plaintext(traffic, compiled([]), compiled([STRICT])) == (
        "shop/old (10.0.0.7): 9 connections to shop/web-v2 port 8080",
        "10.0.0.7: 2 connections to shop/web-v1 port 8080",
        "10.0.0.7: an open connection to shop/api-v1 port 8080",
    )


def test_strict_says_when_nobody_was_seen() -> None:
    assert refused_plaintext(live(), compiled([]), compiled([STRICT])) == ("nobody was seen in the last 30m00s",)


def test_a_mode_that_stays_is_not_spoken_of() -> None:
    assert refused_plaintext(live(plaintext=(caller(),)), compiled([STRICT]), compiled([STRICT])) == ()
    assert refused_plaintext(live(plaintext=(caller(),)), compiled([STRICT]), compiled([])) == ()
