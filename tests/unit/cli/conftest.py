import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import views


@pytest.fixture
def operator() -> views.ShowingOperator:
    return views.ShowingOperator(shown=views.rolling())


@pytest.fixture
def state_dir(operator: views.ShowingOperator, tmp_path: Path) -> Iterator[Path]:
    """A state folder on whose socket `operator` answers."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    with views.served(operator, folder):
        yield folder


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and live views depend on what pytest's own output is connected to otherwise."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for name in ("BACKSTAY_STATE_DIR", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
