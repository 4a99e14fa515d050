"""A wall clock that can be set for some processes only: what `date -s`, ntp or a closed lid does to a machine.

The processes get a small library before libc's (`clock_shift.c`) that adds seconds from a shared file to the real time;
clocks that count on are left alone, as they are when somebody sets the time. Needs Linux and a C compiler.
"""

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_name("clock_shift.c")
COMPILER: Final = shutil.which("cc") or shutil.which("gcc") or ""
needs_clock: Final = pytest.mark.skipif(
    not (sys.platform == "linux" and COMPILER),
    reason="setting the time for some processes takes Linux and a C compiler",
)


class Clock:
    """The wall clock of every process that was started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "clock"
        self.set(0)
        library = folder / "clock.so"
        subprocess.run(
            [COMPILER, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True, timeout=60
        )
        self.environment: Final = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)}

    def set(self, seconds: int) -> None:
        """From now on the processes' time is that much ahead of the real one; they notice at their next look."""
        if not self._shift.exists():
            self._shift.write_bytes(bytes(struct.calcsize("l")))
        with self._shift.open("r+b") as file:
            file.write(struct.pack("l", seconds))
