"""Requests that wait for a connection to one endpoint: whose turn it is, and when one more is opened."""

from typing import cast

from backstay.sidecar.engines.python.pool import COLD_CONNECTS, Pool, PoolKey, Seeker
from backstay.sidecar.engines.python.upstream import Upstream


class Request:
    def __init__(self, method: bytes = b"GET", *, fresh: bool = False) -> None:
        self.method = method
        self.fresh = fresh

    def connected(self, upstream: Upstream) -> None: ...

    def connect_failed(self, error: Exception) -> None: ...


class Kept:
    def __init__(self, *, quiet: bool = True) -> None:
        self.quiet = quiet

    def is_quiet(self) -> bool:
        return self.quiet


def kept(*, quiet: bool = True) -> Upstream:
    return cast(Upstream, Kept(quiet=quiet))


def waiting(*requests: Request) -> Pool:
    pool = Pool(PoolKey("web-1", "10.0.0.1", 80, ""))
    pool.waiting.update(dict.fromkeys(cast(tuple[Seeker, ...], requests), False))
    return pool


def test_one_connection_is_opened_for_each_who_waits_up_to_a_few_at_a_time() -> None:
    pool = waiting(*(Request() for _ in range(10)))
    begun = 0
    while pool.wants_connection:
        pool.attend()
        pool.connecting += 1
        begun += 1
    assert begun == COLD_CONNECTS


def test_nothing_is_opened_for_those_for_whom_it_is_under_way() -> None:
    pool = waiting(Request(), Request())
    pool.connecting = 2
    assert not pool.wants_connection


def test_connections_are_opened_on_account_of_each_in_turn() -> None:
    first, second = Request(), Request()
    pool = waiting(first, second)
    assert [pool.attend(), pool.attend(), pool.attend()] == [first, second, first]


def test_a_new_connection_goes_to_who_waits_longest() -> None:
    first, second = Request(fresh=True), Request()
    pool = waiting(first, second)
    assert [pool.next_for_new(), pool.next_for_new(), pool.next_for_new()] == [first, second, None]


def test_a_kept_connection_goes_past_who_just_met_a_dead_one() -> None:
    fresh, other = Request(fresh=True), Request()
    pool = waiting(fresh, other)
    assert [pool.next_for_kept(kept()), pool.next_for_kept(kept())] == [other, None]
    assert list(pool.waiting) == [fresh]


def test_what_cannot_be_sent_twice_waits_for_a_connection_that_is_quiet() -> None:
    post = Request(b"POST")
    pool = waiting(post)
    assert pool.next_for_kept(kept(quiet=False)) is None
    assert pool.next_for_kept(kept()) is post


def test_dismissing_leaves_nobody() -> None:
    first, second = Request(), Request()
    pool = waiting(first, second)
    assert pool.dismiss() == [first, second]
    assert not pool.waiting
