"""`backstay up` as a person meets it: it says what is ready and what is live, what keeps crashing, and why it cannot start."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.commands import backstay, git

WITHIN = 60.0  # seconds; four seconds on an idle machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `init` writes, committed; paths with spaces are nothing special."""
    made = tmp_path / "first mesh"
    assert backstay("init", made).code == 0
    git(made / "mesh", "init", "-q", "-b", "main")
    git(made / "mesh", "add", ".")
    git(made / "mesh", "commit", "-q", "-m", "First mesh")
    return made


def command(folder: Path, state: Path, *more: str) -> list[str]:
    up = ["up", str(folder / "mesh"), "-w", str(folder / "workloads.yaml"), *more]
    return [sys.executable, "-m", "backstay.cli.main", "--state-dir", str(state), *up]


@contextmanager
def running(folder: Path, state: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = state.with_name("up.log")
    with log.open("wb") as file:
        process = subprocess.Popen(command(folder, state, *more), stdout=file, stderr=file)
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=WITHIN)
        finally:
            process.kill()


def until_said(log: Path, words: str) -> None:
    deadline = time.monotonic() + WITHIN
    while words not in log.read_text():
        assert time.monotonic() < deadline, f"{words!r} not within {WITHIN} s:\n{log.read_text()}"
        time.sleep(0.1)


def refused(folder: Path, state: Path, *more: str) -> tuple[int, str]:
    done = subprocess.run(command(folder, state, *more), capture_output=True, text=True, timeout=WITHIN, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:", "  "))]
    return done.returncode, "\n".join(said)


def test_it_tells_what_is_ready_and_live_and_ends_without_a_trace(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "s"
    with running(folder, state) as (process, log):
        until_said(log, "5 of 5 instances ready")
        until_said(log, f"main@sha1:{git(folder / 'mesh', 'rev-parse', 'HEAD')[:8]} is live")
        pids = [json.loads(file.read_text())["pid"] for file in state.glob("instances/*/*.pid")]
        assert len(pids) == 10
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WITHIN) == 0
    assert log.read_text().splitlines()[-1] == "stopping"
    assert [pid for pid in pids if is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_service_that_keeps_crashing_is_named_with_its_last_words(folder: Path, tmp_path: Path) -> None:
    (folder / "services" / "caller.py").write_text("raise SystemExit('the coffee is cold')\n")
    with running(folder, tmp_path / "s") as (_, log):
        until_said(
            log, "caller-0: application ended with exit code 1 (3 times so far); its log ends: the coffee is cold"
        )
        until_said(log, "3 of 5 instances ready")


def test_the_second_operator_of_a_state_names_the_first(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "s"
    with running(folder, state) as (process, log):
        until_said(log, "is up")
        code, said = refused(folder, state)
        assert code == 2
        assert said == (
            f"error: {state / 'state.db'}: in use by another operator (pid {process.pid}); "
            "stop that one first, or give this one a state of its own\n"
            f"hint: end that one, or give this one a folder of its own: backstay --state-dir {state}-2 up ..."
        )
        assert process.poll() is None


def test_a_port_in_use_is_named(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(folder, tmp_path / "s", "--control-port", str(port))
    assert code == 2
    assert said.startswith(
        f"error: control port 127.0.0.1:{port}: is in use by another program\nhint: choose another than"
    )


def test_a_folder_that_is_no_repository_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    (folder / "mesh" / ".git").rename(folder / "elsewhere")
    code, said = refused(folder, tmp_path / "s")
    assert code == 2
    assert said.startswith(f"error: {folder / 'mesh'}: is not a git repository")
    assert not list((tmp_path / "s").glob("instances/*"))


def test_a_workloads_file_is_refused_with_its_line(folder: Path, tmp_path: Path) -> None:
    file = folder / "workloads.yaml"
    file.write_text("workloads:\n- name: a\n  comand: [x]\n")
    code, said = refused(folder, tmp_path / "s")
    assert code == 2
    assert f"{file}:2:3: workloads[0]: " in said
