"""Processes that outlive the program that started them, known by number and start time.

A number alone is not enough: after a crash the kernel may have given it to somebody else, and stopping the cluster must
never end a stranger.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

POLL_S: Final = 0.05


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the cluster; it leads a process group of its own."""

    pid: int
    started: str
    """The kernel's start time, in ticks since boot."""


def spawn(command: Sequence[str], log: Path, folder: Path) -> Process:
    """Start it in the background: no terminal, no standard input, what it says in a file."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    child.returncode = 0  # we do not wait for it; without this Popen complains when it is collected
    return of(child.pid)


def of(pid: int) -> Process:
    fields = _stat(pid)
    return Process(pid=pid, started=fields[19] if fields else "gone")


def is_alive(process: Process) -> bool:
    fields = _stat(process.pid)
    return bool(fields) and fields[19] == process.started and fields[0] not in {"Z", "X"}


def stop(process: Process, grace: float) -> None:
    """Ask its group to end, then end it. Returns when it is gone."""
    if not is_alive(process):
        return
    _signal_group(process, signal.SIGTERM)
    if not _waited(lambda: not is_alive(process), grace):
        kill(process)
    _reap(process)


def kill(process: Process) -> None:
    """End its group without a word, so that it tells nobody. Returns when it is gone."""
    _signal_group(process, signal.SIGKILL)
    _waited(lambda: not is_alive(process), 10.0)
    _reap(process)


def _signal_group(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # it went by itself meanwhile


def _reap(process: Process) -> None:
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return  # another process started it, or somebody has reaped it


def _waited(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold spaces and brackets; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(") ")[2].split()


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []
