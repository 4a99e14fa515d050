"""Many requests at once for an endpoint to which there is no connection yet: they share the few that are opened."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from backstay.config.model import InboundPort
from backstay.config.wire import PeerRow
from backstay.sidecar.engines.python.pool import COLD_CONNECTS

from .mesh import (
    DOMAIN,
    LOCALHOST,
    Answer,
    Application,
    Authority,
    Proxy,
    application,
    backend,
    config,
    endpoint,
    free_port,
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

MANY = 50
WITHIN = 20.0


@contextlib.asynccontextmanager
async def mesh_of_two(serve: Application, folder: Path) -> AsyncIterator[Proxy]:
    """The caller's proxy; its only endpoint is a proxy that insists on mTLS, in front of the application."""
    ca = Authority(folder)
    async with application(serve) as app, proxy(app) as server, proxy() as client:
        for running, name in ((client, "client"), (server, "web")):
            running.engine.trust({DOMAIN: ca.pem}, ())
            running.engine.identity(ca.issue(spiffe(name)))
        port = InboundPort(port=app, mtls="strict")
        server.engine.apply(config(listeners("web", inbound=(port,))), None, 0)
        client.engine.apply(config(listeners(), routes(to("web.shop:80")), backend()), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"), "web-1")]}, full=True)
        yield client


async def all_at_once(client: Proxy, number: int = MANY, data: bytes | None = None) -> Sequence[Answer]:
    return await asyncio.gather(*(send(client.outbound, data or get()) for _ in range(number)))


def opened(client: Proxy) -> PeerRow:
    (row,) = client.engine.collect().peers
    return row


async def test_requests_at_a_cold_endpoint_share_a_few_connections(tmp_path: Path) -> None:
    async with mesh_of_two(replying(b"hello"), tmp_path) as client:
        answers = await all_at_once(client)
        assert [(answer.status, answer.body) for answer in answers] == [(200, b"hello")] * MANY
        row = opened(client)
        assert (row.peer, row.failures) == ("web-1", 0)
        assert row.attempts <= MANY // 2  # seen: 12 to 20


async def test_requests_that_are_not_idempotent_share_them_too(tmp_path: Path) -> None:
    async with mesh_of_two(replying(b"done"), tmp_path) as client:
        answers = await all_at_once(client, data=get(method="POST", headers=["Content-Length: 0"]))
        assert [answer.status for answer in answers] == [200] * MANY
        assert opened(client).attempts <= MANY // 2


async def test_an_application_that_answers_nobody_before_all_have_asked_still_gets_everybody(tmp_path: Path) -> None:
    """Waiting for others' connections must never be waiting for others' answers."""
    everybody, asked = asyncio.Event(), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await read_message(reader)
            asked += 1
            if asked == MANY:
                everybody.set()
            await everybody.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

    async with mesh_of_two(serve, tmp_path) as client:
        answers = await all_at_once(client)
        assert [answer.status for answer in answers] == [200] * MANY
        assert opened(client).attempts == MANY


async def test_where_nobody_listens_everybody_hears_of_it() -> None:
    async with proxy() as client:
        client.engine.apply(config(listeners(), routes(to("web.shop:80")), backend()), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(free_port(), id="gone")]}, full=True)
        answers = await all_at_once(client)
        assert [answer.status for answer in answers] == [503] * MANY


async def test_where_no_handshake_ends_everybody_fails_with_the_first_attempts(tmp_path: Path) -> None:
    """They would otherwise wait in turns of four, each as long as a connection may take."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    ca = Authority(tmp_path)
    async with application(silent) as port, proxy() as client:
        client.engine.trust({DOMAIN: ca.pem}, ())
        client.engine.identity(ca.issue(spiffe("client")))
        hasty = backend(connect_timeout_ms=300)
        client.engine.apply(config(listeners(), routes(to("web.shop:80")), hasty), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(port, spiffe("web"), "silent")]}, full=True)
        answers = await all_at_once(client, 20)
        assert [answer.status for answer in answers] == [503] * 20
        # The first that gives up answers everybody; the others are counted when their own time is over, a moment later.
        async with asyncio.timeout(WITHIN):
            while client.engine.server.pools.all()[0].connecting:
                await asyncio.sleep(0.01)
        row = opened(client)
        assert (row.attempts, row.failures) == (COLD_CONNECTS, COLD_CONNECTS)


async def test_who_waits_behind_others_leaves_when_his_client_does(tmp_path: Path) -> None:
    async with mesh_of_two(replying(b"ok"), tmp_path) as client:
        leavers = [await asyncio.open_connection(LOCALHOST, client.outbound) for _ in range(MANY)]
        for _, writer in leavers:
            writer.write(get())
            writer.close()
        answers = await all_at_once(client, 10)
        assert [answer.status for answer in answers] == [200] * 10
        pools = client.engine.server.every_pool()
        assert [len(pool.waiting) for pool in pools if pool.key.id] == [0]
