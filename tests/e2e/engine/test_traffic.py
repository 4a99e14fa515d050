"""The Python engine on real sockets: what applications see through it, and what it counts."""

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backstay.config.model import (
    Authorization,
    Fault,
    InboundPort,
    Match,
    Operation,
    PathMatch,
    Policy,
    PolicyRule,
    Retry,
    Source,
    Subset,
    ValueMatch,
)
from backstay.config.wire import RefusalExpected
from backstay.sidecar.engine import ContentRefused
from backstay.sidecar.engines.python.downstream import HEAD_SECONDS, IDLE_SECONDS, STALL_SECONDS
from backstay.sidecar.engines.python.server import close_all

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

CLIENT = listeners()
WEB = (routes(to("web.shop:80")), backend())
DENY_ALL = Authorization(policies=(Policy(name="shop/nobody", action="allow"),))


@contextlib.asynccontextmanager
async def plain_client(*parts: object, app: int, share_of: object = None) -> AsyncIterator[Proxy]:
    """A client proxy whose only endpoint of web.shop is the application itself."""
    async with proxy() as client:
        client.engine.apply(config(CLIENT, *parts), None, 0)  # type: ignore[arg-type]
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        yield client


@contextlib.asynccontextmanager
async def server_proxy(
    app: int, *parts: object, mtls: str = "permissive", protocol: str = "http"
) -> AsyncIterator[Proxy]:
    async with proxy(app) as server:
        port = InboundPort(port=app, mtls=mtls, protocol=protocol)  # type: ignore[arg-type]
        server.engine.apply(config(listeners("web", inbound=(port,)), *parts), None, 0)  # type: ignore[arg-type]
        yield server


def trust(ca: Authority, *proxies: tuple[Proxy, str]) -> None:
    for running, name in proxies:
        running.engine.identity(ca.issue(spiffe(name)))
        running.engine.trust({DOMAIN: ca.pem}, [])


def bad(running: Proxy) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in running.rows():
        for reason, count in row.bad.items():
            found[reason] = found.get(reason, 0) + count
    return found


# --- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["web", "web.shop", "web.shop:80", "web.shop.svc", "web.shop.svc.cluster.local:80", "WEB.Shop", "web.shop."]
)
async def test_every_spelling_of_a_mesh_name_reaches_the_service(host: str) -> None:
    async with application(replying()) as app, plain_client(*WEB, app=app) as client:
        assert (await send(client.outbound, get(host=host))).status == 200


async def test_an_absolute_target_wins_over_the_host_field_and_is_what_upstream_sees() -> None:
    seen: list[bytes] = []
    async with application(replying(seen=seen)) as app, plain_client(*WEB, app=app) as client:
        answer = await send(client.outbound, b"GET http://web.shop/a?b HTTP/1.1\r\nHost: other\r\n\r\n")
        assert answer.status == 200
        assert seen == [b"GET /a?b HTTP/1.1\r\nHost: web.shop\r\n\r\n"]


async def test_the_first_matching_rule_decides_and_no_match_is_404() -> None:
    by_header = Match(headers=(ValueMatch(name="x-canary", kind="exact", value="yes"),))
    by_path = Match(path=PathMatch(kind="prefix", value="/v1"))
    table = routes(to("v2.shop:80", matches=(by_header,)), to("web.shop:80", name="v1", matches=(by_path,)))
    async with application(replying(b"v1")) as one, application(replying(b"v2")) as two:
        async with plain_client(table, backend(), backend("v2.shop"), app=one) as client:
            client.engine.endpoints({"v2.shop:80": [endpoint(two)]}, full=False)
            assert (await send(client.outbound, get("/v1/x"))).body == b"v1"
            assert (await send(client.outbound, get("/v1/x", headers=["X-Canary: yes"]))).body == b"v2"
            answer = await send(client.outbound, get("/v1beta"))
            assert (answer.status, answer.body) == (404, b"no-route\n")


async def test_a_subset_takes_the_endpoints_that_carry_its_labels_and_an_empty_one_is_503() -> None:
    split = backend(
        subsets=(Subset(name="v2", labels=(("version", "v2"),)), Subset(name="v9", labels=(("version", "v9"),)))
    )
    to_v9 = to("web.shop:80/v9", name="v9", matches=(Match(path=PathMatch(kind="exact", value="/v9")),))
    async with application(replying(b"v1")) as one, application(replying(b"v2")) as two:
        async with plain_client(routes(to_v9, to("web.shop:80/v2")), split, app=one) as client:
            client.engine.endpoints(
                {"web.shop:80": [endpoint(one, version="v1"), endpoint(two, version="v2")]}, full=True
            )
            assert {(await send(client.outbound, get())).body for _ in range(10)} == {b"v2"}
            assert (await send(client.outbound, get("/v9"))).status == 503
            assert bad(client) == {"no-healthy-upstream": 1}


async def test_a_config_that_names_a_missing_backend_or_subset_is_refused_and_the_old_one_serves_on() -> None:
    async with application(replying()) as app, plain_client(*WEB, app=app) as client:
        for part, reason in ((to("gone.shop:80"), "MissingBackend"), (to("web.shop:80/gone"), "UnknownSubset")):
            with pytest.raises(ContentRefused) as refused:
                client.engine.apply(config(CLIENT, routes(part), backend()), None, 0)
            assert refused.value.reason == reason
        assert (await send(client.outbound, get())).status == 200


async def test_unknown_hosts_pass_through_or_are_502_as_the_config_says() -> None:
    async with application(replying(b"outside")) as app, plain_client(*WEB, app=app) as client:
        assert (await send(client.outbound, get(host=f"{LOCALHOST}:{app}"))).body == b"outside"
        client.engine.apply(config(listeners(egress="registry_only"), *WEB), None, 0)
        assert (await send(client.outbound, get(host=f"{LOCALHOST}:{app}"))).status == 502


async def test_the_proxy_does_not_call_itself() -> None:
    async with application(replying()) as app, plain_client(*WEB, app=app) as client:
        assert (await send(client.outbound, get(host=f"{LOCALHOST}:{client.outbound}"))).status == 508


async def test_an_explicit_listener_is_one_host_whatever_the_request_says() -> None:
    async with application(replying(b"web")) as app, proxy(explicit=("web.shop", 80)) as client:
        client.engine.apply(config(CLIENT, *WEB), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        assert (await send(client.explicit, get(host="localhost:1234"))).body == b"web"


async def test_before_the_first_config_requests_get_503() -> None:
    async with proxy() as client:
        assert (await send(client.outbound, get())).status == 503


# --- messages --------------------------------------------------------------------------------------------------------


async def test_bodies_stream_both_ways_with_content_length_and_chunked() -> None:
    big = bytes(range(256)) * 4096

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await read_message(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 50_000):
                piece = body[at : at + 50_000]
                writer.write(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\nX-Trailer: dropped\r\n\r\n")

    async with application(echo) as app, plain_client(*WEB, app=app) as client:
        head = f"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {len(big)}\r\n\r\n".encode()
        assert (await send(client.outbound, head + big)).body == big
        chunked = b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (
            await send(client.outbound, chunked + b"%x\r\n%b\r\n0\r\nX-Evil: y\r\n\r\n" % (len(big), big))
        ).body == big


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def path(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            target = head.split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))

    async with application(path) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(b"".join(get(f"/{n}") for n in range(20)))
        assert [(await receive(reader)).body for _ in range(20)] == [b"/%d" % n for n in range(20)]
        writer.close()


async def test_answers_without_a_body_leave_the_connection_usable() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            kind = head.split(b" ")[1]
            if kind == b"/204":
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            elif kind == b"/304":
                writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + (b"" if head.startswith(b"HEAD") else b"x" * 10)
                )

    async with application(serve) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        for path, method in (
            ("/204", "GET"),
            ("/304", "GET"),
            ("/", "HEAD"),
            ("/", "GET"),
            ("/", "HEAD"),
            ("/", "GET"),
        ):
            writer.write(get(path, method=method))
            answer = await receive(reader, is_head=method == "HEAD")
            assert answer.status == int(path[1:] or 200)
        assert answer.body == b"x" * 10
        writer.close()


async def test_a_response_that_ends_with_its_connection_is_chunked_for_11_and_closed_for_10() -> None:
    async def until_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()

    async with application(until_close) as app, plain_client(*WEB, app=app) as client:
        answer = await send(client.outbound, get())
        assert (answer.body, b"Transfer-Encoding: chunked" in answer.head) == (b"hello", True)
        answer = await send(client.outbound, b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")
        assert (answer.body, b"chunked" in answer.head, b"Connection: close" in answer.head) == (b"hello", False, True)


async def test_expect_continue_is_asked_upstream_and_passed_back() -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(3)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)
        await writer.drain()

    async with application(careful) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get(method="POST", headers=["Content-Length: 3", "Expect: 100-continue"]))
        assert await read_head(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await receive(reader)).body == b"abc"
        writer.close()


async def test_a_slow_reader_holds_the_application_back_instead_of_filling_memory() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_head(reader)
        total = 64 * 1024 * 1024
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = bytes(64 * 1024)
        while sent < total:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    async with application(flood) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound, limit=64 * 1024)
        writer.write(get())
        await read_head(reader)
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 32 * 1024 * 1024
        received = 0
        while received < 64 * 1024 * 1024:
            received += len(await reader.read(1024 * 1024))
        writer.close()


async def test_a_client_that_stopped_reading_does_not_spoil_the_kept_connection_for_the_next() -> None:
    async with application(replying(bytes(300_000))) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound, limit=1024)
        writer.write(get() + get() + get())  # more than the buffers between here and there hold
        await read_head(reader)
        for _ in range(5):
            assert len((await send(client.outbound, get())).body) == 300_000
        left = 3 * 300_000
        while left > 0:
            left -= len(await reader.read(100_000))
        writer.close()


async def websocket_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_head(reader)
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello")
    while data := await reader.read(1000):
        writer.write(data.upper())


UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"]


async def test_a_websocket_becomes_a_pipe_after_101() -> None:
    async with application(websocket_echo) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get(headers=UPGRADE) + b"early")
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(10) == b"helloEARLY"
        writer.write(b"more")
        assert await reader.readexactly(4) == b"MORE"
        writer.close()


async def test_bytes_behind_a_refused_upgrade_reach_no_other_request() -> None:
    seen: list[bytes] = []
    async with application(replying(seen=seen)) as app, plain_client(*WEB, app=app) as client:
        answer = await send(client.outbound, get(headers=UPGRADE) + get("/smuggled"))
        assert (answer.status, b"Connection: close" in answer.head) == (200, True)
        assert (await send(client.outbound, get("/next"))).status == 200
        assert [request.split(b" ")[1] for request in seen] == [b"/", b"/next"]


async def test_an_offer_of_h2c_is_ignored_and_its_body_arrives() -> None:
    seen: list[bytes] = []
    async with application(replying(seen=seen)) as app, plain_client(*WEB, app=app) as client:
        fields = [
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABk",
            "Content-Length: 3",
        ]
        assert (await send(client.outbound, get(method="POST", headers=fields) + b"abc")).status == 200
        assert seen == [b"POST / HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 3\r\n\r\nabc"]


async def test_identity_fields_of_a_client_are_removed_in_every_spelling() -> None:
    seen: list[bytes] = []
    async with application(replying(seen=seen)) as app, server_proxy(app) as server:
        fields = ["X-Forwarded-Client-Cert: a", "x_forwarded_client_cert: b", "X-Backstay-Source: c", "X-Ok: d"]
        await send(server.inbound[app], get(headers=fields))
        assert seen == [b"GET / HTTP/1.1\r\nHost: web.shop\r\nX-Ok: d\r\n\r\n"]


# --- CONNECT ---------------------------------------------------------------------------------------------------------


async def test_http_inside_a_tunnel_to_a_mesh_host_follows_the_same_rules() -> None:
    table = routes(to("web.shop:80", matches=(Match(path=PathMatch(kind="exact", value="/yes")),)))
    async with application(replying(b"in")) as app, plain_client(table, backend(), app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(b"CONNECT web.shop:80 HTTP/1.1\r\nHost: web.shop:80\r\n\r\n")
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
        writer.write(get("/yes"))
        assert (await receive(reader)).body == b"in"
        writer.write(get("/no"))
        assert (await receive(reader)).status == 404
        writer.close()


async def test_a_tunnel_to_another_host_is_a_pipe_unless_only_the_registry_is_allowed() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)

    async with application(echo) as app, plain_client(*WEB, app=app) as client:
        request = f"CONNECT {LOCALHOST}:{app} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(request)
        assert (await read_head(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"\x16\x03\x01anything")
        assert await reader.readexactly(11) == b"\x16\x03\x01anything"
        writer.close()
        client.engine.apply(config(listeners(egress="registry_only"), *WEB), None, 0)
        assert (await send(client.outbound, request)).status == 502


async def test_a_tcp_port_is_piped_over_mtls_and_its_connections_are_authorized(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())

    only_other = Authorization(
        policies=(
            Policy(name="shop/p", action="allow", rules=(PolicyRule(sources=(Source(principals=(spiffe("x"),)),)),)),
        )
    )
    ca = Authority(tmp_path)
    tcp = backend(protocol="tcp")
    async with (
        application(echo) as app,
        server_proxy(app, protocol="tcp") as server,
        proxy(explicit=("web.shop", 80)) as client,
    ):
        trust(ca, (server, "web"), (client, "client"))
        client.engine.apply(config(CLIENT, WEB[0], tcp), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"))]}, full=True)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.explicit)
        writer.write(b"raw")
        assert await reader.readexactly(3) == b"RAW"
        writer.close()
        port = InboundPort(port=app, protocol="tcp")
        server.engine.apply(config(listeners("web", inbound=(port,)), only_other), None, 0)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.explicit)
        writer.write(b"raw")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


# --- failures --------------------------------------------------------------------------------------------------------


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def counted(failures: int, *, status: bytes = b"503 Service Unavailable") -> tuple[list[bytes], Application]:
    """An application that fails so many times before it answers 200."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_message(reader)
            seen.append(head + body)
            line = b"200 OK" if len(seen) > failures else status
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % line)

    return seen, serve


GATEWAY = Retry(attempts=2, retry_on=("gateway-error", "connect-failure", "reset-before-request"), backoff_ms=1)


async def test_a_timeout_is_504_and_a_request_still_open_has_crossed_its_bounds_before_it_ends() -> None:
    async with (
        application(hang) as app,
        plain_client(routes(to("web.shop:80", timeout_ms=300)), backend(), app=app) as client,
    ):
        waiting = asyncio.ensure_future(send(client.outbound, get()))
        await asyncio.sleep(0.12)
        (row,) = client.rows()
        assert (row.total, row.over[6], row.over[7]) == (0, 1, 0)  # beyond 100 ms, not beyond 250 ms
        answer = await waiting
        assert (answer.status, answer.body) == (504, b"timeout\n")
        (row,) = client.rows()
        assert (row.total, row.bad, row.over[6], row.over[7]) == (1, {"timeout": 1}, 0, 1)


async def test_a_gateway_error_is_retried_and_counted_as_tries() -> None:
    seen, serve = counted(2)
    async with (
        application(serve) as app,
        plain_client(routes(to("web.shop:80", retry=GATEWAY)), backend(), app=app) as client,
    ):
        assert (await send(client.outbound, get())).status == 200
        (row,) = client.rows()
        assert (len(seen), row.total, row.attempts, row.bad) == (3, 1, 3, {})


async def test_a_post_is_not_sent_twice_unless_its_document_says_so() -> None:
    post = get(method="POST", headers=["Content-Length: 3"]) + b"abc"
    seen, serve = counted(1)
    async with (
        application(serve) as app,
        plain_client(routes(to("web.shop:80", retry=GATEWAY)), backend(), app=app) as client,
    ):
        assert ((await send(client.outbound, post)).status, len(seen)) == (503, 1)
    seen, serve = counted(1)
    anyway = Retry(attempts=1, retry_on=("5xx",), backoff_ms=1, any_method=True)
    async with (
        application(serve) as app,
        plain_client(routes(to("web.shop:80", retry=anyway)), backend(), app=app) as client,
    ):
        assert ((await send(client.outbound, post)).status, len(seen), seen[0] == seen[1]) == (200, 2, True)


async def test_a_slow_try_is_given_up_and_made_again() -> None:
    seen: list[bytes] = []

    async def first_hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_head(reader))
            if len(seen) == 1:
                await reader.read()
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    rule = to("web.shop:80", try_timeout_ms=50, retry=Retry(attempts=1, retry_on=("5xx",), backoff_ms=1))
    async with application(first_hangs) as app, plain_client(routes(rule), backend(), app=app) as client:
        assert ((await send(client.outbound, get())).status, len(seen)) == (200, 2)


async def test_a_dead_endpoint_is_passed_over_and_reported_as_a_peer() -> None:
    dead = free_port()
    async with application(replying()) as app, plain_client(*WEB, app=app) as client:
        client.engine.endpoints({"web.shop:80": [endpoint(dead, id="dead"), endpoint(app, id="alive")]}, full=True)
        assert {(await send(client.outbound, get())).status for _ in range(20)} == {200}
        peers = {row.peer: (row.attempts > 0, row.failures == row.attempts) for row in client.engine.collect().peers}
        assert peers == {"dead": (True, True), "alive": (True, False)}
        client.engine.endpoints({"web.shop:80": [endpoint(dead, id="dead")]}, full=True)
        answer = await send(client.outbound, get())
        assert (answer.status, answer.body, bad(client)) == (503, b"connect-failure\n", {"connect-failure": 1})


async def test_a_kept_connection_that_died_meanwhile_costs_no_request() -> None:
    served = 0

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_message(reader)
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()  # closed without saying so

    async with application(one_each) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        for method in ("GET", "POST", "GET", "POST"):
            writer.write(get(method=method))
            assert (await receive(reader)).status == 200
        assert served == 4
        writer.close()


async def test_a_connection_that_dies_unanswered_is_a_reset() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)

    async with application(drop) as app, plain_client(*WEB, app=app) as client:
        answer = await send(client.outbound, get())
        assert (answer.status, answer.body, bad(client)) == (503, b"reset\n", {"reset": 1})


async def test_a_response_cut_short_reaches_the_client_cut_short() -> None:
    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()

    async with application(short) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get())
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read(-1)
        assert b"0\r\n\r\n" not in received
        assert bad(client) == {"reset": 1}
        writer.close()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX\x00: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 40,
    ],
)
async def test_a_malformed_response_is_502(response: bytes) -> None:
    async def evil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(response)
        await reader.read()

    async with application(evil) as app, plain_client(*WEB, app=app) as client:
        assert (await send(client.outbound, get())).status == 502


async def test_surplus_bytes_of_a_response_reach_no_other_request() -> None:
    async def surplus(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_head(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            )

    async with application(surplus) as app, plain_client(*WEB, app=app) as client:
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        for _ in range(3):
            writer.write(get())
            assert (await receive(reader)).body == b"ok"
        writer.close()


async def test_a_fault_delays_and_aborts_as_drawn() -> None:
    rule = to("web.shop:80", fault=Fault(delay_ms=50, delay_percent=100, abort_status=418, abort_percent=100))
    async with application(replying()) as app, plain_client(routes(rule), backend(), app=app) as client:
        started = asyncio.get_running_loop().time()
        assert (await send(client.outbound, get())).status == 418
        assert asyncio.get_running_loop().time() - started >= 0.04


async def test_requests_beyond_the_connection_limit_wait_for_their_turn() -> None:
    async with (
        application(replying()) as app,
        plain_client(routes(to("web.shop:80")), backend(max_connections=1), app=app) as client,
    ):
        answers = await asyncio.gather(*(send(client.outbound, get()) for _ in range(20)))
        assert [answer.status for answer in answers] == [200] * 20
        assert sum(row.attempts for row in client.engine.collect().peers) == 1


async def test_a_full_backend_uses_an_idle_connection_to_another_endpoint_rather_than_wait() -> None:
    draws = iter([0.0] * 4 + [0.9] * 100)
    async with (
        application(replying(b"one")) as one,
        application(replying(b"two")) as two,
        proxy(random=lambda: next(draws)) as client,
    ):
        client.engine.apply(config(CLIENT, routes(to("web.shop:80")), backend(max_connections=1)), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(one), endpoint(two)]}, full=True)
        assert {(await send(client.outbound, get())).status for _ in range(5)} == {200}


async def test_a_client_that_leaves_ends_its_exchange() -> None:
    async with application(hang) as app, plain_client(*WEB, app=app) as client:
        _, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get())
        while client.engine.collect().open_requests == 0:
            await asyncio.sleep(0.01)
        writer.close()
        while client.engine.collect().open_requests:
            await asyncio.sleep(0.01)
        assert not client.engine.server.upstreams or all(not up.exchange for up in client.engine.server.upstreams)


# --- identity and access ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def pair(
    folder: Path, *parts: object, mtls: str = "permissive"
) -> AsyncIterator[tuple[Proxy, Proxy, int, Authority]]:
    """(client, server, application port, authority): two proxies with mTLS between them."""
    ca = Authority(folder)
    async with application(replying()) as app, server_proxy(app, *parts, mtls=mtls) as server, proxy() as client:
        trust(ca, (server, "web"), (client, "client"))
        client.engine.apply(config(CLIENT, *WEB), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("web"), id="web-0")]}, full=True)
        yield client, server, app, ca


async def test_strict_takes_mtls_and_refuses_plaintext(tmp_path: Path) -> None:
    async with pair(tmp_path, mtls="strict") as (client, server, app, _):
        assert (await send(client.outbound, get())).status == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await send(server.inbound[app], get())
        (row,) = server.rows()
        assert (row.total, row.excused, row.bad) == (2, 1, {})  # stable itself refuses it: no evidence


async def test_a_peer_with_another_identity_is_not_spoken_to(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, server, app, _):
        client.engine.endpoints({"web.shop:80": [endpoint(server.inbound[app], spiffe("bank"), id="web-0")]}, full=True)
        assert (await send(client.outbound, get())).status == 503
        peers = client.engine.collect().peers
        assert [(row.peer, row.attempts, row.failures) for row in peers] == [("web-0", 1, 1)]


async def test_a_client_of_a_foreign_root_is_refused_and_counted_by_both(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, server, _, _):
        foreign = Authority(tmp_path)
        client.engine.identity(foreign.issue(spiffe("client")))
        assert (await send(client.outbound, get())).status == 503
        failures = sum(row.failures for row in client.engine.collect().peers)
        (row,) = server.rows()
        assert (row.excused, failures <= 1) == (1, True)


async def test_a_certificate_with_two_names_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, _, _, ca):
        client.engine.identity(ca.issue(spiffe("client"), spiffe("admin")))
        assert (await send(client.outbound, get())).status == 503


async def test_identity_and_trust_rotate_without_a_failed_request(tmp_path: Path) -> None:
    async with pair(tmp_path, mtls="strict") as (client, server, _, old):
        new = Authority(tmp_path)
        for step in range(4):
            for running, name in ((client, "client"), (server, "web")):
                if step == 0:
                    running.engine.trust({DOMAIN: old.pem + new.pem}, [])
                if step == 1:
                    running.engine.identity(new.issue(spiffe(name)))
                if step == 2:
                    running.engine.trust({DOMAIN: new.pem}, [])
                assert (await send(client.outbound, get())).status == 200


async def test_roots_and_certificates_that_cannot_be_used_are_not_kept(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    async with proxy() as client:
        engine, good = client.engine, ca.issue(spiffe("client"))
        engine.trust({DOMAIN: ca.pem}, [])
        engine.identity(good)
        served = engine.server.contexts
        with pytest.raises(ssl.SSLError):
            engine.trust({DOMAIN: "no roots"}, [])
        with pytest.raises(ssl.SSLError):
            engine.identity(replace(good, key=ca.issue(spiffe("client")).key))
        assert engine.server.contexts is served
        engine.trust({DOMAIN: ca.pem}, [])
        engine.identity(good)


async def test_a_revoked_identity_is_cut_off_at_once(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, server, _, ca):
        assert (await send(client.outbound, get())).status == 200
        assert [d.identity for d in server.engine.server.downstreams] == [spiffe("client")]
        server.engine.trust({DOMAIN: ca.pem}, [spiffe("client")])
        while server.engine.server.downstreams:
            await asyncio.sleep(0.01)
        assert (await send(client.outbound, get())).status == 503


async def test_authorization_judges_the_callers_identity_and_says_nothing_of_its_policies(tmp_path: Path) -> None:
    readers = PolicyRule(
        sources=(Source(principals=(spiffe("client"),)),),
        operations=(Operation(methods=("GET",), paths=("/public*",)),),
    )
    allow = Authorization(policies=(Policy(name="shop/readers", action="allow", rules=(readers,)),))
    async with pair(tmp_path, allow) as (client, server, app, _):
        assert (await send(client.outbound, get("/public/a"))).status == 200
        for denied in (get("/private"), get("/public/../private"), get("/public", method="DELETE")):
            answer = await send(client.outbound, denied)
            assert (answer.status, answer.body) == (403, b"access denied\n")
        assert (await send(server.inbound[app], get("/public/a"))).status == 403  # plaintext has no identity


# --- two configs at once ---------------------------------------------------------------------------------------------


async def test_requests_are_split_by_share_and_counted_under_the_config_that_decided() -> None:
    draws = iter([0.05, 0.5, 0.05, 0.5, 0.05, 0.05])
    async with application(replying()) as app, proxy(app, random=lambda: next(draws, 0.5)) as server:
        inbound = listeners("web", inbound=(InboundPort(port=app),))
        stable, candidate = config(inbound), config(inbound, DENY_ALL)
        server.engine.apply(stable, candidate, 0.1)
        reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])  # takes the first draw or two
        statuses = []
        for _ in range(6):
            writer.write(get())
            statuses.append((await receive(reader)).status)
        writer.close()
        observed = server.engine.collect()
        assert observed.serving == {stable.digest: 0.9, candidate.digest: 0.1}
        by_config = {row.config: row for row in observed.rows}
        assert by_config[candidate.digest].bad == {"denied": statuses.count(403)}
        assert by_config[stable.digest].total == statuses.count(200)
        assert (statuses.count(403) > 0, statuses.count(200) > 0) == (True, True)


async def test_a_refusal_that_stable_would_make_too_or_that_was_announced_is_excused() -> None:
    async with application(replying()) as app, proxy(app, random=lambda: 0.0) as server:
        inbound = listeners("web", inbound=(InboundPort(port=app),))
        only_get = Authorization(
            policies=(
                Policy(name="a/b", action="allow", rules=(PolicyRule(operations=(Operation(methods=("GET",)),)),)),
            )
        )
        server.engine.apply(config(inbound, only_get), config(inbound, DENY_ALL), 1.0)
        await send(server.inbound[app], get(method="DELETE"))
        (row,) = server.rows()
        assert (row.total, row.excused, row.bad) == (1, 1, {})
        await send(server.inbound[app], get())
        (row,) = server.rows()
        assert (row.total, row.excused, row.bad) == (1, 0, {"denied": 1})
        announced = [RefusalExpected(source=f"{LOCALHOST}/32", path="/meant*")]
        server.engine.apply(config(inbound, only_get), config(inbound, DENY_ALL), 1.0, announced)
        await send(server.inbound[app], get("/meant/x"))
        (row,) = server.rows()
        assert (row.total, row.excused, row.bad) == (1, 1, {})


async def test_a_stricter_candidate_closes_open_plaintext_connections_and_counts_them() -> None:
    async with application(replying()) as app, server_proxy(app) as server:
        reader, writer = await asyncio.open_connection(LOCALHOST, server.inbound[app])
        writer.write(get())
        assert (await receive(reader)).status == 200
        server.rows()
        stable = config(listeners("web", inbound=(InboundPort(port=app),)))
        strict = config(listeners("web", inbound=(InboundPort(port=app, mtls="strict"),)))
        server.engine.apply(stable, strict, 1.0)
        assert await reader.read() == b""
        (row,) = server.rows()
        assert (row.config, row.total, row.bad) == (strict.digest, 1, {"plaintext-refused": 1})
        writer.close()


async def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, server, app, _):
        statuses: list[int] = []
        stop = asyncio.Event()

        async def caller() -> None:
            reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
            while not stop.is_set():
                writer.write(get())
                statuses.append((await receive(reader)).status)
            writer.close()

        callers = [asyncio.ensure_future(caller()) for _ in range(8)]
        for turn in range(30):
            rule = to("web.shop:80", timeout_ms=10_000 + turn)
            client.engine.apply(
                config(CLIENT, routes(rule), backend(connect_timeout_ms=1000 + turn)), config(CLIENT, *WEB), 0.5
            )
            server.engine.apply(
                config(listeners("web", inbound=(InboundPort(port=app),), access_log="failures")), None, 0
            )
            await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*callers)
        assert (set(statuses), len(statuses) > 100) == ({200}, True)


# --- the end ---------------------------------------------------------------------------------------------------------


async def refused(port: int) -> None:
    """Until nobody listens there."""
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection(LOCALHOST, port)
                writer.close()
                await asyncio.sleep(0.01)


async def test_drain_finishes_open_requests_and_leaves_nothing_behind() -> None:
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with application(slow) as app, plain_client(*WEB, app=app) as client:
        waiting = asyncio.ensure_future(send(client.outbound, get()))
        while client.engine.collect().open_requests == 0:
            await asyncio.sleep(0.01)
        draining = asyncio.ensure_future(client.engine.drain(60))
        await refused(client.outbound)
        release.set()
        answer: Answer = await waiting
        assert (answer.status, b"Connection: close" in answer.head) == (200, True)
        await draining
        server = client.engine.server
        assert (server.downstreams, server.upstreams, server.tunnels) == (set(), set(), set())


async def test_a_port_in_use_is_named() -> None:
    async with application(replying()) as app, proxy() as other:
        engine = type(other.engine)()
        from backstay.sidecar.engine import Address

        with pytest.raises(OSError, match=rf"cannot listen on {LOCALHOST}:{app}: "):
            await engine.start(Address(host=LOCALHOST, inbound={80: app}, outbound=0))


async def test_the_access_log_names_the_policy_that_denied_and_the_answer_does_not() -> None:
    deny = Authorization(
        policies=(
            Policy(
                name="shop/no-delete", action="deny", rules=(PolicyRule(operations=(Operation(methods=("DELETE",)),)),)
            ),
        )
    )
    async with application(replying()) as app, proxy(app) as server:
        inbound = listeners("web", inbound=(InboundPort(port=app),), access_log="failures")
        server.engine.apply(config(inbound, deny), None, 0)
        assert (await send(server.inbound[app], get("/fine"))).status == 200
        answer = await send(server.inbound[app], get("/gone?token=secret", method="DELETE"))
        assert b"no-delete" not in answer.head + answer.body
        server.engine.server.log.flush()
        (line,) = server.lines.splitlines()
        fields = json.loads(line)
        shown = {name: fields[name] for name in ("method", "path", "status", "flags", "reason", "policy", "source")}
        assert shown == {
            "method": "DELETE", "path": "/gone", "status": 403, "flags": "RBAC", "reason": "denied",
            "policy": "shop/no-delete#0", "source": LOCALHOST,
        }  # fmt: skip


async def test_slow_heads_slow_bodies_and_idle_connections_are_ended() -> None:
    async with application(hang) as app, plain_client(*WEB, app=app) as client:
        server = client.engine.server
        for data, seconds, status in (
            (b"GET / HTTP/1.1\r\nHo", HEAD_SECONDS, 408),
            (b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\nabc", STALL_SECONDS, 408),
            (b"", IDLE_SECONDS, 0),
        ):
            reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
            writer.write(data)
            while not server.downstreams or (data.startswith(b"POST") and not server.upstreams):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            (downstream,) = server.downstreams
            downstream.check(server.now + 1)
            downstream.check(server.now + seconds - 1)
            assert not downstream.leaving
            downstream.check(server.now + seconds + 2)
            line = await reader.readline()
            assert (int(line.split(b" ")[1]) if line else 0) == status
            writer.close()
            while server.downstreams:
                await asyncio.sleep(0.01)


async def test_a_thousand_connections_leave_no_descriptor_and_no_task_behind(tmp_path: Path) -> None:
    async with pair(tmp_path) as (client, server, app, _):
        await send(client.outbound, get())
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(20):
            await asyncio.gather(
                *(send(client.outbound, get()) for _ in range(25)),
                *(send(server.inbound[app], get()) for _ in range(25)),
            )
        while client.engine.server.downstreams:
            await asyncio.sleep(0.01)
        for running in (client, server):
            close_all([upstream for pool in running.engine.server.every_pool() for upstream in pool.retire()])
        while client.engine.server.upstreams or server.engine.server.upstreams or server.engine.server.downstreams:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):  # the test's own ends close a little later
            while Path("/proc/self/fd").exists() and len(os.listdir("/proc/self/fd")) > before + 5:
                await asyncio.sleep(0.02)
        assert [
            task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(("connect ", "accept "))
        ] == []
