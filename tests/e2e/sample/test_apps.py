"""The sample application as its users see it: real processes, without a mesh."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sa_logic
from aiohttp import web
from traffic import SENTENCES, Generator, Traffic

APPS = Path(__file__).parents[3] / "example-repo" / "apps"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def app(name: str, **env: str) -> Iterator[str]:
    """One service as a process; its URL as soon as it answers."""
    port = free_port()
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    process = subprocess.Popen(
        [sys.executable, str(APPS / f"{name}.py")], env={**clean, "HOST": "127.0.0.1", "PORT": str(port), **env}
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) in (0, -15)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return
    raise AssertionError(f"ended with {process.returncode} before it listened")


@pytest.fixture(scope="module")
def logic() -> Iterator[str]:
    with app("sa_logic", VERSION="v2") as url:
        yield url


async def call(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url, json=body, headers=headers) as answer:
        text = await answer.text()
        is_json = answer.content_type == "application/json"
        return answer.status, json.loads(text) if is_json else text, answer.headers.get("x-version", "")


async def test_sentences_are_scored_by_their_first_one(logic: str) -> None:
    url = f"{logic}/analyse/sentiment"
    love = {"sentence": "I love this. It is awful."}
    assert await call("POST", url, love) == (200, {**love, "polarity": 0.5}, "v2")
    awful = {"sentence": "This is awful"}
    assert await call("POST", url, awful) == (200, {**awful, "polarity": -1.0}, "v2")
    empty = {"sentence": ""}
    assert await call("POST", url, empty) == (200, {**empty, "polarity": 0.0}, "v2")


def test_scores_are_textblobs_own() -> None:
    """Asked in another process: here the package is known by its folder only."""
    sentences = [*SENTENCES, "I love this!", "not good at all", "", "GREAT :)"]
    code = "import json, sys, textblob; print([textblob.TextBlob(s).sentiment.polarity for s in json.load(sys.stdin)])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(sentences), capture_output=True, text=True, check=True
    )
    assert [sa_logic.SENTIMENT(sentence)[0] for sentence in sentences] == json.loads(done.stdout)


async def test_what_is_no_sentence_is_refused(logic: str) -> None:
    url = f"{logic}/analyse/sentiment"
    bodies: list[Any] = [{}, [], {"sentence": 1}]
    assert [await call("POST", url, body) for body in bodies] == [(400, 'expected {"sentence": "..."}', "")] * 3


async def test_the_web_application_asks_logic_and_passes_on_what_it_says(logic: str) -> None:
    with app("sa_webapp", SA_LOGIC_API_URL=logic) as url:
        love = {"sentence": "I love this."}
        assert await call("POST", f"{url}/sentiment", love) == (200, {**love, "polarity": 0.5}, "v2")
    with app("sa_webapp", SA_LOGIC_API_URL=f"http://127.0.0.1:{free_port()}") as url:
        status, text, _ = await call("POST", f"{url}/sentiment", love)
        assert (status, text) == (502, "sa-logic: ClientConnectorError")


async def test_calls_go_through_the_proxy_and_carry_the_trace() -> None:
    """What makes a service part of a mesh without knowing it."""
    seen: list[tuple[str, str, str | None]] = []

    async def proxied(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, str(request.url), request.headers.get("traceparent")))
        return web.Response(status=403, text="no")

    proxy = web.ServerRunner(web.Server(proxied))
    await proxy.setup()
    port = free_port()
    await web.TCPSite(proxy, "127.0.0.1", port).start()
    try:
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        with app("sa_webapp", HTTP_PROXY=f"http://127.0.0.1:{port}", NO_PROXY="") as url:
            answer = await call("POST", f"{url}/sentiment", {"sentence": "Hm."}, traceparent=trace)
    finally:
        await proxy.cleanup()
    assert answer == (403, "sa-logic: no", "")
    assert seen == [("POST", "http://sa-logic/analyse/sentiment", trace)]


async def test_feedback_is_kept_over_a_restart(tmp_path: Path) -> None:
    vote = {"sentence": "Nice.", "polarity": 0.6, "correct": True}
    with app("sa_feedback", DATABASE_DIR=str(tmp_path)) as url:
        assert await call("GET", f"{url}/feedback") == (200, [], "")
        assert (await call("POST", f"{url}/feedback", vote))[0] == 201
        assert (await call("POST", f"{url}/feedback", {**vote, "correct": "yes"}))[0] == 400
    with app("sa_feedback", DATABASE_DIR=str(tmp_path)) as url:
        kept = {"ID": 1, "Sentence": "Nice.", "Polarity": 0.6, "Correct": True}
        assert await call("GET", f"{url}/feedback") == (200, [kept], "")


async def test_the_frontend_shows_a_page_and_is_the_door_to_the_rest(logic: str) -> None:
    with app("sa_webapp", SA_LOGIC_API_URL=logic) as webapp, app("sa_frontend", SA_WEBAPP_URL=webapp) as url:
        status, page, _ = await call("GET", url)
        assert (status, "<title>How does it sound?</title>" in page) == (200, True)
        assert (await call("POST", f"{url}/sentiment", {"sentence": "I love this."}))[1]["polarity"] == 0.5


async def test_the_buggy_version_fails_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sa_logic, "STALL_SECONDS", 0.0)
    outcomes: Counter[str] = Counter()
    for draw in range(1, 102):
        monkeypatch.setattr(random, "randint", lambda low, high, draw=draw: draw if (low, high) == (1, 101) else None)
        try:
            await sa_logic.fail_sometimes()
            outcomes["answered"] += 1
        except web.HTTPInternalServerError as error:
            outcomes[error.text or ""] += 1
    assert outcomes == {"out of luck": 33, "out of patience": 32, "answered": 36}


# --- traffic ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(answer: Any) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/sentiment"
    finally:
        await runner.cleanup()


def total(lines: list[dict[str, Any]], field: str) -> Counter[str]:
    return sum((Counter(line[field]) for line in lines), Counter())


async def test_traffic_is_counted_by_what_came_back() -> None:
    count = iter(range(10_000))

    async def answer(_: web.BaseRequest) -> web.Response:
        number = next(count)
        return web.Response(status=500 if number % 10 == 0 else 200, headers={"x-version": f"v{number % 2}"})

    lines: list[dict[str, Any]] = []
    async with server(answer) as url:
        await Generator(Traffic(url=url, rate=200, duration=0.5), lines.append).run()
    assert sum(line["sent"] for line in lines) == 100
    assert total(lines, "outcomes") == {"200": 90, "500": 10}
    assert total(lines, "versions") == {"v0": 50, "v1": 50}
    assert (lines[-1]["open"], lines[-1]["oldest_ms"]) == (0, 0.0)


async def test_traffic_goes_on_while_answers_hang_up_to_its_bound() -> None:
    release = asyncio.Event()

    async def hang(_: web.BaseRequest) -> web.Response:
        await release.wait()
        return web.Response()

    lines: list[dict[str, Any]] = []
    async with server(hang) as url:
        generator = Generator(Traffic(url=url, rate=200, duration=0.3, max_open=20), lines.append)
        asyncio.get_running_loop().call_later(0.6, release.set)
        await generator.run()
    assert total(lines, "outcomes") == {"overflow": 40, "200": 20}


async def test_stopped_traffic_abandons_what_hangs() -> None:
    async def hang(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    lines: list[dict[str, Any]] = []
    async with server(hang) as url:
        generator = Generator(Traffic(url=url, rate=100), lines.append)
        asyncio.get_running_loop().call_later(0.1, generator.stop)
        await asyncio.wait_for(generator.run(), 5)
    sent = sum(line["sent"] for line in lines)
    assert 5 <= sent <= 11
    assert total(lines, "outcomes") == {"abandoned": sent}


async def test_nobody_at_the_other_end_is_an_outcome_too() -> None:
    lines: list[dict[str, Any]] = []
    traffic = Traffic(url=f"http://127.0.0.1:{free_port()}/", rate=100, duration=0.1)
    await Generator(traffic, lines.append).run()
    assert total(lines, "outcomes") == {"connect": 10}
