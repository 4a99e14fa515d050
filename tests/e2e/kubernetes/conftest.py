"""A real cluster for the tests in this folder, or one sentence that says why there is none.

All workers share it, each test in namespaces of its own; whoever is the last one stops it (`cluster.reach`).
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster import builds
from cluster.lifecycle import Level
from cluster.reach import NoCluster, Reach, at_least
from e2e.kubernetes.operators import World, install, world
from e2e.kubernetes.stage import Shop, Stage, shop, staged
from ports.forge import Forge, forge
from support.bootstrap import SYSTEM

HERE = Path(__file__).parent
LIMIT_S = 300
"""For a test alone: pods start, on two cores with other work. Starting the cluster has limits of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S, func_only=True))


@pytest.fixture(scope="session")
def _whole() -> Iterator[Reach | str]:
    with contextlib.ExitStack() as stack:
        try:
            found: Reach | str = stack.enter_context(at_least(Level.WHOLE))
        except NoCluster as reason:
            found = str(reason)
        yield found


@pytest.fixture(scope="session")
def _api(_whole: Reach | str) -> Iterator[Reach | str]:
    if isinstance(_whole, Reach):
        yield _whole
        return
    with contextlib.ExitStack() as stack:
        try:
            found: Reach | str = stack.enter_context(at_least(Level.API))
        except NoCluster as reason:
            found = str(reason)
        yield found


@pytest.fixture(scope="session")
def cluster(_whole: Reach | str) -> Reach:
    """A whole cluster: pods run."""
    if isinstance(_whole, str):
        pytest.skip(_whole)
    return _whole


@pytest.fixture(scope="session")
def images(cluster: Reach) -> Reach:
    """The cluster, with this checkout's operator, sidecar and sample images on its node.

    Somebody else's cluster is believed to have them: how images get there is between its owner and a registry.
    """
    if cluster.ours is None:
        return cluster
    lacks = builds.lacking()
    if lacks is not None:
        pytest.skip(f"building images needs {lacks}")
    for name in builds.IMAGES:
        cluster.ours.load(builds.archive(name, print))
    return cluster


@pytest.fixture(scope="session")
def api(_api: Reach | str) -> Reach:
    """At least an API server with its controllers; pods may stay pending."""
    if isinstance(_api, str):
        pytest.skip(_api)
    return _api


@pytest.fixture
def namespace(api: Reach) -> Iterator[str]:
    """A namespace of this test's own; it goes afterwards, without being waited for."""
    name = f"test-{secrets.token_hex(4)}"
    api.kubectl("create", "namespace", name)
    yield name
    api.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def _stage(images: Reach, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One for all long scenarios: to set it up takes longer than most of them."""
    if images.ours is None and f"namespace/{SYSTEM}" in images.kubectl("get", "namespaces", "-o", "name").split():
        pytest.skip("Backstay is installed on this cluster; the scenarios stop and remove it")
    with staged(images, tmp_path_factory.mktemp("stage")) as found:
        yield found


@pytest.fixture
async def mesh(_stage: Stage) -> AsyncIterator[Shop]:
    """The sample application in the mesh, everything well."""
    async with shop(_stage) as found:
        yield found


@pytest.fixture(scope="module")
def _installed(api: Reach) -> None:
    install(api)


@pytest.fixture
def git(tmp_path: Path) -> Iterator[Forge]:
    (tmp_path / "git").mkdir()
    with forge(tmp_path / "git", tmp_path / "forge") as running:
        yield running


@pytest.fixture
async def around(api: Reach, _installed: None, git: Forge, tmp_path: Path) -> AsyncIterator[World]:
    async with world(api, git, tmp_path) as made:
        yield made
