"""Whose connections count against which limit, and which endpoints get how much."""

import random
from collections import Counter, deque
from typing import Any

import pytest

from backstay.config.model import Backend, Outlier, Subset
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.pool import Group, Pool, PoolKey, Pools

V1, V2 = (("version", "v1"),), (("version", "v2"),)
BACKEND = Backend(
    service="web.shop", port=80, max_connections=2, subsets=(Subset(name="v1", labels=V1), Subset(name="v2", labels=V2))
)


def pools() -> Pools:
    made = Pools(lambda: 0.0)
    made.update(
        {
            "web.shop:80": [
                Endpoint(id=name, address="10.0.0.1", port=port, labels={"version": name})
                for name, port in (("v1", 1), ("v2", 2))
            ]
        },
        full=True,
    )
    return made


class Waiter:
    def __init__(self, name: str, woken: list[str]) -> None:
        self.name = name
        self.woken = woken

    def connection_available(self) -> None:
        self.woken.append(self.name)


def test_connections_of_all_subsets_count_against_one_limit() -> None:
    made = pools()
    whole, v1, v2 = (made.group(BACKEND, labels) for labels in ((), V1, V2))
    v1.count(v1.members[0], 1)
    assert [group.is_full for group in (whole, v1, v2)] == [False, False, False]
    v2.count(v2.members[0], 1)
    assert [group.is_full for group in (whole, v1, v2)] == [True, True, True]
    v1.count(v1.members[0], -1)
    assert [group.is_full for group in (whole, v1, v2)] == [False, False, False]


def test_two_services_have_two_limits() -> None:
    made = pools()
    web, api = made.group(BACKEND, ()), made.group(Backend(service="api.shop", port=80, max_connections=2), ())
    web.count(web.members[0], 2)
    assert (web.is_full, api.is_full) == (True, False)


def test_who_was_woken_for_nothing_keeps_its_place() -> None:
    woken: list[str] = []
    quota = pools().group(BACKEND, ()).quota

    class Unlucky(Waiter):
        def connection_available(self) -> None:
            super().connection_available()
            if woken.count(self.name) == 1:
                quota.wait(self)

    for waiter in (Unlucky("first", woken), Waiter("second", woken)):
        quota.wait(waiter)
    for _ in range(4):
        quota.wake()
    assert woken == ["first", "first", "second"]
    assert quota.pending == deque()


def test_groups_that_nobody_wants_are_forgotten_with_their_limit_unless_connections_are_open() -> None:
    made = pools()
    v1 = made.group(BACKEND, V1)
    v1.count(v1.members[0], 2)
    made.keep(lambda group: False)
    assert made.group(BACKEND, V2).is_full  # those two connections still belong to the service
    v1.count(v1.members[0], -2)
    made.keep(lambda group: False)
    assert made.group(BACKEND, V2).quota is not v1.quota


def test_an_equal_backend_makes_the_same_group() -> None:
    made = pools()
    first: Group = made.group(BACKEND, V1)
    assert made.group(Backend(service="web.shop", port=80, max_connections=2), V1) is first
    assert made.group(Backend(service="web.shop", port=80, max_connections=3), V1) is not first


def zoned(near: int, far: int, *, out: int, **fields: Any) -> Group:
    """A group whose own zone has lost `out` of its `near` endpoints."""
    draw = random.Random(7).random
    group = Group(Backend(service="web.shop", port=80, same_zone_first=True, **fields), (), draw, None, lambda: 0.0)
    rule = Outlier(consecutive_5xx=1, base_ms=60_000)
    pools = [
        Pool(PoolKey(f"{where}-{n}", "10.0.0.1", n, ""))
        for where, count in (("near", near), ("far", far))
        for n in range(count)
    ]
    for pool in pools:
        pool.is_near = pool.key.id.startswith("near")
    for pool in pools[:out]:
        pool.health.eject(rule, 0.0)
    group.everyone = tuple(pools)
    group.settle(0.0)
    return group


@pytest.mark.parametrize(
    ("near", "far", "out", "part"),
    [(7, 3, 0, 1.0), (7, 3, 2, 1.0), (10, 5, 5, 0.7), (10, 5, 9, 0.14), (10, 0, 9, 1.0), (3, 3, 3, 0.0)],
)
def test_the_own_zone_keeps_what_its_endpoints_that_are_well_can_take(
    near: int, far: int, out: int, part: float
) -> None:
    for fields in ({"balance": "random"}, {"balance": "ring_hash"}):
        group, seen = zoned(near, far, out=out, **fields), Counter[str]()
        for number in range(5000):
            chosen = group.choose() if fields["balance"] == "random" else group.choose_for(number * 7919)
            assert chosen is not None
            seen[chosen.key.id.partition("-")[0]] += 1
        assert seen["near"] / 5000 == pytest.approx(part, abs=0.03), fields
