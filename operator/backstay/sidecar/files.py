"""The sidecar's one writer: a file is either its old self or its new self, never half of each, whatever happens.

Everything the sidecar keeps goes through `write`; tests make disks full here.
"""

import contextlib
import enum
import os
import tempfile
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600


class Outlives(enum.Enum):
    """What a write must survive. Each step costs about a disk flush, and fifty sidecars may share a disk."""

    KILL = 0
    """kill -9 of this process; after a power cut the file may be anything."""
    POWER_CUT = 1
    """After a power cut the file is its old self or its new self."""
    ALWAYS = 2
    """After a power cut the file is its new self."""


def write(path: Path, data: bytes, outlives: Outlives = Outlives.ALWAYS) -> None:
    """Replace a file's content atomically. Raises OSError (disk full, read-only); then the old file is untouched."""
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        try:
            os.fchmod(descriptor, PRIVATE)
            _write_all(descriptor, data)
            if outlives is not Outlives.KILL:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if outlives is Outlives.ALWAYS:
        sync_folder(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        view = view[written:]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename alone may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Drop what a killed process left half written."""
    for path in folder.glob(".new-*"):
        path.unlink(missing_ok=True)
