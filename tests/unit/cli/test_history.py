"""`history` tells how past rollouts ended."""

from pathlib import Path

from support import views
from support.commands import backstay


def test_history_tells_why(state_dir: Path, operator: views.ShowingOperator) -> None:
    operator.shown = views.held()
    lines = backstay("history", state_dir=state_dir).out.splitlines()
    assert lines[1].split()[:5] == ["r2", "failed", "1/4", "fail", "main@sha1:bbbbbbbb"]
    assert lines[2] == f"r2: {views.SENTENCE}"
