"""Runs requests.yaml against the Python engine on real sockets, whole and byte by byte."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from backstay.config.model import (
    Backend,
    Config,
    HostRoutes,
    Listeners,
    Manifest,
    Rule,
    WeightedBackend,
    digest_of,
    encode_part,
)
from backstay.config.wire import Endpoint
from backstay.sidecar.engine import Address
from backstay.sidecar.engines.python import PythonEngine

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "requests.yaml").read_text())
PARTS = (
    Listeners(namespace="shop", identity="spiffe://test.mesh/ns/shop/sa/client", trust_domain="test.mesh"),
    HostRoutes(host="web.shop", port=80, rules=(Rule(name="all", backends=(WeightedBackend(backend="web.shop:80"),)),)),
    Backend(service="web.shop", port=80),
)
SILENCE = 2.0  # seconds after which a proxy that said nothing has failed the case


def raw(text: str) -> bytes:
    return text.encode("latin-1")


def merged(message: bytes) -> bytes:
    """A complete chunked message with its chunks made one; anything else as it is."""
    head, _, rest = message.partition(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" not in head or not rest.endswith(b"0\r\n\r\n"):
        return message
    body = b""
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return head + b"\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + rest


async def relay(data: bytes, pieces: list[bytes], sent: bytes) -> tuple[int, bytes]:
    """(status, what the application saw) of one connection; the answer is given once `sent` arrived."""
    seen = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            seen.extend(piece)
            if merged(bytes(seen)) == sent:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    app = await asyncio.start_server(record, "127.0.0.1", 0)
    engine = PythonEngine(log=len)
    probe = await asyncio.start_server(record, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    await engine.start(Address(host="127.0.0.1", inbound={}, outbound=port))
    digests = {part.key: digest_of(encode_part(part)) for part in PARTS}
    manifest = Manifest(workload="shop/client", parts=digests)
    engine.apply(Config(manifest=manifest, parts={part.key: part for part in PARTS}), None, 0)
    endpoint = Endpoint(id="app", address="127.0.0.1", port=app.sockets[0].getsockname()[1])
    engine.endpoints({"web.shop:80": [endpoint]}, full=True)
    try:
        return await _ask(port, pieces), bytes(seen)
    finally:
        await engine.drain(0)
        app.close()


async def _ask(port: int, pieces: list[bytes]) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0)
        async with asyncio.timeout(SILENCE):
            head = await reader.readline()
    writer.close()
    return int(head.split(b" ")[1]) if head else 0


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_whole_and_byte_by_byte_agree_with_the_case(case: dict[str, Any]) -> None:
    data = raw(case["send"])
    expected = case["upstream"]
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        status, seen = await relay(data, pieces, raw(expected or ""))
        assert status == case["status"]
        if expected is None:
            assert seen == b""
        elif expected == "any":  # the head may have gone before its body broke; the body must never be complete
            assert not seen.endswith(b"0\r\n\r\n")
        else:
            assert merged(seen) == raw(expected)


SIZES = {
    "target of 9 KiB": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: web\r\n\r\n", 414),
    "200 fields": (b"GET / HTTP/1.1\r\nHost: web\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    "head of 70 KiB": (b"GET / HTTP/1.1\r\nHost: web\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
    "chunk extension of 300 KiB": (
        b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * 300_000 + b"\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    "trailers of 300 KiB": (
        b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 50_000 + b"\r\n", 400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
async def test_what_is_too_large_is_refused(name: str) -> None:
    data, expected = SIZES[name]
    pieces = [data[at : at + 16_000] for at in range(0, len(data), 16_000)]
    status, seen = await relay(data, pieces, os.urandom(8))
    assert (status, seen.endswith(b"0\r\n\r\n")) == (expected, False)
