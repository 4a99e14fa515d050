"""Which endpoint gets the next try."""

import random
from collections import Counter
from dataclasses import dataclass

from backstay.sidecar.engines.python.balance import RoundRobin, least_request, untried, weighted


@dataclass(eq=False)
class Member:
    active: int = 0


def test_least_request_takes_the_less_loaded_of_two_distinct_members() -> None:
    busy, free = Member(9), Member(0)
    rng = random.Random(1)
    assert {id(least_request([busy, free], rng.random)) for _ in range(50)} == {id(free)}


def test_least_request_spreads_evenly_over_equal_members() -> None:
    members = [Member() for _ in range(5)]
    rng = random.Random(1)
    counts = Counter(id(least_request(members, rng.random)) for _ in range(5000))
    assert all(800 < count < 1200 for count in counts.values())
    assert len(counts) == 5


def test_round_robin_takes_turns_from_a_random_start() -> None:
    members = [Member() for _ in range(3)]
    choose = RoundRobin(lambda: 0.5)
    taken = [members.index(choose(members)) for _ in range(6)]
    assert taken[:3] == taken[3:]
    assert sorted(taken[:3]) == [0, 1, 2]


def test_members_tried_before_come_last() -> None:
    one, two = Member(), Member()
    assert untried([one, two], [one]) == [two]
    assert untried([one, two], [one, two]) == [one, two]


def test_weights_are_shares_and_zero_takes_nothing() -> None:
    assert [weighted([1, 1, 4], draw) for draw in (0.0, 0.24, 0.25, 0.26, 0.99)] == [0, 0, 2, 2, 2]
    assert weighted([0, 5], 0.0) == 1
    assert weighted([0, 0], 0.5) == -1
