"""How a proxy's process keeps its memory: what is freed goes back to the system, and live objects are seldom looked through.

Called once by each program that serves traffic, when everything is imported. Nothing here changes what the program does.
"""

import gc
from typing import Final

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


def settle() -> None:
    gc.freeze()  # modules, functions and classes stay until the end
    gc.set_threshold(YOUNG_OBJECTS)
    try:
        import ctypes  # noqa: PLC0415 - Pythons that were built without libffi have none, and do without
    except ImportError:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_TRIM_THRESHOLD, FREE_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
