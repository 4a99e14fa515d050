"""How a proxy's process keeps its memory: what is freed goes back to the system, and live objects are seldom looked through.

`settle` is called once by each program that serves traffic, when everything is imported; `give_back` by the engine after many
connections have ended. Nothing here changes what the program does.
"""

import gc
from functools import cache
from typing import Any, Final

YOUNG_OBJECTS: Final = 10_000
"""New containers before a look for cycles (Python's own: 700). 256 requests in flight hold 5,000, which would each time be
looked at in vain: requests and configs free what they made themselves. Each tenth look is at those that survived as well, and
each hundredth at everything, as Python has it: a config of 1,000 hosts is 200,000 objects and 30 ms, somebody's 99th percentile."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3  # malloc.h
FREE_BYTES: Final = 2 * 1024 * 1024
"""Free memory at the heap's end before it is given back. glibc begins with 128 KiB, which pieces of a large body exceed all the
time (taking and giving back cost as much as all the rest of it), and raises this to 64 MiB once it has seen a large block
freed, which a proxy then keeps."""
LARGE_BYTES: Final = 512 * 1024
"""Blocks from this size on are mapped, and gone when they are freed. Reads and what goes out in one write are below it."""


GIVE_BACK_AFTER: Final = 64
"""Connections that must have ended. One with mTLS holds 24 KiB (bench-proxy), so this is from 1.5 MiB on, and as many new ones
cost 100 ms of CPU before it can happen again: giving back takes 0.25 ms."""


def settle() -> None:
    gc.freeze()  # modules, functions and classes stay until the end
    gc.set_threshold(YOUNG_OBJECTS)
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_TRIM_THRESHOLD, FREE_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return free pages in the middle of the heap: after a burst of connections, glibc itself only looks at its end, where
    something that stays is nearly always."""
    malloc_trim = getattr(_libc(), "malloc_trim", None)
    if malloc_trim is not None:  # glibc
        malloc_trim(0)


class Tide:
    """How many connections are open, over time."""

    def __init__(self) -> None:
        self._highest = 0

    def has_ebbed(self, connections: int) -> bool:
        """True, once, when many of those that were open have ended."""
        ebbed = self._highest - connections >= GIVE_BACK_AFTER
        self._highest = connections if ebbed else max(self._highest, connections)
        return ebbed


@cache
def _libc() -> Any:
    try:
        import ctypes  # noqa: PLC0415 - Pythons that were built without libffi have none, and do without
    except ImportError:
        return None
    return ctypes.CDLL(None)
