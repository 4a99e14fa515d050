"""Runs exchanges.yaml: whole conversations with a client on one side and an application of raw bytes on the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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

PATIENCE: Final = 20.0  # seconds, on a machine that is busy with other tests
PLAIN: Final = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
MORE: Final = b"GET /more HTTP/1.1\r\nHost: web\r\n\r\n"
LOCALHOST: Final = "127.0.0.1"
PARTS = (
    Listeners(namespace="shop", identity="spiffe://test.mesh/ns/shop/sa/client", trust_domain="test.mesh"),
    HostRoutes(host="web.shop", port=80, rules=(Rule(name="all", backends=(WeightedBackend(backend="web.shop:80"),)),)),
    Backend(service="web.shop", port=80),
)


def expanded(case: dict[str, Any]) -> dict[str, Any]:
    """The short form of cases about one answer: it is given to one GET."""
    if "answer" not in case:
        return case
    short = {
        "send": "GET /1 HTTP/1.1\r\nHost: web\r\n\r\n",
        "answers": [case["answer"], PLAIN],
        "statuses": [case.get("status", 200)],
        "lines": ["GET /1 HTTP/1.1"],
    }
    return {**short, **case}


CASES: list[dict[str, Any]] = [
    expanded(case) for case in yaml.safe_load((Path(__file__).parent / "exchanges.yaml").read_text(encoding="utf-8"))
]


@dataclass
class Application:
    """Answers the n-th request with the n-th of its answers, in raw bytes."""

    answers: Sequence[str]
    hangs_up: bool = False
    answers_early: bool = False
    lines: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.lines.append(head.partition("\r\n")[0])
                if not self.answers_early:
                    await read_body(reader, head)
                writer.write(self.answers[min(len(self.lines), len(self.answers)) - 1].encode("latin-1"))
                await writer.drain()
                if self.hangs_up:
                    break
        writer.close()


async def read_body(reader: asyncio.StreamReader, head: str) -> bytes:
    """A body by its head, strictly; what is left of one that ends too early is in the exception."""
    fields = [line.partition(": ") for line in head.lower().split("\r\n")[1:]]
    values = {name: value for name, _, value in fields}
    if "transfer-encoding" in values:
        body = b""
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readexactly(2) == b"\r\n", "a trailer came through"
        return body
    return await reader.readexactly(int(values.get("content-length", 0)))


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes, *, whole: bool) -> None:
        for piece in [data] if whole else [data[at : at + 1] for at in range(len(data))]:
            self.writer.write(piece)
            if not whole:
                await asyncio.sleep(0)

    async def answer(self, *, has_body: bool) -> tuple[str, bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        return head, await read_body(self.reader, head) if has_body else b""


@contextlib.asynccontextmanager
async def proxy(application: Application) -> AsyncIterator[Client]:
    app = await asyncio.start_server(application.serve, LOCALHOST, 0)
    probe = await asyncio.start_server(application.serve, LOCALHOST, 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    engine = PythonEngine(log=len)
    await engine.start(Address(host=LOCALHOST, inbound={}, outbound=port))
    digests = {part.key: digest_of(encode_part(part)) for part in PARTS}
    manifest = Manifest(workload="shop/client", parts=digests)
    engine.apply(Config(manifest=manifest, parts={part.key: part for part in PARTS}), None, 0)
    endpoint = Endpoint(id="app", address=LOCALHOST, port=app.sockets[0].getsockname()[1])
    engine.endpoints({"web.shop:80": [endpoint]}, full=True)
    client = Client(*await asyncio.open_connection(LOCALHOST, port))
    try:
        yield client
    finally:
        client.writer.close()
        await engine.drain(0)
        app.close()


def runs() -> Iterator[Any]:
    for case in CASES:
        yield pytest.param(case, True, id=f"{case['name']}, whole")
        if case.get("pieces") != "whole":
            yield pytest.param(case, False, id=f"{case['name']}, byte by byte")


@pytest.mark.parametrize(("case", "whole"), list(runs()))
async def test_the_conversation_goes_as_the_case_says(case: dict[str, Any], whole: bool) -> None:
    application = Application(
        case.get("answers", [PLAIN]), hangs_up=case.get("hangs_up", False), answers_early=case.get("early", False)
    )
    async with asyncio.timeout(PATIENCE), proxy(application) as client:
        await hold(client, application, case, whole=whole)


async def hold(
    client: Client, application: Application, case: dict[str, Any], *, whole: bool, adds_fields: bool = False
) -> None:
    """`adds_fields`: the proxy's answers may have more fields than the application's."""
    await client.send(case["send"].encode("latin-1"), whole=whole)
    heads, bodies = await read_answers(client, case)
    if "bodies" in case:
        assert [body.decode("latin-1") for body in bodies] == case["bodies"]
    if "first_line" in case:
        assert heads[-1].partition("\r\n")[0] == case["first_line"]
    names = {line.partition(":")[0].lower() for line in heads[-1].split("\r\n")[1:]}
    assert names.isdisjoint(case.get("misses", ()))
    assert application.lines == case["lines"]
    await check_the_end(client, case, whole=whole, adds_fields=adds_fields)


async def read_answers(client: Client, case: dict[str, Any]) -> tuple[list[str], list[bytes]]:
    if case.get("cut"):
        return [await read_cut_answer(client)], []
    heads, bodies = [], []
    has_body = case.get("has_body", [case.get("method") != "HEAD"] * len(case["statuses"]))
    for status, with_body in zip(case["statuses"], has_body, strict=True):
        head, body = await client.answer(has_body=with_body and status not in (204, 304))
        assert int(head.split(" ")[1]) == status
        heads.append(head)
        bodies.append(body)
    return heads, bodies


async def read_cut_answer(client: Client) -> str:
    """A refusal of the proxy's own, or an answer that ends, and the connection with it, before its body is complete."""
    head = (await client.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    if head.startswith("HTTP/1.1 502 "):
        await read_body(client.reader, head)
        return head
    assert head.startswith("HTTP/1.1 200 ")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await read_body(client.reader, head)
    return head


async def check_the_end(client: Client, case: dict[str, Any], *, whole: bool, adds_fields: bool) -> None:
    if case.get("once"):
        return  # an application that always hangs up answers nobody twice
    if case.get("cut"):
        return  # the reader has met the end, or a refusal
    if case.get("closes"):
        with contextlib.suppress(ConnectionError):
            assert await client.reader.read() == b""
        return
    await client.send(MORE, whole=whole)
    head, body = await client.answer(has_body=True)
    assert body == b""
    assert head.startswith(PLAIN.partition("\r\n")[0]) if adds_fields else head == PLAIN
