"""An identity that is revoked is cut off: its open connections, and every new one; others go on."""

import asyncio

import pytest

from .runner import DOMAIN, ENGINES, PATIENCE, Authority, spiffe, world


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("port", [8080, 7070], ids=["http", "tcp"])
async def test_open_connections_are_closed_and_new_ones_refused(authority: Authority, engine: str, port: int) -> None:
    async with world("kind: Mesh\nname: mesh\nspec: {}\n", authority, engine) as running:
        reader, writer = await asyncio.open_connection(
            running.host, running.inbound[port], ssl=authority.context("ann")
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
            running.engine.trust({DOMAIN: authority.pem}, [spiffe("ann")])
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1)
        writer.close()
        assert (await running.ask({"port": port})).status == 0
        assert (await running.ask({"port": port, "who": "bank/bob"})).status == 200
        running.engine.trust({DOMAIN: authority.pem}, [])
        assert (await running.ask({"port": port})).status == 200
