"""The hook's door and the notifier's post, over real loopback HTTP."""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from backstay.adapters.notifications import LogNotifier, WebhookNotifier
from backstay.control.webhook import BURST, COUNTS, MAX_BODY, Knock, Outcome, webhook_app
from backstay.core.ports import Event

SECRET = b"hook-secret-canary"
PUSH = json.dumps({"ref": "refs/heads/main"}).encode()


def signed(body: bytes, event: str = "push") -> dict[str, str]:
    digest = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={digest}"}


class Door:
    def __init__(self) -> None:
        self.knocks: list[Knock] = []
        self.now = 0.0
        self.app = webhook_app(
            lambda mesh: (SECRET,) if mesh == "shop" else (), self.knocks.append, monotonic=lambda: self.now
        )
        self.server = TestServer(self.app)

    async def post(self, body: bytes, headers: dict[str, str], mesh: str = "shop") -> tuple[int, object]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.server.make_url(f"/v1/hooks/{mesh}"), data=body, headers=headers) as response,
        ):
            return response.status, await response.json()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    opened = Door()
    await opened.server.start_server()
    yield opened
    await opened.server.close()


async def test_a_signed_push_wakes_the_mesh_it_is_for(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await door.post(PUSH, signed(PUSH)) == (202, {"result": "accepted"})
    assert door.knocks == [Knock(mesh="shop", provider="github", event="push", ref="refs/heads/main")]
    assert "webhook.accepted mesh=shop provider=github event=push ref=refs/heads/main" in caplog.text


async def test_a_forged_one_is_counted_and_told_nothing(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for headers in ({}, {"X-Hub-Signature-256": "sha256=" + "0" * 64}, {"X-Gitlab-Token": "guess"}):
        assert await door.post(PUSH, headers) == (401, {"result": "forged"})
    assert door.knocks == []
    assert door.app[COUNTS] == {Outcome.FORGED: 3}
    assert SECRET.decode() not in caplog.text


async def test_a_mesh_without_a_secret_has_no_door(door: Door) -> None:
    assert await door.post(PUSH, signed(PUSH), mesh="other") == (404, {"result": "shut"})


async def test_a_body_over_a_mebibyte_is_not_read(door: Door) -> None:
    body = b"x" * (MAX_BODY + 1)
    assert await door.post(body, signed(body)) == (413, {"result": "too_large"})


async def test_a_body_of_unknown_length_is_cut_off(door: Door) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(door.server.make_url("/v1/hooks/shop"), data=endless()) as response:
                assert response.status == 413
        except aiohttp.ClientConnectionError:
            pass  # cut off while still sending: as good
    assert door.app[COUNTS] == {Outcome.TOO_LARGE: 1}


async def test_a_signed_body_that_is_not_json_harms_nobody(door: Door) -> None:
    for body in (b"{", b"[" * 500_000):
        assert await door.post(body, signed(body)) == (400, {"result": "malformed"})
    assert await door.post(PUSH, signed(PUSH)) == (202, {"result": "accepted"})


async def test_a_ping_is_answered(door: Door) -> None:
    body = json.dumps({"zen": "ok"}).encode()
    assert await door.post(body, signed(body, "ping")) == (200, {"result": "ignored"})
    assert door.knocks == []


async def test_a_flood_is_limited_and_over_when_it_ends(door: Door) -> None:
    answers = [(await door.post(b"", {}))[0] for _ in range(BURST + 2)]
    assert answers == [401] * BURST + [429] * 2
    door.now += 1.0
    assert (await door.post(PUSH, signed(PUSH)))[0] == 202


def event(number: int) -> Event:
    return Event(at=float(number), kind="rollout", reason="R", message=f"token=abc {number}", number=number)


class Receiver:
    def __init__(self) -> None:
        self.answers: list[int] = []
        """Statuses to give first; 200 afterwards."""
        self.bodies: list[bytes] = []
        self.signatures: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        app = web.Application()
        app.router.add_post("/", self._take)
        self.server = TestServer(app)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        await self.gate.wait()
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.bodies.append(body)
            self.signatures.append(request.headers.get("X-Signature", ""))
        return web.Response(status=status)

    @property
    def numbers(self) -> list[int]:
        return [shown["number"] for body in self.bodies for shown in json.loads(body)["events"]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    opened = Receiver()
    await opened.server.start_server()
    yield opened
    opened.gate.set()
    await opened.server.close()


Notify = Callable[..., Awaitable[WebhookNotifier]]


def notifier(receiver: Receiver, **options: object) -> WebhookNotifier:
    options = {"secret": SECRET, "backoff": 0.001, "timeout": 5.0, **options}
    return WebhookNotifier(str(receiver.server.make_url("/")), **options)  # type: ignore[arg-type]  # checked at run time


async def test_events_arrive_in_order_signed_and_cleaned(receiver: Receiver) -> None:
    sending = notifier(receiver)
    await sending.notify([event(1), event(2)])
    await sending.notify([event(3)])
    await sending.close()
    assert receiver.numbers == [1, 2, 3]
    assert b"abc" not in b"".join(receiver.bodies)
    for body, signature in zip(receiver.bodies, receiver.signatures, strict=True):
        assert signature == "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()


async def test_a_receiver_that_fails_for_a_while_gets_all_of_it(receiver: Receiver) -> None:
    receiver.answers = [500, 429, 503]
    sending = notifier(receiver)
    await sending.notify([event(1)])
    await sending.close()
    assert receiver.numbers == [1]
    assert receiver.answers == []


async def test_a_receiver_that_says_never_is_not_asked_again_and_told_later_what_it_missed(receiver: Receiver) -> None:
    receiver.answers = [403]
    sending = notifier(receiver)
    await sending.notify([event(1)])
    await _until(lambda: receiver.answers == [])
    await sending.notify([event(2)])
    await sending.close()
    assert receiver.numbers == [2]
    assert json.loads(receiver.bodies[0])["dropped"] == 1


async def test_nobody_waits_for_a_slow_receiver_and_the_oldest_is_dropped(receiver: Receiver) -> None:
    receiver.gate.clear()
    sending = notifier(receiver, queue=3)
    await sending.notify([event(0)])
    await _until(lambda: "waiting=0" in repr(sending))
    async with asyncio.timeout(1):
        for number in range(1, 11):
            await sending.notify([event(number)])
    receiver.gate.set()
    await sending.close()
    assert receiver.numbers == [0, 8, 9, 10]
    assert [json.loads(body)["dropped"] for body in receiver.bodies] == [0, 7]


async def test_closing_does_not_wait_for_a_receiver_that_is_gone(receiver: Receiver) -> None:
    receiver.gate.clear()
    sending = notifier(receiver)
    await sending.notify([event(1)])
    async with asyncio.timeout(5):
        await sending.close(grace=0.05)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


async def test_the_log_gets_one_line_per_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="backstay.events")
    await LogNotifier().notify([event(1), event(2)])
    assert [record.getMessage() for record in caplog.records] == ["rollout.R token=*** 1", "rollout.R token=*** 2"]
