"""Runs authorization.yaml: who may ask what, decided by real proxies over real sockets. README.md describes the form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .runner import ENGINES, Authority, groups, world

CASES = Path(__file__).parent / "authorization.yaml"


def cases() -> Iterator[Any]:
    for number, group in enumerate(groups(CASES)):
        for case in group["cases"]:
            yield pytest.param(group["intents"], case, id=f"{number}: {case['name']}")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("intents", "case"), list(cases()))
async def test_the_case_holds(authority: Authority, intents: str, case: dict[str, Any], engine: str) -> None:
    async with world(intents, authority, engine) as running:
        answer = await running.ask(case)
        assert answer.status == case.get("status", 200)
        (line,) = await running.lines()
        assert line.get("policy", "") == case.get("by", "")
        assert line.get("audited", []) == case.get("audited", [])
        if "by" in case:
            assert line["flags"] == "RBAC"
            assert case["by"].partition("#")[0] not in f"{answer.headers} {answer.body}" or case["by"] == "#-1"


def test_there_are_as_many_cases_as_promised() -> None:
    found = list(cases())
    assert len({case.id for case in found}) == len(found) >= 100
