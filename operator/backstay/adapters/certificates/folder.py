"""The CA's files in a folder, in the form Istio users know. Changes of several files are committed through a journal, so
that a kill in the middle leaves the old set or the new one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backstay.adapters.certificates.reading import CertificatesUnusable

_JOURNAL: Final = "commit"


class FolderVault:
    """One CA's files. Implements Vault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def open(cls, folder: Path) -> "FolderVault":
        """Carries through what a kill has interrupted. Raises OSError."""
        _finish_commit(folder)
        return cls(folder)

    def read(self, name: str) -> bytes | None:
        """None for a file that is not there. Raises CertificatesUnusable."""
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CertificatesUnusable(f"{path}: cannot be read: {error}") from error

    def commit(self, files: Mapping[str, bytes | None]) -> None:
        _commit(self.folder, files)


def is_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def create(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a whole folder beside its place and move it in: nobody ever sees half a CA, nothing is overwritten."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-ca-", dir=folder.parent))
    try:
        for name, data in files.items():
            _write_private(new / name, data)
        _sync_folder(new)
        # Fails on a folder that somebody has filled in the meantime: then theirs counts.
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _commit(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Replace several files as one: all new ones lie ready before the journal that names them appears."""
    for name, data in files.items():
        if data is not None:
            _write_private(folder / f"{name}.next", data)
    _sync_folder(folder)
    _write_private(folder / f"{_JOURNAL}.next", "\n".join(_journal_lines(files)).encode())
    os.replace(folder / f"{_JOURNAL}.next", folder / _JOURNAL)
    _finish_commit(folder)


def _finish_commit(folder: Path) -> None:
    """Carry through a commit whose journal is there, drop what never got that far."""
    journal = folder / _JOURNAL
    if journal.exists():
        _sync_folder(folder)
        for line in journal.read_text().split("\n"):
            _take_over(folder, line[0], line[1:])
        _sync_folder(folder)
        journal.unlink()
    for leftover in folder.glob("*.next"):
        leftover.unlink()


def _journal_lines(files: Mapping[str, bytes | None]) -> list[str]:
    return [f"-{name}" if data is None else f"+{name}" for name, data in files.items()]


def _take_over(folder: Path, sign: str, name: str) -> None:
    """One line of the journal; doing it twice is harmless, since a kill may come between any two."""
    ready = folder / f"{name}.next"
    if sign == "-":
        (folder / name).unlink(missing_ok=True)
    elif ready.exists():
        os.replace(ready, folder / name)


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
