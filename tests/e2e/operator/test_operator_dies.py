"""kill -9 of the operator at every phase: the same rollout goes on and ends as it would have; dead for good: stable serves."""

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from backstay.cli.exits import Failed
from support.live import LiveMesh, route, shop, shop_documents

pytestmark = [pytest.mark.xdist_group("mesh-b"), pytest.mark.long]  # `make test-long`

PATIENT = {"confirmWithin": "40s", "deadline": "20s"}
"""Leases outlast the pauses between a kill and a start on a slow machine; what happens when they do not is another test."""


@pytest.fixture
def mesh() -> Iterator[LiveMesh]:
    with LiveMesh(documents=shop_documents(rollout=PATIENT)) as found:
        yield found


def dies_at(mesh: LiveMesh, moment: str, timeout: float = 40) -> None:
    """Wait until the operator has died where its failpoint says."""
    process = mesh.process
    assert process is not None
    mesh.until(lambda: process.poll() is not None, f"the operator to die at {moment}", timeout)
    assert process.returncode == -signal.SIGKILL, moment


def test_killed_at_every_phase_of_a_good_rollout_it_is_the_same_rollout_and_goes_live(mesh: LiveMesh) -> None:
    moments = [
        "saved@preparing:1",
        "told@preparing:1",
        "saved@shifting:1",
        "saved@preparing:2",
        "told@shifting:2",
        "saved@baking:2",
    ]
    mark = mesh.mark()
    mesh.kill_operator()
    mesh.restart_operator(BACKSTAY_FAILPOINT=moments[0])
    sha = mesh.push({"shop/api.yaml": route("api", {"v1": 50, "v2": 50})})
    dies_at(mesh, moments[0])
    for moment in moments[1:]:
        mesh.start(environment={"BACKSTAY_FAILPOINT": moment})
        dies_at(mesh, moment)
    mesh.restart_operator()
    mesh.wait(sha, "live", timeout=60)
    rollout = mesh.wait_ended(sha, timeout=60)
    assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
    assert [item["status"]["id"] for item in mesh.rollouts()] == ["r1"]
    advances = [item["message"] for item in mesh.events() if item["reason"] == "WaveStarted"]
    assert advances == ["100 % of each affected workload"], "no wave is taken twice"
    assert mesh.harm_since(mark) == {}
    mark = mesh.wait_seconds(2)
    assert mesh.versions_since(mark).keys() == {"v1", "v2"}


def test_killed_while_it_rolls_back_it_finishes_the_rollback_and_holds(mesh: LiveMesh) -> None:
    moments = ["saved@preparing:1", "saved@rolling-back:1", "told@rolling-back:1"]
    mesh.kill_operator()
    mesh.restart_operator(BACKSTAY_FAILPOINT=moments[0])
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v3": 100})})
    dies_at(mesh, moments[0])
    for moment in moments[1:]:
        mesh.start(environment={"BACKSTAY_FAILPOINT": moment})
        dies_at(mesh, moment)
    mesh.restart_operator()
    mesh.wait(sha, "rolled-back", timeout=30)
    rollout = mesh.wait_ended(sha, timeout=60)
    assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "failed")
    assert mesh.held() == ["Route/shop/api"]
    mesh.wait_steady()
    harmed = mesh.failures_since(mark)
    assert 0 < harmed < 0.5 * 0.5 * 100 * 60, "the candidate had half of the traffic at most, and failed half of it"
    assert {item["status"].get("candidate", "") for item in mesh.proxies()} == {""}


def test_killed_while_it_is_paused_it_stays_paused_until_a_person_resumes_it() -> None:
    moments = ["saved@paused:1", "told@paused:1"]
    with LiveMesh(documents=shop_documents(rollout={**PATIENT, "soak": "6s"})) as mesh:
        mesh.kill_operator()
        mesh.restart_operator(BACKSTAY_FAILPOINT=moments[0])
        mark = mesh.mark()
        sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
        mesh.wait_phase(sha, "shifting")
        with suppress(Failed):  # it dies over the order, which is durable by then
            mesh.act("pause", why="let me look first")
        dies_at(mesh, moments[0])
        mesh.start(environment={"BACKSTAY_FAILPOINT": moments[1]})
        dies_at(mesh, moments[1])
        mesh.restart_operator()
        mesh.wait_phase(sha, "paused")
        alone = mesh.wait_seconds(8)  # longer than the soak it would have passed
        assert (mesh.phase(sha), mesh.wave(sha)) == ("paused", 1)
        assert mesh.versions_since(alone).keys() == {"v1", "v2"}, "the half that has it keeps it"
        mesh.act("resume", why="looks well")
        rollout = mesh.wait_ended(sha, timeout=60)
        assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
        assert mesh.harm_since(mark) == {}


def test_killed_while_it_holds_for_want_of_traffic_it_holds_on_and_goes_live_when_there_is_some() -> None:
    moments = ["saved@holding:1", "told@holding:1"]
    with LiveMesh(documents=shop_documents(rollout={**PATIENT, "deadline": "3s"})) as mesh:
        mesh.kill_operator()
        mesh.restart_operator(BACKSTAY_FAILPOINT=moments[0])
        mesh.kill("client-0", "app", signal.SIGSTOP)
        sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100}, rollout={"onNoTraffic": "hold"})})
        dies_at(mesh, moments[0])
        mesh.start(environment={"BACKSTAY_FAILPOINT": moments[1]})
        dies_at(mesh, moments[1])
        mesh.restart_operator()
        assert mesh.phase(sha) == "holding"
        wants = "holding: too little traffic to judge shop/web by the deadline"
        mesh.until(lambda: mesh.rollout(sha)["status"]["sentence"] == wants, "it to say what it waits for", 20)
        mesh.kill("client-0", "app", signal.SIGCONT)
        rollout = mesh.wait_ended(sha, timeout=60)
        assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
        mesh.wait_steady()


def test_killed_while_it_tests_a_suspicion_it_ends_the_test_and_takes_the_change_back() -> None:
    """One proxy that gets everything at once has nothing beside it to be compared with: the wave is taken back, given again
    and taken back once more before anybody is blamed."""
    some = shop(callers=1, versions={"v1": {}, "v2": {}, "v3": {"fail": 20}})
    with LiveMesh(some, shop_documents(rollout={**PATIENT, "shares": [100]})) as mesh:
        moments = ["saved@suspecting:1", "told@suspecting:1"]
        mesh.kill_operator()
        mesh.restart_operator(BACKSTAY_FAILPOINT=moments[0])
        sha = mesh.push({"shop/api.yaml": route("api", {"v3": 100})})
        dies_at(mesh, moments[0])
        mesh.start(environment={"BACKSTAY_FAILPOINT": moments[1]})
        dies_at(mesh, moments[1])
        mesh.restart_operator()
        mesh.wait(sha, "rolled-back", timeout=60)
        rollout = mesh.wait_ended(sha, timeout=60)
        assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "failed")
        assert mesh.held() == ["Route/shop/api"]
        said = [reason for reason in mesh.reasons() if reason.startswith("Harm")]
        assert said == ["HarmSuspected", "HarmConfirmed", "HarmSuspected"]
        mesh.wait_steady()


def test_an_operator_that_is_killed_by_chance_is_no_event_for_traffic(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    for phase in ("shifting", "baking"):
        mesh.wait_phase(sha, phase)
        mesh.kill_operator()
        mesh.restart_operator()
    rollout = mesh.wait_ended(sha, timeout=60)
    assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
    assert mesh.harm_since(mark) == {}


def test_an_operator_that_hangs_for_a_while_loses_no_evidence(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    mesh.wait_phase(sha, "shifting")
    assert mesh.process is not None
    mesh.process.send_signal(signal.SIGSTOP)
    mesh.wait_seconds(3)
    mesh.process.send_signal(signal.SIGCONT)
    rollout = mesh.wait_ended(sha, timeout=60)
    assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
    assert mesh.harm_since(mark) == {}


def test_a_dead_operator_leaves_stable_serving_and_the_next_one_starts_the_stage_again() -> None:
    hasty = shop_documents(rollout={"confirmWithin": "5s", "deadline": "30s"})
    with LiveMesh(documents=hasty) as mesh:
        sha = mesh.push({"shop/api.yaml": route("api", {"v1": 0, "v2": 100})})
        mesh.wait_phase(sha, "shifting")
        mark = mesh.mark()
        mesh.kill_operator()
        # Leases end within confirmWithin and a report's second; two seconds more for whole counts of whole seconds.
        mesh.wait_seconds(8)
        alone = mesh.wait_seconds(2)
        assert mesh.versions_since(alone).keys() == {"v1"}, "only stable is served"
        assert mesh.harm_since(mark) == {}
        mesh.restart_operator()
        rollout = mesh.wait_ended(sha, timeout=80)
        assert (rollout["status"]["id"], rollout["status"]["phase"]) == ("r1", "succeeded")
        assert "StageRestarted" in mesh.reasons()
        assert mesh.harm_since(mark) == {}
