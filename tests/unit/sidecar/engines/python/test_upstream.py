"""Bodies that were announced whole go by the parser: however they arrive, what is read is what was sent."""

from types import SimpleNamespace
from typing import Any

import pytest

from backstay.sidecar.engines.python.pool import Pool, PoolKey
from backstay.sidecar.engines.python.upstream import MIN_UNPARSED, Upstream

LENGTH = MIN_UNPARSED + 1000
BODY = bytes(number % 251 for number in range(LENGTH))
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LENGTH + BODY
SMALL = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"


class Asking:
    """An exchange that reads what comes, and expects the body as a real one does when it has seen the head."""

    def __init__(self) -> None:
        self.got = b""
        self.told = False

    def response_progress(self, upstream: Upstream) -> None:
        if upstream.status and not self.told:
            self.told = True
            upstream.expect(LENGTH)
        self.got += b"".join(upstream.take_body())


def connection() -> Upstream:
    pool = Pool(PoolKey("", "10.0.0.9", 80, ""))
    nothing: Any = SimpleNamespace()
    return Upstream(nothing, pool, nothing)


def ask(upstream: Upstream, pieces: list[bytes]) -> Asking:
    asking: Any = Asking()
    upstream.begin(asking, head_only=False)
    for piece in pieces:
        upstream.data_received(piece)
    return asking  # type: ignore[no-any-return]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [41, 1000, 16 * 1024, LENGTH, len(LARGE)])
def test_a_large_body_arrives_as_it_was_sent(size: int) -> None:
    upstream = connection()
    asking = ask(upstream, cut(LARGE, size))
    assert (asking.got == BODY, upstream.complete, upstream.surplus, upstream.broken) == (True, True, False, False)


@pytest.mark.parametrize("size", [1000, len(LARGE)])
def test_the_next_response_on_the_connection_is_read_as_any(size: int) -> None:
    upstream = connection()
    ask(upstream, cut(LARGE, size))
    upstream.exchange = None
    asking = ask(upstream, [SMALL])
    assert (asking.got, upstream.status, upstream.complete, upstream.surplus) == (b"ok", 201, True, False)


def test_what_follows_the_body_reaches_nobody_and_ends_the_connections_use() -> None:
    upstream = connection()
    asking = ask(upstream, [LARGE[:1000], LARGE[1000:] + SMALL])
    assert (asking.got == BODY, upstream.complete, upstream.surplus) == (True, True, True)


def test_a_body_that_is_cut_short_is_not_complete() -> None:
    upstream = connection()
    asking = ask(upstream, [LARGE[:1000], LARGE[1000:-1]])
    assert (asking.got == BODY[:-1], upstream.complete) == (True, False)


def test_small_bodies_are_left_to_the_parser() -> None:
    upstream = connection()
    asking: Any = Asking()
    asking.told = True
    upstream.begin(asking, head_only=False)
    upstream.data_received(SMALL[:-1])
    upstream.expect(2)
    assert upstream.left == 0
