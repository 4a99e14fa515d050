"""Rollouts over proxies of both engines: whole Envoys take the candidate, and what harms is taken back."""

import json
from collections.abc import Iterator

import pytest

from support.live import (
    LiveMesh,
    backend,
    caller,
    client,
    mesh_document,
    route,
    shop_documents,
    workloads_file,
)

pytestmark = [pytest.mark.xdist_group("mesh-a"), pytest.mark.long]  # `make test-envoy`: a mesh with four Envoys


@pytest.fixture(scope="module")
def mesh() -> Iterator[LiveMesh]:
    """client -> web (three callers under Envoy) -> api: v1 under Envoy, v2 and the failing v3 under the bundled engine."""
    workloads = [
        backend("api-v1", "api", engine="envoy"),
        backend("api-v2", "api", version="v2"),
        backend("api-v3", "api", version="v3", behaviour={"fail": 50}),
        caller("web", "api", replicas=3, engine="envoy"),
        client("client", "web", rate=50, most_open=100),
    ]
    with LiveMesh(workloads_file(["web", "api"], workloads), shop_documents(rollout={"deadline": "20s"})) as found:
        yield found


def test_a_harmless_change_passes_over_envoys_and_fails_no_request(mesh: LiveMesh) -> None:
    mark = mesh.mark()
    engines = {proxy["metadata"]["name"]: proxy["spec"]["engine"] for proxy in mesh.proxies()}
    assert {name: engine for name, engine in engines.items() if engine == "envoy"}.keys() == {
        "api-v1-0", "web-0", "web-1", "web-2",
    }  # fmt: skip
    sha = mesh.push({"shop/api.yaml": route("api", {"v2": 100})})
    mesh.wait(sha, "live", timeout=90)
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v2"}
    assert mesh.harm_since(mark) == {}


def test_configs_and_routes_are_shown_as_with_the_other_engine(mesh: LiveMesh) -> None:
    live = mesh.run("proxy", "config", "web-0", "--part", "routes/", "-o", "json")
    disk = mesh.folder_state / "instances" / "web-0" / "sidecar"
    kept = mesh.run("proxy", "config", "--state-dir", str(disk), "-o", "json")
    routed = mesh.run("route", "test", "GET", "http://api/", "--from", "shop/web", "--live")
    assert (live.returncode, kept.returncode, routed.returncode) == (0, 0, 0), live.stderr + kept.stderr + routed.stderr
    assert json.loads(live.stdout)["digest"] == json.loads(kept.stdout)["digest"]
    assert "shop/api.yaml:" in json.dumps(json.loads(live.stdout)["parts"][0]["origins"])
    assert "v2" in routed.stdout  # what the change before has made of it


def test_a_harmful_change_is_rolled_back_from_what_envoys_count(mesh: LiveMesh) -> None:
    mesh.begin_again()
    sha = mesh.push({"shop/api.yaml": route("api", {"v3": 100})})
    mesh.wait(sha, "rolled-back", timeout=90)
    mesh.settle()
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1"}
    assert mesh.held() == ["Route/shop/api"]


def test_an_engine_is_chosen_by_commit_and_changes_under_traffic(mesh: LiveMesh) -> None:
    mesh.begin_again()
    chosen = [{"workloads": ["shop/web"], "engine": "python"}]
    times = {"deadline": "30s", "confirmWithin": "60s"}  # Envoys take their time to start where others want the cores
    sha = mesh.push({"mesh.yaml": mesh_document(times, engine="envoy", engines=chosen)})
    if mesh.wait(sha, "live", "rolled-back", timeout=180) != "live":
        # Processes that start took the cores from those that had changed already: slow is what these were, and nothing else.
        assert "requests were slow" in mesh.revision(sha)["status"]["sentence"]
        mesh.act("retry")
        mesh.until(lambda: mesh.state(sha) == "live", "the other engines to be live", 180)
    mesh.settle()
    engines = {proxy["metadata"]["name"]: proxy["spec"]["engine"] for proxy in mesh.proxies()}
    assert {engines[f"web-{number}"] for number in range(3)} == {"python"}
    assert {engines[name] for name in ("api-v1-0", "api-v2-0", "api-v3-0", "client-0")} == {"envoy"}
    assert mesh.versions_since(mesh.wait_seconds(2)).keys() == {"v1"}
