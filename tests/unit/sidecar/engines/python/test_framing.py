"""Which parsed messages may go on, and with which bytes."""

import pytest

from backstay.sidecar.engines.python.framing import (
    CHUNKED,
    NO_BODY,
    UNTIL_CLOSE,
    Fields,
    Refusal,
    ResponseHead,
    check_connect,
    is_authority,
    read_request,
    read_response,
    response_length,
    split_authority,
    upgrade_head,
)

OK = b"HTTP/1.1 200 OK\r\n"


def request_block(*fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/") -> bytes | Refusal:
    head = read_request(method, target, "1.1", [(b"Host", b"web"), *fields])
    return head if isinstance(head, Refusal) else head.block


def test_a_request_goes_on_as_it_came() -> None:
    assert request_block((b"A", b"1"), (b"b", b"2")) == b"GET / HTTP/1.1\r\nHost: web\r\nA: 1\r\nb: 2\r\n\r\n"


def test_a_fixed_authority_decides_but_the_host_field_stays() -> None:
    head = read_request(b"GET", b"/", "1.1", [(b"Host", b"localhost")], b"web.shop:80")
    assert not isinstance(head, Refusal)
    assert (head.authority, head.block) == (b"web.shop:80", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_what_matchers_see_is_what_goes_on() -> None:
    head = read_request(
        b"GET", b"/a?b=c", "1.1", [(b"Host", b"web"), (b"X-Backstay-A", b"1"), (b"C", b"2"), (b"TE", b"x")]
    )
    assert not isinstance(head, Refusal)
    assert (head.path, head.query, head.fields) == (b"/a", b"b=c", [(b"C", b"2")])


@pytest.mark.parametrize(
    "value", [b"web", b"web:80", b"web.shop.", b"10.0.0.1:8080", b"[::1]", b"[2001:db8::1]:443", b"a_b"]
)
def test_authorities(value: bytes) -> None:
    assert is_authority(value)


@pytest.mark.parametrize(
    "value",
    [b"", b":80", b"a b", b"a@b", b"a/b", b"a,b", b"a:", b"a:0", b"a:65536", b"a:b", b"[::1", b"a%20b", b"\xff"],
)
def test_what_is_no_authority(value: bytes) -> None:
    assert not is_authority(value)


def test_an_authority_is_split_with_the_default_port() -> None:
    found = [split_authority(value) for value in (b"web", b"web:81", b"[::1]", b"[::1]:81")]
    assert found == [("web", 80), ("web", 81), ("::1", 80), ("::1", 81)]


@pytest.mark.parametrize(
    ("status", "method", "length", "encoding", "expected"),
    [
        (200, b"GET", [b"5"], [], 5),
        (200, b"GET", [], [b"chunked"], CHUNKED),
        (200, b"GET", [], [], UNTIL_CLOSE),
        (200, b"HEAD", [b"5"], [], NO_BODY),
        (204, b"GET", [], [], NO_BODY),
        (304, b"GET", [b"5"], [], NO_BODY),
        (200, b"GET", [b"5", b"5"], [], None),
        (200, b"GET", [b"5"], [b"chunked"], None),
        (200, b"GET", [b"x"], [], None),
        (200, b"GET", [], [b"gzip"], None),
        (200, b"GET", [], [b"chunked", b"chunked"], None),
    ],
)
def test_the_length_of_a_response(
    status: int, method: bytes, length: list[bytes], encoding: list[bytes], expected: int | None
) -> None:
    assert response_length(status, method, length, encoding) == expected


def response(status: int, *fields: tuple[bytes, bytes], method: bytes = b"GET", http11: bool = True) -> bytes:
    head = read_response(status, OK, list(fields), method, True, http11)
    assert isinstance(head, ResponseHead)
    return head.block


def test_a_response_is_framed_anew() -> None:
    assert response(200, (b"Content-Length", b"005")) == OK + b"Content-Length: 5\r\n"
    assert (
        response(200, (b"Transfer-Encoding", b"Chunked"), (b"A", b"b"))
        == OK + b"A: b\r\nTransfer-Encoding: chunked\r\n"
    )
    assert response(200) == OK + b"Transfer-Encoding: chunked\r\n"
    assert response(200, http11=False) == OK
    assert response(204, (b"Content-Length", b"0")) == OK
    assert response(304, (b"Content-Length", b"7")) == OK + b"Content-Length: 7\r\n"
    assert response(200, (b"Content-Length", b"7"), method=b"HEAD") == OK + b"Content-Length: 7\r\n"


def test_hop_by_hop_fields_of_a_response_end_here() -> None:
    fields = ((b"Connection", b"X-A"), (b"X-A", b"1"), (b"Keep-Alive", b"2"), (b"Content-Length", b"0"))
    assert response(200, *fields) == OK + b"Content-Length: 0\r\n"


def test_only_a_response_with_a_clear_end_leaves_a_reusable_connection() -> None:
    def reusable(keep_alive: bool, *fields: tuple[bytes, bytes]) -> bool:
        head = read_response(200, OK, list(fields), b"GET", keep_alive, True)
        return isinstance(head, ResponseHead) and head.reusable

    assert reusable(True, (b"Content-Length", b"1"))
    assert not reusable(False, (b"Content-Length", b"1"))
    assert not reusable(True)


def test_the_head_of_an_upgrade() -> None:
    fields = [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Sec-WebSocket-Accept", b"x")]
    assert upgrade_head(b"HTTP/1.1 101 Switching Protocols\r\n", fields) == (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("version", "fields", "reason"),
    [
        ("1.1", [(b"Host", b"web:80"), (b"Proxy-Connection", b"keep-alive"), (b"Content-Length", b"0")], ""),
        ("1.0", [], ""),
        ("1.1", [], "bad-host"),
        ("1.1", [(b"Host", b"web"), (b"Host", b"web")], "bad-host"),
        ("1.1", [(b"Host", b"")], "bad-host"),
        ("1.0", [(b"Host", b"a b")], "bad-host"),
        ("1.1", [(b"Host", b"web"), (b"Content-Length", b"1")], "bad-framing"),
        ("1.1", [(b"Host", b"web"), (b"Content-Length", b"0"), (b"Content-Length", b"0")], "bad-framing"),
        ("1.1", [(b"Host", b"web"), (b"Transfer-Encoding", b"chunked")], "bad-framing"),
        ("1.2", [(b"Host", b"web")], "bad-version"),
        ("1.1", [(b"Host", b"web"), *[(b"A", b"b")] * 100], "many-fields"),
    ],
)
def test_a_connect_is_judged_by_its_framing_and_host(version: str, fields: Fields, reason: str) -> None:
    refusal = check_connect(b"web:80", version, fields)
    assert (refusal.reason if refusal is not None else "") == reason
