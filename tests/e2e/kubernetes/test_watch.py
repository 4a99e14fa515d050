"""What a watch does when the API server forgets, empties, breaks off or refuses: a server that plays one scene each.

A real API server does none of this on demand; what it does on its own is in test_platform.py and in the long scenarios.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from backstay.adapters.kubernetes.client import ApiClient
from backstay.adapters.kubernetes.facts import service_facts
from backstay.adapters.kubernetes.watch import Watched
from backstay.tasks import spawn, stop

WITHIN = 30.0
PATH = "/api/v1/services"


def service(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"}, "spec": {"ports": [{"port": 80}]}}


def listing(*names: str, version: str = "10", following: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version, "continue": following}, "items": [service(name) for name in names]}


def status(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": reason.lower()}


class Scene:
    """Answers lists and watches from two scripts; when a script ends its last line is repeated."""

    def __init__(self, lists: list[dict[str, Any]], watches: list[list[dict[str, Any]]]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[str] = []
        """`list` or `watch VERSION`, in order."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.asked.append(f"list {request.query.get('continue', '')}".strip())
            told = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            return web.json_response(told, status=int(told.get("code", 200)))
        self.asked.append(f"watch {request.query['resourceVersion']}")
        return await self._watch(request)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        is_last = len(self.watches) <= 1
        script = self.watches[0] if is_last else self.watches.pop(0)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in script:
            await response.write(json.dumps(line).encode() + b"\n")
        if is_last:
            await asyncio.Event().wait()  # holds until the test is over
        return response


@asynccontextmanager
async def playing(scene: Scene, folder: Path) -> AsyncIterator[ApiClient]:
    application = web.Application()
    application.router.add_get(PATH, scene.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    client = ApiClient.connect(kubeconfig)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def play(scene: Scene, folder: Path, until: Callable[[Watched[Any]], bool]) -> Watched[Any]:
    """Run a watch against the scene until this holds; returns it as it was then."""
    changed = asyncio.Event()
    async with playing(scene, folder) as client:
        watched = Watched(client, PATH, service_facts, changed=changed.set, confirm_after=0.0)
        task = spawn(watched.run(), name="watch")
        try:
            async with asyncio.timeout(WITHIN):
                while not until(watched):
                    await changed.wait()
                    changed.clear()
        finally:
            await stop(task)
    return watched


def names(watched: Watched[Any]) -> list[str]:
    return sorted(watched.items)


async def test_pages_are_one_list_and_events_follow_from_its_version(tmp_path: Path) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    scene = Scene(
        [listing("a", following="more"), listing("b", version="12")],
        [[{"type": "ADDED", "object": service("c")}, bookmark], []],
    )
    watched = await play(scene, tmp_path, lambda now: names(now) == ["shop/a", "shop/b", "shop/c"])
    assert scene.asked[:3] == ["list", "list more", "watch 12"]
    assert watched.relists == 0


async def test_after_a_watch_that_ended_it_goes_on_from_the_last_bookmark(tmp_path: Path) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    scene = Scene([listing("a")], [[bookmark], [{"type": "DELETED", "object": service("a")}]])
    await play(scene, tmp_path, lambda now: now.synced.is_set() and names(now) == [])
    assert scene.asked == ["list", "watch 10", "watch 20"]


async def test_a_forgotten_place_is_listed_anew_and_nothing_old_is_replayed(tmp_path: Path) -> None:
    gone = {"type": "ERROR", "object": status(410, "Expired")}
    scene = Scene([listing("a", "b"), listing("b", "c", version="99")], [[gone], []])
    watched = await play(scene, tmp_path, lambda now: names(now) == ["shop/b", "shop/c"])
    assert watched.relists == 1
    assert scene.asked[:4] == ["list", "watch 10", "list", "watch 99"][: len(scene.asked[:4])]


@pytest.mark.parametrize("second", [("a", "b", "c", "d"), ()], ids=["a broken list", "a broken mesh"])
async def test_a_list_that_comes_back_empty_is_asked_for_again(tmp_path: Path, second: tuple[str, ...]) -> None:
    gone = {"type": "ERROR", "object": status(410, "Expired")}
    everything = ("a", "b", "c", "d")
    scene = Scene(
        [listing(*everything), listing(), listing(*second, version="30")],
        [[gone], [{"type": "ADDED", "object": service("z")}]],
    )
    seen: list[list[str]] = []

    def done(now: Watched[Any]) -> bool:
        seen.append(names(now))
        return "shop/z" in now.items

    watched = await play(scene, tmp_path, done)
    assert names(watched) == sorted(f"shop/{name}" for name in (*second, "z"))
    assert scene.asked[:5] == ["list", "watch 10", "list", "list", "watch 30"]
    assert ([] in seen[1:]) is (second == ())


async def test_a_server_that_refuses_is_asked_again_and_the_reason_is_kept(tmp_path: Path) -> None:
    scene = Scene([status(403, "Forbidden"), status(503, "ServiceUnavailable"), listing("a")], [[]])
    watched = await play(scene, tmp_path, lambda now: names(now) == ["shop/a"])
    assert scene.asked[:3] == ["list", "list", "list"]
    assert watched.fault == ""


async def test_an_object_that_is_not_as_promised_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = listing("a", "b")
    broken["items"][0]["spec"]["ports"] = "rubbish"
    watched = await play(Scene([broken], [[]]), tmp_path, lambda now: names(now) == ["shop/b"])
    assert watched.fault == ""
