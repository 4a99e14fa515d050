"""What happens while something is away: the operator, the API server, git, the definitions."""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import pytest

from backstay.core.resources import MESH_INTENT, MESH_REPOSITORY, RESOURCES
from e2e.kubernetes.operators import conditions
from e2e.kubernetes.stage import GRANT, LIVE, SECRET, Shop, install, manifest, until, wait_operator

pytestmark = pytest.mark.long
AWAY_S: Final = float(os.environ.get("BACKSTAY_TEST_AWAY_S", "45"))
"""How long the API server is away: longer than every timeout on the way to it."""
CATCH_UP_S: Final = 30.0
EXPIRED: Final = "kubernetes.expired path="
"""What an operator logs of a watch that was told 410."""
LEASE_S: Final = 30.0
"""`confirmWithin` of the stage's mesh."""
BUSY: Final = 0.3
"""Of a processor: an operator that asks an absent API server again and again without a pause uses all of one."""


# --- the operator -----------------------------------------------------------------------------------------------------


async def test_a_leader_killed_in_a_wave_is_replaced_and_the_same_rollout_goes_on(mesh: Shop) -> None:
    mark, leader = mesh.mark(), await mesh.leader()
    sha = mesh.push_other_version()
    rollout = (await mesh.in_first_wave(sha))["metadata"]["name"]
    mesh.kill(leader)
    killed = time.monotonic()
    await mesh.until_led_by_another(leader)
    took = time.monotonic() - killed
    assert took < 20, f"nobody led for {took:.1f} s: a lease lasts 10 s"
    await mesh.until_live(sha)
    found = await mesh.until_rollout(sha, lambda status: status["phase"] in LIVE)
    assert found["metadata"]["name"] == rollout
    assert found["status"].get("restarts", 0) == 0, "no lease of a proxy ended meanwhile"
    mesh.nobody_harmed_since(mark)


async def test_without_any_operator_stable_serves_and_nothing_starts_outside_the_mesh(mesh: Shop) -> None:
    mark, before = mesh.mark(), mesh.stage.routed
    sha = mesh.push_other_version()
    rollout = (await mesh.in_first_wave(sha))["metadata"]["name"]
    leader = await mesh.leader()
    mesh.scale_operator(0)
    mesh.kill(leader)
    assert max((await mesh.candidate_shares()).values()) > 0

    async def are_back() -> bool:
        await asyncio.sleep(1)
        return set((await mesh.candidate_shares()).values()) == {0.0}

    await until(are_back, lambda: "a candidate is still served", LEASE_S + 60)
    with pytest.raises(AssertionError, match=r"failed calling webhook \"namespace\.inject\.backstay\.dev\""):
        mesh.kubectl("run late --image=backstay-sample:dev")
    mesh.kubectl("run plain --image=backstay-sample:dev --labels=backstay.dev/inject=disabled --dry-run=server")
    assert await mesh.versions_from_now() == {before}
    mesh.nobody_harmed_since(mark)
    mesh.scale_operator(2)
    wait_operator(mesh.stage.reach)
    await mesh.until_live(sha)
    found = await mesh.until_rollout(sha, lambda status: status["phase"] in LIVE)
    assert found["metadata"]["name"] == rollout
    assert found["status"]["restarts"] >= 1, "leases that ended with the operator are no evidence: from wave one again"
    mesh.nobody_harmed_since(mark)


# --- the API server ---------------------------------------------------------------------------------------------------


async def test_an_api_server_that_was_away_and_has_forgotten_is_caught_up_with(mesh: Shop) -> None:
    """What watches would go on from is compacted away: they are told 410 and list again."""
    ours = mesh.stage.reach.ours
    if ours is None:
        pytest.skip("the API server of this cluster is not ours to stop")
    mark, pods = mesh.mark(), await mesh.operators()
    used = {pod: mesh.processor_seconds(pod) for pod in pods}
    expired = {pod: mesh.said_of(pod, EXPIRED) for pod in pods}
    began = time.monotonic()
    ours.stop_part("kube-apiserver")
    try:
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(ours.compact)
    finally:
        ours.start_part("kube-apiserver")
        await asyncio.to_thread(ours.wait_api)
    back = time.monotonic()
    busy = {pod: (mesh.processor_seconds(pod) - used[pod]) / (back - began) for pod in pods}
    mesh.kubectl("annotate meshrepository shop backstay.dev/requestedAt=after-the-outage --overwrite")
    await mesh.until_repository(lambda _, status: status.get("lastHandledReconcileAt") == "after-the-outage")
    took = time.monotonic() - back
    assert took < CATCH_UP_S, f"a request to look was heard only after {took:.0f} s"

    async def were_told() -> bool:
        return all(mesh.said_of(pod, EXPIRED) > before for pod, before in expired.items())

    await until(were_told, lambda: "an operator was not told 410", CATCH_UP_S)
    await mesh.until_steady()
    assert await mesh.operators() == pods, "an operator was restarted"
    assert {pod: share for pod, share in busy.items() if share > BUSY} == {}
    await mesh.until_live(mesh.push_other_version())
    mesh.nobody_harmed_since(mark)


# --- git --------------------------------------------------------------------------------------------------------------


async def test_a_git_server_that_is_away_is_said_and_waited_for(mesh: Shop) -> None:
    mark = mesh.mark()
    mesh.stage.server.stop()
    found = await mesh.until_repository(lambda seen, _: seen.get("FetchFailed") == "True/GitOperationFailed")
    assert conditions(found)["Reconciling"] == "True/ProgressingWithRetry"
    assert "Stalled" not in conditions(found)
    mesh.stage.server.start()
    await mesh.until_live(mesh.stage.clone.git("rev-parse", "HEAD"))
    mesh.nobody_harmed_since(mark)


async def test_repositories_that_cannot_be_read_say_whose_turn_it_is(mesh: Shop) -> None:
    """Trying again helps where something is missing or away, and never where a person has to mend it."""
    other = f"{mesh.name}-b"
    reach, server = mesh.stage.reach, mesh.stage.server
    reach.kubectl("create", "namespace", other)
    try:
        reach.kubectl("-n", other, "create", "secret", "generic", SECRET, f"--from-literal=ca.crt={server.ca}")
        reach.kubectl("-n", other, "apply", "-f", "-", stdin=GRANT)
        url, secret = server.url("shop"), SECRET
        cases: Sequence[tuple[str, str, dict[str, Any]]] = (
            ("FetchFailed", "True/GitOperationFailed", {"url": server.url("nowhere")}),
            ("FetchFailed", "True/AuthenticationFailed", {"url": url, "secretRef": {"name": "missing"}}),
            ("Stalled", "True/RefNotFound", {"url": url, "secretRef": {"name": secret}, "ref": {"branch": "nowhere"}}),
            # Its documents are about the other namespace, which it may not touch.
            ("Stalled", "True/ValidationFailed", {"url": url, "ref": {"branch": "main"}}),
        )
        reach.kubectl("-n", other, "apply", "-f", "-", stdin=manifest(url, suspend=True))
        path = MESH_REPOSITORY.path(other, "shop")
        for kind, value, spec in cases:
            await mesh.client.patch(path, {"spec": {**spec, "suspend": False}})

            async def is_said(kind: str = kind, value: str = value) -> bool:
                return conditions(await mesh.client.get(path)).get(kind) == value

            await until(is_said, lambda value=value: f"nobody says {value}")  # type: ignore[misc] # a default
        refused = (await mesh.client.get(path))["status"]["problems"]
        assert {each["reason"] for each in refused if each["severity"] == "error"} == {"NamespaceNotAllowed"}
        assert (await mesh.client.list(MESH_INTENT.path(other))).items == []
        mesh.kubectl("apply -f -", stdin=manifest(url, name="second"))

        async def is_refused() -> bool:
            seen = conditions(await mesh.client.get(MESH_REPOSITORY.path(mesh.name, "second")))
            return seen == {"Ready": "False/NamespaceClaimed", "Stalled": "True/NamespaceClaimed"}

        await until(is_refused, lambda: "two repositories have one namespace")
    finally:
        mesh.kubectl("delete meshrepository second --ignore-not-found")
        reach.kubectl("delete", "namespace", other, "--wait=false")


# --- Backstay itself --------------------------------------------------------------------------------------------------


async def test_definitions_deleted_by_mistake_come_back_with_everything_where_it_was(mesh: Shop) -> None:
    mark, before = mesh.mark(), (await mesh.repository())["status"]
    pods = await mesh.operators()
    mesh.system(f"delete crd {' '.join(kind.resource for kind in RESOURCES.values())} --timeout=60s")
    install(mesh.stage.reach)
    mesh.kubectl("apply -f -", stdin=manifest(mesh.stage.server.url("shop")))
    found = await mesh.until_live(mesh.stage.clone.git("rev-parse", "HEAD"))
    after = found["status"]
    assert after["activeRevision"] == before["activeRevision"]
    assert [each["rollout"] for each in after.get("history", ())] == [each["rollout"] for each in before["history"]]
    await mesh.until_programmed()
    assert await mesh.operators() == pods, "no operator was restarted"
    mesh.nobody_harmed_since(mark)
