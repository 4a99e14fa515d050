"""The cases of routing and actions through Envoy, whole groups at a time: starting it costs more than a case."""

from typing import Any

import pytest
import yaml

from conformance.traffic.runner import Answer, World, ask, world
from conformance.traffic.test_traffic import check_answer, check_copies, check_upstream

from .cases import engine, groups, known

pytestmark = pytest.mark.long  # `make test-envoy`
FILES = ("traffic/actions.yaml", "traffic/matches.yaml")
GROUPS = [pytest.param(file, group, id=f"{file}: {n}") for file in FILES for n, group in enumerate(groups(file))]


@pytest.mark.parametrize(("file", "group"), GROUPS)
async def test_envoy_does_as_the_cases_say_but_for_known_differences(file: str, group: dict[str, Any]) -> None:
    differing: dict[str, str] = {}
    # What one case takes out of a bucket the next one would miss.
    together = [[case] for case in group["cases"]] if "RateLimit" in str(group) else [group["cases"]]
    for cases in together:
        async with world(group.get("intents", ""), engine()) as running:
            for case in cases:
                try:
                    await hold(running, case, are_equal="{name: web}" in group.get("intents", "{name: web}"))
                except (AssertionError, TimeoutError, OSError, EOFError) as error:
                    differing[case["name"]] = str(error).partition("\n")[0] or type(error).__name__
    expected = {case["name"] for case in group["cases"] if case["name"] in known(file)}
    assert {name: why for name, why in differing.items() if name not in expected} == {}
    assert expected - differing.keys() == set(), "no difference any more"


EQUALS = {"web-v2": "web-v1"}
"""Two instances of one service: where a rule names the service, chance decides between them."""


def as_one(running: World, case: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The case, with instances that are equal to its rules held for one: chance is fixed for the bundled engine only."""
    for name, other in EQUALS.items():
        running.applications[other].got += running.applications[name].got
        running.applications[name].got.clear()
        answer.headers[:] = [(key, value.replace(name, other)) for key, value in answer.headers]
        case = yaml.safe_load(yaml.safe_dump(case).replace(name, other))
    return case


def without_shares(case: dict[str, Any]) -> dict[str, Any]:
    """The case without who among several gets the request, or a copy of it, by a share."""
    return {name: value for name, value in case.items() if name not in ("to", "copies")}


async def hold(running: World, case: dict[str, Any], *, are_equal: bool) -> None:
    if case["name"] in known("shares"):
        case = without_shares(case)
    for application in running.applications.values():
        application.got.clear()
        application.arrived.clear()
    answers = [await ask(running.port, case.get("send", {})) for _ in range(case.get("times", 1))]
    if "statuses" in case:
        assert [answer.status for answer in answers] == case["statuses"]
    if are_equal:
        case = as_one(running, case, answers[-1])
    check_answer(answers[-1], case)
    await check_copies(running, case.get("copies", {}))
    check_upstream(running, case)
