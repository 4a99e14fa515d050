"""Runs the cases of this folder through every engine there is. README.md describes their form."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .runner import ENGINES, PATIENCE, Answer, Request, World, ask, world

HERE = Path(__file__).parent


def cases() -> Iterator[Any]:
    for path in sorted(HERE.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8")):
            for case in group["cases"]:
                yield pytest.param(group.get("intents", ""), case, id=f"{path.stem}: {case['name']}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("intents", "case"), list(cases()))
async def test_the_case_holds(intents: str, case: dict[str, Any], engine: str) -> None:
    async with world(intents, ENGINES[engine]()) as running:
        answers = [await ask(running.port, case.get("send", {})) for _ in range(case.get("times", 1))]
        if "statuses" in case:
            assert [answer.status for answer in answers] == case["statuses"]
        check_answer(answers[-1], case)
        await check_copies(running, case.get("copies", {}))
        check_upstream(running, case)


def check_answer(answer: Answer, case: dict[str, Any]) -> None:
    assert answer.status == case.get("status", case.get("statuses", [200])[-1])
    assert {name: answer.value(name) for name in case.get("headers", {})} == case.get("headers", {})
    assert [name for name in case.get("without", []) if answer.has(name)] == []
    if "body" in case:
        assert answer.body.decode() == case["body"]


def check_upstream(running: World, case: dict[str, Any]) -> None:
    got = {
        name: app.got for name, app in running.applications.items() if app.got and name not in case.get("copies", {})
    }
    if "to" in case:
        assert list(got) == ([case["to"]] if case["to"] else [])
    if not {"line", "sees", "misses", "sent"} & case.keys():
        return
    (requests,) = got.values()
    request: Request = requests[-1]
    if "line" in case:
        assert request.line == case["line"]
    if "sent" in case:
        assert request.body.decode() == case["sent"]
    wanted = {name: value if isinstance(value, list) else [value] for name, value in case.get("sees", {}).items()}
    assert {name: request.values(name) for name in wanted} == wanted
    assert [name for name in case.get("misses", []) if request.values(name)] == []


async def check_copies(running: World, copies: dict[str, str]) -> None:
    for name, line in copies.items():
        application = running.applications[name]
        async with asyncio.timeout(PATIENCE):
            await application.arrived.wait()
        assert [request.line for request in application.got] == [line]
