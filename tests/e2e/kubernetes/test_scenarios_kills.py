"""The leader is killed while a change is taken back; and a Deployment of one replica has a canary all the same."""

from typing import Any, Final

import pytest

from e2e.kubernetes.operators import conditions
from e2e.kubernetes.stage import MOVING, RATE, Shop

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
LONGER: Final = 240.0


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
