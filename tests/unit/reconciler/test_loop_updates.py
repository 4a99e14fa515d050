"""Rollouts of the mesh among rollouts of the applications: pods that have just started, and two templates side by side."""

from dataclasses import replace

from backstay.core.registry import Instance, Registry, Update
from backstay.core.rollout.model import Phase
from support.world import World

ROUTE = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {{name: b}}
spec: {{hosts: [b], rules: [{{backendRefs: [{{name: b}}], timeouts: {{request: {timeout}}}}}]}}
"""


def route(timeout: str) -> str:
    return ROUTE.format(timeout=timeout)


def templated(registry: Registry, template: str, started_at: float, *, updates: dict[str, Update]) -> Registry:
    """The same pods, all of one template and started then."""

    def made(instance: Instance) -> Instance:
        return replace(instance, labels={"pod-template-hash": template}, started_at=started_at)

    instances = {key: made(instance) for key, instance in registry.instances.items()}
    return replace(registry, instances=instances, updates=updates)


async def pods(callers: int, *, age: float) -> World:
    """A world whose instances are pods that started so many seconds ago, with a first commit live."""
    world = World(callers)
    world.platform.now = templated(world.platform.now, "v1", world.clock.wall() - age, updates={})
    await world.begin()
    sha = world.push(route("1s"))
    assert await world.seconds(5, until=lambda: world.outcome(sha) == "live")
    return world


def sentence(world: World) -> str:
    rollout = world.view.state.rollout
    return rollout.sentence if rollout is not None else ""


async def test_pods_that_have_just_started_hold_the_first_wave_for_a_minute() -> None:
    world = await pods(4, age=20.0)
    bad = world.push(route("666ms"))
    assert await world.seconds(10, until=lambda: "has not run for 60 s yet" in sentence(world))
    assert not await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    assert world.happened("NoTraffic") == []


async def test_a_single_replica_has_its_canary_among_its_own_requests() -> None:
    world = await pods(1, age=3600.0)
    bad = world.push(route("666ms"))
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    shares = {share for _, _, candidate, share in world.fleet.assigned if candidate}
    assert max(shares) < 1.0
    good = world.push(route("3s"))
    assert await world.seconds(120, until=lambda: world.outcome(good) == "live")


async def test_an_application_that_rolls_itself_holds_the_wave_until_it_is_through() -> None:
    world = await pods(4, age=3600.0)
    settled = world.platform.now
    good = world.push(route("2s"))
    rolling = {"shop/a": Update(began_at=world.clock.wall(), updated=1, total=5)}
    world.platform.now = replace(settled, updates=rolling)
    world.reconciler._registry_changed = True
    said = "holding: shop/a is being updated itself, 1 of 5 instances so far"
    assert await world.seconds(10, until=lambda: sentence(world) == said)
    assert not await world.seconds(60, until=lambda: world.outcome(good) == "live")
    world.platform.now = settled
    world.reconciler._registry_changed = True
    assert await world.seconds(60, until=lambda: world.outcome(good) == "live")
    assert world.happened("RolloutHolding")[0].message == said


async def test_an_update_that_is_stuck_holds_no_wave_for_ever() -> None:
    world = await pods(4, age=3600.0)
    stuck = {"shop/a": Update(began_at=world.clock.wall() - 590.0, updated=1, total=5)}
    world.platform.now = replace(world.platform.now, updates=stuck)
    world.reconciler._registry_changed = True
    good = world.push(route("2s"))
    assert await world.seconds(90, until=lambda: world.outcome(good) == "live")


async def test_what_no_template_made_is_judged_from_its_first_second() -> None:
    """The local platform: processes, however young."""
    world = World(4)
    instances = {k: replace(i, started_at=world.clock.wall()) for k, i in world.platform.now.instances.items()}
    world.platform.now = replace(world.platform.now, instances=instances)
    await world.begin()
    world.push(route("1s"))
    await world.seconds(3)
    bad = world.push(route("666ms"))
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    assert world.view.state.history[0].phase is Phase.FAILED
