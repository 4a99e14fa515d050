"""Runs the command line through its real entry point, exit codes included."""

import contextlib
import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from backstay.cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def backstay(*arguments: str | Path, state_dir: Path | None = None) -> Ran:
    """Call `backstay`; without a state folder it looks into one that is not there."""
    folder = state_dir or Path("/nonexistent/backstay")
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(["--state-dir", str(folder), *map(str, arguments)])
    return Ran(code=int(ended.value.code or 0), out=out.getvalue(), err=err.getvalue())


def git(folder: Path, *arguments: str) -> str:
    """git with an identity of its own and nobody's settings."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_AUTHOR_EMAIL": "ann@example.com",
        "GIT_COMMITTER_NAME": "Ann",
        "GIT_COMMITTER_EMAIL": "ann@example.com",
    }
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
