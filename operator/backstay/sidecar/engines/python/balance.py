"""Which endpoint gets the next try. Pure: loads and randomness are arguments."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    active: int
    """Requests (or tunnels) in flight on this endpoint from this proxy."""


Member = TypeVar("Member", bound=Loaded)
Random = Callable[[], float]


def least_request(members: Sequence[Member], random: Random) -> Member:
    """The less loaded of two distinct members drawn at random (power of two choices, as Envoy)."""
    count = len(members)
    if count == 1:
        return members[0]
    first = int(random() * count)
    second = int(random() * (count - 1))
    if second >= first:
        second += 1
    one, other = members[first], members[second]
    return one if one.active <= other.active else other


class RoundRobin:
    """Members in turn; where it starts is random, so that many proxies do not begin with the same endpoint."""

    __slots__ = ("_next",)

    def __init__(self, random: Random) -> None:
        self._next = int(random() * 1024)

    def __call__(self, members: Sequence[Member]) -> Member:
        self._next += 1
        return members[self._next % len(members)]


def untried(members: Sequence[Member], tried: Sequence[Member]) -> Sequence[Member]:
    """Members not tried yet; all of them if there is no other."""
    left = [member for member in members if member not in tried]
    return left or members


def weighted(cumulative: Sequence[int], draw: float) -> int:
    """Index of the share that `draw` (0 <= draw < 1) falls into; -1 if all weights are 0."""
    point = draw * cumulative[-1]
    for index, edge in enumerate(cumulative):
        if point < edge:
            return index
    return -1
