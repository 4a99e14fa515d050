"""What people order: pause, resume, promote, abort, retry, rollback; each by the API, as the command line does."""

from collections.abc import Iterator

import pytest

from backstay.cli.exits import Failed
from support.live import ENDED, LiveMesh, document, route, shop_documents

pytestmark = pytest.mark.xdist_group("mesh-b")


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveMesh]:
    # Waves that do not end by themselves within a test: orders are what moves them.
    with LiveMesh(documents=shop_documents(rollout={"soak": "60s", "deadline": "90s"})) as found:
        yield found


@pytest.fixture
def mesh(shared: LiveMesh) -> LiveMesh:
    """The first commit's content, live; nothing held, nothing under way."""
    shared.repo.git("read-tree", "-u", "--reset", shared.first)
    sha = shared.push({}, "as it was")
    shared.until(lambda: shared.state(sha) != "", "the commit to be seen", 20)
    if running(shared):
        shared.act("promote-full")
    shared.wait(sha, "live", timeout=40)
    shared.settle()
    assert shared.held() == []
    return shared


def running(mesh: LiveMesh) -> bool:
    return any(item["status"]["phase"] not in {*ENDED, "baking"} for item in mesh.rollouts())


def to_v2(mesh: LiveMesh) -> str:
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})}, "api to v2")
    mesh.wait_phase(sha, "shifting")
    return sha


def served(mesh: LiveMesh) -> set[str]:
    return set(mesh.versions_since(mesh.wait_seconds(2)))


def test_a_paused_rollout_stays_where_it_is_until_it_is_resumed(mesh: LiveMesh) -> None:
    sha = to_v2(mesh)
    mesh.act("pause", why="lunch")
    paused = mesh.wait_phase(sha, "paused")
    assert paused["status"]["wave"] == 1
    assert "lunch" in paused["status"]["sentence"]
    assert served(mesh) == {"v1", "v2"}
    mesh.act("resume")
    mesh.wait_phase(sha, "preparing", "shifting")


def test_promote_moves_one_wave_and_promote_full_ends_it(mesh: LiveMesh) -> None:
    sha = to_v2(mesh)
    mesh.act("promote", why="looks good")
    mesh.wait_phase(sha, "shifting", wave=2)
    assert served(mesh) == {"v2"}
    mesh.act("promote-full")
    mesh.wait(sha, "live")
    assert mesh.wait_ended(sha)["status"]["phase"] == "succeeded"


def test_abort_goes_back_and_holds_and_retry_tries_again(mesh: LiveMesh) -> None:
    sha = to_v2(mesh)
    mesh.act("abort", why="not today")
    ended = mesh.wait_ended(sha)
    assert (ended["status"]["phase"], mesh.held(), served(mesh)) == ("aborted", ["Route/shop/api"], {"v1"})
    assert mesh.state(sha) in {"aborted", "held"}
    mesh.act("retry")
    mesh.until(lambda: running(mesh), "the second try", 20)
    assert mesh.held() == []
    mesh.until(lambda: mesh.phase() == "shifting", "the second try to shift", 20)
    mesh.act("promote-full")
    mesh.wait(sha, "live")
    mesh.settle()
    assert served(mesh) == {"v2"}


def live_with_v2(mesh: LiveMesh) -> str:
    """A second commit on top of the first, live: v2, and a change of another file."""
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100}), "other/extra.yaml": elsewhere()})
    mesh.until(lambda: running(mesh), "the rollout", 20)
    mesh.act("promote-full")
    mesh.wait(sha, "live")
    mesh.settle()
    return sha


def elsewhere() -> str:
    return document(
        "Route", "extra", {"hosts": ["extra.example"], "rules": [{"backendRefs": [{"name": "api", "port": 80}]}]}
    )


@pytest.mark.parametrize("reachable", [True, False], ids=["git-there", "git-away"])
def test_rollback_to_a_revision_needs_no_git_and_holds_what_it_undid(mesh: LiveMesh, reachable: bool) -> None:
    live_with_v2(mesh)
    assert served(mesh) == {"v2"}
    aside = mesh.repo.remote.with_suffix(".aside")
    if not reachable:
        mesh.repo.remote.rename(aside)
    try:
        mark = mesh.mark()
        mesh.act("rollback", to=mesh.first, why="the old one was better")
        mesh.until(lambda: "Route/shop/api" in mesh.held(), "it to be held", 20)
        mesh.until(lambda: mesh.phase() == "shifting", "everybody to be back", 20)
        assert served(mesh) == {"v1"}
        assert mesh.held() == ["Route/shop/api", "Route/shop/extra"]
        assert mesh.harm_since(mark) == {}
    finally:
        if not reachable:
            aside.rename(mesh.repo.remote)


def test_rollback_of_a_path_undoes_that_path_only(mesh: LiveMesh) -> None:
    live_with_v2(mesh)
    mesh.act("rollback", to=mesh.first, path="shop")
    mesh.until(lambda: mesh.held() == ["Route/shop/api"], "the path's document to be held", 20)
    mesh.until(lambda: mesh.phase() == "shifting", "everybody to be back", 20)
    assert served(mesh) == {"v1"}
    intents = {item["metadata"]["name"] for item in mesh.items("/v1/meshintents")}
    assert any("extra" in name for name in intents)


def test_rollback_aborts_what_runs(mesh: LiveMesh) -> None:
    sha = to_v2(mesh)
    mesh.act("rollback", to=mesh.first)
    mesh.until(lambda: mesh.phase(sha) in ENDED, "the running rollout to end", 20)
    mesh.until(lambda: not running(mesh), "everybody to be back", 20)
    assert (served(mesh), mesh.held()) == ({"v1"}, ["Route/shop/api"])


def test_what_cannot_be_done_is_refused_with_a_reason(mesh: LiveMesh) -> None:
    for verb, args, reason in (
        ("pause", {}, "NoRollout"),
        ("retry", {}, "NothingHeld"),
        ("rollback", {"to": "f" * 40}, "UnknownRevision"),
        ("rollback", {}, "RevisionMissing"),
    ):
        with pytest.raises(Failed, match=f"[{reason}]"):
            mesh.act(verb, **args)
