"""The operator judges again what reviews judge: a merge button is no guarantee."""

from support.world import World

from .test_loop import route, world_with

GUARDRAIL = """
apiVersion: backstay.dev/v1alpha1
kind: Guardrail
metadata: {name: limits}
spec:
  kinds: [Route]
  severity: %s
  validations:
  - expression: object.spec.rules.all(r, r.timeouts.request != '0s')
    message: a route must have a time limit
"""
EXPECTATION = """
apiVersion: backstay.dev/v1alpha1
kind: Expectation
metadata: {name: quick}
spec:
  from: a
  request: {url: http://b/}
  expect: {outcome: Routed, timeout: %s}
"""


async def refused(world: World, *documents: str) -> str:
    """The sentence with which a commit is refused."""
    sha = world.push(*documents)
    assert await world.seconds(5, until=lambda: world.outcome(sha) == "invalid")
    return next(record.sentence for record in world.view.state.revisions if record.sha == sha)


async def test_a_commit_against_a_live_guardrail_changes_nothing() -> None:
    world = await world_with(route("1s"), GUARDRAIL % "Deny")
    before = world.view.state.workloads["shop/a"].stable
    said = await refused(world, route("0s"), GUARDRAIL % "Deny")
    assert "a route must have a time limit (guardrail Guardrail/shop/limits" in said
    assert {proxy.stable for proxy in world.fleet.proxies.values()} == {before}


async def test_a_commit_that_takes_its_guardrail_away_is_judged_by_it() -> None:
    world = await world_with(route("1s"), GUARDRAIL % "Deny")
    assert "[GuardrailDenied]" in await refused(world, route("0s"), GUARDRAIL % "Warn")


async def test_once_the_guardrail_is_loosened_the_next_commit_passes() -> None:
    world = await world_with(route("1s"), GUARDRAIL % "Deny")
    loosened = world.push(route("1s"), GUARDRAIL % "Warn")
    assert await world.seconds(5, until=lambda: world.outcome(loosened) == "live")
    sha = world.push(route("0s"), GUARDRAIL % "Warn")
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")
    assert [problem.reason for problem in world.view.problems] == ["GuardrailWarned"]


async def test_a_commit_that_breaks_its_own_expectation_is_invalid() -> None:
    world = await world_with(route("1s"), EXPECTATION % "1s")
    said = await refused(world, route("2s"), EXPECTATION % "1s")
    assert "the timeout is 2000 ms, expected 1s" in said
    sha = world.push(route("2s"), EXPECTATION % "2s")
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")
