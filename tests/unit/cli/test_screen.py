"""On a terminal a rollout is watched in place; the same command in a pipe writes plain lines (test_rollout.py)."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from support import views


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code and everything the command wrote to its terminal."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    command = [sys.executable, "-m", "backstay.cli.main", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:
        pass  # Linux says EIO when the last writer has closed a terminal
    finally:
        os.close(ours)
    return process.wait(timeout=30), written.decode()


def test_watch_redraws_in_place(state_dir: Path, operator: views.ShowingOperator) -> None:
    looks = iter([views.rolling()] * 4)

    def advance() -> None:
        operator.shown = next(looks, views.held())

    operator.on_look = advance
    code, written = on_a_terminal("--state-dir", str(state_dir), "rollout", "watch")
    assert code == 1
    assert "\x1b[1A" in written  # the cursor went up again
    assert "41/118 (34.7 %)" in written
    assert "Traceback" not in written


def test_colours_appear_on_a_terminal(state_dir: Path) -> None:
    _, written = on_a_terminal("--state-dir", str(state_dir), "status")
    assert "\x1b[31mFalse" in written
    _, plain = on_a_terminal("--state-dir", str(state_dir), "--color", "never", "status")
    assert "\x1b[" not in plain
