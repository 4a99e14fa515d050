"""Runs jobs of ours on strangers' input in a process of their own: bounded in time and memory, without our environment."""

import asyncio
import os
import signal
import sys
from typing import Final

from backstay.core.ports import JobFailed
from backstay.redact import clean

WALL_SECONDS: Final = 180.0
"""Three times the CPU seconds that a review may take: the machine has other work."""
MODULE: Final = "backstay.reconciler.review_job"
_OUT_OF_MEMORY: Final = 3
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL")
"""Of the environment: what an interpreter wants, and no credentials."""


class ProcessBench:
    """Workbench in processes of this interpreter."""

    def __init__(self, *, module: str = MODULE, wall: float = WALL_SECONDS) -> None:
        self._module = module
        self._wall = wall

    async def review(self, job: bytes) -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._wall):
                out, said = await process.communicate(job)
        except TimeoutError as error:
            raise JobFailed(f"it took more than {self._wall:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise JobFailed(_why(process.returncode or 0, said))
        return out


def _why(code: int, said: bytes) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it took more computing than a review may"
    if code == _OUT_OF_MEMORY:
        return "it took more memory than a review may"
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"it ended with code {code}"]
    return clean(f"it broke: {last[0]}", limit=200)
