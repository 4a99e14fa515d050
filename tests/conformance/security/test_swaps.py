"""A new config closes open connections that it would not let in, and no others."""

import asyncio

import pytest

from .runner import ENGINES, PATIENCE, Authority, compiled, world

OPEN = "kind: Mesh\nname: mesh\nspec: {}\n"
ONLY_ANN = """\
kind: Authorization
name: web
spec: {rules: [{from: [{serviceAccounts: [ann]}]}]}
"""
STRICT = """\
kind: Authentication
name: web
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("intents", "stays", "goes"),
    [(ONLY_ANN, "ann", "bank/bob"), (ONLY_ANN, "ann", "plaintext"), (STRICT, "bank/bob", "plaintext")],
    ids=["a policy", "a policy that plaintext cannot meet", "STRICT"],
)
async def test_tunnels_of_a_tcp_port_are_judged_anew(
    authority: Authority, engine: str, intents: str, stays: str, goes: str
) -> None:
    async with world(OPEN, authority, engine) as running:

        async def opened(who: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            context = None if who == "plaintext" else authority.context(who)
            reader, writer = await asyncio.open_connection(running.host, running.inbound[7070], ssl=context)
            await asked(reader, writer)
            return reader, writer

        async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200 ")

        async with asyncio.timeout(PATIENCE):
            kept, cut = await opened(stays), await opened(goes)
            running.engine.apply(compiled(intents), None, 0)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await cut[0].readexactly(1)
            await asked(*kept)
        for _, writer in (kept, cut):
            writer.close()
