"""The order of an end: what came in is finished with the help of what goes out, and only then is that closed."""

import asyncio
import socket
from pathlib import Path

import pytest

from backstay.config.model import InboundPort

from .mesh import (
    LOCALHOST,
    application,
    backend,
    config,
    endpoint,
    get,
    listeners,
    proxy,
    receive,
    replying,
    routes,
    send,
    to,
)


async def test_while_a_request_is_open_the_application_may_still_call_others(tmp_path: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async with application(replying(b"helped")) as helper:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await go_on.wait()
            help = await send(own.outbound, get(host="helper.shop"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + help.body)
            await writer.drain()

        async with application(serve) as app, proxy(app) as own:
            parts = routes(to("helper.shop:80"), host="helper.shop"), backend("helper.shop")
            own.engine.apply(config(listeners("web", inbound=(InboundPort(port=app),)), *parts), None, 0)
            own.engine.endpoints({"helper.shop:80": [endpoint(helper)]}, full=True)
            answer = asyncio.ensure_future(send(own.inbound[app], get()))
            await asked.wait()
            draining = asyncio.ensure_future(own.engine.drain(30))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionError):
                await asyncio.open_connection(LOCALHOST, own.inbound[app])
            go_on.set()
            found = await answer
            assert (found.status, found.body) == (200, b"helped")
            await draining
            with pytest.raises(ConnectionError):
                await asyncio.open_connection(LOCALHOST, own.outbound)


async def test_who_is_in_the_kernels_queue_when_the_drain_begins_is_answered() -> None:
    async with application(replying(b"hello")) as app, proxy(app) as own:
        own.engine.apply(config(listeners("web", inbound=(InboundPort(port=app),))), None, 0)
        waiting = socket.create_connection(
            (LOCALHOST, own.inbound[app])
        )  # the engine has no turn before it is told to end
        waiting.send(get())
        waiting.setblocking(False)
        draining = asyncio.ensure_future(own.engine.drain(30))
        reader, writer = await asyncio.open_connection(sock=waiting)
        assert (await receive(reader)).body == b"hello"
        writer.close()
        await draining
