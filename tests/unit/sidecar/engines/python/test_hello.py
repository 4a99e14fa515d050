"""The server name of a ClientHello, from hellos that OpenSSL makes and from bytes that nobody made."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backstay.sidecar.engines.python.hello import server_name


def hello(name: str | None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def test_the_name_is_found_in_lower_case() -> None:
    assert server_name(hello("shop.example.com")) == b"shop.example.com"
    assert server_name(hello("Shop.EXAMPLE.com")) == b"shop.example.com"
    assert server_name(hello(None)) == b""


def records(message: bytes, size: int) -> bytes:
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 3, 4, 60, 200])
def test_a_hello_in_several_records_is_one(size: int) -> None:
    whole = records(hello("shop.example.com")[5:], size)
    assert server_name(whole) == b"shop.example.com"
    assert {server_name(whole[:end]) for end in range(1, len(whole))} == {None}


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x00\x00", records(b"\x01\xff\xff\xff" + bytes(100), 50), records(b"\x02" + bytes(9), 1)]
)
def test_hellos_that_never_end_or_are_others_are_given_up_at_once(data: bytes) -> None:
    assert server_name(data) == b""


def test_every_beginning_wants_more_and_what_follows_does_not_matter() -> None:
    whole = hello("shop.example.com")
    assert [server_name(whole[:size]) for size in range(1, len(whole))] == [None] * (len(whole) - 1)
    assert server_name(whole + b"more") == b"shop.example.com"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x02\x01\x00\x05hello", b"\x16\x03\x01\xff\xff", b"\x15"]
)
def test_what_is_no_hello_has_no_name(data: bytes) -> None:
    assert server_name(data) == b""


@given(st.binary(max_size=400))
def test_no_bytes_confuse_it(data: bytes) -> None:
    record = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + data
    assert server_name(record) is not None or data.startswith(b"\x01")
    said = b"\x16\x03\x01" + (len(data) + 4).to_bytes(2, "big") + b"\x01\x00\x01\x90" + data
    assert (server_name(said) is None) == (len(data) < 0x190)
