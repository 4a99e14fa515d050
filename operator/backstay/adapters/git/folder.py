"""A repository in a folder of this machine: where its git data is, whose it is, and whether its refs have moved.

Refs are watched by reading a few small files, so that the loop may look several times a second at no cost. git is only
started when something there has changed.
"""

import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from backstay.adapters.git.address import RefSpec
from backstay.core.ports import SourceRefused, SourceUnavailable

MAX_REF_FILE: Final = 4096  # bytes; a ref file holds 41 or 65, or the name of another ref
Signature: TypeAlias = tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    root: Path
    """What the user named."""
    git_dir: Path
    """Where objects and refs are; of a linked worktree, the main repository's."""

    @property
    def head(self) -> Path:
        return self.git_dir / "HEAD"


def locate(root: Path) -> Folder:
    """Find the git data of a folder. Raises SourceRefused(URLInvalid) for a folder that is no repository."""
    if not root.is_dir():
        raise SourceRefused("URLInvalid", f"{root}: no such folder")
    for candidate in (root / ".git", root):
        git_dir = _pointed(candidate) if candidate.is_file() else candidate
        common = _common(git_dir)
        if (common / "objects").is_dir() and (common / "HEAD").is_file():
            return Folder(root=root, git_dir=common)
    raise SourceRefused("URLInvalid", f"{root}: is not a git repository; make it one with 'git init' and commit")


def _pointed(file: Path) -> Path:
    """What a `.git` file of a worktree or submodule points at."""
    text = _read(file) or ""
    return (file.parent / text.removeprefix("gitdir:").strip()).resolve() if text.startswith("gitdir:") else file


def _common(git_dir: Path) -> Path:
    shared = _read(git_dir / "commondir")
    return (git_dir / shared.strip()).resolve() if shared else git_dir


def check_owner(folder: Folder) -> None:
    """git reads only one's own repositories, since their configuration can start programs; so do we.

    Raises SourceUnavailable(DubiousOwnership).
    """
    mine = _own_uids()
    for path in (folder.root, folder.git_dir):
        owner = path.stat().st_uid
        if owner not in mine and not _user_trusts(folder):
            raise SourceUnavailable("DubiousOwnership", _ownership_message(folder, path, owner))


def _own_uids() -> frozenset[int]:
    """As git: root under sudo also trusts the person who called sudo."""
    uid = os.geteuid()
    caller = os.environ.get("SUDO_UID", "")
    return frozenset((uid, int(caller))) if uid == 0 and caller.isdecimal() else frozenset((uid,))


def _user_trusts(folder: Folder) -> bool:
    """Whether the user told git to trust this folder (safe.directory in the user's own configuration)."""
    # Not by command.py, which shuts the user's configuration out: here it is what is asked for.
    try:
        listed = subprocess.run(
            ("git", "config", "--global", "--get-all", "safe.directory"),
            capture_output=True, cwd="/", timeout=10, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    values = listed.stdout.decode("utf-8", "replace").splitlines()
    return any(value in ("*", str(folder.root), str(folder.git_dir)) for value in values)


def _ownership_message(folder: Folder, path: Path, owner: int) -> str:
    me = _name(os.geteuid())
    return (
        f"{path} belongs to {_name(owner)}, this operator runs as {me}; a repository of somebody else is not read. "
        f"Run the operator as {_name(owner)}, or make it yours with 'chown -R {me} {folder.root}', or, if you trust "
        f"its owner, 'git config --global --add safe.directory {folder.root}'"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class FolderWatch:
    """Tells whether the refs that are followed may have moved, by reading files of at most a few dozen bytes."""

    def __init__(self, folder: Folder, ref: RefSpec) -> None:
        self._folder = folder
        self._ref = ref
        self._seen: Signature | None = None

    def __repr__(self) -> str:
        return f"<FolderWatch {self._folder.root} {self._ref}>"

    def signature(self) -> Signature:
        """Equal signatures mean that nothing moved."""
        return tuple(_stated(path) for path in self._paths())

    def has_changed(self, now: Signature) -> bool:
        return now != self._seen

    def remember(self, seen: Signature) -> None:
        """Take a signature, made before the refs were read, as known."""
        self._seen = seen

    def forget(self) -> None:
        self._seen = None

    def _paths(self) -> Iterator[Path]:
        git_dir = self._folder.git_dir
        yield git_dir / "packed-refs"
        yield git_dir / "reftable" / "tables.list"
        if self._ref.semver:
            yield from _files_below(git_dir / "refs" / "tags")
        elif self._ref.tag:
            yield git_dir / "refs" / "tags" / self._ref.tag
        elif self._ref.branch:
            yield git_dir / "refs" / "heads" / self._ref.branch
        elif not self._ref.commit:
            yield from _head_and_target(self._folder.head)


def _head_and_target(head: Path) -> Iterator[Path]:
    yield head
    target = (_read(head) or "").removeprefix("ref:").strip()
    if target.startswith("refs/") and ".." not in target:
        yield head.parent / target


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in sorted(names))


def _stated(path: Path) -> tuple[str, object]:
    """Small files by content, since two writes within one tick of the clock leave the same time; others by status."""
    content = _read(path)
    if content is not None:
        return str(path), content
    try:
        status = path.stat()
    except OSError:
        return str(path), None
    return str(path), (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REF_FILE + 1)
    except OSError:
        return None
    return content.decode("utf-8", "replace") if len(content) <= MAX_REF_FILE else None
