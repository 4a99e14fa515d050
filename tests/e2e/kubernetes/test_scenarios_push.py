"""A push on a real cluster, with people using the application all the time: live wave by wave, or back by itself."""

import pytest

from e2e.kubernetes.operators import conditions
from e2e.kubernetes.stage import LIVE, MOVING, RATE, Shop, Step
from support.kstatus import kstatus

pytestmark = pytest.mark.long


def says_one_thing(step: Step) -> bool:
    """At no moment do kstatus, Ready and the two abnormal conditions tell different stories."""
    status = {kind: value.partition("/")[0] for kind, value in step.seen.items()}
    standing = (status.get("Ready"), status.get("Reconciling", "False"), status.get("Stalled", "False"))
    return (kstatus(step.object), *standing) in {
        ("Current", "True", "False", "False"),
        ("InProgress", "False", "True", "False"),
        ("Failed", "False", "False", "True"),
    }


async def test_a_good_push_goes_over_the_pods_wave_by_wave_and_every_tool_sees_it_alike(mesh: Shop) -> None:
    mark = mesh.mark()
    sha = mesh.push_other_version()
    steps = await mesh.steps_until(lambda step: kstatus(step.object) == "InProgress")
    waiter = mesh.started("wait --for=condition=Ready meshrepository/shop --timeout=110s")
    steps += await mesh.steps_until(lambda step: kstatus(step.object) != "InProgress")
    assert kstatus(steps[-1].object) == "Current", steps[-1].seen
    said, _ = waiter.communicate(timeout=130)
    assert (waiter.returncode, said) == (0, "meshrepository.backstay.dev/shop condition met\n")
    assert [step.seen for step in steps if not says_one_thing(step)] == []
    assert steps[-1].seen == {"Ready": "True/Succeeded", "Validated": "True/Valid"}
    assert steps[-1].object["status"]["lastAppliedRevision"] == f"main@sha1:{sha}"
    seen = {step.object["status"].get("phase", "") for step in steps}
    assert any({f"wave {n + 1}/{last}" for n in range(last)} <= seen for last in (2, 3)), seen
    rollout = await mesh.until_rollout(sha, lambda status: status["phase"] == "succeeded")
    [webapp] = [each for each in rollout["status"]["workloads"] if each["workload"] == f"{mesh.name}/sa-webapp"]
    assert webapp["proven"], webapp
    assert kstatus(rollout) == "Current"
    await mesh.until_programmed()
    mesh.nobody_harmed_since(mark)


async def test_a_bad_push_comes_back_by_itself_and_says_why(mesh: Shop) -> None:
    mark = mesh.mark()
    mesh.stage.route("v3")
    sha = mesh.push("sa-logic: v3 for everybody")
    steps = await mesh.steps_until(lambda step: kstatus(step.object) == "InProgress")
    waiter = mesh.started("wait --for=condition=Stalled meshrepository/shop --timeout=110s")
    steps += await mesh.steps_until(lambda step: kstatus(step.object) == "Failed")
    assert waiter.wait(130) == 0
    assert [step.seen for step in steps if not says_one_thing(step)] == []
    assert steps[-1].seen == {
        "Ready": "False/RevisionHeld",
        "Stalled": "True/RevisionHeld",
        "RolledBack": "True/VerdictFail",
        "Validated": "True/Valid",
    }
    status = steps[-1].object["status"]
    assert [held["documents"].keys() for held in status["held"]] == [{f"Route/{mesh.name}/sa-logic"}]
    rollout = await mesh.until_rollout(sha, lambda status: status["phase"] not in MOVING)
    assert (rollout["status"]["phase"], rollout["status"]["wave"]) == ("failed", 1)
    assert kstatus(rollout) == "Failed"
    sentence = rollout["status"]["sentence"]
    assert sentence
    assert [message for kind, _, message in await mesh.events() if kind == "Warning" and sentence in message]
    assert status["desiredRevision"].endswith(sha)
    await mesh.until_steady()
    harmed = sum(mesh.harmed_since(mark).values())
    assert harmed < 10 * RATE, f"{harmed} requests were harmed: more than ten seconds of everything"
    mesh.stage.clone.git("revert", "--no-edit", "HEAD")
    reverted = mesh.push("Back to what serves")
    await mesh.until_live(reverted)


async def test_orders_by_annotation_steer_a_rollout(mesh: Shop) -> None:
    sha = mesh.push_other_version()
    name = (await mesh.in_first_wave(sha))["metadata"]["name"]
    paused = await mesh.order(name, "pause", "let me look")
    assert (paused["actor"], paused["reason"], paused["done"]) == ("ann", "let me look", True)
    found = await mesh.until_repository(lambda seen, _: seen.get("Reconciling") == "True/RolloutPaused")
    assert kstatus(found) == "InProgress"
    at = (await mesh.until_rollout(sha, lambda status: status["phase"] == "paused"))["status"]["wave"]
    assert (await mesh.order(name, "promote"))["done"]
    await mesh.until_rollout(sha, lambda status: status["wave"] > at or status["phase"] in LIVE)
    assert (await mesh.order(name, "abort", "not today"))["done"]
    found = await mesh.until_repository(lambda seen, _: seen.get("RolledBack") == "True/Ordered")
    assert conditions(found)["Stalled"] == "True/RevisionHeld"
    ended = await mesh.until_rollout(sha, lambda status: status["phase"] not in MOVING)
    assert (ended["status"]["phase"], kstatus(ended)) == ("aborted", "Failed")
    refused = await mesh.order(name, "promote")
    assert (refused["done"], "has ended" in refused["message"]) == (False, True), refused
    assert (await mesh.order(name, "retry"))["done"]
    again = await mesh.until_repository(lambda seen, _: seen.get("Ready") == "True/Succeeded")
    assert again["status"]["activeRevision"].endswith(sha)
    assert [each for each in await mesh.events() if each[1] == "OrderRefused"]


async def test_the_gateway_lets_people_in_by_the_routes_of_git(mesh: Shop) -> None:
    status, text = mesh.ask_gateway("/sentiment", '{"sentence": "I love sailing."}')
    assert (status, "polarity" in text) == (200, True)
    assert mesh.ask_gateway("/sentiments/all", "{}")[0] == 404, "the expression takes the whole path"
    assert mesh.ask_gateway("/sentiment", "{}", host="elsewhere.example.com")[0] == 404
