"""A real Gitea for the tests in this folder, or one sentence that says why there is none."""

from collections.abc import Iterator

import pytest

from gitea import build
from gitea.server import CannotStart, Gitea, gitea


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
