"""Documents of a folder or of a commit, read as the operator reads them: the same files, the same refusals."""

import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backstay.adapters.git.tree import Entry, Limits, parse_listing, parse_sizes, sort_out, within_size
from backstay.cli.exits import Failed
from backstay.core.ports import SourceRefused

_GIT_TIMEOUT: Final = 60.0  # seconds; reads the local object store only
_LIMITS: Final = Limits()
_FOLDER_ENDS: Final = (".git",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    contents: Mapping[str, bytes]
    refused: Sequence[tuple[str, str, str]] = ()
    revision: str = "working folder"


def read_folder(root: Path) -> Files:
    """What is in the folder now, committed or not. Raises Failed."""
    if not root.is_dir():
        raise Failed(f"{root}: no such folder", hint="name the folder of the mesh repository")
    try:
        wanted, refused = sort_out(_entries(root, root), _LIMITS)
        sizes = {path: (root / path).stat().st_size for path in wanted}
        small, big = within_size(wanted, sizes, _LIMITS)
        return Files(contents={path: (root / path).read_bytes() for path in small}, refused=(*refused, *big))
    except (OSError, SourceRefused) as error:
        raise Failed(f"{root}: {error}") from error


def _entries(root: Path, folder: Path) -> Iterator[Entry]:
    """As `git ls-tree -r` would list it, except that every path is its own object id."""
    for item in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = os.path.relpath(item.path, root)
        mode = item.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            yield Entry(mode="120000", object_id=path, path=os.fsencode(path))
        elif stat.S_ISREG(mode):
            yield Entry(mode="100644", object_id=path, path=os.fsencode(path))
        elif stat.S_ISDIR(mode) and item.name not in _FOLDER_ENDS:
            yield from _entries(root, Path(item.path))


def read_revision(root: Path, revision: str) -> Files:
    """The same folder as of a commit. Raises Failed."""
    listing = _git(root, "ls-tree", "-r", "-z", "--end-of-options", revision)
    try:
        wanted, refused = sort_out(parse_listing(listing), _LIMITS)
        objects = "\n".join(wanted.values()).encode()
        sizes = parse_sizes(_git(root, "cat-file", "--batch-check", stdin=objects))
        small, big = within_size(wanted, sizes, _LIMITS)
    except SourceRefused as error:
        raise Failed(f"{revision}: {error}") from error
    bodies = _bodies(root, [*small.values()])
    contents = {path: bodies[object_id] for path, object_id in small.items()}
    return Files(contents=contents, refused=(*refused, *big), revision=revision)


def _bodies(root: Path, objects: Sequence[str]) -> dict[str, bytes]:
    """Object id -> content, from the `<id> <type> <size>LF<content>LF` records of cat-file."""
    output = _git(root, "cat-file", "--batch", stdin="\n".join(objects).encode())
    found: dict[str, bytes] = {}
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        object_id, _, size = output[at:end].decode("ascii").split(" ")
        found[object_id] = output[end + 1 : end + 1 + int(size)]
        at = end + int(size) + 2
    return found


def _git(root: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=_GIT_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"cannot run git: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failed(
            f"git {arguments[0]}: {said[-1] if said else 'failed'}", hint="is this a git repository with that revision?"
        )
    return done.stdout
