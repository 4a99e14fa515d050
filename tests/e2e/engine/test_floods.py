"""Clients that send more than they take: memory stays bounded, and nobody gets an answer that is not their own."""

import asyncio
from typing import Final

from backstay.sidecar.engines.python.downstream import MAX_PIPELINED

from .mesh import (
    LOCALHOST,
    PATIENCE,
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
    to,
)

AT_A_TIME: Final = 100
MOST_SENT: Final = 200_000  # requests: far more than socket buffers of both ends hold
MOST_BUFFERED: Final = 1024 * 1024
"""Bytes of answers in the proxy. One read gives at most MAX_PIPELINED of them, of less than 200 bytes each."""
CLIENT: Final = listeners("client", egress="registry_only")


async def test_who_takes_no_answers_is_not_read_any_further_and_gets_all_of_them_in_the_end() -> None:
    async with proxy() as client, asyncio.timeout(PATIENCE):
        client.engine.apply(config(CLIENT), None, 0)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get())
        assert (await receive(reader)).status == 502
        (downstream,) = client.engine.server.downstreams
        transport = downstream.transport
        assert transport is not None
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        while not downstream.full_since and sent < MOST_SENT:
            writer.write(get() * AT_A_TIME)
            sent += AT_A_TIME
            await asyncio.sleep(0)
        assert downstream.full_since
        assert not transport.is_reading()
        assert transport.get_write_buffer_size() < MOST_BUFFERED
        assert len(downstream.queue) <= MAX_PIPELINED
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert {(await receive(reader)).status for _ in range(sent)} == {502}
        assert downstream.transport is not None
        writer.close()


async def test_a_thousand_requests_ahead_of_their_answers_are_not_held() -> None:
    """They come in one read of 40 KiB, and would cost a megabyte as exchanges."""
    parts = (CLIENT, routes(to("web.shop:80")), backend())
    async with application(replying()) as app, proxy() as client, asyncio.timeout(PATIENCE):
        client.engine.apply(config(*parts), None, 0)
        client.engine.endpoints({"web.shop:80": [endpoint(app)]}, full=True)
        reader, writer = await asyncio.open_connection(LOCALHOST, client.outbound)
        writer.write(get() * 1000)
        answers = await reader.read()
        assert 1 <= answers.count(b"HTTP/1.1 200 OK\r\n") < 1000
        assert answers.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
        assert answers.rfind(b"HTTP/1.1 400") > answers.rfind(b"HTTP/1.1 200")
        writer.close()
