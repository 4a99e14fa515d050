"""Key sets over real HTTP: what is believed of an address that stands in git."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from backstay.adapters.keysets import HttpKeySets
from backstay.core.ports import KeysUnavailable

GOOD = '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}'


@contextlib.asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[str]:
    """A server that says this to everybody; nothing at all for empty bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if not raw:
                await reader.read()
            writer.write(raw)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


def answer(body: str, *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n{body}".encode()


async def test_a_key_set_is_fetched() -> None:
    async with answering(answer(GOOD)) as address:
        assert await HttpKeySets().fetch(address) == GOOD


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (answer("", status="302 Found", more="Location: http://127.0.0.1:1/\r\n"), "answered 302, expected 200"),
        (answer(GOOD, status="500 Oops"), "answered 500, expected 200"),
        (answer("<html>"), "has no usable key set: it is no JSON"),
        (answer('{"keys": []}'), "has no key that could verify anything"),
        (answer("x" * 1_100_000), "more than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff", "can't decode byte"),
        (b"rubbish\r\n\r\n", "Bad status line"),
    ],
    ids=["redirect", "500", "html", "empty", "huge", "bytes", "rubbish"],
)
async def test_anything_else_is_not(raw: bytes, why: str) -> None:
    async with answering(raw) as address:
        with pytest.raises(KeysUnavailable) as error:
            await HttpKeySets().fetch(address)
    assert str(error.value).startswith(address)
    assert why in str(error.value)


async def test_who_does_not_answer_is_not_waited_for() -> None:
    async with answering(b"") as address:
        with pytest.raises(KeysUnavailable, match=r"did not answer within 0\.2 s"):
            await HttpKeySets(seconds=0.2).fetch(address)
