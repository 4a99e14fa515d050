"""The cases of tokens through Envoy: which are believed, and what becomes of the request. Why is in the other engine's log."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from backstay.sidecar.engine import Address, settled
from conformance.security import signing
from conformance.security.runner import (
    DOMAIN,
    LOCALHOST,
    PORTS,
    Application,
    Authority,
    World,
    compiled,
    free_port,
    own_address,
)
from conformance.security.test_tokens import FETCHED, check_forwarded, intents

from .cases import engine, groups, known

pytestmark = pytest.mark.long
FILE = "security/tokens.yaml"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextlib.asynccontextmanager
async def world(text: str, authority: Authority, fetched: Mapping[str, str]) -> AsyncIterator[World]:
    application, running = Application(), engine()
    server = await asyncio.start_server(application.serve, LOCALHOST, 0)
    app, host = int(server.sockets[0].getsockname()[1]), own_address()
    inbound = {port: free_port(host) for port, _ in PORTS}
    await running.start(Address(host=host, inbound=inbound, app_ports={port: app for port, _ in PORTS}, outbound=0))
    try:
        running.trust({DOMAIN: authority.pem}, [])
        running.identity(authority.of("server"))
        running.key_sets(fetched)
        running.apply(compiled(text), None, 0)
        await settled(running)
        yield World(host, application, running, inbound, authority, [])
    finally:
        await running.drain(0)
        server.close()


def cases() -> Iterator[Any]:
    for number, group in enumerate(groups(FILE)):
        yield pytest.param(group, id=f"{number}: {group['cases'][0]['name']}")


async def hold(running: World, case: dict[str, Any]) -> None:
    made = [signing.token(said) for said in case.get("tokens", [case["token"]] if "token" in case else [])]
    send = dict(case.get("send", {}))
    usual = [["Authorization", "Bearer {0}"]] if made and "send" not in case else []
    send["headers"] = [[name, value.format(*made)] for name, value in send.get("headers", usual)]
    send["path"] = send.get("path", "/").format(*made)
    answer = await running.ask(send)
    assert answer.status in (case.get("status", 200), case.get("allows", {}).get("status"))
    assert answer.headers.get("www-authenticate", "").startswith("Bearer") == (answer.status == 401)
    assert not any(token and token in f"{answer.headers} {answer.body}" for token in made)
    if answer.status == 200:
        check_forwarded(running.application.got[-1], case)


@pytest.mark.parametrize("group", list(cases()))
async def test_envoy_believes_what_the_cases_believe(authority: Authority, group: dict[str, Any]) -> None:
    differing: dict[str, str] = {}
    fetched = {FETCHED: signing.key_set(group["fetched"])} if "fetched" in group else {}
    async with world(intents(group), authority, fetched) as running:
        for case in group["cases"]:
            try:
                await hold(running, case)
            except AssertionError as error:
                differing[case["name"]] = str(error).partition("\n")[0]
    expected = {case["name"] for case in group["cases"] if case["name"] in known(FILE)}
    assert {name: why for name, why in differing.items() if name not in expected} == {}
    assert expected - differing.keys() == set(), "no difference any more"
