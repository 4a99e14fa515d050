"""Completion as the shells themselves run it: the script a person installs, in the shell it is for."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest


def _environment(folder: Path) -> dict[str, str]:
    """The installed command first on PATH, and nobody's shell settings."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "TERM": "dumb", "BACKSTAY_STATE_DIR": str(folder / "none")}


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_verbs(tmp_path: Path) -> None:
    script = (
        'eval "$(backstay completion bash)"; COMP_WORDS=(backstay rollout p); COMP_CWORD=2; '
        '_backstay_completion backstay; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert _run(tmp_path, "bash", "--norc", "-c", script).split() == ["pause", "promote"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_verbs_with_their_meaning(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "fish" / "completions"
    folder.mkdir(parents=True)
    (folder / "backstay.fish").write_text(_run(tmp_path, "backstay", "completion", "fish"))
    told = _run(tmp_path, "fish", "-c", 'complete -C "backstay rollout p"')
    assert told.split("\n")[:2] == ["pause\tStop at the present wave.", "promote\tPass the present wave by hand"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_verbs_at_its_prompt(tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    shell = subprocess.Popen(
        ("zsh", "-f", "-i"),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=_environment(tmp_path),
        start_new_session=True,
    )
    try:
        os.write(terminal, b'autoload -Uz compinit; compinit -u; eval "$(backstay completion zsh)"; echo re""ady\n')
        _read_until(terminal, "ready")
        os.write(terminal, b"backstay rollout p\t\t")
        assert "promote" in _read_until(terminal, "promote")
    finally:
        shell.kill()
        shell.wait(timeout=10)
        os.close(inside)
        os.close(terminal)


def _read_until(terminal: int, wanted: str, within: float = 60.0) -> str:
    seen, end = "", time.monotonic() + within
    while wanted not in seen:
        left = end - time.monotonic()
        assert left > 0, f"no {wanted!r} in {seen!r}"
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen
