"""The cases of authorization through Envoy: who is let in, and that nothing of a policy is in the answer.

Which policy decided is in the access log of the Python engine; Envoy's filters say it in details of their own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backstay.sidecar.engine import Address
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

from .cases import engine, groups, known

pytestmark = pytest.mark.long  # `make test-envoy`
FILE = "security/authorization.yaml"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextlib.asynccontextmanager
async def world(intents: str, authority: Authority) -> AsyncIterator[World]:
    application, running = Application(), engine()
    server = await asyncio.start_server(application.serve, LOCALHOST, 0)
    app = int(server.sockets[0].getsockname()[1])
    host = own_address()
    inbound = {port: free_port(host) for port, _ in PORTS}
    await running.start(Address(host=host, inbound=inbound, app_ports={port: app for port, _ in PORTS}, outbound=0))
    try:
        running.trust({DOMAIN: authority.pem}, [])
        running.identity(authority.of("server"))
        running.apply(compiled(intents), None, 0)
        await running.settled()
        yield World(host, application, running, inbound, authority, [])
    finally:
        await running.drain(0)
        server.close()


def cases() -> Iterator[Any]:
    for number, group in enumerate(groups(FILE)):
        yield pytest.param(group, id=f"{number}: {group['cases'][0]['name']}")


@pytest.mark.parametrize("group", list(cases()))
async def test_envoy_lets_in_whom_the_cases_let_in(authority: Authority, group: dict[str, Any]) -> None:
    differing: dict[str, str] = {}
    async with world(group["intents"], authority) as running:
        for case in group["cases"]:
            answer = await running.ask(case)
            if answer.status != case.get("status", 200):
                differing[case["name"]] = f"{answer.status}, expected {case.get('status', 200)}"
            elif "by" in case and case["by"] != "#-1":
                assert case["by"].partition("#")[0] not in f"{answer.headers} {answer.body}"
    expected = {case["name"] for case in group["cases"] if case["name"] in known(FILE)}
    assert {name: why for name, why in differing.items() if name not in expected} == {}
    assert expected - differing.keys() == set(), "no difference any more"
    assert [
        name for name in expected if not differing[name].startswith("403, ")
    ] == []  # never more than the case lets in
