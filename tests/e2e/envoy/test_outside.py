"""Envoy to and from the outside: TLS that it begins, what a closed mesh lets out, TLS that passes through, spans."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backstay.config.model import GatewayListener, HostRoutes, Tracing, assemble
from backstay.sidecar.engine import Address, settled
from backstay.sidecar.engines.envoy import EnvoyEngine
from e2e.engine.mesh import (
    LOCALHOST,
    application,
    backend,
    config,
    endpoint,
    free_port,
    get,
    listeners,
    read_message,
    replying,
    routes,
    send,
    to,
)
from e2e.engine.test_egress import CALLER, ONLY, Issuer, answering, ask, external, tls_server
from e2e.engine.test_gateway import ask_tls, self_signed, trusting
from support.policy import compiled

from .world import ENVIRONMENT, PATIENCE, proxy

pytestmark = pytest.mark.long


@contextlib.asynccontextmanager
async def caller(*documents: dict[str, Any]) -> AsyncIterator[int]:
    world = compiled(list(documents))
    engine, outbound = EnvoyEngine(ENVIRONMENT), free_port()
    await engine.start(Address(host=LOCALHOST, inbound={}, outbound=outbound))
    try:
        engine.apply(assemble(world.manifest(CALLER), world.compiled.parts), None, 0)
        await settled(engine)
        yield outbound
    finally:
        await engine.drain(0)


async def test_plain_requests_leave_in_tls_with_the_name_checked(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    async with tls_server(issuer.context("pay.example")) as (port, asked):
        tls = {"port": port, "sni": "pay.example", "caCertificates": issuer.pem}
        async with caller(ONLY, external(LOCALHOST, (80, "HTTP"), tls=tls)) as outbound:
            answer = await ask(outbound, LOCALHOST)
        other = tls | {"subjectAltNames": ["billing.example"]}
        async with caller(ONLY, external(LOCALHOST, (80, "HTTP"), tls=other)) as outbound:
            refused = await ask(outbound, LOCALHOST)
    assert (answer.status, answer.body, asked[0]) == (200, LOCALHOST.encode(), "pay.example")
    assert (refused.status, refused.body) == (503, b"connect-failure\n")


async def test_a_closed_mesh_lets_out_what_it_is_told_to() -> None:
    async with application(answering()) as port:
        async with caller(ONLY, external(LOCALHOST, (port, "HTTP"))) as outbound:
            assert (await ask(outbound, f"{LOCALHOST}:{port}")).status == 200
            assert (await ask(outbound, f"{LOCALHOST}:{port + 1}")).status == 502
        async with caller(ONLY, external(LOCALHOST, (port, "TLS"))) as outbound:
            reader, writer = await asyncio.open_connection(LOCALHOST, outbound)
            name = f"{LOCALHOST}:{port}".encode()
            writer.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"GET / HTTP/1.1\r\nHost: inside\r\n\r\n")
            async with asyncio.timeout(PATIENCE):
                assert b"inside" in await reader.readuntil(b"inside")
            writer.close()
            refused = await ask(outbound, "elsewhere.example:443", "CONNECT", "elsewhere.example:443")
            assert (refused.status, refused.body) == (502, b"unknown-host\n")


async def test_tls_passes_through_to_the_service_that_the_name_says(tmp_path: Path) -> None:
    port, inner = free_port(), self_signed(tmp_path, "bank.example.com", "inner")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(inner)
    server = await asyncio.start_server(replying(b"bank"), LOCALHOST, 0, ssl=context)
    entry = GatewayListener(name="shop/edge/tls", port=port, protocol="tls", hosts=("*",))
    bank = HostRoutes(host="bank.example.com", port=port, rules=(to("bank.shop:443"),), gateway=True)
    async with server, proxy() as edge:
        parts = (listeners("edge", gateway=(entry,)), bank, backend("bank.shop", 443, protocol="tcp"))
        edge.engine.endpoints({"bank.shop:443": [endpoint(server.sockets[0].getsockname()[1])]}, full=True)
        edge.engine.apply(config(*parts), None, 0)
        await settled(edge.engine)
        answer, shown = await ask_tls(port, trusting(inner), "bank.example.com", get(host="bank.example.com"))
        assert (answer.body, shown) == (b"bank", "inner")
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await ask_tls(port, trusting(inner), "other.example.com", get())


async def test_spans_reach_a_collector_and_the_trace_goes_on() -> None:
    heads, batches = list[bytes](), asyncio.Queue[bytes]()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_message(reader)
            batches.put_nowait(head + body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    trace = "0af7651916cd43dd8448eb211c80319c"
    async with application(replying(b"ok", seen=heads)) as app, application(collect) as door, proxy() as client:
        tracing = Tracing(endpoint=f"http://{LOCALHOST}:{door}", percent=100)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        client.engine.apply(config(listeners(tracing=tracing), routes(to("web.shop:80")), backend()), None, 0)
        await settled(client.engine)
        asked = get(headers=(f"traceparent: 00-{trace}-b7ad6b7169203331-01",))
        assert (await send(client.outbound, asked)).status == 200
        async with asyncio.timeout(PATIENCE):
            batch = await batches.get()
    assert batch.startswith(b"POST /v1/traces HTTP/1.1\r\n")
    assert bytes.fromhex(trace) in batch
    (line,) = [each for each in heads[0].split(b"\r\n") if each.lower().startswith(b"traceparent:")]
    assert trace.encode() in line
    assert b"b7ad6b7169203331" not in line
