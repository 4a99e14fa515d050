"""What the operator writes down of proxies, and what of it is news."""

from typing import Final

import pytest

from backstay.config.wire import Hello
from backstay.core.ports import FleetEvent, Joined, TurnedAway
from backstay.core.registry import Instance, Registry
from backstay.reconciler.book import FleetBook

REGISTRY: Final = Registry(instances={"a-0": Instance(id="a-0", workload="shop/a", address="10.0.0.1")})


def hello(protocol: int) -> Hello:
    return Hello(
        proxy="a-0",
        boot="1",
        protocol_min=protocol,
        protocol_max=protocol,
        version="0",
        engine="python",
        capabilities=["split"],
        stable="s",
    )


def turned_away(message: str = "it speaks 9-9") -> TurnedAway:
    return TurnedAway(proxy="a-0", workload="shop/a", hello=hello(9), reason="ProtocolMismatch", message=message)


@pytest.fixture
def book() -> FleetBook:
    return FleetBook()


def told(book: FleetBook, *events: FleetEvent) -> tuple[TurnedAway, ...]:
    return book.fold(list(events), monotonic=1.0, wall=1.0).turned_away


def shown(book: FleetBook) -> tuple[bool, str, str]:
    status = book.statuses(REGISTRY, book.views(REGISTRY, 1.0))["a-0"]
    return status.view.connected, status.view.stable, status.turned_away


def test_a_proxy_that_is_turned_away_again_and_again_is_told_once(book: FleetBook) -> None:
    assert told(book, turned_away(), turned_away()) == (turned_away(),)
    assert told(book, turned_away()) == ()
    assert told(book, turned_away("it speaks 10-10")) == (turned_away("it speaks 10-10"),)


def test_it_is_known_with_what_it_serves_until_it_is_let_in(book: FleetBook) -> None:
    told(book, turned_away())
    assert shown(book) == (False, "s", "ProtocolMismatch: it speaks 9-9")
    told(book, Joined(proxy="a-0", workload="shop/a", hello=hello(1)))
    assert shown(book) == (True, "s", "")
