"""The API answers over a real unix socket; only the mesh behind it is made up."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from backstay.control.api import Action, ActionResult, ApiServer, bind_private
from backstay.control.metrics import StreamCount, render
from backstay.core.ports import Event, StateUnavailable
from backstay.core.review.traffic import Seen, Traffic
from support import views


@pytest.fixture
def operator() -> views.ShowingOperator:
    return views.ShowingOperator(shown=views.rolling())


@pytest.fixture
async def server(operator: views.ShowingOperator, tmp_path: Path) -> AsyncIterator[ApiServer]:
    made = ApiServer(operator, tmp_path)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(path=str(server.path))
    async with aiohttp.ClientSession("http://backstay", connector=connector) as session:
        yield session


async def ask(client: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with client.get(path) as answer:
        return answer.status, await answer.json()


async def test_the_socket_is_its_owners_alone(server: ApiServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


async def test_the_socket_is_gone_after_close(operator: views.ShowingOperator, tmp_path: Path) -> None:
    made = ApiServer(operator, tmp_path)
    await made.start()
    await made.close()
    assert list(tmp_path.iterdir()) == []


async def test_traffic_is_told_of_the_meshs_own_workloads(operator: views.ShowingOperator, tmp_path: Path) -> None:
    asked: list[set[str]] = []

    def traffic_of(workloads: Iterable[str]) -> Traffic:
        asked.append(set(workloads))
        return Traffic(since=1.0, until=2.0, requests=(Seen("GET", "web", "/", "shop/a", "", 200, 3),))

    made = ApiServer(operator, tmp_path, traffic=traffic_of)
    await made.start()
    try:
        connector = aiohttp.UnixConnector(path=str(made.path))
        async with aiohttp.ClientSession("http://backstay", connector=connector) as session:
            code, found = await ask(session, "/v1/traffic")
    finally:
        await made.close()
    assert (code, msgspec.convert(found, Traffic)) == (200, traffic_of(()))
    assert asked[0] == set(operator.shown.registry.workloads) != set()


async def test_the_repository_object(client: aiohttp.ClientSession) -> None:
    code, found = await ask(client, "/v1/meshrepository")
    assert (code, found["kind"], found["status"]["rollout"]) == (200, "MeshRepository", "r2")


@pytest.mark.parametrize(
    ("path", "kind", "names"),
    [
        ("/v1/meshrollouts", "MeshRolloutList", ["shop-r2"]),
        ("/v1/meshintents", "MeshIntentList", ["route.b"]),
        ("/v1/workloads", "MeshWorkloadList", ["a", "b"]),
        ("/v1/proxies", "MeshProxyList", ["a-0", "a-1", "b-0", "b-1"]),
        ("/v1/revisions", "MeshRevisionList", [views.NEW, views.OLD]),
    ],
)
async def test_lists(client: aiohttp.ClientSession, path: str, kind: str, names: list[str]) -> None:
    code, found = await ask(client, path)
    assert (code, found["kind"]) == (200, kind)
    assert [item["metadata"]["name"] for item in found["items"]] == names


async def test_a_config_names_the_lines_its_parts_came_from(client: aiohttp.ClientSession) -> None:
    code, found = await ask(client, "/v1/config/shop/a?which=stable")
    parts = {part["key"]: part for part in found["parts"]}
    assert code == 200
    assert found["digest"] == views.STABLE_CONFIGS.digests["shop/a"]
    assert "b.yaml:7" in parts["routes/b.shop:80"]["origins"]
    assert parts["routes/b.shop:80"]["content"]["rules"][0]["timeout_ms"] == 5000


async def test_a_candidate_config(client: aiohttp.ClientSession) -> None:
    _, found = await ask(client, "/v1/config/shop/a?which=candidate")
    parts = {part["key"]: part["content"] for part in found["parts"]}
    assert parts["routes/b.shop:80"]["rules"][0]["timeout_ms"] == 1000


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/v1/config/shop/zzz", 404, "workload 'shop/zzz' has no stable config"),
        ("/v1/config/shop/a?which=odd", 400, "which='odd', expected one of stable, candidate"),
        ("/v1/events?after=x", 400, "after='x' is not a number from 0"),
        ("/v1/events?since=nan", 400, "since='nan' is not a number from 0"),
        ("/v1/nothing", 404, "GET /v1/nothing: Not Found"),
    ],
)
async def test_what_cannot_be_answered_says_why(
    client: aiohttp.ClientSession, path: str, code: int, message: str
) -> None:
    found = await ask(client, path)
    assert (found[0], found[1]["kind"], found[1]["message"]) == (code, "Status", message)


async def test_an_order_is_passed_on_and_answered(
    client: aiohttp.ClientSession, operator: views.ShowingOperator
) -> None:
    body = {"verb": "pause", "actor": "ann@laptop", "reason": "lunch"}
    async with client.post("/v1/actions", json=body) as answer:
        assert (answer.status, await answer.json()) == (200, {"done": True, "message": "as you wish", "reason": "Done"})
    assert operator.actions == [Action(verb="pause", actor="ann@laptop", reason="lunch")]


async def test_an_order_that_is_not_carried_out_is_a_conflict(
    client: aiohttp.ClientSession, operator: views.ShowingOperator
) -> None:
    operator.answer = ActionResult(done=False, reason="NothingRunning", message="no rollout is running")
    async with client.post("/v1/actions", json={"verb": "abort", "actor": "ann"}) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (409, "NothingRunning")


@pytest.mark.parametrize(
    "body", [b"{", b'{"verb": "explode", "actor": "a"}', b'{"verb": "pause", "actor": ""}', b'{"verb": "pause"}']
)
async def test_what_is_no_order_changes_nothing(
    client: aiohttp.ClientSession, operator: views.ShowingOperator, body: bytes
) -> None:
    async with client.post("/v1/actions", data=body) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (400, "BadRequest")
    assert operator.actions == []


async def test_a_state_that_cannot_be_read_is_said(
    client: aiohttp.ClientSession, operator: views.ShowingOperator
) -> None:
    def fail() -> None:
        raise StateUnavailable("state.db: the disk is full")

    operator.on_look = fail
    code, found = await ask(client, "/v1/meshrepository")
    assert (code, found["message"]) == (503, "state.db: the disk is full")


def event(number: int, message: str = "wave 1 passed") -> Event:
    return Event(number=number, at=views.NOW + number, kind="rollout", reason="WavePassed", message=message)


async def test_events_after_a_number(client: aiohttp.ClientSession, operator: views.ShowingOperator) -> None:
    operator.told = [event(1), event(2), event(3, "token=abc123")]
    async with client.get("/v1/events?after=1") as answer:
        lines = (await answer.text()).splitlines()
    assert [line.count("***") for line in lines] == [0, 1]
    assert lines[0] == (
        '{"number":2,"at":1700000002.0,"kind":"rollout","type":"Normal","reason":"WavePassed",'
        '"message":"wave 1 passed","revision":"","subject":""}'
    )


async def test_more_events_than_a_page_all_arrive(
    client: aiohttp.ClientSession, operator: views.ShowingOperator
) -> None:
    operator.told = [event(number) for number in range(1, 2502)]
    async with client.get("/v1/events") as answer:
        assert len((await answer.text()).splitlines()) == 2501


async def test_a_followed_stream_goes_on(client: aiohttp.ClientSession, operator: views.ShowingOperator) -> None:
    operator.told = [event(1)]
    async with client.get("/v1/events?follow=1") as answer, asyncio.timeout(10):
        first = await answer.content.readline()
        operator.told.append(event(2, "wave 2 passed"))
        second = await answer.content.readline()
    assert (b"wave 1" in first, b"wave 2" in second) == (True, True)


async def test_metrics_speak_of_conditions_and_proxies(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    assert 'backstay_condition{type="Reconciling"} 1.0' in lines
    assert 'backstay_proxies_candidate{workload="shop/a"} 1.0' in lines
    assert 'backstay_rollout_phase{phase="shifting"} 1.0' in lines


def test_metrics_count_what_each_connected_proxy_was_sent() -> None:
    streams = [StreamCount("a-0", 1234, 0, 0.0), StreamCount("a-1", 5, 2, 1700000000.5)]
    text, _ = render(views.live(), streams)
    counted = [line for line in text.decode().splitlines() if line.startswith("backstay_control_")]
    assert counted == [
        'backstay_control_sent_bytes_total{proxy="a-0"} 1234.0',
        'backstay_control_sent_bytes_total{proxy="a-1"} 5.0',
        'backstay_control_acks_total{proxy="a-0"} 0.0',
        'backstay_control_acks_total{proxy="a-1"} 2.0',
        'backstay_control_acked_time_seconds{proxy="a-1"} 1.7000000005e+09',
    ]


async def test_a_second_operator_is_not_let_onto_the_socket(server: ApiServer) -> None:
    with pytest.raises(OSError, match="another operator is answering"):
        bind_private(server.path)


def test_a_socket_left_by_a_killed_operator_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bind_private(path) as taken:
        assert taken.getsockname() == str(path)


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is no socket"):
        bind_private(path)
    assert path.read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="choose a shorter state folder"):
        bind_private(tmp_path / ("x" * 104))
