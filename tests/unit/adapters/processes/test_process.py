import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backstay.adapters.processes import process
from backstay.adapters.processes.process import Launch, adopt, leftover, start, start_time


def launch(folder: Path, *argv: str) -> Launch:
    return Launch(
        argv=argv,
        env={},
        inherited={"PATH": os.environ["PATH"]},
        cwd=folder,
        log_file=folder / "log",
        pid_file=folder / "a" / "pid",
    )


@pytest.fixture(params=["pidfd", "polling"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that tell when a process ends, and those that have to be asked (macOS)."""
    if request.param == "polling":
        monkeypatch.setattr(process, "_pidfd", lambda _: None)
        monkeypatch.setattr(process, "POLL_S", 0.01)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no pidfd")


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", -9)])
async def test_an_end_is_noticed_with_its_code(tmp_path: Path, script: str, code: int) -> None:
    started = start(launch(tmp_path, "sh", "-c", f"sleep 0.05; {script}"))
    assert await asyncio.wait_for(started.wait(), 10) == code
    assert (started.is_alive(), start_time(started.pid)) == (False, "")


@pytest.mark.usefixtures("watching")
async def test_the_end_of_an_adopted_process_is_noticed_without_a_code(tmp_path: Path) -> None:
    wanted = launch(tmp_path, "sleep", "60")
    parent = f"from backstay.adapters.processes.process import *; start({wanted!r})".replace("PosixPath", "Path")
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", parent)
    assert await done.wait() == 0
    adopted = adopt(wanted)
    assert adopted is not None
    assert adopted.adopted
    await asyncio.wait_for(adopted.end(5), 10)
    assert await adopted.wait() is None
    assert adopt(wanted) is None


def test_only_the_same_launch_is_adopted(tmp_path: Path) -> None:
    started = start(launch(tmp_path, "sleep", "60"))
    try:
        assert adopt(launch(tmp_path, "sleep", "61")) is None
        left = leftover(tmp_path / "a" / "pid")
        assert left is not None
        assert left.pid == started.pid
    finally:
        started.sweep()
        started._child.wait()  # type: ignore[union-attr]


def test_an_unreadable_pid_file_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("{half")
    assert leftover(tmp_path / "pid") is None


def test_start_times_tell_processes_apart_with_and_without_proc() -> None:
    first = subprocess.Popen(["sleep", "60"])
    try:
        assert start_time(first.pid) not in ("", start_time(os.getpid()))
        assert process._start_time_by_ps(first.pid)
    finally:
        first.kill()
        zombie = first.pid
        while start_time(zombie):
            pass
        assert process._start_time_by_ps(zombie) == ""
        first.wait()
