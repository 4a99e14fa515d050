"""Commits that meet: newer ones, reverts, fixes and dependants, while something is under way or held."""

import time
from collections.abc import Iterator

import pytest

from support.live import LiveMesh, document, route, shop_documents, subsets

pytestmark = pytest.mark.xdist_group("mesh-a")


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveMesh]:
    with LiveMesh(documents=shop_documents(rollout={"deadline": "20s"})) as found:
        yield found


@pytest.fixture
def mesh(shared: LiveMesh) -> LiveMesh:
    """The first commit's content, live; nothing held, nothing under way."""
    shared.begin_again()
    assert shared.held() == []
    return shared


def slower(seconds: int) -> str:
    """web.yaml with another timeout: a change that harms nobody."""
    return route("web", rule={"timeouts": {"request": f"{seconds}s"}})


def test_a_newer_commit_takes_over_and_both_go_live(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    one = mesh.push({"shop/api.yaml": route("api", {"v1": 50, "v2": 50})})
    first = mesh.wait_phase(one, "shifting")["status"]["id"]
    two = mesh.push({"shop/web.yaml": slower(12)})
    mesh.wait(two, "live", timeout=60)
    assert mesh.state(one) == "superseded"
    assert mesh.rollout_named(first)["status"]["phase"] == "superseded"
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1", "v2"}
    assert mesh.harm_since(mark) == {}


def test_ten_commits_in_a_row_end_live_with_the_newest(mesh: LiveMesh) -> None:
    mark, before = mesh.mark(), time.time()
    commits = []
    for number in range(10):
        commits.append(mesh.push({"shop/web.yaml": slower(3 + number)}, f"number {number}"))
        mesh.until(lambda: mesh.state(commits[-1]) != "", "the commit to be seen", 20)
    mesh.wait(commits[-1], "live", timeout=90)
    assert {mesh.state(sha) for sha in commits[:-1]} <= {"superseded", "live"}
    started = mesh.reasons(before).count("RolloutStarted")
    assert started <= 5, "three supersessions, then the newest waits for the running one"
    mesh.settle()
    assert mesh.harm_since(mark) == {}


def test_a_revert_in_the_middle_is_back_at_once_and_nothing_is_held(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    first = mesh.wait_phase(sha, "shifting")["status"]["id"]
    revert = mesh.repo.revert(sha)
    began = time.monotonic()
    mesh.wait(revert, "live", timeout=20)
    assert time.monotonic() - began < 10
    assert (mesh.rollout_named(first)["status"]["phase"], mesh.held()) == ("superseded", [])
    mesh.until(lambda: all(not item["status"].get("candidate") for item in mesh.proxies()), "all on stable", 10)
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1"}
    assert mesh.harm_since(mark) == {}


def test_what_is_held_stays_while_others_flow_and_its_fix_goes_live(mesh: LiveMesh) -> None:
    bad = mesh.push({"shop/api.yaml": route("api", {"v3": 100})})
    mesh.wait(bad, "rolled-back")
    mesh.settle()
    assert mesh.held() == ["Route/shop/api"]
    mark = mesh.mark()
    other = mesh.push({"shop/web.yaml": slower(11)})
    mesh.wait(other, "partly-live", timeout=60)
    assert mesh.held() == ["Route/shop/api"]
    fix = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    mesh.wait(fix, "live", timeout=60)
    assert mesh.held() == []
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v2"}
    assert mesh.harm_since(mark) == {}


def test_a_commit_that_needs_a_held_one_waits_and_says_so_until_the_fix(mesh: LiveMesh) -> None:
    canary = document(
        "Backend",
        "api",
        {"service": "api", "subsets": [{"name": "canary", "labels": {"version": "v3"}}, named("v1"), named("v2")]},
    )
    bad = mesh.push({"shop/api-backend.yaml": canary, "shop/api.yaml": route("api", {"canary": 100})})
    mesh.wait(bad, "rolled-back")
    mesh.settle()
    assert mesh.held() == ["Backend/shop/api", "Route/shop/api"]
    mark = mesh.mark()
    other = {
        "hosts": ["preview.example"],
        "rules": [{"backendRefs": [{"name": "api", "port": 80, "subset": "canary"}]}],
    }
    needs = mesh.push({"shop/preview.yaml": document("Route", "preview", other)})
    mesh.wait(needs, "held", timeout=20)
    assert "HeldDependency" in mesh.reasons()
    fixed = {
        "shop/api-backend.yaml": canary.replace("version: v3", "version: v2"),
        "shop/api.yaml": route("api", {"canary": 50, "v1": 50}),
    }
    fix = mesh.push(fixed)
    mesh.wait(fix, "live", timeout=60)
    assert mesh.held() == []
    assert mesh.harm_since(mark) == {}


def named(version: str) -> dict[str, object]:
    return {"name": version, "labels": {"version": version}}


def test_of_two_commits_pushed_together_only_the_guilty_one_is_held(mesh: LiveMesh) -> None:
    mesh.repo.write({"shop/api.yaml": route("api", {"v3": 100})})
    guilty = mesh.repo.commit("everything to v3")
    mesh.repo.write({"shop/web.yaml": slower(9)})
    innocent = mesh.repo.commit("a shorter timeout")
    mesh.repo.send()
    mesh.until(lambda: mesh.held() == ["Route/shop/api"], "the guilty document to be held", 40)
    held = mesh.repository()["status"]["held"]
    assert [item["commit"] for item in held] == [guilty]
    mesh.until(lambda: mesh.state(innocent) == "partly-live", "the innocent one to flow", 60)
    mesh.settle()
    mark = mesh.mark()
    mesh.wait_seconds(2)
    assert mesh.harm_since(mark) == {}


def test_a_commit_without_effect_is_live_at_once(mesh: LiveMesh) -> None:
    before = [item["status"]["id"] for item in mesh.rollouts()]
    sha = mesh.push(
        {"README.md": "prose\n", "shop/api-backend.yaml": "# a comment\n" + subsets("api", "v1", "v2", "v3")}
    )
    mesh.wait(sha, "live", timeout=10)
    assert [item["status"]["id"] for item in mesh.rollouts()] == before
