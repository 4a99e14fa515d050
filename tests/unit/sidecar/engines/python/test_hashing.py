"""Hashes find endpoints evenly, and few of them move."""

from collections import Counter

import pytest

from backstay.config.actions import hash_of
from backstay.sidecar.engines.python.hashing import Maglev, Ring

POINTS = [hash_of(b"%d" % number) for number in range(4000)]


def members(count: int) -> list[tuple[bytes, str]]:
    return [(b"ep-%d" % number, f"ep-{number}") for number in range(count)]


@pytest.mark.parametrize(("kind", "tolerance"), [(Ring, 0.35), (Maglev, 0.12)])
def test_every_endpoint_gets_about_its_share(kind: type[Ring[str]] | type[Maglev[str]], tolerance: float) -> None:
    chosen = Counter(kind(members(8)).choose(point) for point in POINTS)
    assert len(chosen) == 8
    assert all(abs(count / 500 - 1) < tolerance for count in chosen.values()), chosen


@pytest.mark.parametrize("kind", [Ring, Maglev])
def test_few_move_when_one_goes_and_another_try_goes_elsewhere(kind: type[Ring[str]] | type[Maglev[str]]) -> None:
    before, after = kind(members(8)), kind(members(7))
    stayed = [point for point in POINTS if before.choose(point) != "ep-7"]
    moved = sum(before.choose(point) != after.choose(point) for point in stayed)
    assert moved / len(stayed) < 0.12
    point = POINTS[0]
    first = before.choose(point)
    second = before.choose(point, [first])
    assert (second != first, before.choose(point, [first])) == (True, second)
    assert kind(members(1)).choose(point, ["ep-0"]) == "ep-0"
