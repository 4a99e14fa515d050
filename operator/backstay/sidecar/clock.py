"""The three clocks of a sidecar, in one place: pure modules take an `Instant` and never read a clock themselves."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Goes on while the machine sleeps and means the same in the next process; macOS has none, its monotonic clock will do.
_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    since_boot: float
    """Seconds since the machine started."""
    wall: float
    """Unix seconds: may jump; decides nothing by itself except whether a certificate is valid."""
    boot: str
    """Which start of the machine `since_boot` counts from; empty where the system does not say."""


def now() -> Instant:
    return Instant(since_boot=time.clock_gettime(_BOOTTIME), wall=time.time(), boot=_boot_id())


def _boot_id() -> str:
    global _known_boot  # noqa: PLW0603 - it cannot change while this process lives
    if _known_boot is None:
        try:
            _known_boot = _BOOT_ID.read_text().strip()
        except OSError:
            _known_boot = ""
    return _known_boot


_known_boot: str | None = None
