"""A limit of connections holds for a service, over all its subsets."""

from collections import deque

from backstay.config.model import Backend, Subset
from backstay.config.wire import Endpoint
from backstay.sidecar.engines.python.pool import Group, Pools

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
