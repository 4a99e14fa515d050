"""What keeps an operator from starting is said in one line, with a way out, and nothing is overwritten or left behind."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.live import LiveMesh, backend, mesh_document, workloads_file

pytestmark = pytest.mark.xdist_group("mesh-b")

FIXED = "127.0.0.1"


@pytest.fixture
def mesh() -> Iterator[LiveMesh]:
    """One service, nobody asks; not started."""
    found = LiveMesh(workloads_file(["api"], [backend("api", "api")]), {"mesh.yaml": mesh_document()})
    try:
        found.push({"mesh.yaml": mesh_document()}, "first")
        yield found
    finally:
        found.stop()


def fails_to_start(mesh: LiveMesh, *options: str) -> tuple[int, str]:
    """Exit code and what was said; it must end by itself."""
    done = subprocess.run(
        [*mesh.command("up"), str(mesh.repo.remote), "--workloads", str(mesh.workloads), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("BACKSTAY_")},
    )
    return done.returncode, errors(done.stderr)


def errors(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.lower().startswith(("error:", "hint:")))


def processes_of(folder: Path) -> list[psutil.Process]:
    return [item for item in psutil.process_iter() if str(folder) in " ".join(_arguments(item))]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_taken_control_port_is_named_and_nothing_is_started(mesh: LiveMesh) -> None:
    with socket.socket() as taken:
        taken.bind((FIXED, 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = fails_to_start(mesh, "--control-port", str(port))
    assert code == 2
    assert str(port) in said
    assert "in use" in said
    assert processes_of(mesh.folder_state) == []


def test_a_second_operator_refuses_and_names_the_first(mesh: LiveMesh) -> None:
    mesh.start()
    assert mesh.process is not None
    mesh.until(lambda: bool(mesh.repository()), "the first operator", 30)
    code, said = fails_to_start(mesh)
    assert code == 2
    assert f"{mesh.process.pid}" in said
    assert str(mesh.folder_state) in said
    mesh.until(lambda: mesh.state(mesh.repo.git("rev-parse", "HEAD")) == "live", "the first one to be untouched", 20)
    assert mesh.process.poll() is None


@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_a_corrupt_state_is_said_and_left_as_it_is(mesh: LiveMesh, damage: str) -> None:
    mesh.start()
    first = mesh.repo.git("rev-parse", "HEAD")
    mesh.wait(first, "live", timeout=30)
    mesh.stop_operator()
    state = mesh.folder_state / "state.db"
    whole = state.read_bytes()
    broken = b"this is not a database" * 500 if damage == "garbage" else whole[: len(whole) // 2]
    state.write_bytes(broken)
    code, said = fails_to_start(mesh)
    assert code == 2
    assert str(state) in said
    assert state.read_bytes() == broken
    assert processes_of(mesh.folder_state) == []
    state.write_bytes(whole)
    mesh.start()
    mesh.wait(first, "live", timeout=30)


def test_an_operator_that_ends_leaves_nothing_behind(mesh: LiveMesh) -> None:
    mesh.start()
    mesh.wait(mesh.repo.git("rev-parse", "HEAD"), "live", timeout=30)
    assert mesh.process is not None
    mesh.process.send_signal(signal.SIGTERM)
    assert mesh.process.wait(30) == 0
    assert processes_of(mesh.folder_state) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_somebody_else_says_what_to_do(mesh: LiveMesh) -> None:
    for path in [mesh.repo.remote, *mesh.repo.remote.rglob("*")]:
        os.chown(path, 65534, 65534)
    code, said = fails_to_start(mesh)
    assert code == 2
    assert "belongs to" in said
    assert f"chown -R root {mesh.repo.remote}" in said
    assert "safe.directory" in said
    assert processes_of(mesh.folder_state) == []
