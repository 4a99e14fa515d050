"""The application itself changes while a change of the mesh goes out: it rolls, or is scaled to zero and back."""

from typing import Any, Final

import pytest

from e2e.kubernetes.stage import LIVE, MOVING, STARTS, WEBAPPS, Shop, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
COMPARED_WITH_BEFORE: Final = ("requests were slow", "of the requests arrived there")
LONGER: Final = 240.0
"""Seconds for a rollout that waits for pods as well."""


async def live(mesh: Shop, sha: str) -> dict[str, Any]:
    """The rollout of this commit, which made it live.

    Proxies are judged here from their second second on, not from their second minute. So one that came back is tried again
    when no pods start any more, if it came back by a comparison with a past in which the node had more time, or there were
    other pods.
    """
    found = await mesh.until_rollout(sha, lambda status: status.get("phase", "preparing") not in MOVING, LONGER)
    if any(each in found["status"].get("sentence", "") for each in COMPARED_WITH_BEFORE):
        assert (await mesh.order(found["metadata"]["name"], "retry", "the node was busy"))["done"]
    else:
        assert found["status"]["phase"] in LIVE, found["status"]
    await mesh.until_live(sha, LONGER)
    return found


async def test_an_application_rolls_while_a_change_goes_out(mesh: Shop) -> None:
    before = {each["metadata"]["name"] for each in await mesh.pods("sa-webapp")}
    mark = mesh.mark()
    sha = mesh.push_other_version()
    await mesh.in_first_wave(sha)
    mesh.kubectl("rollout restart deployment/sa-webapp")
    await live(mesh, sha)
    mesh.kubectl(f"rollout status deployment/sa-webapp --timeout={STARTS}s", timeout=STARTS + 10)
    assert not {each["metadata"]["name"] for each in await mesh.until_pods("sa-webapp", WEBAPPS)} & before
    await mesh.until_programmed()
    mesh.nobody_harmed_since(mark)


async def test_scaled_to_zero_in_a_wave_and_back_again(mesh: Shop) -> None:
    """Nobody is there to be harmed by the change, and nobody blames it for that."""
    sha = mesh.push_other_version()
    await mesh.in_first_wave(sha)
    mesh.kubectl("scale deployment/sa-webapp --replicas=0")

    async def are_gone() -> bool:
        return not await mesh.pods("sa-webapp")

    await until(are_gone, lambda: "there are pods of sa-webapp", STARTS)
    mesh.kubectl(f"scale deployment/sa-webapp --replicas={WEBAPPS}")
    await mesh.until_pods("sa-webapp", WEBAPPS)
    await mesh.until_steady()
    mark = mesh.mark()
    await live(mesh, sha)
    await mesh.until_programmed()
    assert await mesh.versions_from_now() == {mesh.stage.routed}
    mesh.nobody_harmed_since(mark)
