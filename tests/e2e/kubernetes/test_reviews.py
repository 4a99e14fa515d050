"""A MeshRepository with `reviews: true`, and a real forge: a pull request is answered there, and changes nothing."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backstay.core.resources import MESH_INTENT
from e2e.kubernetes.operators import MESH, World, route, until
from gitea import build
from gitea.server import ADMIN, PASSWORD, CannotStart, Gitea, gitea
from ports.repositories import Repository

PROJECT = f"{ADMIN}/mesh"


@pytest.fixture
def forge_host() -> Iterator[Gitea]:
    lacks = build.lacking()
    if lacks is not None:
        pytest.skip(f"a real forge needs {lacks}")
    try:
        with gitea() as found:
            found.api("POST", "/user/repos", {"name": "mesh", "private": True, "default_branch": "main"})
            yield found
    except CannotStart as error:
        pytest.fail(str(error))


@pytest.mark.long
async def test_a_pull_request_is_answered_with_what_it_would_change(
    around: World, forge_host: Gitea, tmp_path: Path
) -> None:
    clone = Repository(tmp_path / "clone")
    clone.git("config", "http.sslCAInfo", str(forge_host.ca_file))
    clone.git("remote", "add", "origin", forge_host.git_url(PROJECT))
    clone.commit("first", mesh__yaml=MESH, b__yaml=route("b"))
    clone.git("push", "--quiet", "origin", "main")
    await around.start()
    await follow(around, forge_host)
    await around.until_repository(lambda seen: seen.get("Ready") == "True/Succeeded")
    await around.until_intents("mesh.mesh", "route.b")
    before = intents(await around.items(MESH_INTENT))

    clone.git("checkout", "--quiet", "-b", "slower")
    head = clone.commit("slower", b__yaml=route("b", "9s"))
    clone.git("push", "--quiet", "origin", "slower")
    body = {"head": "slower", "base": "main", "title": "slower"}
    number = (await asyncio.to_thread(forge_host.api, "POST", f"/repos/{PROJECT}/pulls", body))["number"]
    text = await answered(around, forge_host, number, head, "success")
    assert "Backstay: valid" in text
    assert "compared by the operator of mesh shop with what runs now" in text
    head = clone.commit("in words", b__yaml=route("b", "nine"))
    clone.git("push", "--quiet", "origin", "slower")
    text = await answered(around, forge_host, number, head, "failure")
    assert "INVALID" in text
    assert intents(await around.items(MESH_INTENT)) == before, "a proposal was applied"


async def answered(around: World, forge_host: Gitea, number: int, head: str, state: str) -> str:
    """The one comment, once this head has this status."""
    told: list[tuple[str, str]] = []

    async def is_told() -> bool:
        found = await asyncio.to_thread(forge_host.api, "GET", f"/repos/{PROJECT}/commits/{head}/statuses")
        told[:] = [(each["context"], each["status"]) for each in found]
        return (f"backstay/{around.shop}/shop/review", state) in told

    await until(is_told, lambda: f"the forge was told {told}")
    [comment] = await asyncio.to_thread(forge_host.api, "GET", f"/repos/{PROJECT}/issues/{number}/comments")
    return str(comment["body"])


async def follow(around: World, forge_host: Gitea) -> None:
    """A MeshRepository of the forge's repository; the forge's API is known from its address."""
    ca = forge_host.ca_file.read_text(encoding="utf-8")
    secrets = {
        "git": {"username": ADMIN, "password": PASSWORD, "ca.crt": ca},
        "forge": {"token": forge_host.token, "ca.crt": ca},
    }
    for name, data in secrets.items():
        secret = {"metadata": {"name": name}, "stringData": data}
        await around.client.create(f"/api/v1/namespaces/{around.shop}/secrets", secret)
    forge = {"provider": "gitea", "secretRef": {"name": "forge"}}
    url = f"{forge_host.url}/{PROJECT}.git"
    await around.make_repository(url=url, secretRef={"name": "git"}, forge=forge, reviews=True)


def intents(items: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(each["spec"], sort_keys=True) for each in items)
