"""A MeshRepository that names its forge: each commit's status there follows it, with the token that lies in a Secret."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from e2e.kubernetes.operators import MESH, World, route, until
from ports.forge import loopback_certificate


@dataclass
class Statuses:
    """What a Gitea is told of commits, over https with a certificate of its own."""

    url: str = ""
    ca: str = ""
    told: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Commit, state, context, token."""

    async def take(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        token = request.headers.get("Authorization", "")
        self.told.append((request.match_info["sha"], body["state"], body["context"], token))
        return web.json_response({}, status=201)

    def of(self, sha: str) -> list[str]:
        return [state for commit, state, _, _ in self.told if commit == sha]


@pytest.fixture
async def statuses(tmp_path: Path) -> AsyncIterator[Statuses]:
    (tmp_path / "gitea").mkdir()
    certificate, key = loopback_certificate(tmp_path / "gitea")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    found = Statuses(ca=certificate.read_text())
    app = web.Application()
    app.router.add_post("/api/v1/repos/shop/mesh/statuses/{sha}", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"https://{host}:{port}/api/v1"
    yield found
    await runner.cleanup()


async def test_the_status_of_each_commit_follows_it_by_the_secrets_token(around: World, statuses: Statuses) -> None:
    git = around.repository()
    good = git.commit("first", mesh__yaml=MESH)
    secret = {"metadata": {"name": "forge"}, "stringData": {"token": "t0ken", "ca.crt": statuses.ca}}
    await around.client.create(f"/api/v1/namespaces/{around.shop}/secrets", secret)
    place = {"provider": "gitea", "url": statuses.url, "project": "shop/mesh", "secretRef": {"name": "forge"}}
    await around.start()
    await around.make_repository(forge=place)

    async def is_live() -> bool:
        return "success" in statuses.of(good)

    await until(is_live, lambda: f"the forge was told {statuses.told}")
    bad = git.commit("typo", b__yaml=route("b").replace("timeouts", "timeout"))

    async def is_refused() -> bool:
        return "failure" in statuses.of(bad)

    await until(is_refused, lambda: f"the forge was told {statuses.told}")
    assert {told[2:] for told in statuses.told} == {(f"backstay/{around.shop}/shop", "token t0ken")}
