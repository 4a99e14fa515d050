"""An application that is gone before its proxy: requests of which it got no byte go to another endpoint, all others do not."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from backstay.config.model import InboundPort, Retry
from backstay.sidecar.engines.python.retry import MAX_REPLAY_BYTES
from backstay.sidecar.engines.python.tls import MESH_PROTOCOL

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
    read_head,
    read_message,
    receive,
    replying,
    routes,
    send,
    spiffe,
    to,
)

MARK = b"x-backstay-undelivered"
FIRST_OF_TWO = 1.5 / 1024
"""A draw by which turns begin with the first of two endpoints."""


def post(body: bytes) -> bytes:
    return get(method="POST", headers=[f"Content-Length: {len(body)}"]) + body


@contextlib.asynccontextmanager
async def beside(app: int, authority: Authority, *, mtls: str = "strict") -> AsyncIterator[Proxy]:
    """A proxy of `web` in front of whatever is, or is not, at this port."""
    async with proxy(app) as running:
        running.engine.trust({DOMAIN: authority.pem}, ())
        running.engine.identity(authority.issue(spiffe("web")))
        port = InboundPort(port=app, mtls=mtls)  # type: ignore[arg-type]  # a literal where it is called
        running.engine.apply(config(listeners("web", inbound=(port,))), None, 0)
        yield running


@contextlib.asynccontextmanager
async def caller(authority: Authority, *servers: Proxy, retry: Retry | None = None) -> AsyncIterator[Proxy]:
    """The proxy of a client; it asks in turns, beginning with the first."""
    async with proxy(random=lambda: FIRST_OF_TWO) as running:
        running.engine.trust({DOMAIN: authority.pem}, ())
        running.engine.identity(authority.issue(spiffe("client")))
        rule = to("web.shop:80", retry=retry)
        running.engine.apply(config(listeners(), routes(rule), backend(balance="round_robin")), None, 0)
        ports = [port for server in servers for port in server.inbound.values()]
        live = [endpoint(port, spiffe("web"), f"web-{number}") for number, port in enumerate(ports)]
        running.engine.endpoints({"web.shop:80": live}, full=True)
        yield running


def refusals(server: Proxy) -> int:
    return sum(row.bad.get("connect-failure", 0) for row in server.rows() if row.direction == "in")


async def test_who_finds_no_application_is_sent_elsewhere_whatever_the_method(tmp_path: Path) -> None:
    authority, seen = Authority(tmp_path), list[bytes]()
    async with (
        application(replying(seen=seen)) as app,
        beside(free_port(), authority) as empty,
        beside(app, authority) as well,
        caller(authority, empty, well) as client,
    ):
        answers = [await send(client.outbound, post(b"%d" % number)) for number in range(6)]
        assert [answer.status for answer in answers] == [200] * 6
        assert [each[-1:] for each in seen] == [b"0", b"1", b"2", b"3", b"4", b"5"]  # each once
        assert refusals(empty) > 1  # the same connection was asked again
        assert [pool.open for pool in client.engine.server.every_pool() if pool.key.id] == [1, 1]  # both are kept


async def test_where_every_application_is_gone_the_caller_hears_so_without_the_mark(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        beside(free_port(), authority) as one,
        beside(free_port(), authority) as other,
        caller(authority, one, other) as client,
    ):
        answer = await send(client.outbound, post(b"x"))
        assert (answer.status, answer.body) == (503, b"connect-failure\n")
        assert MARK not in answer.head.lower()
        assert (refusals(one), refusals(other)) == (1, 1)


async def test_a_retry_policy_about_connections_is_about_applications_that_are_gone(tmp_path: Path) -> None:
    """The policy's try is made, and one more is not: there is no third endpoint."""
    authority = Authority(tmp_path)
    policy = Retry(attempts=1, retry_on=("connect-failure",), backoff_ms=1)
    async with (
        beside(free_port(), authority) as one,
        beside(free_port(), authority) as other,
        caller(authority, one, other, retry=policy) as client,
    ):
        assert (await send(client.outbound, post(b"x"))).status == 503
        (row,) = [row for row in client.rows() if row.direction == "out"]
        assert (row.total, row.attempts) == (1, 2)
        assert (refusals(one), refusals(other)) == (1, 1)


async def test_a_body_that_is_still_coming_goes_elsewhere_whole(tmp_path: Path) -> None:
    authority, seen = Authority(tmp_path), list[bytes]()
    async with (
        application(replying(seen=seen)) as app,
        beside(free_port(), authority) as empty,
        beside(app, authority) as well,
        caller(authority, empty, well) as client,
    ):
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get(method="POST", headers=["Content-Length: 6"]) + b"one")
        async with asyncio.timeout(10):
            while refusals(empty) == 0:
                await asyncio.sleep(0.001)
        writer.write(b"two")
        answer = await receive(reader)
        writer.close()
        assert (answer.status, len(seen), seen[0][-6:]) == (200, 1, b"onetwo")


async def test_a_body_too_long_to_be_kept_is_not_sent_again(tmp_path: Path) -> None:
    authority, seen = Authority(tmp_path), list[bytes]()
    async with (
        application(replying(seen=seen)) as app,
        beside(free_port(), authority) as empty,
        beside(app, authority) as well,
        caller(authority, empty, well) as client,
    ):
        answer = await send(client.outbound, post(b"x" * (MAX_REPLAY_BYTES + 1)))
        assert (answer.status, seen) == (503, [])
        assert MARK not in answer.head.lower()


def claiming(seen: list[bytes]) -> Application:
    """An application that says of itself that it got nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_message(reader)
            seen.append(head + body)
            fields = b"X-Backstay-Undelivered: connect-failure\r\nX_Backstay_Undelivered: connect-failure\r\n"
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\n%bContent-Length: 0\r\n\r\n" % fields)
            await writer.drain()

    return serve


async def test_an_application_cannot_say_so_itself(tmp_path: Path) -> None:
    authority, asked, other = Authority(tmp_path), list[bytes](), list[bytes]()
    async with (
        application(claiming(asked)) as liar,
        application(replying(seen=other)) as app,
        beside(liar, authority) as first,
        beside(app, authority) as second,
        caller(authority, first, second) as client,
    ):
        answer = await send(client.outbound, post(b"x"))
        assert (answer.status, len(asked), other) == (503, 1, [])
        assert b"backstay" not in answer.head.lower()


async def test_who_is_no_proxy_of_the_mesh_is_not_believed(tmp_path: Path) -> None:
    asked, other = list[bytes](), list[bytes]()
    async with application(claiming(asked)) as liar, application(replying(seen=other)) as app, proxy() as client:
        client.engine.apply(config(listeners(), routes(to("web.shop:80")), backend(balance="round_robin")), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(liar, id="a"), endpoint(app, id="b")]}, full=True)
        statuses = [(await send(client.outbound, post(b"x"))).status for _ in range(2)]
        assert sorted(statuses) == [200, 503]
        assert (len(asked), len(other)) == (1, 1)


def client_tls(authority: Authority, *protocols: str) -> ssl.SSLContext:
    files = authority.issue(spiffe("client"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority.pem)
    context.load_cert_chain(files.certificate, files.key)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


async def ask_at(port: int, data: bytes, tls: ssl.SSLContext | None) -> Answer:
    reader, writer = await asyncio.open_connection(LOCALHOST, port, ssl=tls)
    try:
        writer.write(data)
        return await receive(reader)
    finally:
        writer.close()


async def test_only_proxies_of_the_mesh_are_told(tmp_path: Path) -> None:
    authority, app = Authority(tmp_path), free_port()
    async with beside(app, authority, mtls="permissive") as empty:
        port = empty.inbound[app]
        answers = [
            await ask_at(port, get(), tls)
            for tls in (None, client_tls(authority), client_tls(authority, "h2"), client_tls(authority, MESH_PROTOCOL))
        ]
        assert [answer.status for answer in answers] == [503] * 4
        assert [MARK in answer.head.lower() for answer in answers] == [False, False, False, True]


async def test_once_a_byte_was_sent_nothing_is_said(tmp_path: Path) -> None:
    """The application ends with a request in its hands; that it takes no other connection says nothing about this one."""
    authority, gone = Authority(tmp_path), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await read_head(reader)
        server.close()
        gone.set()

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, LOCALHOST, 0)
    app = int(server.sockets[0].getsockname()[1])
    async with beside(app, authority) as own:
        reader, writer = await asyncio.open_connection(
            LOCALHOST, own.inbound[app], ssl=client_tls(authority, MESH_PROTOCOL)
        )
        writer.write(get())
        assert (await receive(reader)).status == 200
        writer.write(get())
        answer = await receive(reader)
        writer.close()
        assert (answer.status, answer.body, gone.is_set()) == (503, b"connect-failure\n", True)
        assert MARK not in answer.head.lower()


async def test_a_proxy_that_drains_without_its_application_sends_its_callers_elsewhere(tmp_path: Path) -> None:
    """New connections are refused at once; what was begun is finished; nobody hears of either."""
    authority, begun, go_on = Authority(tmp_path), asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        begun.set()
        leaving.close()  # takes no other connection, finishes this one
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast")
        await writer.drain()
        writer.close()

    leaving = await asyncio.start_server(slow, LOCALHOST, 0)
    left = int(leaving.sockets[0].getsockname()[1])
    async with (
        application(replying(b"other")) as app,
        beside(left, authority) as first,
        beside(app, authority) as second,
        caller(authority, first, second) as client,
    ):
        last = asyncio.ensure_future(send(client.outbound, get()))
        async with asyncio.timeout(10):
            await begun.wait()
        before = [await send(client.outbound, post(b"x")) for _ in range(4)]
        draining = asyncio.ensure_future(first.engine.drain(30))
        await asyncio.sleep(0)
        during = [await send(client.outbound, post(b"x")) for _ in range(4)]
        assert [(answer.status, answer.body) for answer in (*before, *during)] == [(200, b"other")] * 8
        go_on.set()
        finished = await last
        assert (finished.status, finished.body) == (200, b"last")
        await draining
