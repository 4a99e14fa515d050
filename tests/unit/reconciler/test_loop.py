"""The whole loop between fakes: what a push leads to, and that a killed operator leads to the same."""

import asyncio
import dataclasses
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from backstay.core.rollout import phases
from backstay.core.rollout.model import MeshState, Phase
from backstay.core.snapshot import Document
from backstay.reconciler.loop import OrderRefused
from backstay.tasks import spawn
from support.meshes import service
from support.world import World

ROUTE = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: %s}
spec: {hosts: [%s], rules: [{backendRefs: [{name: %s}], timeouts: {request: %s}}]%s}
"""
DENY = """
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {name: nobody}
spec: {selector: {workloads: [a]}, rules: [{from: [{serviceAccounts: [c]}]}]}
"""

AUDIT = """
apiVersion: backstay.dev/v1alpha1
kind: Authorization
metadata: {name: watch}
spec: {selector: {workloads: [c]}, action: Audit, rules: [{from: [{serviceAccounts: [a]}]}]}
"""


def route(timeout: str, name: str = "b", extra: str = "") -> str:
    return ROUTE % (name, name, name, timeout, extra)


async def world_with(*documents: str, rate: int = 50) -> World:
    """A mesh in which these documents are live."""
    world = World(rate=rate)
    sha = world.push(*documents)
    await world.begin()
    assert await world.seconds(5, until=lambda: world.outcome(sha) == "live")
    await world.seconds(5)
    return world


async def test_the_first_commit_is_live_at_once() -> None:
    world = await world_with(route("1s"))
    assert "RolloutStarted" not in world.reasons()
    assert {proxy.stable for proxy in world.fleet.proxies.values()} == {world.view.state.workloads["shop/a"].stable}


async def test_a_good_change_goes_out_in_waves_and_becomes_stable() -> None:
    world = await world_with(route("1s"))
    sha = world.push(route("2s"))
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")
    assert world.reasons().count("WavePassed") == 4
    assert await world.seconds(10, until=lambda: world.view.state.rollout is None)
    assert world.view.state.history[0].phase is Phase.SUCCEEDED
    assert world.view.state.active_revision.endswith(sha)


async def test_a_bad_change_comes_back_and_its_document_is_held() -> None:
    world = await world_with(route("1s"))
    before = world.view.state.workloads["shop/a"].stable
    sha = world.push(route("666ms"))
    assert await world.seconds(20, until=lambda: world.outcome(sha) == "rolled-back")
    await world.seconds(3)
    assert {proxy.stable for proxy in world.fleet.proxies.values()} == {before}
    assert [proxy.candidate for proxy in world.fleet.proxies.values()] == [""] * 8
    (held,) = world.view.state.held
    assert (held.commit, set(held.documents)) == (sha, {"Route/shop/b"})


async def test_another_commit_flows_past_a_held_document() -> None:
    world = await world_with(route("1s"), route("1s", "c"))
    bad = world.push(route("666ms"), route("1s", "c"))
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    sha = world.push(route("666ms"), route("3s", "c"))
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "partly-live")
    assert len(world.view.state.held) == 1


async def test_only_commits_with_a_part_in_the_failing_workload_are_held() -> None:
    world = await world_with(route("1s"))
    world.push(route("1s"), AUDIT, subject="innocent: it touches another workload")
    bad = world.push(route("666ms"), AUDIT, subject="guilty")
    assert await world.seconds(30, until=lambda: world.outcome(bad) == "rolled-back")
    assert [(held.commit, set(held.documents)) for held in world.view.state.held] == [(bad, {"Route/shop/b"})]


async def test_each_commit_with_a_part_in_the_failure_is_a_set_of_its_own() -> None:
    world = await world_with(route("1s"), route("1s", "c"))
    other = world.push(route("1s"), route("3s", "c"))
    bad = world.push(route("666ms"), route("3s", "c"))
    assert await world.seconds(30, until=lambda: world.outcome(bad) == "rolled-back")
    assert [(held.commit, set(held.documents)) for held in world.view.state.held] == [
        (other, {"Route/shop/c"}),
        (bad, {"Route/shop/b"}),
    ]


async def test_a_fix_of_a_held_document_is_released_and_goes_live() -> None:
    world = await world_with(route("1s"))
    bad = world.push(route("666ms"))
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    fix = world.push(route("3s"))
    assert await world.seconds(60, until=lambda: world.outcome(fix) == "live")
    assert world.view.state.held == ()


async def test_a_revert_in_the_middle_ends_the_rollout_and_holds_nothing() -> None:
    world = await world_with(route("1s"))
    world.push(route("2s"))
    assert await world.seconds(10, until=lambda: world.view.state.rollout is not None)
    sha = world.push(route("1s"))
    assert await world.seconds(5, until=lambda: world.outcome(sha) == "live")
    assert (world.view.state.rollout, world.view.state.held) == (None, ())


async def test_an_invalid_commit_changes_nothing() -> None:
    world = await world_with(route("1s"))
    told = len(world.fleet.assigned)
    sha = world.push(route("soon"))
    assert await world.seconds(5, until=lambda: world.outcome(sha) == "invalid")
    assert len(world.fleet.assigned) == told
    assert world.view.problems[0].reason == "BadFormat"


async def test_ten_commits_in_a_row_end_live_with_the_newest() -> None:
    world = await world_with(route("1s"))
    sha = ""
    for number in range(10):
        sha = world.push(route(f"{number + 2}s"))
        await world.seconds(3)
    assert await world.seconds(120, until=lambda: world.outcome(sha) == "live")


async def test_a_change_that_refuses_everybody_waits_for_a_person_when_nobody_calls() -> None:
    world = await world_with(route("1s"), rate=0)
    sha = world.push(route("1s"), DENY)
    await world.seconds(100)
    rollout = world.view.state.rollout
    assert rollout is not None
    assert (rollout.phase, world.outcome(sha)) == (Phase.HOLDING, "pending")


async def test_undoing_a_policy_that_nobody_meets_needs_no_person() -> None:
    """What it goes back to has served within a day, so want of traffic does not hold it."""
    world = await world_with(route("1s"), rate=0)
    sha = world.push(route("1s"), DENY)
    assert await world.seconds(5, until=lambda: world.view.state.rollout is not None)
    await with_seconds(world, world.reconciler.order("promote-full", actor="me", reason="meant", args={}))
    assert await world.seconds(20, until=lambda: world.outcome(sha) == "live")
    back = world.push(route("1s"))
    assert await world.seconds(60, until=lambda: world.outcome(back) == "live")
    assert world.reasons().count("NoTraffic") == 1


async def test_immediate_moves_everybody_in_one_wave() -> None:
    world = await world_with(route("1s"))
    sha = world.push(route("2s", extra=", rollout: {strategy: Immediate}"))
    assert await world.seconds(2, until=lambda: all(proxy.share == 1.0 for proxy in world.fleet.proxies.values()))
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")


@pytest.mark.parametrize("timeout", ["2s", "666ms"], ids=["good", "bad"])
@pytest.mark.parametrize("killed_at", range(1, 16))
async def test_an_operator_killed_at_any_second_leads_to_the_same_end(killed_at: int, timeout: str) -> None:
    world = await world_with(route("1s"))
    sha = world.push(route(timeout))
    await world.seconds(killed_at)
    wave = rollout.wave if (rollout := world.view.state.rollout) else 0
    name = rollout.id if rollout else ""
    world.kill()
    await world.seconds(2)
    await world.revive()
    after = world.view.state.rollout
    if name and after is not None:
        assert (after.id, after.wave) == (name, wave)
    wanted = "live" if timeout == "2s" else "rolled-back"
    assert await world.seconds(90, until=lambda: world.outcome(sha) == wanted)
    assert len([record for record in world.view.state.history if record.id == "r1"]) <= 1


async def test_an_operator_that_stays_dead_leaves_stable_serving() -> None:
    world = await world_with(route("1s"))
    before = world.view.state.workloads["shop/a"].stable
    world.push(route("2s"))
    assert await world.seconds(10, until=lambda: any(proxy.candidate for proxy in world.fleet.proxies.values()))
    world.kill()
    await world.seconds(12)
    assert {(proxy.stable, proxy.candidate) for proxy in world.fleet.proxies.values()} == {(before, "")}


async def test_a_rollback_by_hand_restores_a_revision_and_holds_what_git_says() -> None:
    world = await world_with(route("1s"))
    first = world.view.state.active_revision
    sha = world.push(route("2s"))
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")
    order = world.reconciler.order("rollback", actor="me", reason="slow", args={"to": first})
    await with_seconds(world, order)
    assert await world.seconds(60, until=lambda: world.view.state.active_revision == first)
    assert [set(held.documents) for held in world.view.state.held] == [{"Route/shop/b"}]
    timeouts = {item.raw["spec"]["rules"][0]["timeouts"]["request"] for item in stable_routes(world)}
    assert timeouts == {"1s"}


async def test_a_rollback_by_hand_that_moves_nobody_does_not_make_the_next_rollout_immediate() -> None:
    world = await world_with(route("1s"))
    first = world.view.state.active_revision
    bad = world.push(route("666ms"))
    assert await world.seconds(30, until=lambda: world.outcome(bad) == "rolled-back" and not moving(world))
    await with_seconds(world, world.reconciler.order("rollback", actor="me", args={"to": first}))
    await world.seconds(3)
    world.push(route("2s"))
    assert await world.seconds(10, until=lambda: moving(world))
    rollout = world.view.state.rollout
    assert rollout is not None
    assert (rollout.settings.immediate, rollout.cause.kind) == (False, "commit")


def moving(world: World) -> bool:
    rollout = world.view.state.rollout
    return rollout is not None and rollout.phase not in phases.ENDED


async def test_orders_without_a_rollout_say_so() -> None:
    world = await world_with(route("1s"))
    with pytest.raises(OrderRefused, match="no running rollout to pause"):
        await world.reconciler.order("pause", actor="me")


async def test_retry_tries_what_is_held_again() -> None:
    world = await world_with(route("1s"))
    bad = world.push(route("666ms"))
    assert await world.seconds(20, until=lambda: world.outcome(bad) == "rolled-back")
    world.fleet.badness = lambda parts: 0.0
    await with_seconds(world, world.reconciler.order("retry", actor="me"))
    assert await world.seconds(60, until=lambda: world.outcome(bad) == "live")


async def test_an_unwritable_state_stops_everything_and_goes_on_when_it_is_back() -> None:
    world = await world_with(route("1s"))
    told = len(world.fleet.assigned)
    world.disk.failing = "disk full"
    sha = world.push(route("2s"))
    await world.seconds(5)
    assert (world.view.fault, len(world.fleet.assigned)) == ("disk full", told)
    world.disk.failing = ""
    assert await world.seconds(60, until=lambda: world.outcome(sha) == "live")


async def test_half_of_all_instances_vanishing_is_doubted_once() -> None:
    world = await world_with(route("1s"))
    told = len(world.fleet.live)
    everything = world.platform.now
    world.platform.now = type(everything)(services=everything.services, workloads=everything.workloads, instances={})
    world.reconciler._registry_changed = True
    await world.seconds(1)
    assert len(world.fleet.live) == told
    await world.seconds(1)
    assert len(world.fleet.live) == told + 1


async def test_a_change_of_the_registry_that_fails_is_not_tried_again_until_someone_says_so() -> None:
    world = await world_with(route("1s", "c"))
    before = world.view.state.workloads["shop/a"].stable
    world.fleet.badness = lambda parts: 0.5 if b'"protocol":"tcp"' in parts else 0.0
    found = world.platform.now
    opaque = service("b", protocol="tcp")
    world.platform.now = dataclasses.replace(found, services={**found.services, opaque.key: opaque})
    world.reconciler._registry_changed = True
    assert await world.seconds(30, until=lambda: "Restored" in world.reasons())
    assert world.view.state.history[0].cause.kind == "registry"
    await world.seconds(60)
    assert (world.view.state.rollout, world.view.state.workloads["shop/a"].stable) == (None, before)
    world.fleet.badness = lambda parts: 0.0
    await with_seconds(world, world.reconciler.order("retry", actor="me"))
    assert await world.seconds(60, until=lambda: world.view.state.workloads["shop/a"].stable != before)


async def test_a_rollout_that_begins_anew_for_another_registry_does_not_say_that_somebody_pushed() -> None:
    world = await world_with(route("1s"), route("1s", "c"))
    sha = world.push(route("2s"), route("1s", "c"))
    assert await world.seconds(10, until=lambda: moving(world))
    opaque = service("c", protocol="tcp")
    found = world.platform.now
    world.platform.now = dataclasses.replace(found, services={**found.services, opaque.key: opaque})
    world.reconciler._registry_changed = True
    assert await world.seconds(10, until=lambda: bool(world.view.state.history))
    [ended] = world.view.state.history
    assert (ended.phase, ended.cause.revision[-40:]) == (Phase.SUPERSEDED, sha)
    assert ended.sentence == "begun anew: Services, or what else configurations are made of, have changed meanwhile"
    assert await world.seconds(90, until=lambda: world.outcome(sha) == "live")


async def test_an_upgrade_that_compiles_something_else_is_named_as_the_cause() -> None:
    world = await world_with(route("1s"))
    world.kill()
    state = msgspec.json.decode(world.disk.state or b"", type=MeshState)
    world.disk.state = msgspec.json.encode(msgspec.structs.replace(state, compiled_by="0.0.1"))
    opaque = service("c", protocol="tcp")
    found = world.platform.now
    world.platform.now = dataclasses.replace(found, services={**found.services, opaque.key: opaque})
    await world.revive()
    assert await world.seconds(10, until=lambda: world.view.state.rollout is not None)
    rollout = world.view.state.rollout
    assert rollout is not None
    assert rollout.cause.kind == "upgrade"


async def test_traffic_steps_walk_the_weights() -> None:
    subsets = """
apiVersion: backstay.dev/v1alpha1
kind: Backend
metadata: {name: b}
spec: {service: b, subsets: [{name: v1, labels: {v: "1"}}, {name: v2, labels: {v: "2"}}]}
"""
    split = """
apiVersion: backstay.dev/v1alpha1
kind: Route
metadata: {name: b}
spec:
  hosts: [b]
  rules: [{backendRefs: [{name: b, subset: v1, weight: %d}, {name: b, subset: v2, weight: %d}]}]
  rollout: {traffic: [10, 50, 100]}
"""
    world = await world_with(subsets, split % (100, 0))
    sha = world.push(subsets, split % (0, 100))
    assert await world.seconds(10, until=lambda: world.view.state.rollout is not None)
    rollout = world.view.state.rollout
    assert rollout is not None
    assert (len(rollout.stages), rollout.gaining) == (3, ("b.shop:80/v2",))
    assert await world.seconds(120, until=lambda: world.outcome(sha) == "live")


def stable_routes(world: World) -> list[Document]:
    stable = world.view.stable
    assert stable is not None
    return [item for item in stable.documents.values() if item.kind == "Route"]


async def with_seconds(world: World, order: Coroutine[Any, Any, str]) -> str:
    """Give an order while the world goes on: it is answered once it is durable."""
    task = spawn(order, name="order")
    while not task.done():
        await asyncio.sleep(0)
        await world.one_second()
    return str(task.result())


@pytest.mark.parametrize("jump", [-7200.0, 7200.0], ids=["back", "ahead"])
@pytest.mark.parametrize("timeout", ["2s", "666ms"], ids=["good", "bad"])
async def test_a_wall_clock_that_jumps_moves_no_rollout(jump: float, timeout: str) -> None:
    """Someone sets the time, or ntp does after a sleep: waves are measured by a clock that cannot be set."""
    world = await world_with(route("1s"))
    sha = world.push(route(timeout))
    assert await world.seconds(10, until=lambda: world.view.state.rollout is not None)
    before = rollout.elapsed if (rollout := world.view.state.rollout) else 0.0
    true_time = world.clock.wall
    world.clock.wall = lambda: true_time() + jump  # type: ignore[method-assign]
    await world.seconds(1)
    after = world.view.state.rollout
    assert after is not None
    assert after.elapsed - before <= 2.0
    wanted = "live" if timeout == "2s" else "rolled-back"
    assert await world.seconds(90, until=lambda: world.outcome(sha) == wanted)


async def test_a_revoked_identity_is_told_to_all_proxies_and_taken_back() -> None:
    world = await world_with(route("1s"))
    proxy = next(iter(world.platform.now.instances))
    done = await with_seconds(world, world.reconciler.order("revoke", actor="me", args={"who": proxy}))
    assert done.endswith("can speak to nobody of the mesh any more")
    (revoked,) = [live.revoked for live in world.fleet.live if live.revoked]
    assert revoked == list(world.view.state.revoked)
    with pytest.raises(OrderRefused, match="is already revoked"):
        await world.reconciler.order("revoke", actor="me", args={"who": revoked[0]})
    await with_seconds(world, world.reconciler.order("unrevoke", actor="me", args={"who": proxy}))
    assert (world.fleet.live[-1].revoked, world.view.state.revoked) == ([], ())
    with pytest.raises(OrderRefused, match="is not revoked"):
        await world.reconciler.order("unrevoke", actor="me", args={"who": revoked[0]})
    with pytest.raises(OrderRefused, match="there is no proxy 'nobody'"):
        await world.reconciler.order("revoke", actor="me", args={"who": "nobody"})
