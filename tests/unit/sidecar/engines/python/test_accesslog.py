"""Lines of the access log reach a reader that keeps up, and never hold up anything where there is none."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from backstay.sidecar.engines.python import accesslog
from backstay.sidecar.engines.python.accesslog import AccessLog, record
from backstay.sidecar.engines.python.sink import MAX_BUFFERED, LinesLost, StdoutSink

WITHIN = 10.0


class Whatever(SimpleNamespace):
    """Compared by identity, as what it stands for."""

    __hash__ = object.__hash__  # type: ignore[assignment]


namespace = Whatever
Pipe = tuple[BinaryIO, int]


def refuse(log: AccessLog, count: int = 1) -> None:
    for _ in range(count):
        log.refused("10.0.0.7", 80, "plaintext-refused", "c" * 64)


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """(what reads, descriptor to write to)"""
    reading, writing = os.pipe()
    with contextlib.closing(os.fdopen(reading, "rb")) as reader, contextlib.closing(os.fdopen(writing, "wb")):
        yield reader, writing


def test_a_refused_connection_is_a_line_with_the_callers_address() -> None:
    lines: list[bytes] = []
    log = AccessLog(lines.append)
    log.refused("10.0.0.7", 80, "handshake-refused", "c" * 64, "unknown ca")
    log.flush()
    fields = json.loads(b"".join(lines))
    assert fields.pop("time") == pytest.approx(time.time(), abs=60)
    assert fields == {
        "status": 0, "flags": "DC", "reason": "handshake-refused", "error": "unknown ca", "route": "inbound:80",
        "source": "10.0.0.7", "config": "c" * 12,
    }  # fmt: skip


def test_what_a_sink_does_not_take_stays_for_the_next_time() -> None:
    taken = bytearray()

    def seven_bytes(data: bytes) -> int:
        taken.extend(data[:7])
        return min(7, len(data))

    log = AccessLog(seven_bytes)
    refuse(log, 2)
    while taken.count(b"\n") < 2:
        log.flush()
    assert [json.loads(line)["reason"] for line in taken.splitlines()] == ["plaintext-refused"] * 2


def test_a_reader_that_stalls_holds_nothing_up_and_what_it_misses_is_counted(pipe: Pipe) -> None:
    """The pipe takes 64 KiB; a megabyte more is kept in the batch and in the buffer each, and the rest is dropped."""
    reader, writing = pipe
    sink = StdoutSink(writing)
    log = AccessLog(sink)
    sent = 0
    while not log.dropped:
        refuse(log, 1000)
        sent += 1000
        log.flush()  # would never return if it waited for the reader
    assert sink.is_busy
    dropped = log.dropped
    got = bytearray()

    def read_and_flush() -> bool:
        got.extend(os.read(reader.fileno(), 1 << 20))
        log.flush()
        return got.count(b"\n") == sent - dropped

    until(read_and_flush)
    assert all(json.loads(line)["source"] == "10.0.0.7" for line in got.splitlines())
    assert len(got) > MAX_BUFFERED


def test_lines_for_a_reader_that_went_away_are_counted_once(pipe: Pipe) -> None:
    reader, writing = pipe
    reader.close()
    sink = StdoutSink(writing)
    log = AccessLog(sink)
    refuse(log, 3)
    log.flush()
    until(lambda: not sink.is_busy)
    refuse(log)
    log.flush()
    assert log.dropped == 3
    log.flush()  # the fourth line is tried on its own
    until(lambda: not sink.is_busy)
    with pytest.raises(LinesLost) as caught:
        sink(b"x\n")
    assert caught.value.lines == 1


async def test_the_end_waits_for_the_last_lines(pipe: Pipe) -> None:
    reader, writing = pipe
    log = AccessLog(StdoutSink(writing))
    refuse(log)
    await log.finish()
    assert json.loads(os.read(reader.fileno(), 4096))["reason"] == "plaintext-refused"


# --- lines of requests ---------------------------------------------------------------------------------------------


class Call(SimpleNamespace):
    """What the log reads of an exchange."""

    def __init__(self, **changed: Any) -> None:
        pool = namespace(key=namespace(address="10.0.0.9", port=8080))
        usual = {
            "downstream": namespace(identity="spiffe://mesh/ns/shop/sa/web", address="10.0.0.7"),
            "head": namespace(authority=b"web.shop", path=b"/cart/7"),
            "lane": namespace(counters=namespace(route="routes/web#all", backend="web.shop:80/")),
            "runtime": namespace(digest="c" * 64), "pool": None, "tried": [pool], "fields": [(b"accept", b"*/*")],
            "method": b"GET", "status": 200, "reason": "", "policy": "", "audited": (), "trace": None,
            "size": 0, "response_bytes": 1024, "tries": 1,
        }  # fmt: skip
        super().__init__(**usual | changed)


def line_of(call: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The line as it is written, and what is said of the request field by field, both without the moment."""
    lines: list[bytes] = []
    log = AccessLog(lines.append)
    log.exchange(call, 0.0123456)
    log.flush()
    written, meant = json.loads(b"".join(lines)), record(call, 0.0123456, 0.0)
    assert written.pop("time") == pytest.approx(time.time(), abs=60)
    del meant["time"]
    return written, json.loads(json.dumps(meant))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tried": []},
        {"lane": None, "runtime": None, "tried": [], "status": 404},
        {"method": b"POST", "size": 70_000, "status": 503, "tries": 3},
        {"fields": [(b"TraceParent", b"00-%b-%b-01" % (b"a" * 32, b"b" * 16))]},
        {"fields": [(b"traceparent", b'not one "at all"')]},
        {"trace": namespace(trace=b"a" * 32, span=b"b" * 16)},
        {"head": namespace(authority=b"web.shop", path=b'/say/"hello"')},
        {"head": namespace(authority=b"web.shop", path=b"/caf\xe9")},
        {"downstream": namespace(identity="", address="fe80::1%eth0")},
        {"reason": "denied", "policy": "shop/web#0", "status": 403},
        {"audited": ("shop/watch#1",)},
        {"head": None, "fields": []},
    ],
    ids=str,
)
def test_a_line_says_of_every_request_what_there_is_to_say(changed: dict[str, Any]) -> None:
    written, meant = line_of(Call(**changed))
    assert written == meant


def test_what_ends_many_lines_is_made_once_for_each_caller_and_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "MOST_ENDINGS", 2)
    lines: list[bytes] = []
    log = AccessLog(lines.append)
    calls = [Call(downstream=namespace(identity=f"spiffe://mesh/ns/shop/sa/{name}", address="")) for name in "abcba"]
    for call in calls:
        log.exchange(call, 0.001)  # type: ignore[arg-type]
    log.flush()
    assert [json.loads(line)["source"][-1] for line in b"".join(lines).splitlines()] == list("abcba")
