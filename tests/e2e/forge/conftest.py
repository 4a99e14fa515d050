"""A real Gitea for the tests in this folder, or one sentence that says why there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gitea import build
from gitea.server import CannotStart, Gitea, gitea

HERE = Path(__file__).parent
LIMIT_S = 300
"""For a test alone: it waits for a rollout on two cores with other work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With the live meshes of one worker: at most two of those run at a time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("mesh-b"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S, func_only=True))


@pytest.fixture(scope="session")
def forge() -> Iterator[Gitea]:
    lacks = build.lacking()
    if lacks is not None:
        pytest.skip(f"a real forge needs {lacks}")
    try:
        with gitea() as found:
            yield found
    except CannotStart as error:
        pytest.fail(str(error))
