"""Where lines of the access log go: standard output, by a thread that may wait for its reader so that traffic need not."""

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Final

MAX_BUFFERED: Final = 1024 * 1024
"""Bytes kept for a reader that does not keep up; beyond it lines are dropped and counted, traffic is not held up."""

Sink = Callable[[bytes], int | None]
"""Takes what it can without waiting and says how many bytes that were (None: all). Raises LinesLost."""


class LinesLost(OSError):
    """Lines that were taken could not be written; there is no second try for them."""

    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.lines = lines


class StdoutSink:
    """Writes to standard output from a thread of its own, one batch at a time.

    Not by O_NONBLOCK: that is a setting of the open file, which other processes (a shell, a supervisor) may share.
    """

    def __init__(self, descriptor: int | None = None, *, shared: bool = False) -> None:
        """`shared`: other processes write to it too, so lines are written in pieces that the kernel does not mix."""
        self._descriptor = descriptor
        self._most = select.PIPE_BUF if shared else MAX_BUFFERED * 2
        self._batch = b""
        self._lost: LinesLost | None = None
        self._filled = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, data: bytes) -> int:
        if self._batch:
            return 0
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost
        self._batch = data
        self._filled.set()
        if self._thread is None:  # a sidecar without an access log has no thread
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        return len(data)

    @property
    def is_busy(self) -> bool:
        return bool(self._batch)

    def _run(self) -> None:
        descriptor = self._descriptor if self._descriptor is not None else sys.stdout.fileno()
        while True:
            self._filled.wait()
            self._filled.clear()
            left = memoryview(self._batch)
            try:
                while left:
                    left = left[os.write(descriptor, left[: _whole_lines(left, self._most)]) :]
            except OSError as error:  # the reader has gone away
                self._lost = LinesLost(bytes(left).count(b"\n"), error)
            self._batch = b""  # last: from here on the loop may bring the next one


def _whole_lines(data: memoryview, most: int) -> int:
    """How many bytes to write at once: at most so many, in whole lines where one fits."""
    if len(data) <= most:
        return len(data)
    return bytes(data[:most]).rfind(b"\n") + 1 or most
