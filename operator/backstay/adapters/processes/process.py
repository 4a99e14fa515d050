"""One operating-system process that may outlive the operator: start it, find it again, watch it, end it.

A process is started in its own session with its output in a file, and written down (pid and start time) so that an
operator that was killed finds it again. Nothing here restarts anything: supervisor.py does.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

_log: Final = logging.getLogger("backstay.processes")

PID_FILE_VARIABLE: Final = "BACKSTAY_PID_FILE"
"""Tells every process which pid file is its own, so that one that was never written down can still be found."""
PROC_STAT: Final = Path("/proc/self/stat")
"""There on Linux only."""
POLL_S: Final = 0.2
"""Seconds between looks at a process on systems without pidfd; a fifth of a second is soon enough for a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to run and where its traces go."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    inherited: Mapping[str, str]
    """What the operator's own environment adds; no part of the fingerprint, or an operator started again from another
    terminal would restart everything."""
    cwd: Path
    log_file: Path
    pid_file: Path

    @property
    def fingerprint(self) -> str:
        """Equal for launches that would run the same thing; a running process with another one is out of date."""
        facts = (self.argv, sorted(self.env.items()), str(self.cwd))
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a pid file."""

    pid: int
    started: str
    fingerprint: str


class Process:
    """A started or adopted process and its group."""

    def __init__(self, pid: int, started: str, child: "subprocess.Popen[bytes] | None") -> None:
        self.pid = pid
        self.adopted = child is None
        self._started = started
        self._child = child

    def __repr__(self) -> str:
        return f"<Process {self.pid}{' adopted' if self.adopted else ''}{'' if self.is_alive() else ' ended'}>"

    def is_alive(self) -> bool:
        """False once it has ended, also as a zombie and when its number belongs to somebody else by now."""
        if self._child is not None:
            return self._child.poll() is None
        return start_time(self.pid) == self._started

    async def wait(self) -> int | None:
        """Until it has ended; its exit code (negative: signal), None if it was not our child."""
        if self.is_alive():
            await self._ended()
        return self._child.wait() if self._child is not None else None

    async def _ended(self) -> None:
        descriptor = _pidfd(self.pid)
        if descriptor is None:
            while self._is_there():  # noqa: ASYNC110 (nobody sets an event when another process's child ends)
                await asyncio.sleep(POLL_S)
            return
        try:
            await _readable(descriptor)
        finally:
            os.close(descriptor)

    def _is_there(self) -> bool:
        """As is_alive, but without asking ps: a number just seen in use is not given away within a few polls."""
        if self._child is not None or PROC_STAT.exists():
            return self.is_alive()
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, if the process is still there."""
        if self.is_alive():
            _signal_group(self.pid, number)

    async def end(self, grace: float) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds; whatever it left in its group is killed as well."""
        if not self.is_alive():
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            _log.warning("process.killed pid=%d grace_s=%g", self.pid, grace)
            self.signal(signal.SIGKILL)
            await self.wait()
        self.sweep()

    def sweep(self) -> None:
        """Kill what is left of the group. Only after the leader's end, and at once: the number may be given away."""
        _signal_group(self.pid, signal.SIGKILL)


def start(launch: Launch) -> Process:
    """Run it. Raises OSError where the program cannot be run."""
    launch.log_file.parent.mkdir(parents=True, exist_ok=True)
    with launch.log_file.open("ab") as output:
        child = subprocess.Popen(
            launch.argv,
            env={**launch.inherited, **launch.env, PID_FILE_VARIABLE: str(launch.pid_file)},
            cwd=launch.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = start_time(child.pid)
    _write(launch.pid_file, _Written(pid=child.pid, started=started, fingerprint=launch.fingerprint))
    return Process(child.pid, started, child)


def adopt(launch: Launch) -> Process | None:
    """The process that an earlier operator started from the same launch, if it still runs."""
    written = _read(launch.pid_file)
    if written is None or written.fingerprint != launch.fingerprint:
        return None
    process = Process(written.pid, written.started, None)
    return process if process.is_alive() else None


def leftover(pid_file: Path) -> Process | None:
    """Whatever runs under this pid file, up to date or not."""
    written = _read(pid_file)
    if written is None:
        return None
    process = Process(written.pid, written.started, None)
    return process if process.is_alive() else None


async def end_strays(folder: Path) -> list[int]:
    """Kill sessions that carry a pid file below `folder` (absolute) which does not name them: their operator was killed in the
    moment between start and pid file. Returns their ids; knows none on systems without /proc."""
    killed = _kill_strays(os.fsencode(f"{PID_FILE_VARIABLE}={folder}{os.sep}"))
    for session, started in killed.items():
        if started:
            await Process(session, started, None).wait()  # its ports are free only then
    return sorted(killed)


def _kill_strays(mark: bytes) -> dict[int, str]:
    """Session -> start time of its leader."""
    killed: dict[int, str] = {}
    for found in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to another user
            variable = next((item for item in found.read_bytes().split(b"\0") if item.startswith(mark)), b"")
            session = os.getsid(int(found.parent.name))
            if variable and session not in killed and not _is_written(variable, session):
                killed[session] = start_time(session)
                _signal_group(session, signal.SIGKILL)
    return killed


def _is_written(variable: bytes, session: int) -> bool:
    written = _read(Path(os.fsdecode(variable.partition(b"=")[2])))
    return written is not None and written.pid == session


def start_time(pid: int) -> str:
    """An opaque text that no other process with this number has; empty when there is none (zombies included)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "" if PROC_STAT.exists() else _start_time_by_ps(pid)
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{_boot()}:{fields[19]}"


def _boot() -> str:
    """Start times count from boot, so the boot belongs to them."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_time_by_ps(pid: int) -> str:
    answer = subprocess.run(
        ["/bin/ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C"},
    ).stdout.strip()
    state, _, started = answer.partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already; macOS says EPERM for zombies
        os.killpg(pid, number)


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable at the process's end (Linux), also for processes that are not our children."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _write(path: Path, written: _Written) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(written))
    fresh.replace(path)


def _read(path: Path) -> _Written | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Written)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        _log.warning("process.pid_file_unreadable path=%s", path)
        return None
