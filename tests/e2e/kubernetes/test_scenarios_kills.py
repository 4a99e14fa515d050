"""The leader is killed at every moment of a rollout; and a Deployment of one replica has a canary all the same."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from e2e.kubernetes.operators import conditions
from e2e.kubernetes.stage import LIVE, MOVING, RATE, Shop

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
LONGER: Final = 240.0
SLOWER: Final = ("soak: 3s", "soak: 6s")
"""There are some waves left when both replicas are there again."""
WIDER: Final = ("serviceAccounts: [sa-webapp]", "serviceAccounts: [sa-webapp, ingress]")
"""In a document of its own: what widens goes out first, as a stage of its own."""


async def test_a_leader_killed_at_every_moment_of_a_good_rollout_is_replaced_each_time(mesh: Shop) -> None:
    mark = mesh.mark()
    # For good: to narrow it again is a rollout of its own, that waits for requests to versions that get none.
    mesh.stage.clone.edit("shop/security.yaml", *WIDER)
    with mesh.stage.edited("mesh.yaml", *SLOWER):
        await killed_on_the_way(mesh)
    mesh.nobody_harmed_since(mark)


async def killed_on_the_way(mesh: Shop) -> None:
    leader = await mesh.leader()
    sha = mesh.push_other_version()
    await mesh.until_repository(lambda _, status: str(status.get("desiredRevision", "")).endswith(sha))
    leader = await mesh.replaced(leader)  # while it plans, or hands out the first configurations
    found = await moving(mesh, sha, lambda status: status.get("phase") == "shifting")
    assert found["status"]["stages"] >= 2, found["status"]
    leader = await mesh.replaced(leader)  # in a wave
    await moving(mesh, sha, lambda status: status.get("stageNumber") == 2)
    leader = await mesh.replaced(leader)  # between two stages
    await moving(mesh, sha, lambda status: status.get("stageNumber") == 2 and status["wave"] > 1)
    await mesh.replaced(leader)  # between two waves
    await mesh.until_live(sha, LONGER)
    await mesh.until_programmed()
    ended = await mesh.until_rollout(sha, lambda status: status["phase"] in LIVE)
    assert ended["metadata"]["name"] == found["metadata"]["name"]


async def moving(mesh: Shop, sha: str, true: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
    found = await mesh.at_moment(sha, true, LONGER)
    assert found["status"]["phase"] in MOVING, f"too late: {found['status']['phase']}"
    return found


async def test_a_leader_killed_while_it_takes_a_change_back_leaves_the_rest_to_the_next(mesh: Shop) -> None:
    mark, leader = mesh.mark(), await mesh.leader()
    mesh.stage.route("v3")
    sha = mesh.push("sa-logic: v3 for everybody")
    await mesh.at_moment(sha, lambda status: status.get("phase") in ("rolling-back", "failed"))
    await mesh.replaced(leader)
    found = await mesh.until_repository(lambda seen, _: seen.get("Stalled") == "True/RevisionHeld")
    assert conditions(found)["RolledBack"] == "True/VerdictFail"
    ended = await mesh.until_rollout(sha, lambda status: status["phase"] not in MOVING)
    assert (ended["status"]["phase"], ended["status"]["wave"]) == ("failed", 1)
    assert set((await mesh.candidate_shares()).values()) == {0.0}
    await mesh.until_steady()
    harmed = sum(mesh.harmed_since(mark).values())
    assert harmed < 10 * RATE, f"{harmed} requests were harmed: more than ten seconds of everything"


async def test_a_deployment_of_one_replica_has_a_canary_of_its_requests(mesh: Shop) -> None:
    """The visitors' only proxy decides where /sentiment goes, and for how long."""
    [visitor] = [f"{pod['metadata']['name']}.{mesh.name}" for pod in await mesh.pods("visitors")]
    mark = mesh.mark()
    with mesh.stage.edited("shop/sa-webapp.yaml", "request: 10s", "request: 11s"):
        sha = mesh.push("sa-webapp: a little more time")
        share = await canary(mesh, sha, visitor)
        assert 0 < share < 100, share
        await mesh.until_live(sha, LONGER)
    mesh.nobody_harmed_since(mark)
    mark = mesh.mark()
    with mesh.stage.edited("shop/sa-webapp.yaml", "request: 10s", "request: 1ms"):
        bad = mesh.push("sa-webapp: no time at all")
        await mesh.until_repository(lambda seen, _: seen.get("Stalled") == "True/RevisionHeld")
        ended = await mesh.until_rollout(bad, lambda status: status["phase"] not in MOVING)
    assert (ended["status"]["phase"], ended["status"]["wave"]) == ("failed", 1)
    await mesh.until_steady()
    harmed = sum(mesh.harmed_since(mark).values())
    assert harmed < 2 * RATE, f"{harmed} requests were harmed: a tenth of them should have met it"
    await mesh.until_live(mesh.push("sa-webapp: as before"), LONGER)


async def canary(mesh: Shop, sha: str, proxy: str) -> float:
    """Percent of its requests that this proxy, the only one of its workload, sends by the candidate in the first wave."""

    def seats(status: Any) -> dict[str, float]:
        workloads = status.get("workloads", ())
        [of] = [each for each in workloads if each["workload"] == f"{mesh.name}/visitors"] or [{}]
        return dict(of.get("seats", {}))

    found = await mesh.at_moment(sha, seats)
    assert seats(found["status"]).keys() == {proxy}
    return seats(found["status"])[proxy]
