"""Changes of what servers accept: as quick as any other where there is traffic, each stage judged by its own direction."""

import pytest

from support.world import World

HEAD = "apiVersion: backstay.dev/v1alpha1\n"
ROUTE = HEAD + (
    "kind: Route\nmetadata: {name: b}\n"
    "spec: {hosts: [b], rules: [{backendRefs: [{name: b}], timeouts: {request: %s}}]}\n"
)
ALLOW = HEAD + (
    "kind: Authorization\nmetadata: {name: callers}\n"
    "spec: {selector: {workloads: [b]}, rules: [{from: [{serviceAccounts: [%s]}]}]}\n"
)
MTLS = HEAD + "kind: Authentication\nmetadata: {name: b}\nspec: {selector: {workloads: [b]}, mtls: {mode: %s}}\n"
PLAIN = ROUTE % "3s"


async def pushed(before: tuple[str, ...], after: tuple[str, ...], limit: int = 200) -> tuple[World, str, int]:
    """(world, what became of the second commit, seconds)"""
    world = World(answers=50)
    sha = world.push(*before)
    await world.begin()
    await world.seconds(10)
    sha, began = world.push(*after), world.clock.now
    assert await world.seconds(limit, until=lambda: world.outcome(sha) in {"live", "rolled-back"})
    return world, world.outcome(sha), round(world.clock.now - began)


async def seconds_of_a_route_change() -> int:
    _, outcome, seconds = await pushed((PLAIN,), (ROUTE % "4s",))
    assert outcome == "live"
    return seconds


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((PLAIN, ALLOW % "a"), (PLAIN, ALLOW % "a, c")),
        ((PLAIN, ALLOW % "a, c"), (PLAIN, ALLOW % "a")),
        ((PLAIN, MTLS % "PERMISSIVE"), (PLAIN, MTLS % "STRICT")),
    ],
    ids=["other callers", "fewer callers", "strict"],
)
async def test_policies_go_out_as_quickly_as_routes(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """A list of callers that changes is two stages: both lists, then the new one."""
    world, outcome, seconds = await pushed(before, after)
    stages = 1 + world.reasons().count("StageStarted")
    assert outcome == "live"
    assert seconds <= stages * await seconds_of_a_route_change()


async def test_three_stages_take_three_times_as_long_as_one_and_no_longer() -> None:
    """Routes of b change too, and b asks nobody: that must not cost a wait in every wave."""
    world, outcome, seconds = await pushed((PLAIN, ALLOW % "a"), (ROUTE % "4s", ALLOW % "a, c"))
    assert (outcome, world.reasons().count("StageStarted")) == ("live", 2)
    assert seconds <= 3 * await seconds_of_a_route_change()


async def test_shutting_out_every_caller_is_caught_in_the_first_wave_of_its_stage() -> None:
    world, outcome, seconds = await pushed((PLAIN,), (PLAIN, ALLOW % "c"))
    (failed,) = world.happened("RolloutFailed")
    assert outcome == "rolled-back"
    assert failed.message.startswith(
        "b, 1 of 8 proxies on the new revision: 20 of 20 requests failed (100 %), 0 of 380"
    )
    assert failed.message.endswith("Rolled back after 1.0 s. Cause: denied, requests to port 8080, mesh.yaml:15.")
    assert seconds <= 15


async def test_shares_never_shrink_while_waves_pass() -> None:
    world = World(callers=4, rate=4)
    world.push(PLAIN)
    await world.begin()
    await world.seconds(10)
    sha, shares = world.push(ROUTE % "4s"), [0.0]
    for _ in range(200):
        if world.outcome(sha) == "live":
            break
        shares.append(sum(proxy.share for proxy in world.fleet.proxies.values()))
        await world.one_second()
    moving = shares[: shares.index(max(shares)) + 1]
    assert world.outcome(sha) == "live"
    assert moving == sorted(moving)
