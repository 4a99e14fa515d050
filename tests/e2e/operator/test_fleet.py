"""Proxies and processes that fail while a rollout is under way: their trouble is not the commit's."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.live import LiveMesh, route, shop_documents

pytestmark = pytest.mark.xdist_group("mesh-b")


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveMesh]:
    with LiveMesh(documents=shop_documents(rollout={"deadline": "30s", "confirmWithin": "10s"})) as found:
        yield found


@pytest.fixture
def mesh(shared: LiveMesh) -> LiveMesh:
    shared.begin_again()
    assert shared.held() == []
    return shared


def to_v2(mesh: LiveMesh) -> tuple[str, str]:
    """(commit, rollout) of a good change in its first wave."""
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    rollout = mesh.wait_phase(sha, "shifting")
    return sha, rollout["status"]["id"]


def seated(mesh: LiveMesh, sha: str) -> list[str]:
    return sorted(name for item in mesh.rollout(sha)["status"]["workloads"] for name in item["seats"])


def test_a_proxy_that_is_killed_comes_back_and_the_rollout_goes_on(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    sha, rollout = to_v2(mesh)
    victim = seated(mesh, sha)[0]
    before = mesh.kill(victim)
    mesh.wait(sha, "live", timeout=80)
    ended = mesh.wait_ended(sha)
    assert (ended["status"]["id"], ended["status"]["phase"]) == (rollout, "succeeded")
    mesh.settle()
    assert mesh.pid(victim) != before
    assert serve_the_same(mesh)
    # Requests inside the killed process are lost; those that find it away are sent elsewhere.
    assert mesh.failures_since(mark) < 40, mesh.harm_since(mark)


def serve_the_same(mesh: LiveMesh) -> bool:
    web = [item["status"] for item in mesh.proxies() if item["metadata"]["name"].startswith("web-")]
    return len({item["stable"] for item in web}) == 1 and all(item["connected"] for item in web)


def serves_what_it_says(mesh: LiveMesh, sha: str) -> bool:
    """A proxy that serves the candidate may take requests down with it, which nobody can tell from the commit's fault; but
    what is said to be live is what everybody gets, and what was taken back is held."""
    is_live = mesh.state(sha) == "live"
    said = (["v2"], []) if is_live else (["v1"], ["Route/shop/api"])
    return serve_the_same(mesh) and (sorted(mesh.versions_since(mesh.wait_seconds(2))), mesh.held()) == said


def test_processes_that_come_and_go_during_waves_do_not_stop_them(mesh: LiveMesh) -> None:
    sha, _ = to_v2(mesh)
    mesh.kill("web-0", "app")
    mesh.wait_seconds(1)
    mesh.kill("web-1")
    mesh.wait_seconds(1)
    mesh.kill("web-2", "app")
    mesh.wait(sha, "live", "rolled-back", timeout=100)
    mesh.settle()
    assert mesh.connected() == 7
    assert serves_what_it_says(mesh, sha)


def test_a_frozen_proxy_is_left_out_and_taken_back(mesh: LiveMesh) -> None:
    sha, _ = to_v2(mesh)
    victim = next(name for name in ("web-0", "web-1", "web-2") if name not in seated(mesh, sha)[:1])
    mesh.kill(victim, number=signal.SIGSTOP)
    try:
        mesh.wait_seconds(3)
    finally:
        mesh.kill(victim, number=signal.SIGCONT)
    mesh.wait(sha, "live", "rolled-back", timeout=100)
    mesh.settle()
    assert serves_what_it_says(mesh, sha)


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """The process can write to no file any more: the next byte of any file is refused, as on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_a_proxy_whose_disk_is_full_keeps_what_it_has_and_catches_up(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    with full_disk(mesh.pid("web-0")):
        sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
        mesh.wait(sha, "live", timeout=100)
        assert "rolled back" not in mesh.revision(sha)["status"]["sentence"]
        refused = [item["message"] for item in mesh.events() if item["reason"] == "ConfigRefused"]
        assert refused, "the proxy says that it cannot write"
        assert all(message.startswith("web-0 refused config") for message in refused)
        assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1", "v2"}, "web-0 serves what it has"
    mesh.until(lambda: serve_the_same(mesh), "web-0 to catch up", 40)
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v2"}
    assert mesh.harm_since(mark) == {}
