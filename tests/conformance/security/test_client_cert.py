"""Runs client_cert.yaml: what applications are told of their callers' certificates."""

import ssl
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from .runner import ENGINES, Authority, World, groups, spiffe, world

CASES = Path(__file__).parent / "client_cert.yaml"
FIELD = "x-forwarded-client-cert"


def cases() -> Iterator[Any]:
    for group in groups(CASES):
        for case in group["cases"]:
            yield pytest.param(intents(group.get("mode", "")), case, id=case["name"])


def intents(mode: str) -> str:
    nothing = {"kind": "Mesh", "name": "mesh", "spec": {}}
    return yaml.safe_dump(
        {"kind": "Authentication", "name": "a", "spec": {"forwardClientCert": mode}} if mode else nothing
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def introduction(authority: Authority, who: str) -> str:
    der = ssl.PEM_cert_to_DER_cert(authority.of(who).certificate.read_text())
    return f'By={spiffe("server")};Hash={sha256(der).hexdigest()};Subject="";URI={spiffe(who)}'


async def check(running: World, case: dict[str, Any]) -> None:
    assert (await running.ask(case)).status == 200
    _, seen = running.application.got[-1]
    own = introduction(running.authority, case.get("who", "ann")) if "value" in case else ""
    expected = case["value"].replace("OWN", own) if "value" in case else None
    assert seen.get(FIELD) == expected
    assert [name for name in case.get("misses", ()) if name in seen] == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("intents", "case"), list(cases()))
async def test_the_case_holds(authority: Authority, intents: str, case: dict[str, Any], engine: str) -> None:
    async with world(intents, authority, engine) as running:
        await check(running, case)
        await check(running, case)  # the connection is another one, what is kept of the first must not be
