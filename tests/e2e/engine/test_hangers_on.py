"""Who takes nothing more, sends for ever, or is gone without a word: neither connections nor memory stay behind."""

import asyncio
import socket
import struct

from backstay.sidecar.engines.python.downstream import STALL_SECONDS, Downstream
from backstay.sidecar.engines.python.framing import MAX_CHUNK_OVERHEAD, MAX_HEAD_BYTES
from backstay.sidecar.engines.python.server import MANY_DEADLINES
from backstay.sidecar.engines.python.tunnel import QUIET_SECONDS, Tunnel

from .mesh import (
    LOCALHOST,
    PATIENCE,
    Application,
    Proxy,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    proxy,
    read_head,
    receive,
    routes,
    send,
    serve_web,
    to,
    until,
)

REST = 50_000
"""Bytes of an answer that stay in the proxy: more than the small buffers below, less than makes it hold its writers back."""
SMALL = 2048
UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"]
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


async def open_small(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose client's kernel takes next to nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (LOCALHOST, port))
    return await asyncio.open_connection(sock=sock, limit=SMALL)


def shrink(transport: asyncio.BaseTransport | None) -> None:
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


def answering(first: bytes, then: bytes) -> Application:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (first, then):
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        await reader.read()

    return answer


async def test_who_never_takes_the_last_bytes_of_an_answer_is_cut_off() -> None:
    async with application(answering(b"ok", bytes(REST))) as app, proxy() as client, asyncio.timeout(PATIENCE):
        serve_web(client, app)
        reader, writer = await open_small(client.outbound)
        writer.write(get())
        assert (await receive(reader)).body == b"ok"
        (downstream,) = client.engine.server.downstreams
        shrink(downstream.transport)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(get(headers=["Connection: close"]))
        await until(lambda: downstream.leaving)
        assert downstream.transport is not None
        assert 0 < downstream.transport.get_write_buffer_size() < 64 * 1024
        assert not downstream.full_since
        await look_at(client, downstream)
        writer.close()


async def look_at(client: Proxy, downstream: Downstream) -> None:
    server = client.engine.server
    downstream.check(downstream.busy_since + STALL_SECONDS - 1)
    await asyncio.sleep(0)
    assert downstream.transport is not None
    downstream.check(downstream.busy_since + STALL_SECONDS + 1)
    await until(lambda: not server.downstreams)


async def test_who_never_takes_the_last_bytes_of_a_tunnel_is_cut_off() -> None:
    go_on, leave = asyncio.Event(), asyncio.Event()

    async def app_that_leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(SWITCHED)
        await go_on.wait()
        writer.write(bytes(REST))
        await leave.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset: no half-closed rest
        writer.transport.abort()

    async with application(app_that_leaves) as app, proxy() as client, asyncio.timeout(PATIENCE):
        serve_web(client, app)
        reader, writer = await open_small(client.outbound)
        writer.write(get(headers=UPGRADE))
        assert (await read_head(reader)).startswith(b"HTTP/1.1 101 ")
        (tunnel,) = client.engine.server.tunnels
        pipe, from_app = tunnel._pipes
        shrink(pipe.transport)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        go_on.set()
        await until(lambda: from_app.moved == REST)
        leave.set()
        await until(pipe.transport.is_closing)
        left = pipe.transport.get_write_buffer_size()
        assert left > 0
        pipe.cut_if_stuck(left + 1)  # some of it was taken meanwhile
        assert pipe.transport.get_write_buffer_size() == left
        pipe.cut_if_stuck(left)
        await until(lambda: pipe.transport.get_write_buffer_size() == 0)
        writer.close()


async def test_the_kernel_asks_whether_both_ends_of_a_quiet_tunnel_are_still_there() -> None:
    async def switching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(SWITCHED)
        await reader.read()

    async with application(switching) as app, proxy() as client:
        serve_web(client, app)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get(headers=UPGRADE))
        assert (await read_head(reader)).startswith(b"HTTP/1.1 101 ")
        (tunnel,) = client.engine.server.tunnels
        assert keepalive_of(tunnel) == [(1, QUIET_SECONDS), (1, QUIET_SECONDS)]
        writer.close()


def keepalive_of(tunnel: Tunnel) -> list[tuple[int, int]]:
    socks = [pipe.transport.get_extra_info("socket") for pipe in tunnel._pipes]
    return [
        (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        )
        for sock in socks
    ]


def endless(head: bytes, piece: bytes) -> Application:
    """An application whose answer goes on for as long as somebody reads it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_trailers_without_end_cut_an_answer_off_and_are_not_kept() -> None:
    first = CHUNKED + b"30000\r\n" + bytes(0x30000) + b"\r\n0\r\n"  # the body saves nothing up for what follows
    async with application(endless(first, b"A: b\r\n" * 2000)) as app, proxy() as client, asyncio.timeout(PATIENCE):
        serve_web(client, app)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get())
        answer = b""
        kept: list[int] = []
        while data := await reader.read(100_000):
            answer += data
            kept += [upstream.around for upstream in client.engine.server.upstreams]
        assert answer.count(b"\0") == 0x30000
        assert b"A: b" not in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert max(kept, default=0) <= MAX_CHUNK_OVERHEAD + MAX_HEAD_BYTES
        writer.close()


async def test_one_endless_trailer_or_chunk_extension_cuts_an_answer_off() -> None:
    for begin in (CHUNKED + b"0\r\nA: ", CHUNKED + b"3;"):
        async with application(endless(begin, b"a" * 16_000)) as app, proxy() as client, asyncio.timeout(PATIENCE):
            serve_web(client, app)
            reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
            writer.write(get(headers=["Connection: close"]))
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 502 ") or not answer.endswith(b"0\r\n\r\n")
            writer.close()


async def test_trailers_of_a_request_without_end_are_not_paid_for_by_its_body() -> None:
    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with application(patient) as app, proxy() as client, asyncio.timeout(PATIENCE):
        serve_web(client, app)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        head = b"POST / HTTP/1.1\r\nHost: web.shop\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"30000\r\n" + bytes(0x30000) + b"\r\n0\r\n")
        await writer.drain()
        sent = 0
        answer = asyncio.ensure_future(receive(reader))
        while not answer.done() and sent < 4 * 1024 * 1024:
            writer.write(b"A: b\r\n" * 2000)
            sent += 12_000
            await asyncio.sleep(0.001)
        assert (await answer).status == 400
        writer.close()


async def test_an_answer_of_many_small_chunks_is_no_flood() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(CHUNKED)
        for _ in range(60):
            writer.write(b"1\r\na\r\n" * 1000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with application(answer) as app, proxy() as client, asyncio.timeout(PATIENCE):
        serve_web(client, app)
        assert (await send(client.outbound, get())).body == b"a" * 60_000


async def test_time_limits_of_configs_that_are_gone_are_forgotten() -> None:
    async with proxy() as client:
        server = client.engine.server
        for number in range(1, 5 * MANY_DEADLINES):
            client.engine.apply(
                config(listeners("client"), routes(to("web.shop:80", timeout_ms=number)), backend()), None, 0
            )
            assert server.deadlines_of(number / 1000) is server.deadlines_of(number / 1000)
        assert len(server._deadlines) <= MANY_DEADLINES + 1


async def test_an_open_request_keeps_the_time_limit_of_a_config_that_is_gone() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        asked.set()
        await reader.read()

    async with application(silent) as app, proxy() as client, asyncio.timeout(PATIENCE):
        parts = (listeners("client"), backend())
        client.engine.apply(config(*parts, routes(to("web.shop:80", timeout_ms=500))), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        answer = asyncio.ensure_future(send(client.outbound, get()))
        await asked.wait()
        for number in range(2 * MANY_DEADLINES):
            client.engine.server.deadlines_of(1000.0 + number)
        client.engine.apply(config(*parts, routes(to("web.shop:80"))), None, 0)
        assert {0.0, *client.engine.server._deadlines} == {0.0, 0.5}
        assert (await answer).status == 504
