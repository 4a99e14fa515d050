"""On a TCP port the server may speak before its client does, and hang up as soon as it has."""

import asyncio

from .mesh import LOCALHOST, application, backend, config, endpoint, listeners, proxy, routes, to

TIMES = 20  # the bytes race with the proxy's own steps


async def test_what_a_server_says_at_once_reaches_the_client() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\n")
        writer.write(await reader.readline())

    async with application(greet) as app, proxy(explicit=("mail.shop", 25)) as client:
        parts = routes(to("mail.shop:25"), host="mail.shop", port=25), backend("mail.shop", 25, protocol="tcp")
        client.engine.apply(config(listeners(), *parts), None, 0)
        client.engine.endpoints({"mail.shop:25": [endpoint(app)]}, full=True)
        for _ in range(TIMES):
            reader, writer = await asyncio.open_connection(LOCALHOST, client.explicit)
            writer.write(b"hello\n")
            assert await reader.read() == b"220 ready\nhello\n"
            writer.close()


async def test_so_does_what_it_says_before_it_hangs_up() -> None:
    async def announce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"closed today\n")

    async with application(announce) as app, proxy(explicit=("mail.shop", 25)) as client:
        parts = routes(to("mail.shop:25"), host="mail.shop", port=25), backend("mail.shop", 25, protocol="tcp")
        client.engine.apply(config(listeners(), *parts), None, 0)
        client.engine.endpoints({"mail.shop:25": [endpoint(app)]}, full=True)
        for _ in range(TIMES):
            reader, writer = await asyncio.open_connection(LOCALHOST, client.explicit)
            assert await reader.read() == b"closed today\n"
            writer.close()
