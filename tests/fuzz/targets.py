"""What is fuzzed: functions of bytes that must never crash, and whose invariants are asserted. Used by Hypothesis in every
test run, and by `make fuzz` for as long as one likes.

requests  Any bytes of a client reach the application as requests that a strict reader takes, the same ones however the
          bytes were split, or are refused; every one of them is answered once.
answers   Any bytes of an application reach the client as one answer to its one request, framed without doubt, the same
          however they were split; or as a refusal, or cut so that it cannot look complete.
config    Any bytes given as a config are served or refused with a reason.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from backstay.config.standalone import ConfigFile
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.python.runtime import Runtime

from .wires import Malformed, Request, bench, read_answer, read_head, split

ASKED: Final = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
"""By the client in `answers`."""
BAD_GATEWAY: Final = 502
FIRST_ERROR: Final = 400
_loop: Final = asyncio.new_event_loop()


def requests(data: bytes, cuts: Sequence[int] = ()) -> None:
    found = [_requests(pieces) for pieces in splits(data, cuts)]
    for other in found[1:]:
        assert is_alike(found[0], other), f"{data!r} is {found[0]} as a whole and {other} in pieces"


def is_alike(whole: tuple[list[Request], list[int]], pieces: tuple[list[Request], list[int]]) -> bool:
    """The same requests and answers up to the first refusal. Which refusal a request gets that is bad twice, and whether the
    connection goes on behind it, depends on how much of its body was there; whoever it goes on for gets what it asks for."""
    (asked, said), (asked_too, said_too) = whole, pieces
    end, end_too = first_refusal(said), first_refusal(said_too)
    most = min(len(asked), len(asked_too))
    is_same_so_far = said[:end] == said_too[:end_too] and asked[:most] == asked_too[:most]
    return is_same_so_far and (end < len(said)) == (end_too < len(said_too)) and (end < len(said) or asked == asked_too)


def first_refusal(statuses: Sequence[int]) -> int:
    """Its index; the number of answers if there is none."""
    return next((at for at, status in enumerate(statuses) if status >= FIRST_ERROR), len(statuses))


def _requests(pieces: Sequence[bytes]) -> tuple[list[Request], list[int]]:
    """(requests that reached the application whole, statuses of the client's answers)."""

    async def run() -> tuple[list[Request], list[int]]:
        with bench() as made:
            made.deliver(pieces)
            asked = [request for _, wire in made.above for request in wire.asked]
            return asked, statuses(bytes(made.below.written), may_be_head=b"HEAD " in b"".join(pieces))

    return _loop.run_until_complete(run())


def statuses(data: bytes, *, may_be_head: bool) -> list[int]:
    """Of all answers. One to HEAD, also if it is the proxy's own refusal, tells of a body that does not follow; the test's
    application sends none anyway."""
    found = []
    while data:
        without = data.startswith(b"HTTP/1.1 200 Connection established")
        status, body, data = read_answer(data, without_body=without)
        if body is None and not may_be_head:
            raise Malformed(f"an answer of {status} without its end")
        found.append(status)
    return found


def splits(data: bytes, cuts: Sequence[int]) -> list[list[bytes]]:
    return [[data], [data[at : at + 1] for at in range(len(data))], split(data, cuts)]


def answers(data: bytes, cuts: Sequence[int] = ()) -> None:
    found = [_answers(pieces) for pieces in splits(data, cuts)]
    for other in found[1:]:
        is_refused = BAD_GATEWAY in (other[0], found[0][0]) and None in (other[1], found[0][1])
        assert other == found[0] or is_refused, f"{data!r} is {found[0]} as a whole and {other} in pieces"


Fields = dict[bytes, list[bytes]]


def _answers(pieces: Sequence[bytes]) -> tuple[int, bytes | None, Fields]:
    """(status, body, fields) that the client gets; the body is None if it was cut off. What was read with the head, and what
    only after it, must not make a difference to the fields either."""

    async def run() -> tuple[int, bytes | None, Fields]:
        with bench() as made:
            made.connect()
            made.client.data_received(ASKED)
            ((upstream, wire),) = made.above
            for piece in pieces:
                if upstream.transport is not None and not wire.closed:
                    upstream.data_received(piece)
            made.hang_up()
            status, body, rest = read_answer(bytes(made.below.written))
            _, fields, _ = read_head(bytes(made.below.written))
            if rest:
                raise Malformed(f"{rest[:200]!r} follows the answer to the only request")
            assert body is not None or made.below.closed, "a body without its end on a connection that stays"
            return status, body, fields

    return _loop.run_until_complete(run())


def config(data: bytes, cuts: Sequence[int] = ()) -> None:
    async def run() -> None:
        with bench() as made:
            try:
                served = msgspec.json.decode(data, type=ConfigFile).served()
                Runtime(served, "fuzzed", made.server)
            except (msgspec.DecodeError, ValueError, ContentRefused):
                return

    _loop.run_until_complete(run())


Target = Callable[[bytes, Sequence[int]], None]
TARGETS: Final[Mapping[str, Target]] = {"requests": requests, "answers": answers, "config": config}
