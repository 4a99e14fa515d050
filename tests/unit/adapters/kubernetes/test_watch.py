"""What lists and events do to what is kept. Lists and watches themselves: tests/e2e/kubernetes, against an API server."""

from typing import Any, Literal

import pytest

from backstay.adapters.kubernetes.client import Change
from backstay.adapters.kubernetes.watch import FIRST_PAUSE, LONGEST_PAUSE, Kept, key_of, pause


def read(found: Any) -> int | None:
    """The object's `n`; negative is none of our business."""
    number = int(found["n"])
    return number if number >= 0 else None


def change(kind: Literal["ADDED", "MODIFIED", "DELETED"], name: str, number: int | str = 0) -> Change:
    return Change(kind=kind, object={"metadata": {"namespace": "shop", "name": name}, "n": number})


def kept(**items: int) -> Kept[int]:
    found = Kept(read, weigh=lambda number: number)
    found.replace({f"shop/{name}": number for name, number in items.items()})
    return found


def test_an_event_counts_only_if_a_fact_changed() -> None:
    found = kept(a=1)
    assert found.apply(change("MODIFIED", "a", 1)) is False
    assert found.apply(change("MODIFIED", "a", 2)) is True
    assert found.apply(change("ADDED", "b", 5)) is True
    assert found.apply(change("DELETED", "b", 5)) is True
    assert found.apply(change("DELETED", "b", 5)) is False
    assert found.items == {"shop/a": 2}


def test_an_object_that_is_no_longer_our_business_goes() -> None:
    found = kept(a=1)
    assert found.apply(change("MODIFIED", "a", -1)) is True
    assert found.items == {}


def test_an_object_that_cannot_be_read_is_counted_and_left_out() -> None:
    found = kept(a=1)
    assert found.apply(change("ADDED", "b", "rubbish")) is False
    assert (found.items, found.unreadable) == ({"shop/a": 1}, 1)


def test_a_list_replaces_everything_at_once() -> None:
    found = kept(a=1, b=2)
    assert found.replace({"shop/b": 2, "shop/a": 1}) is False
    assert found.replace({"shop/b": 2}) is True
    assert found.items == {"shop/b": 2}


@pytest.mark.parametrize(
    ("before", "after", "is_first", "doubted"),
    [
        (0, 0, True, True),
        (0, 1, True, False),
        (10, 0, False, True),
        (10, 5, False, True),
        (10, 6, False, False),
        (3, 0, False, False),
    ],
)
def test_a_list_that_is_empty_or_halved_is_doubted(before: int, after: int, is_first: bool, doubted: bool) -> None:
    found = kept(**({"a": before} if before else {}))
    assert found.doubts({"shop/a": after} if after else {}, is_first=is_first) is doubted


def test_pauses_grow_to_a_limit_and_are_spread() -> None:
    assert [pause(failures, 1.0) for failures in (1, 2, 3, 4, 5, 6, 99)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert (pause(1, 0.0), pause(99, 0.0)) == (FIRST_PAUSE / 2, LONGEST_PAUSE / 2)


def test_keys_are_names_within_namespaces() -> None:
    assert key_of({"metadata": {"name": "n", "namespace": "shop"}}) == "shop/n"
    assert key_of({"metadata": {"name": "node-1"}}) == "node-1"
