"""What a running engine tells of requests and of callers without a certificate, for reviews."""

import asyncio
import contextlib
from pathlib import Path

from backstay.config.model import InboundPort
from backstay.config.wire import PlaintextRow, Sample

from .mesh import (
    DOMAIN,
    LOCALHOST,
    Authority,
    Proxy,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    proxy,
    read_message,
    replying,
    routes,
    send,
    spiffe,
    to,
)

WEB = (routes(to("web.shop:80")), backend())


def trust(ca: Authority, running: Proxy, name: str) -> None:
    running.engine.identity(ca.issue(spiffe(name)))
    running.engine.trust({DOMAIN: ca.pem}, [])


def serve(running: Proxy, app: int, mtls: str, protocol: str = "http") -> None:
    port = InboundPort(port=app, mtls=mtls, protocol=protocol)  # type: ignore[arg-type]
    running.engine.apply(config(listeners("web", inbound=(port,)), workload="shop/web"), None, 0)


async def test_the_callers_proxy_tells_of_a_request_and_the_servers_does_not(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    async with application(replying()) as app, proxy(app) as server, proxy() as client:
        for running, name in ((server, "web"), (client, "client")):
            trust(ca, running, name)
            running.engine.sample(5)
        serve(server, app, "strict")
        client.engine.apply(config(listeners(), *WEB), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"))]}, full=True)
        assert (await send(client.outbound, get("/a?token=s3cret&b=1"))).status == 200
        assert (await send(client.outbound, get("/a", host="nowhere.example:1"))).status == 503
        assert client.engine.collect().samples == [
            Sample("GET", "web.shop", "/a?token=&b=", "", 0, 200, 1),
            Sample("GET", "nowhere.example:1", "/a", "", 0, 503, 1),
        ]
        told = server.engine.collect()
        assert (told.samples, told.plaintext) == ([], [])


async def test_callers_without_a_certificate_are_told_with_their_address() -> None:
    async with application(replying()) as app, proxy(app) as server:
        server.engine.sample(5)
        serve(server, app, "permissive")
        assert (await send(server.inbound[app], get("/a"))).status == 200
        told = server.engine.collect()
        assert told.samples == [Sample("GET", "web.shop", "/a", LOCALHOST, app, 200, 1)]
        assert told.plaintext == [PlaintextRow(app, LOCALHOST, 1, 0)]


async def test_refused_callers_without_a_certificate_are_counted_too() -> None:
    async with application(replying()) as app, proxy(app) as server:
        serve(server, app, "strict")
        reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])
        writer.write(get("/a"))
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        writer.close()
        assert server.engine.collect().plaintext == [PlaintextRow(app, LOCALHOST, 0, 1)]


async def test_an_engine_that_is_not_asked_tells_of_no_request() -> None:
    async with application(replying()) as app, proxy(app) as server:
        serve(server, app, "permissive")
        assert (await send(server.inbound[app], get("/a"))).status == 200
        assert server.engine.collect().samples == []


async def test_connections_that_stay_open_are_told_of_again() -> None:
    """One over which requests come, and one whose bytes nobody reads."""
    async with application(replying()) as app, proxy(app) as server:
        for protocol in ("http", "tcp"):
            serve(server, app, "permissive", protocol)
            reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])
            writer.write(get("/a"))
            async with asyncio.timeout(10):
                await read_message(reader)
            assert server.engine.collect().plaintext == [PlaintextRow(app, LOCALHOST, 1, 0)]
            server.engine.server._open_told_at = float("-inf")
            assert server.engine.collect().plaintext == [PlaintextRow(app, LOCALHOST, 0, 0)]
            assert server.engine.collect().plaintext == []
            writer.close()
            await writer.wait_closed()
            async with asyncio.timeout(10):
                while server.engine.server.downstreams or server.engine.server.tunnels:
                    await asyncio.sleep(0.01)
